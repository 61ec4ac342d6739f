"""Load a sharded float32 checkpoint to bfloat16: seconds and peak host memory, side by side with other loaders.

Every load runs in its own process; ours and the peers alternate. The first memory figure is the peak of the process'
anonymous memory (RssAnon of /proc/self/status, sampled every 2 ms) above its level before the load: the machine must
have this memory. The second figure is the growth of VmHWM, the peak of all resident memory. It includes pages of the
mapped files, which the kernel may drop at any time.

    python -m benchmarks.load [--dir FOLDER] [--layers 6] [--rounds 5] [--save]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import make_parser, parse, peak_memory, seconds, status, write_result
from wan.checkpoint.formats import released_names
from wan.checkpoint.loading import load_module, save_safetensors_folder
from wan.checkpoint.source import open_source
from wan.modules.model import WanModel, WanModelConfig
from wan.parser import exit_code
from wan.typed import at_least, path

SHARD_BYTES = 10**9
GIB = 2**30


def config(layers: int) -> WanModelConfig:
    """Shape of the transformer of TI2V-5B with fewer layers; 6 of them make 4.3 GB in float32."""
    return WanModelConfig("ti2v", 3072, 14336, 24, layers, in_dim=48, out_dim=48)


# ---- the loaders ----


def load_ours(folder: Path, layers: int) -> nn.Module:
    return load_module(
        lambda: WanModel(config(layers)), folder, dtype=torch.bfloat16, keep_float32=WanModel.keeps_float32
    )


def load_plain(folder: Path, layers: int) -> nn.Module:
    from safetensors.torch import load_file

    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(file))
    model = WanModel(config(layers))
    model.load_state_dict(state)
    return model.to(torch.bfloat16).eval()


def load_diffusers(folder: Path, layers: int) -> nn.Module:
    from diffusers import WanTransformer3DModel

    folder = folder.with_name("diffusers")
    return WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True)


LOADERS: dict[str, tuple[str, Callable[[Path, int], nn.Module]]] = {
    "ours": ("wan.checkpoint.load_module", load_ours),
    "plain": ("load_file + load_state_dict + to(bf16)", load_plain),
    "diffusers": ("diffusers from_pretrained(bf16, low_cpu_mem_usage)", load_diffusers),
}


# ---- one load in its own process ----


def measure(name: str, folder: Path, layers: int) -> dict[str, float]:
    """Load once; return seconds by clock and by processor, both peaks in bytes, and a sum of some weights."""
    load = LOADERS[name][1]
    warm_up(name)
    resident = status("VmRSS")
    loaded = []
    with peak_memory() as peak:
        busy = time.process_time()
        taken = seconds(lambda: loaded.append(load(folder, layers)))
        busy = time.process_time() - busy
    total = status("VmHWM") - resident
    names = {stored: released for released, stored in released_names(loaded[0].state_dict())[0].items()}
    weights = {names[name]: tensor for name, tensor in loaded[0].state_dict().items()}
    check = sum(
        float(weights[key].double().abs().sum()) for key in ("blocks.0.ffn.0.weight", "blocks.1.self_attn.q.bias")
    )
    return {"seconds": taken, "cpu": busy, "anonymous": peak.added, "resident": total, "check": check}


def warm_up(name: str) -> None:
    """Import the packages of the loader and start the thread pool, so that neither counts."""
    from safetensors import safe_open  # noqa: F401

    if name == "diffusers":
        from diffusers import WanTransformer3DModel  # noqa: F401
    torch.zeros(2**22).to(torch.bfloat16)


def in_subprocess(name: str, folder: Path, layers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load", "--child", name, "--dir", str(folder), "--layers", str(layers)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- the table ----


def write_checkpoint(folder: Path, layers: int, diffusers: bool) -> None:
    """Write the same random float32 weights in the released layout and, for diffusers, in its own."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in WanModel(config(layers)).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.empty(shape).uniform_(-0.02, 0.02, generator=generator) for name, shape in shapes.items()}
    save_safetensors_folder(state, folder, config(layers).to_dict(), SHARD_BYTES)
    if diffusers:
        from diffusers import WanTransformer3DModel

        fields = config(layers)
        with torch.device("meta"):
            theirs = WanTransformer3DModel(
                num_attention_heads=fields.num_heads,
                attention_head_dim=fields.dim // fields.num_heads,
                in_channels=fields.in_dim,
                out_channels=fields.out_dim,
                ffn_dim=fields.ffn_dim,
                num_layers=layers,
            )
        names = released_names(theirs.state_dict())[0]
        renamed = {names[name]: tensor for name, tensor in state.items()}
        save_safetensors_folder(
            renamed, folder.with_name("diffusers"), {"_class_name": type(theirs).__name__, **theirs.config}, SHARD_BYTES
        )


def run(folder: Path, layers: int, rounds: int, save: str | bool | None) -> None:
    has_diffusers = importlib.util.find_spec("diffusers") is not None
    names = [name for name in LOADERS if name != "diffusers" or has_diffusers]
    write_checkpoint(folder, layers, has_diffusers)

    source = open_source(folder)
    stored = {name: (source.dtype(name).itemsize, torch.Size(source.shape(name)).numel()) for name in source.names()}
    size = sum(width * count for width, count in stored.values())
    largest = max(width * count for width, count in stored.values())
    target = sum(count * (4 if WanModel.keeps_float32(name) else 2) for name, (_, count) in stored.items())

    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for index in range(rounds + 1):  # the first round only warms the page cache
        for name in names if index % 2 == 0 else names[::-1]:
            result = in_subprocess(name, folder, layers)
            print(f"{'warm-up' if index == 0 else 'round'} {name}: {result}", file=sys.stderr, flush=True)
            if index > 0:
                results[name].append(result)
    checks = [result["check"] for group in results.values() for result in group]
    if max(checks) - min(checks) > 1e-3 * max(checks):
        raise RuntimeError(f"the loaders did not load the same weights: {checks}")

    def median(name: str, field: str) -> float:
        return statistics.median(result[field] for result in results[name])

    rows = [
        (
            LOADERS[name][0],
            median(name, "seconds"),
            statistics.median(r["seconds"] / ours["seconds"] for r, ours in zip(results[name], results["ours"])),
            median(name, "cpu"),
            max(result["anonymous"] for result in results[name]) / GIB,
            max(result["resident"] for result in results[name]) / GIB,
        )
        for name in names
    ]
    bound = target + largest
    peak = max(result["anonymous"] for result in results["ours"])
    shards = len(list(folder.glob("*.safetensors")))
    write_result(
        "load-cpu.md",
        save,
        title="Loading a float32 checkpoint to bfloat16 on the CPU",
        device="cpu",
        settings={
            "checkpoint": f"{size / 1e9:.2f} GB in {shards} shards (TI2V-5B with {layers} of its 30 layers, random)",
            "rounds": rounds,
        },
        header=("loader", "s", "over ours", "processor s", "peak anonymous GiB", "peak resident GiB"),
        rows=rows,
        notes=[
            f"The bound is the size in the target types plus the largest stored tensor: {target / GIB:.3f} + "
            f"{largest / GIB:.3f} = {bound / GIB:.3f} GiB. Ours stayed "
            f"{'below' if peak <= bound else 'ABOVE'} it with {peak / GIB:.3f} GiB.",
            "",
            "Every load is a process of its own with the files in the page cache; the loaders alternate, times are "
            "medians, the ratio is the median over the rounds. Processor seconds (user and system, all threads) depend "
            "least on what else the machine does. Anonymous is RssAnon (sampled every 2 ms) above its level after the "
            "imports, the largest of all rounds: memory that must exist. Resident is the growth of VmHWM and includes "
            "pages of mapped files, which the kernel drops when it needs memory. Ours keeps time embedding, norms, "
            "modulation and head in float32; the peers convert everything.",
        ],
    )
    if peak > bound:
        raise SystemExit(f"peak memory {peak / GIB:.3f} GiB is above the bound {bound / GIB:.3f} GiB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser("load", __doc__, rounds=5)
    parser.add_argument(
        "--dir",
        type=path,
        metavar="DIR",
        help="where to write the temporary checkpoint, twice its size is needed; default: the system's folder for them",
    )
    parser.add_argument(
        "--layers",
        type=at_least(2),
        default=6,
        metavar="N",
        help="transformer layers; default: 6, which make 4.3 GB in float32",
    )
    parser.add_argument("--child", choices=LOADERS, help=argparse.SUPPRESS)
    options = parse(parser, arguments)
    if options.child:
        print(json.dumps(measure(options.child, Path(options.dir), options.layers)))
        return
    if options.dir and not Path(options.dir).is_dir():
        parser.error(f"there is no folder {options.dir}; --dir must exist")
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="wan-load-") as temporary:
        run(Path(temporary) / "released", options.layers, options.rounds, options.save)


if __name__ == "__main__":
    sys.exit(exit_code(main))
