"""Text encoder against transformers' UMT5EncoderModel, same weights, alternating in one run: `python -m benchmarks.t5`.

There are two references: their encoder on the prompt's own tokens, and on the prompt padded to 512 tokens, as upstream
runs it. Tokenising is left out on both sides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import add_device, alternate, gemm_ceiling, make_parser, parse, write_result
from wan.modules.t5 import T5Config, T5Encoder
from wan.parser import exit_code
from wan.typed import at_least, one_of

TEXT_LEN = 512
HEADER = (
    "prompts, tokens",
    "ours s",
    "transformers, trimmed s",
    "ratio",
    "transformers, 512 padded s",
    "ratio",
    "GFLOP",
    "share of GEMM ceiling",
    "share of these linears alone",
)

# Ours -> transformers, below `blocks.N` and `encoder.block.N`.
BLOCK_NAMES = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
OUTER_NAMES = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    peer = metadata.version("transformers")
    torch.set_grad_enabled(False)
    device, dtype = args.device, getattr(torch, args.dtype)
    config = T5Config(
        vocab_size=1000,  # the embedding is a look-up: its height costs nothing
        dim=args.dim,
        dim_attn=args.dim,
        dim_ffn=args.dim * 5 // 2,
        num_heads=args.dim // 64,
        num_layers=args.layers,
    )
    ours, theirs = build_pair(config, device, dtype)
    ceiling = gemm_ceiling(device, dtype)
    rows = [measure(ours, theirs, lengths, device, ceiling, args.rounds) for lengths in args.prompts]
    write_result(
        f"t5-{device.type}.md",
        args.save,
        title="Text encoder against transformers",
        device=device,
        settings={
            "encoder": f"{config.num_layers} of 24 layers, width {config.dim}, ffn {config.dim_ffn}",
            "dtype": args.dtype,
            "rounds": args.rounds,
            "bf16 GEMM ceiling" if dtype == torch.bfloat16 else "GEMM ceiling": f"{ceiling / 1e12:.2f} TFLOP/s",
            "transformers": peer,
        },
        header=HEADER,
        rows=rows,
        notes=[
            "Ratios are transformers / ours. Short prompts are bound by reading the weights, so that the last column, "
            "the time of the same matrix products alone over ours, is their meaningful ceiling."
        ],
    )


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("t5", __doc__, rounds=5)
    add_device(parser)
    dtypes = ("bfloat16", "float16", "float32")
    parser.add_argument(
        "--dtype",
        type=one_of(dtypes),
        default=dtypes[0],
        metavar="NAME",
        help=f"of {', '.join(dtypes)}; default: bfloat16",
    )
    parser.add_argument(
        "--dim",
        type=at_least(64),
        default=4096,
        metavar="N",
        help="width, 64n; default: 4096, as released",
    )
    parser.add_argument("--layers", type=at_least(1), default=4, metavar="N", help="default: 4; released: 24")
    parser.add_argument(
        "--prompts",
        type=lengths,
        nargs="+",
        default=[[20], [80], [512], [20, 126]],
        metavar="LENGTHS",
        help="tokens of the prompts of one call, as 20, or 20+126 for a short prompt and the default negative one; "
        "default: 20 80 512 20+126",
    )
    args = parse(parser, arguments)
    if args.dim % 64:
        parser.error(f"--dim must be a multiple of 64, got {args.dim}; try {args.dim // 64 * 64}")
    return args


def lengths(text: str) -> list[int]:
    """'20+126' -> [20, 126]"""
    return [at_least(1)(length) for length in text.split("+")]


def build_pair(config: T5Config, device: torch.device, dtype: torch.dtype) -> tuple[T5Encoder, torch.nn.Module]:
    """Make our encoder, and that of transformers in its default attention, with the same weights."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        ours, theirs = T5Encoder(config), UMT5EncoderModel(UMT5Config(**transformers_config(config)))
    ours = ours.to(dtype).to_empty(device=device).eval()
    ours.init_weights(torch.Generator(device).manual_seed(0))
    state = transformers_state(ours.state_dict())
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    theirs.load_state_dict(state, assign=True)
    return ours, theirs.eval()


def measure(
    ours: T5Encoder, theirs: torch.nn.Module, lengths: list[int], device: torch.device, ceiling: float, rounds: int
) -> list[object]:
    """Measure a row: prompts of these lengths, in one call of ours and one after the other in theirs."""
    vocabulary, generator = ours.config.vocab_size, torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, vocabulary, (1, n), generator=generator).to(device) for n in lengths]
    ids = torch.cat([F.pad(prompt, (0, max(lengths) - prompt.shape[1])) for prompt in prompts])
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(device)
    padded = [F.pad(prompt, (0, TEXT_LEN - prompt.shape[1])) for prompt in prompts]
    masks = [(torch.arange(TEXT_LEN) < n).long()[None].to(device) for n in lengths]

    def run_ours() -> list[Tensor]:
        return [row[:n] for row, n in zip(ours(ids, mask), lengths)]

    def run_trimmed() -> list[Tensor]:
        return [theirs(input_ids=prompt).last_hidden_state[0] for prompt in prompts]

    def run_padded() -> list[Tensor]:
        rows = [theirs(input_ids=i, attention_mask=m).last_hidden_state[0] for i, m in zip(padded, masks)]
        return [row[:n] for row, n in zip(rows, lengths)]

    for mine, other in zip(run_ours(), run_padded()):
        difference = ((mine - other).float().norm() / other.float().norm()).item()
        if difference > 0.05:
            raise RuntimeError(f"the two encoders disagree by {difference:.3f}: nothing to compare")
    trimmed = alternate(run_ours, run_trimmed, device, rounds)
    full = alternate(run_ours, run_padded, device, rounds)
    linears = alternate(run_ours, linears_alone(ours, sum(lengths)), device, rounds)
    flops = sum(encoder_flops(ours.config, n) for n in lengths)
    return [
        "+".join(map(str, lengths)),
        trimmed.ours,
        trimmed.reference,
        trimmed.ratio,
        full.reference,
        full.ratio,
        flops / 1e9,
        f"{flops / trimmed.ours / ceiling:.0%}",
        f"{linears.ratio:.0%}",
    ]


def linears_alone(model: T5Encoder, tokens: int) -> Callable[[], None]:
    """Make a function that runs only the encoder's matrix products, on `tokens` rows."""
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.randn(1, tokens, w.shape[1], dtype=w.dtype, device=w.device) for w in weights}

    def run() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    return run


def encoder_flops(config: T5Config, tokens: int) -> int:
    """FLOPs (a multiply-add is two): projections, feed-forward, and the two products of attention."""
    linears = 4 * config.dim * config.dim_attn + 3 * config.dim * config.dim_ffn
    return config.num_layers * (2 * tokens * linears + 4 * tokens**2 * config.dim_attn)


def transformers_config(config: T5Config) -> dict[str, object]:
    """Return the arguments of transformers' UMT5Config for the same encoder."""
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.dim,
        "d_kv": config.dim_attn // config.num_heads,
        "d_ff": config.dim_ffn,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.eps,
        "feed_forward_proj": "gated-gelu",
    }


def transformers_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors to the names of transformers' UMT5EncoderModel."""
    renamed = {}
    for name, tensor in state.items():
        module = name.removesuffix(".weight")
        if module in OUTER_NAMES:
            target = OUTER_NAMES[module]
        else:
            _, index, inner = module.split(".", 2)
            target = f"encoder.block.{index}.{BLOCK_NAMES[inner]}"
        renamed[f"{target}.weight"] = tensor
    return renamed


if __name__ == "__main__":
    sys.exit(exit_code(main))
