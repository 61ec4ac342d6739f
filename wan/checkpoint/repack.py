"""Repack a checkpoint once: `python -m wan.checkpoint.repack DIR`. Later runs read half as much and convert nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from wan.checkpoint.formats import released_names
from wan.checkpoint.repacked import freshest, models, place_of, repack, working_types
from wan.checkpoint.source import TensorSource
from wan.files import shown
from wan.modules.model import WanModel
from wan.parser import Parser, exit_code
from wan.program import OneLine
from wan.typed import path as folder_name

log = logging.getLogger(__name__)
PARTS = {"patch_embedding.weight": "transformer", "token_embedding.weight": "text encoder"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 wrong arguments."""
    parser = Parser(
        prog="python -m wan.checkpoint.repack",
        description="Write the weights of a checkpoint beside it in the types in which models work: matrices in "
        "bfloat16, what is sensitive in float32, block by block. Runs in bfloat16 find them, read half as much, and "
        "convert nothing. A run that ended early goes on.",
    )
    parser.add_argument("folder", type=folder_name, metavar="DIR", help="folder of a checkpoint, or of one model")
    args = parser.parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    repack_folder(Path(args.folder))
    return 0


def repack_folder(folder: Path) -> list[Path]:
    """Repack every part that profits; returns the new folders. Raises FileNotFoundError where nothing can be."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {shown(folder)}; name that of a checkpoint")
    found, made = 0, []
    for path, source in models(folder):
        names = released_names(source.names())[0]
        what = next((role for name, role in PARTS.items() if name in names), None)
        if what is None:
            continue
        found += 1
        types = types_of(what, source, names)
        if all(source.dtype(names[name]) == dtype for name, dtype in types.items()):
            log.info("%s: stored as it works already", shown(path))
        elif freshest(path) == place_of(path):
            log.info("%s: repacked already in %s", shown(path), shown(place_of(path)))
        else:
            log.info("%s: repacking the %s into %s", shown(path), what, shown(place_of(path)))
            made.append(repack(source, names, types, path))
    if not found:
        raise FileNotFoundError(f"{shown(folder)} has no transformer and no text encoder; name a checkpoint's folder")
    return made


def types_of(what: str, source: TensorSource, names: Mapping[str, str]) -> dict[str, torch.dtype]:
    keeps = WanModel.keeps_float32 if what == "transformer" else lambda name: False
    return working_types(source, names, keeps, torch.bfloat16)


if __name__ == "__main__":
    sys.exit(exit_code(main))
