"""Build the tokenizer of the nano family from captions of the small world."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wan.nano.worlds import caption, sample_scene

VOCAB_SIZE = 512
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as in umT5
CAPTIONS = 20_000


def build_tokenizer(folder: Path, seed: int = 0) -> Path:
    """Train and write `folder/tokenizer.json`, the same bytes for the same seed; returns its path.

    Byte-level BPE: all 256 bytes are in the vocabulary, so that every prompt encodes, and the words of the world become
    one or two tokens each. Text is lowercased. The end token is appended, as umT5's tokenizer does.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[2]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_captions(seed), trainer)
    end = SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    path = Path(folder) / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=True, indent=0), encoding="utf-8")
    return path


def _captions(seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for _ in range(CAPTIONS):
        yield caption(sample_scene(rng, "train"), rng)
