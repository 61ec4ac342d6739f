"""Transformer forward against diffusers' WanTransformer3DModel, same weights, alternating: `python -m benchmarks.dit`.

One call is one guidance branch of one step. Our model is that of the pipeline: bfloat16 matrices, float32 residual
stream and sensitive layers, packed weights on a CPU. Theirs is that of `from_pretrained(torch_dtype=bfloat16)`. A CPU
without bfloat16 products, which takes up to 50 times as long for them, compares both in float32.
`--first-frame` compares a forward whose first frame is clean (TI2V's image mode) with one from text alone instead.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata

import torch
from torch import Tensor, nn

from benchmarks.common import (
    add_device,
    alternate,
    dit_flops,
    floor_seconds,
    gemm_ceiling,
    make_parser,
    median_seconds,
    parse,
    peak_memory,
    sdpa_ceiling,
    write_result,
)
from wan.checkpoint.formats import released_names
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.packed import can_pack, has_bfloat16_products, pack_linears
from wan.parser import exit_code

TEXT_LEN = 512


@dataclass(frozen=True)
class Case:
    """One model shape and one latent; `grid` is (frames, rows, columns) of patches."""

    dim: int
    ffn_dim: int
    num_layers: int
    grid: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        f, h, w = self.grid
        return f * h * w

    def __str__(self) -> str:
        return f"dim {self.dim} x {self.num_layers}, {self.tokens} tokens"


CPU_CASES = {
    "1536": Case(1536, 8960, 4, (3, 25, 26)),
    "3072": Case(3072, 14336, 2, (7, 11, 20)),
    "5120": Case(5120, 13824, 1, (3, 30, 52)),
}
CUDA_CASES = {
    "a14b-480p": Case(5120, 13824, 40, (21, 30, 52)),
    "a14b-720p": Case(5120, 13824, 40, (21, 45, 80)),
    "ti2v-5b": Case(3072, 14336, 30, (31, 22, 40)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser("dit", __doc__, rounds=7)
    add_device(parser)
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="NAME",
        help=f"on CUDA of {', '.join(CUDA_CASES)}, elsewhere of {', '.join(CPU_CASES)}; default: all",
    )
    parser.add_argument("--no-compile", action="store_true", help="skip the compiled variant; default: measure it")
    parser.add_argument("--no-peer", action="store_true", help="skip diffusers; default: compare with it")
    parser.add_argument(
        "--first-frame", action="store_true", help="image mode against text mode, no peer; default: against diffusers"
    )
    args = parse(parser, arguments)
    device = args.device
    cases = CUDA_CASES if device.type == "cuda" else CPU_CASES
    if unknown := set(args.cases or ()) - set(cases):
        parser.error(f"--cases {', '.join(unknown)}: on {device.type} there are {', '.join(cases)}")
    peer = "not run" if args.no_peer or args.first_frame else metadata.version("diffusers")
    torch.set_grad_enabled(False)
    if args.first_frame:
        chosen = [cases[name] for name in args.cases or (("3072",) if device.type == "cpu" else ("ti2v-5b",))]
        write_first_frame(chosen, device, args)
        return
    rows = [measure(case, device, args) for name, case in cases.items() if not args.cases or name in args.cases]
    write_result(
        f"dit-{device.type}.md",
        args.save,
        title="Transformer forward against diffusers",
        device=device,
        settings={
            "precision": "bfloat16 matrices around a float32 stream (the default, exact mode)"
            if matrix_type(device) == torch.bfloat16
            else "float32, because this CPU has no bfloat16 products",
            "prompt": "100 tokens of 512",
            "rounds": args.rounds,
            "diffusers": peer,
        },
        header=(
            "case",
            "eager ms",
            "share of ceiling",
            "compiled ms",
            "share of ceiling",
            "diffusers ms",
            "its share",
            "eager ratio",
            "best ratio",
            "GEMM, SDPA TFLOP/s",
            "peak GiB",
        ),
        rows=rows,
        notes=[
            "Ratios are diffusers / ours. The ceiling of a case is its GEMM and attention FLOPs at the rates that "
            "`F.linear` and SDPA reach alone at that case's own shapes on this machine, measured in the same process; "
            "packed weights can pass `F.linear`, which reorders its weight on every call."
        ],
    )


def measure(case: Case, device: torch.device, args: argparse.Namespace) -> list[object]:
    gc.collect()
    dtype = matrix_type(device)
    model, inputs = build(case, device)
    peer = None if args.no_peer else build_peer(model, device)
    if can_pack(device, matrix_type(device)):
        pack_linears(model.blocks)

    def ours() -> None:
        model(*inputs)

    def theirs() -> None:
        x, t, context = inputs
        padded = nn.functional.pad(context[0], (0, 0, 0, TEXT_LEN - context[0].shape[0]))
        peer(x[0][None].to(dtype), t, padded[None].to(dtype), return_dict=False)

    shapes = [(case.tokens, case.dim, case.dim), (case.tokens, case.dim, case.ffn_dim)]
    gemm_rate = gemm_ceiling(device, dtype, shapes)
    sdpa_rate = sdpa_ceiling(device, dtype, tokens=case.tokens, heads=case.dim // 128)
    gemm, attend = dit_flops(
        dim=case.dim, ffn_dim=case.ffn_dim, num_layers=case.num_layers, tokens=case.tokens, context_tokens=TEXT_LEN
    )
    floor = floor_seconds(gemm, attend, gemm_rate, sdpa_rate)

    if peer is None:
        eager, reference, ratio = median_seconds(ours, device, args.rounds), None, None
    else:
        both = alternate(ours, theirs, device, rounds=args.rounds)
        eager, reference, ratio = both.ours, both.reference, both.ratio
    with peak_memory(device) as peak:
        ours()
    compiled, compiled_ratio = None, ratio
    if not args.no_compile:
        for block in model.blocks:
            block.compile()
        if peer is None:
            compiled = median_seconds(ours, device, args.rounds)
        else:
            both = alternate(ours, theirs, device, rounds=args.rounds)
            compiled, compiled_ratio = both.ours, max(ratio, both.ratio)
    return [
        str(case),
        eager * 1e3,
        floor / eager,
        "-" if compiled is None else compiled * 1e3,
        "-" if compiled is None else floor / compiled,
        "-" if reference is None else reference * 1e3,
        "-" if reference is None else floor / reference,
        "-" if ratio is None else ratio,
        "-" if ratio is None else compiled_ratio,
        f"{gemm_rate / 1e12:.2f}, {sdpa_rate / 1e12:.2f}",
        peak.bytes / 2**30,
    ]


def write_first_frame(cases: list[Case], device: torch.device, args: argparse.Namespace) -> None:
    rows = []
    for case in cases:
        model, (x, t, context) = build(case, device)
        if can_pack(device, matrix_type(device)):
            pack_linears(model.blocks)
        by_token = t.expand(case.tokens).clone()
        by_token[: case.grid[1] * case.grid[2]] = 0
        runs = partial(model, x, by_token[None].float(), context), partial(model, x, t, context)
        both = alternate(*runs, device, rounds=args.rounds)
        rows.append([str(case), both.ours * 1e3, both.reference * 1e3, 1 / both.ratio])
    write_result(
        f"dit-first-frame-{device.type}.md",
        args.save,
        title="Forward with a clean first frame against one from text alone",
        device=device,
        settings={"timesteps": "0 for the tokens of the first frame, 500 for the others", "rounds": args.rounds},
        header=("case", "image mode ms", "text mode ms", "image / text"),
        rows=rows,
        notes=["The ratio is the median over pairs of forwards that alternate."],
    )


def matrix_type(device: torch.device) -> torch.dtype:
    """Return the type that matrices are compared in."""
    return torch.float32 if device.type == "cpu" and not has_bfloat16_products() else torch.bfloat16


def build(case: Case, device: torch.device) -> tuple[WanModel, tuple[list[Tensor], Tensor, list[Tensor]]]:
    """Make a model with random weights in the default precision, with `matrix_type`, and the inputs of one forward."""
    generator = torch.Generator().manual_seed(0)
    config = WanModelConfig(
        dim=case.dim, ffn_dim=case.ffn_dim, num_heads=case.dim // 128, num_layers=case.num_layers, text_len=TEXT_LEN
    )
    with torch.device("meta"):
        model = WanModel(config)
    model = model.to_empty(device=device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data = torch.empty_like(parameter).normal_(0, 0.02)
        if not model.keeps_float32(name):
            parameter.data = parameter.data.to(matrix_type(device))
        elif name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight")):
            parameter.data.add_(1)
    f, h, w = case.grid
    x = torch.randn(16, f, 2 * h, 2 * w, generator=generator).to(device)
    context = torch.randn(100, config.text_dim, generator=generator).to(device)
    return model.eval(), ([x], torch.tensor([500], device=device), [context])


def build_peer(model: WanModel, device: torch.device) -> nn.Module:
    """Make diffusers' transformer with the same weights, in the precision that its loader would give it."""
    from diffusers import WanTransformer3DModel

    config = model.config
    peer = WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
    )
    names, _ = released_names(list(peer.state_dict()))
    ours = model.state_dict()
    peer.load_state_dict({theirs: ours[name].float() for name, theirs in names.items()})
    kept = tuple(peer._keep_in_fp32_modules or ())
    for name, parameter in peer.named_parameters():
        if not any(part in name for part in kept):
            parameter.data = parameter.data.to(matrix_type(device))
    return peer.to(device).eval().requires_grad_(False)


if __name__ == "__main__":
    sys.exit(exit_code(main))
