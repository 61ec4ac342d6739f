"""Build a module without memory, then fill it tensor by tensor from a checkpoint, strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wan.checkpoint.architecture import TEXT_LEN, inferred_fields, released_fields
from wan.checkpoint.formats import describe_contents, released_names
from wan.checkpoint.source import INDEX_SUFFIX, TensorSource, open_source
from wan.files import atomic_file, read_json, shown

Module = TypeVar("Module", bound=nn.Module)
Change = Callable[[str, Tensor], Tensor]  # name in the module and stored tensor -> the tensor that is loaded

STEM = "diffusion_pytorch_model"
MAX_CONFIG_BYTES = 1_000_000
MAX_LINES = 12  # of each kind of problem in an error: every name may be wrong
READABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_module(
    factory: Callable[[], Module],
    source: TensorSource | str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    keep_float32: Callable[[str], bool] | None = None,
    shard: Callable[[nn.Module], nn.Module] | None = None,
    change: Change | None = None,
) -> Module:
    """Build `factory()` on the meta device and fill it; returns it in eval mode on `device`, without gradients.

    Floating tensors become `dtype` (None: as stored); those for whose names `keep_float32` holds become float32. If no
    tensor has to change for the CPU, all stay views of the mapped file: they take no memory of their own until written,
    and the file may be replaced but not truncated. Else they are converted or copied one after the other, and each
    shard is closed after its last tensor. Memory beyond the kernel's file cache then stays below the size of the loaded
    module plus one tensor.

    `shard` is applied to the empty module. If it spreads a parameter over processes by rows, each process reads its own
    rows only.

    `change(name, tensor)` returns the tensor to load instead, such as the sum with a LoRA. It gets each tensor whole
    and as stored, perhaps a view of the file, under its name in the module. It computes in float32 and returns a new
    tensor of the same shape, which then becomes `dtype`, or the tensor itself. With `shard` every process changes whole
    tensors and keeps its rows.

    Published renamings (Diffusers, Transformers umT5, ComfyUI's prefix) are recognised. Raises ValueError with every
    missing, unexpected and misshapen tensor in one message.
    """
    source = source if isinstance(source, TensorSource) else open_source(source)
    device = torch.device(device)
    module = empty(factory)
    stored = match_names(module, source)
    if shard is not None:
        module = shard(module)
    parameters = dict(module.named_parameters())

    def target_dtype(name: str) -> torch.dtype:
        kept = source.dtype(stored[name])
        if not kept.is_floating_point or kept.itemsize == 1:  # 8 bits mean something by their scales alone
            return kept
        return torch.float32 if keep_float32 is not None and keep_float32(name) else dtype or kept

    copies = bool(shard or change) or any(target_dtype(name) != source.dtype(key) for name, key in stored.items())

    def read(pair: tuple[str, str]) -> tuple[str, Tensor]:
        name, key = pair
        tensor = source.get(key)
        if change is not None:
            tensor = change(name, tensor)
            assert tuple(tensor.shape) == source.shape(key), name
        if shard is not None and name in parameters:
            tensor = _local_rows(tensor, parameters[name])
        # one view left behind, such as a norm that keeps its dtype, would keep the whole shard mapped
        return name, tensor.to(target_dtype(name), copy=copies)

    owners = dict(module.named_modules())
    wanted = {key: name for name, key in stored.items()}
    pairs = ((wanted[key], key) for key in source.names() if key in wanted)  # the order of the file is the fastest
    for name, tensor in map(read, pairs) if device.type == "cpu" else _one_ahead(read, pairs):
        _assign(owners, name, tensor.to(device))
    unfilled = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    assert not unfilled, f"no file fills non-persistent buffers, compute them when needed: {unfilled}"
    return module.eval().requires_grad_(False)


def empty(factory: Callable[[], Module]) -> Module:
    """Call `factory()` on the meta device, where a module has names, shapes and types, and takes no memory."""
    with torch.device("meta"), _Uninitialized():
        return factory()


class _Uninitialized(TorchFunctionMode):
    """Mode that skips initialisation: a meta tensor has no values, and its `normal_` would import the compiler of
    torch, 1.7 s of every start."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_ or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _assign(owners: Mapping[str, nn.Module], name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = owners[path]
    if leaf in owner._parameters:
        tensor = nn.Parameter(_spread_like(owner._parameters[leaf], tensor), requires_grad=False)
    setattr(owner, leaf, tensor)


def _local_rows(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return this process' rows of `tensor` when `parameter` is sharded, else all of it."""
    if not hasattr(parameter, "placements"):
        return tensor
    rows = -(-tensor.shape[0] // parameter.device_mesh.size())
    start = rows * parameter.device_mesh.get_local_rank()
    return tensor[start : start + rows]


def _spread_like(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """Make the distributed tensor whose part here is `local`, if `parameter` is distributed; else return `local`."""
    if not hasattr(parameter, "placements"):
        return local
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements
    assert len(placements) == 1 and placements[0].is_shard(0), placements
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def _one_ahead(read: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
    """Map `read` over items; another thread reads the next item while the current one is sent to the device."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for item in items:
            ready, pending = pending, pool.submit(read, item)
            if ready is not None:
                yield ready.result()
        if pending is not None:
            yield pending.result()


# ---- strictness ----


def check_fits(factory: Callable[[], nn.Module], source: TensorSource) -> None:
    """Raise the errors of `load_module` about names, shapes and types, without reading a tensor."""
    match_names(empty(factory), source)


def match_names(module: nn.Module, source: TensorSource) -> dict[str, str]:
    """Map the name of every tensor of `module` (which may be on the meta device) to its name in the source.

    Raises ValueError when a tensor is missing, unexpected, of another shape or of a type that cannot be converted.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    stored, layout = released_names(source.names())
    shapes = {name: source.shape(key) for name, key in stored.items()}
    both = wanted.keys() & shapes.keys()
    misshapen = [name for name in wanted if name in both and wanted[name] != shapes[name]]
    types = {name: tensor.dtype for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    wrong = [n for n in types if n in both and source.dtype(stored[n]) not in (*READABLE, types[n])]
    problems = [
        *problem("missing", (name for name in wanted if name not in shapes)),
        *problem("unexpected", (name for name in shapes if name not in wanted)),
        *problem("of another shape", misshapen, lambda n: f": {list(shapes[n])} in the file, {list(wanted[n])} needed"),
        *problem("of a type this version does not read", wrong, lambda n: f": {source.dtype(stored[n])}"),
    ]
    if problems:
        hints = [f"The names follow {layout}." if layout else "", _contents_hint(shapes)]
        raise ValueError(
            "\n".join([f"{source.description} does not fit {type(module).__name__}:", *problems, *filter(None, hints)])
        )
    return stored


def _contents_hint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    contents = describe_contents(shapes)
    return f"It looks like {contents}." if contents else "It is nothing that this version knows."


def problem(title: str, names: Iterable[str], detail: Callable[[str], str] = lambda name: "") -> list[str]:
    """Make the lines of an error about names that have something in common; no lines for no names."""
    names = list(names)
    if not names:
        return []
    return [f"  {len(names)} {title}:", *(f"    {line}" for line in group_names(names, detail, MAX_LINES))]


def group_names(names: Iterable[str], detail: Callable[[str], str] = lambda name: "", limit: int = 40) -> list[str]:
    """Group names that differ in their first number alone, one line each: `blocks.{0..39}.norm3.weight (40)`.

    `detail` is appended; names with different details are not grouped. Beyond `limit` lines the rest is counted.
    """
    groups: dict[tuple[str, str], list[tuple[int | None, str]]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d{1,9}(?=\.)", name)
        key = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        groups.setdefault((key, detail(name)), []).append((int(number[0]) if number else None, name))
    lines = []
    for (key, text), members in groups.items():
        if len(members) == 1:
            lines.append(members[0][1] + text)
        else:
            numbers = _ranges(sorted(number for number, _ in members if number is not None))
            lines.append(f"{key.replace(chr(0), '{' + numbers + '}')} ({len(members)}){text}")
    lines = [shown(line) for line in lines]
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more lines"]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0..2,5"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# ---- the released folder layout ----


def read_config(path: str | Path, text_len: int = TEXT_LEN) -> dict[str, Any]:
    """Read the released fields of a model from the `config.json` in its folder, or beside its single file.

    The file may have Diffusers' fields, which lack `text_len`. Without the file the tensors may tell the fields.
    Raises FileNotFoundError or ValueError naming the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no model {path}")
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        try:
            return inferred_config(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{file.parent} has no config.json{f', and {error}' if str(error) else ''}"
            ) from None
    config = read_json(file, MAX_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold an object, not a {type(config).__name__}")
    try:
        return released_fields(config, text_len)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def inferred_config(path: Path) -> dict[str, Any]:
    """Infer the fields from the tensors of a folder or file. Raises FileNotFoundError when that is not possible."""
    try:
        source = open_source(path)
    except FileNotFoundError:
        raise FileNotFoundError from None
    names, _ = released_names(source.names())
    try:
        return inferred_fields({name: source.shape(stored) for name, stored in names.items()})
    except ValueError as error:
        raise FileNotFoundError(str(error)) from None


def save_safetensors_folder(
    state_dict: Mapping[str, Tensor], folder: str | Path, config: Mapping[str, Any], max_shard_bytes: int = 10 * 10**9
) -> None:
    """Write `config.json` and the tensors as the released folders have them; several shards get an index.

    Each file appears whole or not at all; the index and `config.json` come last, then shards of an earlier save that
    are no longer part of it are removed. Tensors are written in their own dtype, one shard in memory at a time.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(state_dict, max_shard_bytes)
    files = [f"{STEM}.safetensors"]
    if len(shards) > 1:
        files = [f"{STEM}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: state_dict[name].detach().cpu().contiguous() for name in names}
        with atomic_file(folder / file, overwrite=True) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(tensor.nbytes for tensor in state_dict.values())
        _replace_json(folder / f"{STEM}{INDEX_SUFFIX}", {"metadata": {"total_size": total}, "weight_map": weight_map})
        files.append(f"{STEM}{INDEX_SUFFIX}")
    _replace_json(folder / "config.json", dict(config))
    for stale in (*folder.glob(f"{STEM}*.safetensors"), *folder.glob(f"{STEM}*{INDEX_SUFFIX}")):
        if stale.name not in files:
            stale.unlink()


def _split(state_dict: Mapping[str, Tensor], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in state_dict.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    return shards


def _replace_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
