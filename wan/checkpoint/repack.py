"""Repack a checkpoint once: `python -m wan.checkpoint.repack DIR`. Later runs read half as much and convert nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from wan.checking import MODELS
from wan.checkpoint.formats import released_names, what_is
from wan.checkpoint.loading import empty
from wan.checkpoint.repacked import Copy, check_disk, freshest, models, place_of, working_types
from wan.checkpoint.source import TensorSource
from wan.choices import QUANTIZED
from wan.configs import get_config
from wan.experts import quantise
from wan.files import in_units, shown
from wan.modules.model import WanModel
from wan.modules.quantised import TYPES, QuantisedLinear, stored
from wan.parser import Parser, exit_code
from wan.program import OneLine
from wan.runtime import CPU, Runtime
from wan.typed import one_of, path as folder_name

log = logging.getLogger(__name__)
PARTS = {"patch_embedding.weight": "transformer", "token_embedding.weight": "text encoder"}
WHOLE = "bf16"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 wrong arguments."""
    parser = Parser(
        prog="python -m wan.checkpoint.repack",
        description="Write the weights of a checkpoint beside it in the types in which models work: matrices in "
        "bfloat16 or 8 bits, what is sensitive in float32, block by block. Runs in bfloat16 find them, read half as "
        "much or less, and convert nothing. A run that ended early goes on.",
    )
    parser.add_argument("folder", type=folder_name, metavar="DIR", help="folder of a checkpoint, or of one model")
    parser.add_argument(
        "--dtype",
        type=one_of((WHOLE, *QUANTIZED)),
        metavar="{" + ",".join((WHOLE, *QUANTIZED)) + "}",
        default=WHOLE,
        help=f"of the transformers' matrices: int8 and fp8 are for runs with that --quantize; default: {WHOLE}",
    )
    args = parser.parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    repack_folder(Path(args.folder), None if args.dtype == WHOLE else args.dtype)
    return 0


def repack_folder(folder: Path, kind: str | None = None) -> list[Path]:
    """Repack every part that profits; returns the new folders. `kind`: see `place_of`.

    Raises FileNotFoundError where nothing can be repacked, and ValueError without room on the disk.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {shown(folder)}; name that of a checkpoint")
    found, copies = 0, []
    for path, source in models(folder):
        names = released_names(source.names())[0]
        what = next((role for name, role in PARTS.items() if name in names), None)
        if what is None:
            continue
        found += 1
        copy = copy_of(what, path, source, names, kind)
        tensors = [(name, tensor) for file in copy.expected.values() for name, tensor in file.items()]
        if all(name in names and source.dtype(names[name]) == tensor.dtype for name, tensor in tensors):
            log.info("%s: stored as it works already", shown(path))
        elif freshest(path, kind) == copy.place:
            log.info("%s: repacked already in %s", shown(path), shown(copy.place))
        else:
            size = in_units(sum(tensor.nbytes for _, tensor in tensors))
            log.info("%s: repacking the %s into %s (%s)", shown(path), what, shown(copy.place), size)
            copies.append(copy)
    if not found:
        raise FileNotFoundError(f"{shown(folder)} has no transformer and no text encoder; name a checkpoint's folder")
    check_disk(copies)
    for copy in copies:
        copy.write()
    return [copy.place for copy in copies]


def copy_of(what: str, path: Path, source: TensorSource, names: Mapping[str, str], kind: str | None) -> Copy:
    """Describe the copy of a part. Text encoders are not stored in 8 bits."""
    is_transformer = what == "transformer"
    keeps = WanModel.keeps_float32 if is_transformer else lambda name: False
    types = working_types(source, names, keeps, torch.bfloat16)
    kind = kind if is_transformer else None
    matrices = quantised_names(path, source, kind) if kind else set()

    def make(name: str, tensor: Tensor) -> dict[str, Tensor]:
        tensor = tensor.to(types[name]).contiguous()
        if name not in matrices:
            return {name: tensor}
        layer = name.removesuffix("weight")
        return {f"{layer}{part}": values for part, values in stored(tensor, TYPES[kind]).items()}

    return Copy(path, place_of(path, kind), source, names, make)


def quantised_names(path: Path, source: TensorSource, kind: str) -> set[str]:
    """Names of the matrices that `--quantize` stores in 8 bits. Raises ValueError for a model of no task."""
    content = what_is(source.shapes())
    if content is None or content.task is None:
        title = content.title if content else "a model that this version does not know"
        raise ValueError(f"{shown(path)} holds {title}, which no task runs: --dtype {kind} is for the models of a task")
    config = get_config(content.task)
    network = MODELS[config.model_type]
    sizes = network.config_class.read(path, config.architecture())
    model = quantise(empty(lambda: network(sizes)), Runtime(CPU, quantize=kind))
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}


if __name__ == "__main__":
    sys.exit(exit_code(main))
