import json
from pathlib import Path

import pytest
import torch

from wan.configs import nano_checkpoint
from wan.modules.tokenizers import HuggingfaceTokenizer, clean_text, load_tokenizer

TEXTS = ["a cat sits on a mat", "a red circle moves right over a blue background", "the green square stays"]


def write_tokenizer(folder: Path, vocab_size: int = 80, tokenizer_class: str = "PreTrainedTokenizerFast") -> Path:
    """Write a miniature of the released google/umt5-xxl folder: unigram pieces, pad 0, end 1, unknown 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 10, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("umt5"))


def test_ids_are_padded_with_0_and_end_with_1(folder):
    ids, mask = HuggingfaceTokenizer(folder, seq_len=24)(["a cat", "a red circle moves"], return_mask=True)
    assert ids.shape == mask.shape == (2, 24)
    assert ids.dtype == mask.dtype == torch.int64
    for row, valid in zip(ids, mask.sum(1)):
        assert row[valid - 1] == 1
        assert (row[valid:] == 0).all()
        assert (row[: valid - 1] > 1).all()


def test_empty_prompt_is_the_end_token_alone(folder):
    tokenizer = HuggingfaceTokenizer(folder, seq_len=4, clean="whitespace")
    for text in ("", "  \n "):
        ids, mask = tokenizer(text, return_mask=True)
        assert ids.tolist() == [[1, 0, 0, 0]]
        assert mask.sum() == 1 == tokenizer.count(text)


def test_truncation_keeps_the_end_token_and_names_what_is_cut(folder):
    tokenizer = HuggingfaceTokenizer(folder, seq_len=8, clean="whitespace")
    text = "a red circle\nmoves right   over a blue background"
    whole = HuggingfaceTokenizer(folder, clean="whitespace")(text)[0]
    assert tokenizer.count(text) == len(whole) > 8
    assert tokenizer(text)[0].tolist() == [*whole[:7].tolist(), 1]
    cleaned, cut = clean_text(text, "whitespace"), tokenizer.truncated_part(text)
    assert cut and cleaned.endswith(cut)
    assert tokenizer(cleaned[: -len(cut)])[0].tolist() == tokenizer(text)[0].tolist()


@pytest.mark.parametrize("extra", [0, 1])
def test_a_prompt_that_just_fits_is_not_truncated(folder, extra):
    count = HuggingfaceTokenizer(folder).count("a blue mat")
    tokenizer = HuggingfaceTokenizer(folder, seq_len=count + extra)
    assert tokenizer.truncated_part("a blue mat") == ""
    assert HuggingfaceTokenizer(folder, seq_len=count - 1).truncated_part("a blue mat") != ""


def test_without_seq_len_a_batch_is_padded_to_its_longest_text(folder):
    tokenizer = HuggingfaceTokenizer(folder)
    assert tokenizer(["a cat", TEXTS[1]]).shape == (2, tokenizer.count(TEXTS[1]))


def test_padding_and_truncation_stored_in_the_file_are_ignored(folder, tmp_path):
    from tokenizers import Tokenizer

    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stored.enable_truncation(3)
    stored.enable_padding(length=50)
    stored.save(str(tmp_path / "tokenizer.json"))
    assert torch.equal(HuggingfaceTokenizer(tmp_path)(TEXTS), HuggingfaceTokenizer(folder)(TEXTS))


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "T5TokenizerFast"])
def test_ids_equal_those_of_transformers(tmp_path, tokenizer_class):
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path, tokenizer_class=tokenizer_class)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    ours = HuggingfaceTokenizer(tmp_path, seq_len=16, clean="whitespace")
    texts = ["", "a cat", "  two   spaces\n", "x</s>y", "日本 cat", "zebra," * 9, *TEXTS]
    ids, mask = ours(texts, return_mask=True)
    expected = theirs(
        [clean_text(text, "whitespace") for text in texts],
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=16,
        add_special_tokens=True,
    )
    assert torch.equal(ids, expected.input_ids)
    assert torch.equal(mask, expected.attention_mask)


def test_cleaning_modes():
    text = "  “Snake_case”, \uff34\uff4f\uff4d &amp;amp; Jerry\n\uff01 "  # full-width "Tom" and "!"
    assert clean_text(text, None) == text
    assert clean_text(text, "whitespace") == '"Snake_case", Tom & Jerry !'
    assert clean_text(text, "lower") == '"snake_case", tom & jerry !'
    assert clean_text(text, "canonicalize") == "snake case tom jerry"


def test_errors_say_what_is_missing(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no tokenizer folder"):
        HuggingfaceTokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        HuggingfaceTokenizer(tmp_path)
    (tmp_path / "spiece.model").touch()
    with pytest.raises(FileNotFoundError, match=r"spiece\.model but no tokenizer\.json.*Download"):
        HuggingfaceTokenizer(tmp_path)
    with pytest.raises(ValueError, match="clean must be one of"):
        HuggingfaceTokenizer(folder, clean="shout")
    with pytest.raises(ValueError, match="seq_len must be at least 1"):
        HuggingfaceTokenizer(folder, seq_len=0)


def test_upstreams_call_is_understood(folder):
    tokenizer = HuggingfaceTokenizer(name=folder, seq_len=12, clean="whitespace")
    ids, mask = tokenizer(["a cat"], return_mask=True, add_special_tokens=True)
    assert torch.equal(ids, tokenizer("a cat")) and mask.sum() == tokenizer.count("a cat")
    with pytest.raises(ValueError, match="every text ends with the end token"):
        tokenizer("a cat", add_special_tokens=False)


def test_a_panic_of_the_library_is_one_refusal(tmp_path, capfd):
    description = json.loads((nano_checkpoint("t2v-A14B") / "google/umt5-xxl/tokenizer.json").read_text())
    description["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged or no tokenizer"):
        load_tokenizer(tmp_path)
    assert capfd.readouterr().err == ""
