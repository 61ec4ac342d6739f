"""Golden cases of the text encoder and its text cleaning (core golden vectors)."""

from dataclasses import replace

import torch
from torch import Tensor

from wan.modules.t5 import T5Config, T5Encoder, relative_buckets
from wan.modules.tokenizers import clean_text


def t5_forward(case: dict, tensors: dict[str, Tensor]) -> None:
    """Compare text states within 5e-5, of the padded batch and of each sample alone without padding."""
    state = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    config = T5Config(**case["config"])
    inferred = T5Config.from_state({name: t.shape for name, t in state.items()})
    inferred = replace(inferred, max_distance=config.max_distance, eps=config.eps)  # tensors do not tell these
    assert config == inferred, "sizes inferred from the tensors differ from the case's"
    model = T5Encoder(config)
    model.load_state_dict(state)
    with torch.no_grad():
        batch = model(tensors["in/ids"], tensors["in/mask"])
        for i, length in enumerate(case["lengths"]):
            expected = tensors[f"out/context.{i}"]
            trimmed = model(tensors["in/ids"][i : i + 1, :length])[0]
            torch.testing.assert_close(batch[i, :length], expected, rtol=0, atol=5e-5)
            torch.testing.assert_close(trimmed, expected, rtol=0, atol=5e-5)


def t5_relative_buckets(case: dict, tensors: dict[str, Tensor]) -> None:
    """Compare every bucket exactly."""
    config = case["config"]
    buckets = relative_buckets(tensors["in/relative_position"], config["num_buckets"], config["max_distance"])
    assert torch.equal(buckets, tensors["out/bucket"])


def text_cleaning(case: dict, tensors: dict[str, Tensor]) -> None:
    """Compare every row in every mode exactly."""
    for row in case["rows"]:
        for mode in ("whitespace", "lower", "canonicalize"):
            assert clean_text(row["in"], mode) == row[mode], f"{mode} of {row['in']!r}"


RUNNERS = {
    "t5_forward": t5_forward,
    "t5_relative_buckets": t5_relative_buckets,
    "text_cleaning": text_cleaning,
}
