"""Stream the weights of a model's steps: each is on the device only while it works.

The device has a few flat slots. While a step computes from one slot, the weights of the next are copied into another,
on a stream of its own. Two events order them: `ready`, after the copy, and `free`, after the last step that used the
slot. Weights are never copied back: on the host they stay where they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from wan.modules.steps import Step

ALIGN = 256  # bytes; kernels choose other paths for values that are not aligned
LARGEST_CHUNK = 1 << 33  # bytes of pinned memory that are allocated together
Event = Any
all_gather_flat = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13


class Lane:
    """Order of copies to a device and of its work, where both cannot overlap: on a CPU, or on Apple's GPU."""

    def __init__(self, device: torch.device):
        self.device = device

    def slot(self, nbytes: int) -> Tensor:
        """Allocate bytes on the device."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def pinned(self, nbytes: int) -> Tensor:
        """Allocate bytes on the host, from where the device copies without its help."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def copy(self, target: Tensor, source: Tensor, after: Event) -> Event:
        """Copy to the device when `after` has happened; return the event of its end."""
        target.copy_(source)

    def gather(self, target: Tensor, part: Tensor, after: Event, group: ProcessGroup) -> Event:
        """Do as `copy`, with the part of each process of a group, in order."""
        all_gather_flat(target, part, group)

    def mark(self) -> Event:
        """Return the event of the end of the work that was given to the device so far."""

    def wait(self, event: Event) -> None:
        """Let the work that is given to the device from now on wait for an event."""

    def finish(self, event: Event) -> None:
        """Let the host wait for an event."""


class CudaLane(Lane):
    """Lane of a CUDA device: copies have a stream of their own."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def pinned(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor, after: Event) -> Event:
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def gather(self, target: Tensor, part: Tensor, after: Event, group: ProcessGroup) -> Event:
        own = target.chunk(group.size())[group.rank()]
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(after)
            own.copy_(part, non_blocking=True)
            all_gather_flat(target, own, group)
            return self.stream.record_event()

    def mark(self) -> Event:
        return torch.cuda.current_stream(self.device).record_event()

    def wait(self, event: Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def finish(self, event: Event) -> None:
        event.synchronize()


def make_lane(device: torch.device) -> Lane:
    """Make the lane of a device."""
    return CudaLane(device) if device.type == "cuda" else Lane(device)


class Unit:
    """Weights of a step: `home` is their data on the host, and in a flat buffer each has its place and type."""

    def __init__(self, tensors: Sequence[Tensor], types: Sequence[torch.dtype], parts: int = 1):
        """parts: number of equal parts that the buffer can be cut into."""
        self.tensors, self.types = tensors, types
        self.home = [tensor.data for tensor in tensors]
        sizes = [home.numel() * dtype.itemsize for home, dtype in zip(self.home, types, strict=True)]
        *self.starts, used = accumulate((-(-size // ALIGN) * ALIGN for size in sizes), initial=0)
        self.nbytes = -(-used // (parts * ALIGN)) * parts * ALIGN
        self.stops = [start + size for start, size in zip(self.starts, sizes, strict=True)]

    def views(self, flat: Tensor) -> list[Tensor]:
        """View the weights in a flat buffer of bytes."""
        places = zip(self.starts, self.stops, self.types, self.home, strict=True)
        return [flat[start:stop].view(dtype).view(home.shape) for start, stop, dtype, home in places]

    def fill(self, flat: Tensor) -> None:
        """Write the weights into a flat buffer on the host, rounded to their types."""
        for view, home in zip(self.views(flat), self.home, strict=True):
            view.copy_(home)

    def bind(self, data: Sequence[Tensor]) -> None:
        """Give the weights of the step other data."""
        for tensor, own in zip(self.tensors, data, strict=True):
            tensor.data = own


class Kept:
    """Pinned memory that holds all units for good; it takes the place of their weights on the host."""

    def __init__(self, units: Sequence[Unit], lane: Lane):
        self.flats: dict[Unit, Tensor] = {}
        for unit, flat in zip(units, pinned(lane, [unit.nbytes for unit in units]), strict=True):
            unit.fill(flat)
            unit.home = unit.views(flat)
            unit.bind(unit.home)  # what they were is freed before the next unit
            self.flats[unit] = flat

    def ask(self, unit: Unit) -> None:
        """Begin to bring a unit into pinned memory."""

    def has(self, unit: Unit) -> bool:
        """Tell whether `send` returns at once."""
        return True

    def send(self, unit: Unit, lane: Lane, target: Tensor, after: Event) -> Event:
        """Copy the bytes of a unit that was asked for to the device; see `Lane.copy`."""
        return lane.copy(target, self.flats[unit], after)

    def drop(self, unit: Unit) -> None:
        """Forget a unit that was asked for and not taken."""

    def close(self) -> None:
        """End the use of the device's copies."""


class Spread(Kept):
    """Pinned memory of several processes: each holds a part of all units, which are gathered on the device.

    Between their steps no process has the weights as a whole.
    """

    def __init__(self, units: Sequence[Unit], lane: Lane, group: ProcessGroup):
        self.flats, self.group = {}, group
        whole = torch.empty(max((unit.nbytes for unit in units), default=0), dtype=torch.uint8)
        parts = pinned(lane, [unit.nbytes // group.size() for unit in units])
        for unit, part in zip(units, parts, strict=True):
            unit.fill(whole)
            part.copy_(whole[: unit.nbytes].chunk(group.size())[group.rank()])
            pairs = zip(unit.home, unit.types, strict=True)
            unit.home = [torch.empty((), dtype=dtype).expand(home.shape) for home, dtype in pairs]  # of no use
            unit.bind(unit.home)
            self.flats[unit] = part

    def send(self, unit: Unit, lane: Lane, target: Tensor, after: Event) -> Event:
        return lane.gather(target, self.flats[unit], after, self.group)


class Ring(Kept):
    """A few buffers of pinned memory, which a thread fills from where the weights are, such as mapped files."""

    def __init__(self, lane: Lane, sizes: Sequence[int]):
        self.lane = lane
        self.free: deque[tuple[Tensor, Event]] = deque((flat, None) for flat in pinned(lane, sizes))
        self.asked: dict[Unit, tuple[Tensor, Future[None]]] = {}
        self.reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read weights")

    def ask(self, unit: Unit) -> None:
        flat, sent = self.free.popleft()  # one more than slots: there is always one
        self.asked[unit] = flat, self.reader.submit(self._fill, unit, flat, sent)

    def _fill(self, unit: Unit, flat: Tensor, sent: Event) -> None:
        if sent is not None:
            self.lane.finish(sent)
        unit.fill(flat)

    def has(self, unit: Unit) -> bool:
        return self.asked[unit][1].done()

    def send(self, unit: Unit, lane: Lane, target: Tensor, after: Event) -> Event:
        flat, filled = self.asked.pop(unit)
        filled.result()
        event = lane.copy(target, flat[: len(target)], after)
        self.free.append((flat, event))
        return event

    def drop(self, unit: Unit) -> None:
        self.free.append((self.asked.pop(unit)[0], None))  # the reader fills one after the other

    def close(self) -> None:
        self.reader.shutdown(cancel_futures=True)


def pinned(lane: Lane, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yield pinned buffers of these sizes, several out of one allocation, which takes a power of two of bytes."""
    buffers = iter(sizes)
    for chunk, count in chunks(sizes):
        left = lane.pinned(chunk)
        for size in islice(buffers, count):
            yield left[:size]
            left = left[size:]


def chunks(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Divide buffers of these sizes among allocations of powers of two: (bytes, number of buffers) of each.

    PyTorch's allocator of pinned memory rounds up to powers of two: each block of A14B alone would take half as much
    again.
    """

    def packed(limit: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for size in sizes:
            if not found or found[-1][0] + size > limit:
                found.append((0, 0))
            found[-1] = found[-1][0] + size, found[-1][1] + 1
        return [(_power(used), count) for used, count in found]

    smallest = _power(max(sizes, default=1))
    limits = [smallest << n for n in range(64) if n == 0 or smallest << n <= LARGEST_CHUNK]
    return min(map(packed, limits), key=lambda found: sum(size for size, _ in found))


def _power(number: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


@dataclass(eq=False)
class Slot:
    """Buffer on the device, and the unit that is in it, or will be when `ready` is known."""

    flat: Tensor
    free: Event
    unit: Unit | None = None
    ready: Event = None
    is_sent: bool = False


class Streamed:
    """Weights of the steps of one model. Between `start` and `stop` its run of steps finds them on the device."""

    def __init__(
        self,
        model: nn.Module,
        lane: Lane,
        keeps: bool = True,
        types: Callable[[str], torch.dtype] | None = None,
        group: ProcessGroup | None = None,
    ):
        """keeps: hold the weights in pinned memory, not where they are; types: of the weights at work, by name.

        group: processes that run the same steps, each of which then holds a part.
        """
        self.lane = lane
        found = streamed_weights(model)
        self.names = {name for weights in found.values() for name in weights}
        self.units = {
            modules: Unit(
                list(weights.values()),
                [types(n) if types else t.dtype for n, t in weights.items()],
                group.size() if group else 1,
            )
            for modules, weights in found.items()
        }
        sizes = [unit.nbytes for unit in self.units.values()]
        self.count = num_slots(sizes)
        units = list(self.units.values())
        self.kept = (Spread(units, lane, group) if group else Kept(units, lane)) if keeps else None
        self.shelf: Kept | None = None
        self.order: list[Unit] = []
        self.slots: list[Slot] = []
        run = getattr(model.run_blocks, "single", model.run_blocks)  # below what divides the tokens

        def run_streamed(steps: Iterable[Step], tokens: Any, cond: Any) -> Any:
            return run(self.follow(steps), tokens, cond)

        if run is model.run_blocks:
            model.run_blocks = run_streamed
        else:
            model.run_blocks.single = run_streamed

    def start(self, stay: int) -> None:
        """Take slots on the device, and place the first units that `stay` bytes hold there for good."""
        units = list(self.units.values())
        bound = num_bound([unit.nbytes for unit in units], stay)
        for unit in units[:bound]:
            unit.bind(self._placed(unit))
        self.order = units[bound:]
        largest = max((unit.nbytes for unit in self.order), default=0)
        count = min(self.count, len(self.order))
        self.slots = [Slot(self.lane.slot(largest), self.lane.mark()) for _ in range(count)]
        self.shelf = self.kept or Ring(self.lane, [largest] * (count + 1))

    @property
    def is_spread(self) -> bool:
        return isinstance(self.kept, Spread)

    def _placed(self, unit: Unit) -> list[Tensor]:
        """Make weights of a unit that stay on the device."""
        if self.is_spread:
            flat = self.lane.slot(unit.nbytes)
            self.lane.wait(self.kept.send(unit, self.lane, flat, self.lane.mark()))
            return unit.views(flat)
        pairs = zip(unit.home, unit.types, strict=True)
        return [home.to(self.lane.device, dtype, non_blocking=True) for home, dtype in pairs]

    def stop(self) -> None:
        """Give the memory on the device back; the weights are at home then."""
        for slot in self.slots:
            if slot.is_sent:
                self.lane.wait(slot.ready)  # whoever gets the memory next must not be written over
            elif slot.unit is not None:
                self.shelf.drop(slot.unit)
        self.shelf.close()
        self.slots, self.order, self.shelf = [], [], None
        for unit in self.units.values():
            unit.bind(unit.home)

    def follow(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Yield the steps, each while its weights are on the device."""
        order = set(self.order)
        for step in steps:
            unit = self.units.get(step.modules)
            if unit not in order:
                yield step
                continue
            slot = self._fetch(unit)
            unit.bind(unit.views(slot.flat))
            try:
                yield step
            finally:
                unit.bind(unit.home)
                slot.free = self.lane.mark()

    def _fetch(self, unit: Unit) -> Slot:
        """Return the slot with a unit. The next ones, as they follow round and round, begin to come into the others."""
        at = self.order.index(unit)
        wanted = [self.order[(at + n) % len(self.order)] for n in range(len(self.slots))]
        have = {slot.unit: slot for slot in self.slots}
        idle = [slot for slot in self.slots if slot.unit not in wanted]
        for missing in (other for other in wanted if other not in have):
            slot = idle.pop(0)
            if slot.unit is not None and not slot.is_sent:
                self.shelf.drop(slot.unit)
            slot.unit, slot.is_sent = missing, False
            have[missing] = slot
            self.shelf.ask(missing)
        for slot in (have[other] for other in wanted):
            if not slot.is_sent and (slot.unit is unit or self.shelf.has(slot.unit)):
                self._send(slot)
        self.lane.wait(have[unit].ready)
        return have[unit]

    def _send(self, slot: Slot) -> None:
        target = slot.flat[: slot.unit.nbytes]
        slot.ready, slot.is_sent = self.shelf.send(slot.unit, self.lane, target, slot.free), True


def streamed_weights(model: nn.Module) -> dict[tuple[nn.Module, ...], dict[str, Tensor]]:
    """Find the weights that are streamed, by the modules of their step and by name.

    A step that calls a child of the model itself, such as the patch embedding or the head, keeps its weights on the
    device: they are small, and the model uses them elsewhere, too. So does what `prepare` calls.
    """
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    children = set(model.children())
    apart = {id(t) for part in getattr(model, "apart", tuple)() for t in (*part.parameters(), *part.buffers())}
    found = {}
    for modules in (step.modules for step in model.trunk()):
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers()) if id(t) not in apart]
        if tensors and children.isdisjoint(modules):
            found[modules] = {names[id(tensor)]: tensor for tensor in tensors}
    return found


def num_slots(sizes: Sequence[int]) -> int:
    """Return the number of slots for units of these sizes: a large one behind a small one needs to come earlier."""
    return 2 if max(sizes, default=0) <= 1.5 * min(sizes, default=0) else 3


def num_bound(sizes: Sequence[int], stay: int) -> int:
    """Return how many of the first units stay on the device within `stay` bytes; all, if slots hold the others."""
    bound = sum(total <= stay for total in accumulate(sizes))
    return bound if len(sizes) - bound > num_slots(sizes) else len(sizes)
