"""The nano tokenizer: reproducible, complete, and short on the world's own sentences."""

import numpy as np
import pytest

from wan.modules.tokenizers import HuggingfaceTokenizer
from wan.nano import tokenizer as nano_tokenizer
from wan.nano.worlds import caption, sample_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    nano_tokenizer.build_tokenizer(folder)
    return folder


def test_same_seed_same_bytes(folder, tmp_path):
    again = nano_tokenizer.build_tokenizer(tmp_path / "new")
    assert again.read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_special_tokens_and_size(folder):
    tokenizer = HuggingfaceTokenizer(folder, seq_len=64, clean="whitespace")
    assert tokenizer.vocab_size == nano_tokenizer.VOCAB_SIZE
    assert [tokenizer.tokenizer.token_to_id(token) for token in nano_tokenizer.SPECIAL_TOKENS] == [0, 1, 2]
    assert tokenizer.tokenizer.encode("a red circle").tokens[-1] == "</s>"
    ids, mask = tokenizer("a red circle", return_mask=True)
    assert ids.shape == (1, 64) and ids[0, int(mask.sum()) - 1] == 1 and not ids[0, int(mask.sum()) :].any()


@pytest.mark.parametrize("text", ["Ein großer, roter Kreis", "红色的圆形向左移动", "🎈 zzz \x07 42%", "ŻÓŁĆ"])
def test_any_prompt_encodes_and_decodes(folder, text):
    tokenizer = HuggingfaceTokenizer(folder).tokenizer
    encoding = tokenizer.encode(text)
    assert nano_tokenizer.SPECIAL_TOKENS[2] not in encoding.tokens
    assert tokenizer.decode(encoding.ids).strip() == text.lower()


def test_captions_are_short(folder):
    rng = np.random.default_rng(9)
    tokenizer = HuggingfaceTokenizer(folder, clean="whitespace")
    assert max(tokenizer.count(caption(sample_scene(rng, "all"), rng)) for _ in range(500)) <= 32
    assert tokenizer.count("a red circle moves to the left on a navy background") == 12


def test_case_does_not_matter(folder):
    tokenizer = HuggingfaceTokenizer(folder)
    assert (tokenizer("A Red CIRCLE") == tokenizer("a red circle")).all()
