"""Seconds that counted operations would take on an H200, one after the other and ideally fused.

The rates are what such a card is taken to sustain, from published times of other programs. None is measured here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.counted.count import HEAVY, Counter, Op

HALF = (torch.bfloat16, torch.float16)
MEMORY = 4.3e12  # bytes a second
SHORTEST = 2e-6  # seconds that any kernel keeps the device busy
# FLOPs a second in 16 bits, and in float32. Convolutions are cuDNN's with TF32, which is PyTorch's default; their rates
# and that of attention in float32, with heads of 384 and more values, are fitted to published times of decoding.
RATES = {"gemm": (790e12, 60e12), "attention": (700e12, 25e12), "conv": (350e12, 150e12)}


@dataclass(frozen=True)
class Figures:
    """Counts of a run of code. Seconds are predicted."""

    launches: int
    flops: dict[str, float]  # by kind
    other_bytes: int  # of all operations but products, attention and convolutions
    fused_bytes: int  # of these, ideally fused
    seconds: dict[str, float]  # by kind, with "other"
    floor: float  # seconds of all FLOPs, those of attention at the rate of products in 16 bits, as theirs
    weights: int  # bytes, like the next one
    peak: int
    asks: int
    to_host: int  # bytes, like the next one
    to_device: int

    @property
    def eager(self) -> float:
        return sum(self.seconds.values())

    @property
    def fused(self) -> float:
        """Seconds when operations that a compiler can join are joined, at the speed of memory."""
        return self.eager - self.seconds["other"] + self.fused_bytes / MEMORY


def figures(counter: Counter) -> Figures:
    """Sum up what was counted."""
    seconds = dict.fromkeys((*HEAVY, "other"), 0.0)
    flops, floor = dict.fromkeys(HEAVY, 0.0), 0.0
    for op in counter.ops:
        seconds[op.kind] += op_seconds(op)
        if op.kind in flops:
            flops[op.kind] += op.flops
            floor += op.flops / (rate("conv", op.dtype) if op.kind == "conv" else RATES["gemm"][0])
    return Figures(
        launches=len(counter.ops),
        flops=flops,
        other_bytes=sum(op.bytes for op in counter.ops if op.kind == "other"),
        fused_bytes=sum(fused(counter.ops)),
        seconds=seconds,
        floor=floor,
        weights=counter.weights,
        peak=counter.peak,
        asks=sum(counter.asks.values()),
        to_host=counter.copies["to host"],
        to_device=counter.copies["to device"],
    )


def rate(kind: str, dtype: torch.dtype) -> float:
    return RATES[kind][0 if dtype in HALF else 1]


def op_seconds(op: Op) -> float:
    """Seconds of one kernel: of its memory or of its arithmetic, whichever takes longer."""
    arithmetic = op.flops / rate(op.kind, op.dtype) if op.kind in HEAVY else 0.0
    return max(op.bytes / MEMORY, arithmetic, SHORTEST)


def fused(ops: Sequence[Op]) -> list[int]:
    """Bytes of each group of operations that a compiler could make one kernel.

    The level of an operation is the number of products, convolutions and attentions behind it. A producer and a
    consumer join when they have the same level. A group reads each tensor from outside once, and writes what somebody
    outside reads.
    """
    groups = Groups(len(ops))
    made: dict[int, tuple[int, int]] = {}  # number of a storage -> the operation that wrote it, and the level after it
    levels, readers = [], defaultdict(list)
    for index, op in enumerate(ops):
        touched = (*op.reads, *op.writes)
        level = max((made[number][1] for number in touched if number in made), default=0)
        levels.append(level)
        for number in op.reads:
            readers[number].append(index)
            if number in made and op.kind == "other":
                maker = made[number][0]
                if ops[maker].kind == "other" and levels[maker] == level:
                    groups.join(index, maker)
        for number in op.writes:
            made[number] = index, level + (op.kind != "other")
    members = defaultdict(list)
    for index, op in enumerate(ops):
        if op.kind == "other":
            members[groups.find(index)].append(index)
    return [_group_bytes(ops, group, readers) for group in members.values()]


def _group_bytes(ops: Sequence[Op], group: list[int], readers: dict[int, list[int]]) -> int:
    inside, first = set(group), min(group)
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    for op in (ops[index] for index in group):
        _keep_largest(reads, ((number, size) for number, size in op.reads.items() if number not in writes))
        _keep_largest(writes, op.writes.items())
    kept = (
        size
        for number, size in writes.items()
        if any(reader > first and reader not in inside for reader in readers[number])
    )
    return sum(reads.values()) + sum(kept)


def _keep_largest(found: dict[int, int], sizes: Iterable[tuple[int, int]]) -> None:
    for number, size in sizes:
        found[number] = max(found.get(number, 0), size)


class Groups:
    """Disjoint sets of the numbers below `count`."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def find(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = index = self._parent[self._parent[index]]
        return index

    def join(self, one: int, other: int) -> None:
        self._parent[self.find(one)] = self.find(other)
