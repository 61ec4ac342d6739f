"""Counter of operations on a device: launches, FLOPs, bytes, live memory, and what passes between host and device."""

from __future__ import annotations

import sys
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from benchmarks.counted.live import LiveMemory

GEMMS = {"addmm": 1, "_addmm_activation": 1, "baddbmm": 1, "mm": 0, "bmm": 0}  # the operand whose width is summed over
CONVOLUTIONS = {"convolution", "_convolution", "cudnn_convolution"}
HEAVY = ("gemm", "attention", "conv")  # kinds of operations that a compiler does not join with others
ASKS = {
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "equal",
    "allclose",
}
# what fills its first argument without reading it
FILLS = {"copy_", "fill_", "zero_", "normal_", "uniform_"}


@dataclass(frozen=True)
class Op:
    """One kernel. `reads` and `writes` are bytes by number of storage, `bytes` those that all operands take."""

    name: str
    kind: str  # of HEAVY, or "other"
    dtype: torch.dtype
    flops: float
    bytes: int
    reads: dict[int, int]
    writes: dict[int, int]
    where: str  # the line of the package that called it


class Counter(LiveMemory):
    """Context that lists the operations on a device as `ops`, values asked of it as `asks`, and copies as `copies`.

    Each operation of eager mode reads its inputs from memory and writes its results there; a view costs nothing. A
    pretended tensor answers True to what it is asked.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__(device)
        self.ops: list[Op] = []
        self.asks: Tally[str] = Tally()
        self.copies: Tally[str] = Tally()  # bytes: "to host" and "to device"
        self.weights = 0  # bytes
        self.peak_at = ""

    def hold(self, *modules: nn.Module) -> None:
        """Count the weights of modules as bytes that are alive from the start."""
        for module in modules:
            self.see([*module.parameters(), *module.buffers()])
        self.weights = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func._schema.name.partition("::")[2]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        numbers = self.see(given)
        if name in ASKS and self._concerned(given):
            self.asks[f"{name}, {where()}"] += 1
        if name == "_local_scalar_dense" and isinstance(given[0], FakeTensor):
            return True
        before = self.peak
        result = func(*args, **kwargs or {})
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        results = self.see(made)
        if self.peak > before:
            self.peak_at = where()
        if self._concerned(given) or self._concerned(made):
            self._record(func, name, given, numbers, made, results)
        return result

    def _concerned(self, tensors: Sequence[Tensor]) -> bool:
        return any(tensor.device.type == self.device for tensor in tensors)

    def _record(
        self, func: Any, name: str, given: list[Tensor], numbers: list[int], made: list[Tensor], results: list[int]
    ) -> None:
        places = {tensor.device.type for tensor in (*given, *made)}
        if name in ("_to_copy", "copy_") and len(places) > 1:
            self.copies["to host" if made[0].device.type != self.device else "to device"] += touched(made[0])
            return
        changes = func._schema.is_mutable
        if not changes and (set(results) <= set(numbers) or name.startswith(("empty", "new_empty"))):
            return  # a view, or memory that nothing is written to
        read, written = list(zip(given, numbers)), list(zip(made, results))
        if changes:
            written = read[:1]
            read = read[1:] if name in FILLS else read
        else:
            written = [pair for pair in written if pair[1] not in numbers]
        nbytes = sum(touched(tensor) for tensor, _ in (*read, *written))
        self.ops.append(Op(name, *work(name, given, written[0][0]), nbytes, largest(read), largest(written), where()))


def work(name: str, given: Sequence[Tensor], result: Tensor) -> tuple[str, torch.dtype, float]:
    """Tell the kind of an operation, the type it computes in, and its FLOPs, which count for heavy ones only."""
    if name in GEMMS:
        return "gemm", result.dtype, 2.0 * result.numel() * given[GEMMS[name]].shape[-1]
    if name in CONVOLUTIONS:
        return "conv", result.dtype, 2.0 * result.numel() * given[1].shape[1:].numel()
    if name == "attention":
        q, k, v = given[:3]
        return "attention", q.dtype, 2.0 * q.shape[:3].numel() * k.shape[2] * (q.shape[-1] + v.shape[-1])
    return "other", result.dtype, 0.0


def touched(tensor: Tensor) -> int:
    """Bytes of memory that the elements of a tensor occupy: expanded axes count once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride or not size else 1
    return count * tensor.element_size()


def largest(pairs: Sequence[tuple[Tensor, int]]) -> dict[int, int]:
    """Bytes by number of storage, of the largest of its tensors."""
    found: dict[int, int] = {}
    for tensor, number in pairs:
        found[number] = max(found.get(number, 0), touched(tensor))
    return found


def where() -> str:
    """Find the line of the package that runs, as "file:line function"."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/wan/" in name.replace("\\", "/"):
            return f"{name.replace(chr(92), '/').rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
