"""Prompt text to token ids: cleaning, then the tokenizer file that ships with the checkpoint."""

import html
import os
import re
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan.files import refuse_placeholder, shown

MAX_BYTES = 100_000_000
PAD_ID = 0
EOS_ID = 1
CLEANING_MODES = (None, "whitespace", "lower", "canonicalize")


class HuggingfaceTokenizer:
    """Tokenizer from `tokenizer.json` of a local folder. Every text ends with the end token, also a truncated one.

    `seq_len` pads and truncates to a fixed length; without it a batch is padded to its longest text.
    """

    def __init__(self, name: str | Path, seq_len: int | None = None, clean: str | None = None):
        if clean not in CLEANING_MODES:
            raise ValueError(f"clean must be one of {CLEANING_MODES}, got {clean!r}")
        if seq_len is not None and seq_len < 1:
            raise ValueError(f"seq_len must be at least 1 (the end token), got {seq_len}")
        self.name = name
        self.seq_len = seq_len
        self.clean = clean
        self.tokenizer = load_tokenizer(Path(name))
        self.vocab_size = self.tokenizer.get_vocab_size()

    @cached_property
    def largest_id(self) -> int:
        """The largest id that any text can have; ids may leave gaps, so that it can exceed `vocab_size`."""
        return max(self.tokenizer.get_vocab().values())

    def __call__(
        self, sequence: str | Sequence[str], return_mask: bool = False, add_special_tokens: bool = True
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One text or several -> ids [B, L] int64; `return_mask` adds the mask [B, L] int64 (1 token, 0 padding).

        Raises ValueError for `add_special_tokens=False`: the models were trained on texts with their end token.
        """
        if not add_special_tokens:
            raise ValueError("add_special_tokens=False is not supported: every text ends with the end token")
        texts = [sequence] if isinstance(sequence, str) else list(sequence)
        rows = [self._ids(text) for text in texts]
        length = self.seq_len or max(map(len, rows))
        ids = torch.full((len(rows), length), PAD_ID, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return (ids, mask) if return_mask else ids

    def count(self, text: str) -> int:
        """Tokens of the whole text, end token included, before any truncation."""
        return len(self._encode(text).ids) + 1

    def truncated_part(self, text: str) -> str:
        """The end of the cleaned text that does not fit into `seq_len` tokens; empty when everything fits."""
        encoding = self._encode(text)
        if self.seq_len is None or len(encoding.ids) < self.seq_len:
            return ""
        return clean_text(text, self.clean)[encoding.offsets[self.seq_len - 1][0] :].strip()

    def _ids(self, text: str) -> list[int]:
        ids = self._encode(text).ids
        if self.seq_len is not None:
            ids = ids[: self.seq_len - 1]
        return [*ids, EOS_ID]

    def _encode(self, text: str):
        text = clean_text(text, self.clean)
        return _refusing(Path(self.name), lambda: self.tokenizer.encode(text, add_special_tokens=False))


def load_tokenizer(folder: Path):
    """Load the `tokenizers.Tokenizer` of a folder, and switch off its own truncation and padding.

    Raises FileNotFoundError that names the missing file and its origin, ValueError for a damaged or foreign one.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(_explain_missing(folder))
    refuse_placeholder(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; umT5's has 17 million")
    from tokenizers import Tokenizer

    tokenizer = _refusing(folder, lambda: Tokenizer.from_buffer(path.read_bytes()))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token, expected in {"<pad>": PAD_ID, "</s>": EOS_ID}.items():
        if (found := tokenizer.token_to_id(token)) != expected:
            raise ValueError(
                f"{path} is the tokenizer of another model: {token} must have id {expected}, "
                f"{'and is no token of it' if found is None else f'not {found}'}"
            )
    return tokenizer


def _refusing(folder: Path, call: Callable[[], Any]) -> Any:
    """Call the library; turn everything that it raises, also a panic, into a ValueError that names the file."""
    try:
        with _panics_unheard():
            return call()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{folder / 'tokenizer.json'} is damaged or no tokenizer ({shown(error)}); download it again"
        ) from None


@contextmanager
def _panics_unheard() -> Iterator[None]:
    """Silence stderr: a panic of the library prints a report there before it becomes an exception."""
    try:
        heard = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(heard, 2)
        os.close(heard)


def _explain_missing(folder: Path) -> str:
    if not folder.is_dir():
        return (
            f"no tokenizer folder {folder}: a Wan2.2 checkpoint has it as google/umt5-xxl, with tokenizer.json inside"
        )
    if (folder / "spiece.model").is_file():
        return (
            f"{folder} has spiece.model but no tokenizer.json, which is the file that is read. Download tokenizer.json "
            "from google/umt5-xxl of the same checkpoint repository into this folder, or write it from spiece.model "
            f"with transformers: AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return f"{folder} has no tokenizer.json: download it from google/umt5-xxl of the checkpoint repository"


def clean_text(text: str, mode: str | None) -> str:
    """Normalise a prompt as the released models were trained on it; `mode` is one of CLEANING_MODES.

    "whitespace" repairs the text with ftfy (full-width forms, curly quotes, mojibake), unescapes HTML twice and
    collapses whitespace; skipping it changes the token ids. "lower" also lower-cases; "canonicalize" also lower-cases,
    turns underscores into spaces and drops ASCII punctuation.
    """
    if mode is None:
        return text
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if mode == "canonicalize":
        text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    text = re.sub(r"\s+", " ", text).strip()
    return text if mode == "whitespace" else text.lower()
