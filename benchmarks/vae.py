"""Either VAE against diffusers' AutoencoderKLWan, same random weights, alternating in one run.

`python -m benchmarks.vae --vae 2.2`. Both decode one latent with models of the released widths. Ours also decodes it in
tiles. Peak memory is that of the call; the weights, which both share, do not count. The rate counts the operations of
plain 3-D convolutions for both sides.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    add_device,
    alternate,
    gemm_ceiling,
    make_parser,
    parse,
    peak_memory,
    seconds,
    synchronize,
    write_result,
)
from wan.modules.vae import CausalVAE
from wan.modules.vae2_1 import CausalVAE2_1
from wan.modules.vae2_2 import CausalVAE2_2
from wan.modules.vae_inference import prepare
from wan.parser import exit_code
from wan.training.vae import psnr
from wan.typed import at_least, one_of

KEYMAP = Path(__file__).parents[1] / "tests" / "data" / "state_dict" / "vae_diffusers_keymap.json"
NETWORKS = {"2.1": CausalVAE2_1, "2.2": CausalVAE2_2}
DIFFUSERS_CONFIG = {
    "2.1": {},
    "2.2": {
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    },
}
GIB = 2**30
HEADER = ("call", "ours s", "diffusers s", "ratio", "ours peak GiB", "diffusers peak GiB", "max difference", "TFLOP/s")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    peer = metadata.version("diffusers")
    torch.set_grad_enabled(False)
    device, dtype = args.device, getattr(torch, args.dtype)
    ours, theirs = build_pair(args.vae, device, dtype)
    time, height, width = ours.config.stride
    shape = (1, ours.z_dim, (args.frames - 1) // time + 1, args.height // height, args.width // width)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    calls = {"decode": (lambda: ours.decode(latent, chunk=args.chunk), lambda: theirs.decode(latent).sample)}
    if args.encode:
        video = ours.decode(latent, chunk=args.chunk).clamp(-1, 1)
        calls["encode"] = (
            lambda: ours.encode(video, chunk=args.chunk * time),
            lambda: theirs.encode(video).latent_dist.mode(),
        )
    ceiling = gemm_ceiling(device, dtype)
    rows = [
        compare(name, *pair, decode_or_encode_flops(type(ours), name, shape), device, args.rounds)
        for name, pair in calls.items()
    ]
    notes = [f"- Ceiling of a matrix product in this type: {ceiling / 1e12:.3g} TFLOP/s."]
    notes += tiling_notes(ours, latent, args, device)
    write_result(
        f"vae{args.vae.replace('.', '_')}-{device.type}.md",
        args.save,
        title=f"VAE {args.vae} against diffusers",
        device=device,
        settings={
            "video": f"{args.width}x{args.height}, {args.frames} frames",
            "dtype": args.dtype,
            "latents at once": args.chunk,
            "rounds": args.rounds,
            "diffusers": peer,
        },
        header=HEADER,
        rows=rows,
        notes=notes,
    )


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("vae", __doc__, rounds=3)
    add_device(parser)
    for flag, names, default in (("--vae", NETWORKS, "2.1"), ("--dtype", ("float32", "bfloat16"), "float32")):
        choices = ", ".join(names)
        parser.add_argument(
            flag, type=one_of(names), default=default, metavar="NAME", help=f"of {choices}; default: {default}"
        )
    for flag, low, default, what in (
        ("--width", 16, 832, "pixels"),
        ("--height", 16, 480, "pixels"),
        ("--frames", 1, 17, "frames, 4n+1"),
        ("--chunk", 1, 4, "latent frames that ours takes together"),
        ("--tile", 0, 256, "tile edge in pixels; 0 leaves tiling out"),
    ):
        parser.add_argument(flag, type=at_least(low), default=default, metavar="N", help=f"{what}; default: {default}")
    parser.add_argument("--encode", action="store_true", help="compare encoding, too; default: decoding alone")
    return parse(parser, arguments)


def build_pair(vae: str, device: torch.device, dtype: torch.dtype) -> tuple[CausalVAE, nn.Module]:
    """Make our model with random weights, and that of diffusers with the same tensors."""
    from diffusers import AutoencoderKLWan

    ours = NETWORKS[vae]()
    ours.init_weights(torch.Generator().manual_seed(0))
    ours.to(device, dtype).eval()
    prepare(ours, device)
    names = json.loads(KEYMAP.read_text())["map"][f"wan{vae.replace('.', '_')}_vae"]
    with torch.device("meta"):
        theirs = AutoencoderKLWan(**DIFFUSERS_CONFIG[vae])
    theirs.load_state_dict({names[name]: weight for name, weight in ours.state_dict().items()}, assign=True)
    return ours, theirs.eval()


def compare(
    name: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    flops: int,
    device: torch.device,
    rounds: int,
) -> tuple[object, ...]:
    peaks: dict[Callable, int] = {}
    results: dict[Callable, Tensor] = {}

    def measured(run: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            results.pop(run, None)
            with peak_memory(device, interval=0.02) as peak:
                results[run] = run()
            peaks[run] = max(peaks.get(run, 0), peak.added)

        return call

    timing = alternate(measured(ours), measured(theirs), device, rounds=rounds, warmup=0 if device.type == "cpu" else 1)
    difference = (results[ours].float().clamp(-1, 1) - results[theirs].float().clamp(-1, 1)).abs().max().item()
    rates = " / ".join(f"{flops / time / 1e12:.3g}" for time in (timing.ours, timing.reference))
    memory = (peaks[run] / GIB for run in (ours, theirs))
    return name, timing.ours, timing.reference, timing.ratio, *memory, difference, rates


def decode_or_encode_flops(network: type[CausalVAE], name: str, latent_shape: tuple[int, ...]) -> int:
    """Count the multiplications and additions of one call, on tensors without data."""
    with torch.device("meta"):
        model = network()
    b, _, t, h, w = latent_shape
    time, height, width = model.config.stride
    video = (b, 3, (t - 1) * time + 1, h * height, w * width)
    with FlopCounterMode(display=False) as counter:
        if name == "decode":
            model.decode(torch.empty(latent_shape, device="meta"))
        else:
            model.encode(torch.empty(video, device="meta"))
    return counter.get_total_flops()


def tiling_notes(model: CausalVAE, latent: Tensor, args: argparse.Namespace, device: torch.device) -> list[str]:
    if not args.tile:
        return []
    tile = args.tile // model.config.stride[1]
    results = {}

    def run() -> None:
        results["tiled"] = model.decode(latent, chunk=args.chunk, tile=tile)

    with peak_memory(device, interval=0.02) as peak:
        taken = seconds(run, device)
    whole = model.decode(latent, chunk=args.chunk)
    synchronize(device)
    error = (results["tiled"].to(whole).float().clamp(-1, 1) - whole.float().clamp(-1, 1)).square().mean()
    return [
        f"- Ours in tiles of {args.tile} pixels: {taken:.3g} s, peak {peak.added / GIB:.3g} GiB, "
        f"PSNR against whole frames {psnr(error):.0f} dB."
    ]


if __name__ == "__main__":
    sys.exit(exit_code(main))
