"""Plan of a run: memory, reading and time of each phase, and the policy that fits the device and the host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice

import torch

from wan import memory
from wan.cards import CARDS, CONVERTED, DISK, PAGEABLE, Card, card_named
from wan.distributed.util import least
from wan.experts import has_compiler
from wan.forecast import RESERVE, Models, Work, phase_bytes, streamed_bytes, tile_factor
from wan.geometry import format_size, parse_size
from wan.memory import PhaseStats
from wan.parallel import Parallel
from wan.runtime import CPU, Host, Offload, Runtime
from wan.streaming import chunks, num_slots

HOST_RESERVE = 4 << 30  # bytes for the system, and for pages of the files that are read
PROGRAM = 1 << 30  # bytes of the program on the host: its libraries, and the pictures of a video
# Memory traffic in bytes for each value of the stream and block, beside products and attention, counted: of blocks as
# they are, and of compiled ones.
OTHER_BYTES = {False: 150, True: 60}
COMPILING = 60  # seconds at most that a first run compiles
CONV_FLOPS = {8: 8.4e6, 16: 1.83e7}  # of decoding one pixel of a frame, by latent stride: counted
ENCODING = 0.6  # of that, for a pixel that is encoded
OTHER_DECODING = {8: 5.4e4, 16: 4.5e4}  # bytes of memory traffic for the same
# Settings of the autoencoder that are not given, the best ones first: the same values, 80 dB from them, those of tiles.
DECODING = (
    *({"vae_frames": count} for count in (None, 2, 1)),
    *({"vae_frames": count, "vae_dtype": torch.float16} for count in (None, 2, 1)),
    *({"vae_frames": 1, "vae_dtype": torch.float16, "vae_tile": tile} for tile in (512, 256)),
)
PART = {"text": "encode", "encode": "encode", "denoise": "denoise", "decode": "decode"}  # phases as they are measured
NAMES = {"text": "the text encoder", "encode": "encoding", "denoise": "denoising", "decode": "decoding"}


@dataclass(frozen=True)
class Room:
    """Bytes that a run can have on the device and on the host, None where unknown, and the card if it is known.

    `can_compile`: the machine has what torch needs to compile for the device.
    """

    device: int | None
    host: int | None
    card: Card | None = None
    name: str = "the device"
    can_compile: bool = True


@dataclass(frozen=True)
class Phase:
    """Peak bytes on the device, and allocated and pinned on the host; bytes read from files; predicted seconds."""

    device: int
    host: int
    disk: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """Runtime of a run with its policy, what each phase takes, and why this policy was chosen."""

    runtime: Runtime
    phases: dict[str, Phase]
    why: str = ""

    @property
    def device(self) -> int:
        return max(phase.device for phase in self.phases.values())

    @property
    def host(self) -> int:
        return max(phase.host for phase in self.phases.values())

    @property
    def seconds(self) -> float | None:
        known = [phase.seconds for phase in self.phases.values()]
        return None if None in known else sum(known)


def choose(models: Models, work: Work, runtime: Runtime, room: Room) -> Plan:
    """Plan a run. `Offload.AUTO` becomes the fastest policy that fits, and a VAE without settings gets what it needs.

    Blocks are compiled where that is left open and the run is long enough to repay it. Raises ValueError with the
    nearest settings when nothing fits on the device.
    """
    if runtime.device.type == "cpu" or room.device is None:
        policy = runtime.offload if runtime.offload is not Offload.AUTO else Offload.MODEL
        return make_plan(models, work, replace(runtime, offload=policy, compile=bool(runtime.compile)), room)
    for tries in ways(work, runtime):
        if plans := [plan for way in tries if (plan := fitted(models, work, way, room))]:
            break
    else:
        raise ValueError(refusal(models, work, runtime, room))
    best = min(plans, key=lambda plan: plan.seconds or 0)  # the first one where the card is unknown
    if runtime.compile is None:  # no step is left to a run that only decodes
        best = make_plan(models, work, replace(best.runtime, compile=repays(models, work, best.runtime, room)), room)
    usual = make_plan(models, work, next(ways(work, runtime))[0], room)
    if usual.device + RESERVE <= room.device or runtime.offload is not Offload.AUTO:
        return best
    needed = f"--offload {usual.runtime.offload.value} takes {in_gb(usual.device)}"
    return replace(best, why=f"{needed}, {room.name} has {in_gb(room.device)} free")


def repays(models: Models, work: Work, runtime: Runtime, room: Room) -> bool:
    """Tell whether compiled blocks save more time in one video than compiling takes, on an unknown card a fast one."""
    if not (room.can_compile and work.samples):
        return False
    room = replace(room, card=room.card or max(CARDS.values(), key=lambda card: card.bandwidth))
    eager, compiled = (phase_seconds(models, work, replace(runtime, compile=how), room) for how in (False, True))
    return eager["denoise"] > compiled["denoise"]


def room_of(runtime: Runtime) -> Room:
    """Ask the device and the host what a run can have; processes of one machine share the host.

    All processes get what the one with the least has, so that they make the same plan.
    """
    host, name = memory.total_memory(CPU), str(runtime.device)
    card = None
    if runtime.device.type == "cuda":
        name = torch.cuda.get_device_name(runtime.device)
        card = card_named(name)
    free = memory.free_memory(runtime.device)
    if runtime.parallel.world_size > 1 and None not in (free, host):
        on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", runtime.parallel.world_size))
        free, host = (least(size, runtime.device) for size in (free, host // on_machine))
    return Room(free, host, card, name, has_compiler(runtime.device))


def ways(work: Work, runtime: Runtime) -> Iterator[list[Runtime]]:
    """Yield the runtimes that may be chosen instead of this one: the policies for each way to decode, best first."""
    policies = [runtime.offload]
    if runtime.offload is Offload.AUTO:
        spread = runtime.parallel.dit_fsdp or runtime.parallel.t5_fsdp
        policies = [Offload.NONE] if spread else [Offload.NONE, Offload.MODEL, Offload.BLOCK]
    pairs = work.branches == 2 and runtime.parallel.cfg_size == 1 and not work.reuses
    for changes in DECODING:
        left = {name: value for name, value in changes.items() if getattr(runtime, name) is None}
        found = [replace(runtime, offload=policy, **left) for policy in policies]
        streams = [replace(way, together=True) for way in found if way.offload is Offload.BLOCK and pairs]
        yield [*found, *streams]  # if it takes as long, one after the other


def fitted(models: Models, work: Work, runtime: Runtime, room: Room) -> Plan | None:
    """Plan a run with one policy; None if it does not fit on the device."""
    free = room.device - RESERVE
    phases = phase_bytes(models, work, runtime)
    if max(phases.values()) > free:
        return None
    if runtime.offload is Offload.BLOCK and work.samples:
        steps, other = models.dit.steps, phases["denoise"] - streamed_bytes(models.dit)
        totals = [0, *accumulate(steps)]
        stay = max(total for total in totals if streamed_bytes(models.dit, total) + other <= free)
        runtime = replace(runtime, stay=stay)
    for host in Host:
        plan = make_plan(models, work, replace(runtime, host=host), room)
        if room.host is None or plan.host + HOST_RESERVE <= room.host:
            break
    return plan


def make_plan(models: Models, work: Work, runtime: Runtime, room: Room) -> Plan:
    """Put the figures of a runtime together."""
    device = phase_bytes(models, work, runtime)
    host = host_bytes(models, work, runtime)
    disk = {
        "text": models.text,
        "encode": models.vae * bool(work.encoded) + models.speech + models.picture,
        "denoise": sum(models.stored),
        "decode": 0 if work.encoded and work.samples else models.vae,
    }
    seconds = {} if room.card is None else phase_seconds(models, work, runtime, room)
    found = {name: Phase(size, host[name], disk[name], seconds.get(name)) for name, size in device.items()}
    if work.samples and not disk["encode"]:
        del found["encode"]
    return Plan(runtime, found)


def host_bytes(models: Models, work: Work, runtime: Runtime) -> dict[str, int]:
    """Bytes that each phase allocates and pins on the host. What is mapped from files is cache, and does not count."""
    streams = runtime.offload is Offload.BLOCK
    # weights are changed where they are loaded
    converts = work.config.uses_lora or (runtime.quantize is not None and not models.is_mapped)
    ring = (num_slots(models.dit.steps) + 1) * [max(models.dit.steps, default=0)]
    if runtime.offload is Offload.NONE and runtime.device != CPU:
        kept = 0  # read straight into the device
    elif (runtime.host is Host.MAPPED and not converts) or (models.is_mapped and not streams):
        kept = sum(size for size, _ in chunks(ring)) if streams else 0
    else:
        kept = max(models.experts)
        if streams:
            parts = [
                size // (runtime.parallel.ulysses_size if runtime.spreads_blocks else 1) for size in models.dit.steps
            ]
            kept += sum(size for size, _ in chunks(parts)) - sum(models.dit.steps)
        kept *= 1 if runtime.host is Host.ONE else len(models.experts)
        if runtime.spreads_blocks and converts:  # before it is spread
            kept += max(models.experts)
    text = 0
    if runtime.t5_device != runtime.device:
        text = models.text
    elif streams:
        text = sum(size for size, _ in chunks(3 * [max(models.text_parts.steps, default=0)]))
    left = models.vae if runtime.offload is not Offload.NONE and work.encoded and work.samples else 0
    collected = 12 * pixels_of(work) if runtime.vae_tile else 0  # the video in float32
    found = {"text": text, "encode": 0, "denoise": left + kept, "decode": left + collected}
    if runtime.host is Host.ALL and kept and work.samples:  # experts stay for the next video
        found["decode"] += kept
    return {name: PROGRAM + size for name, size in found.items()}


def phase_seconds(models: Models, work: Work, runtime: Runtime, room: Room) -> dict[str, float]:
    """Predicted seconds of each phase, from the rates of the card."""
    card, count = room.card, runtime.parallel.ulysses_size
    streams = runtime.offload is Offload.BLOCK
    values = work.tokens * models.sizes.dim * models.sizes.num_layers
    compute = forward_flops(models, work.tokens) / card.products + 4 * work.tokens * values / card.attention
    compute = (compute + OTHER_BYTES[bool(runtime.compile)] * values / card.bandwidth) / count
    compute += exchanged_bytes(models, work.tokens, count) / card.peers
    moved = sum(models.dit.steps) - runtime.stay if streams else 0
    branches = work.branches / (2 if runtime.parallel.cfg_size == 2 and work.branches == 2 else 1)
    passes = 1 if runtime.together else branches
    compute *= branches / passes
    forward = max(compute, copy_seconds(moved, runtime, card))
    if streams and runtime.host is Host.MAPPED:
        share = moved / max(1, sum(models.dit.steps))
        cached = room.host is not None and sum(models.stored) < room.host - HOST_RESERVE
        rate = CONVERTED if cached else min(DISK, CONVERTED)
        forward = max(forward, share * max(models.stored) / rate)
    loading = sum(models.stored) / DISK + sum(models.experts) / PAGEABLE * (runtime.offload is not Offload.NONE)
    pixels, stride = pixels_of(work) / runtime.parallel.replica_size, models.network.stride[1]
    decoding = pixels * (CONV_FLOPS[stride] / card.convolutions + OTHER_DECODING[stride] / card.bandwidth)
    return {
        "text": models.text / DISK + models.text / PAGEABLE,
        "encode": decoding * ENCODING * work.encoded / work.frames,
        "denoise": loading + COMPILING * bool(runtime.compile) + work.clips * work.steps * passes * forward,
        "decode": work.clips * decoding * tile_factor(models.network, work.size, runtime.vae_tile),
    }


def exchanged_bytes(models: Models, tokens: int, count: int) -> float:
    """Bytes that each of `count` processes sends in a forward: q, k and v before attention, and its result."""
    return 4 * 2 * tokens / count * (count - 1) / count * models.sizes.dim * models.sizes.num_layers


def copy_seconds(size: int, runtime: Runtime, card: Card) -> float:
    """Seconds in which weights come from the host, or the part of each process, and the others from other cards."""
    count = runtime.parallel.ulysses_size if runtime.spreads_blocks else 1
    return size / count / card.link + size * (count - 1) / count / card.peers


def forward_flops(models: Models, tokens: int) -> float:
    """FLOPs of the products of one forward; keys and values of the text are few."""
    dim, ffn_dim = models.sizes.dim, models.sizes.ffn_dim
    return 2 * tokens * models.sizes.num_layers * (6 * dim**2 + 2 * dim * ffn_dim)


def refusal(models: Models, work: Work, runtime: Runtime, room: Room) -> str:
    """Write the error for a run that does not fit, with the nearest settings that do."""
    phases = phase_bytes(models, work, replace(list(ways(work, runtime))[-1][-1], together=False))
    phase = max(phases, key=phases.get)
    found = list(islice(nearest(models, work, runtime, room), 3))
    cure = f"what fits: {', or '.join(found)}" if found else "no size and length of this task fits it"
    have = f"{room.name} has {in_gb(room.device)} free, of which its libraries take {in_gb(RESERVE)}"
    return f"{NAMES[phase]} takes {in_gb(phases[phase])}, and {have}; {cure}"


def nearest(models: Models, work: Work, runtime: Runtime, room: Room) -> Iterator[str]:
    """Yield flags with which a run fits, those first that keep the video."""

    def fits(other: Work, way: Runtime) -> bool:
        return any(fitted(models, other, found, room) for found in chain(*ways(other, way)))

    free = replace(runtime, vae_frames=None, vae_tile=None)
    spread = runtime.parallel.dit_fsdp or runtime.parallel.t5_fsdp
    keeps_policy = spread or not work.samples
    policies = [runtime.offload] if keeps_policy else dict.fromkeys((runtime.offload, Offload.MODEL, Offload.BLOCK))
    for policy in policies:
        for way, dropped in ((runtime, ""), (free, "without settings of the autoencoder")):
            if (policy, way) != (runtime.offload, runtime) and fits(work, replace(way, offload=policy)):
                yield " ".join(filter(None, (f"--offload {policy.value}" * (not keeps_policy), dropped)))
                break
    if spread and work.samples:
        alone = replace(runtime.parallel, dit_fsdp=False, t5_fsdp=False)
        if fits(work, replace(runtime, offload=Offload.BLOCK, parallel=alone)):
            flags = [f"--{name}" for name in ("dit_fsdp", "t5_fsdp") if getattr(runtime.parallel, name)]
            yield f"--offload block without {' and '.join(flags)}"
    anyhow = replace(free, offload=runtime.offload if spread else Offload.AUTO)
    half = replace(anyhow, vae_dtype=torch.float16)
    if runtime.vae_dtype == torch.float32 and not fits(work, anyhow) and fits(work, half):
        yield "--vae_dtype fp16" + " --offload auto" * (runtime.offload is not anyhow.offload)
    if not work.samples:  # size and length are those of the latent
        return
    if runtime.parallel.world_size == 1 and runtime.device.type == "cuda" and not fits(work, anyhow):
        shared = {n: replace(anyhow, parallel=Parallel(n, ulysses_size=n)) for n in (2, 4, 8)}
        if count := next((n for n, way in shared.items() if fits(work, way)), None):
            yield f"{count} such GPUs by torchrun --nproc_per_node={count}"
    if (halves := runtime.parallel).cfg_size == 2 and not fits(work, anyhow):
        tokens = replace(halves, cfg_size=1, ulysses_size=halves.replica_size)
        if fits(work, replace(anyhow, parallel=tokens)):
            yield f"--ulysses_size {tokens.ulysses_size} in place of --cfg_parallel"
    if work.config.frame_rest == 1 and work.config.model_type != "animate":
        lengths = (replace(work, latent_frames=count) for count in range(work.latent_frames - 1, 1, -1))
        if shorter := next((other for other in lengths if fits(other, anyhow)), None):
            yield f"--frame_num {shorter.frames}"
    smaller = (replace(work, size=parse_size(size)) for size in work.config.sizes)
    smaller = sorted((other for other in smaller if pixels_of(other) < pixels_of(work)), key=pixels_of)
    if other := next((other for other in reversed(smaller) if fits(other, anyhow)), None):
        yield f"--size {format_size(other.size)}"


def pixels_of(work: Work) -> int:
    """Number of pixels of all frames of the largest clip."""
    return work.size[0] * work.size[1] * work.frames


def in_gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def lines(plan: Plan) -> Iterator[str]:
    """Write a plan for a reader: one line for each phase, and the sum."""
    yield f"{'':8} {'device':>9} {'host':>9} {'reads':>9} {'predicted':>12}"
    for name, phase in plan.phases.items():
        yield f"{name:8} {_row(phase.device, phase.host, phase.disk, phase.seconds)}"
    yield f"{'in all':8} {_row(plan.device, plan.host, sum(p.disk for p in plan.phases.values()), plan.seconds)}"


def summary(plan: Plan) -> str:
    """Write a plan in one line."""
    parts = [f"{name} {in_gb(phase.device)}" for name, phase in plan.phases.items()]
    reads = in_gb(sum(phase.disk for phase in plan.phases.values()))
    text = f"{', '.join(parts)} on the device; host {in_gb(plan.host)}; reads {reads}"
    if plan.seconds is not None:
        text += f"; about {in_time(plan.seconds)}, predicted for this card"
    return text + (f"; {how}" if (how := choices(plan)) else "")


def choices(plan: Plan) -> str:
    """Say what was chosen, and why."""
    runtime, found = plan.runtime, [plan.why] * bool(plan.why)
    if runtime.together:
        found.append("both branches of guidance go through a block together")
    if runtime.stay:
        found.append(f"blocks of {in_gb(runtime.stay)} stay on the device")
    if runtime.host is not Host.ALL:
        found.append({Host.ONE: "one expert in host memory at a time"}.get(runtime.host, "weights stay in their files"))
    if runtime.compile:
        found.append("blocks are compiled")
    if runtime.vae_flags:
        found.append(f"decoding with {' '.join(runtime.vae_flags)}")
    return "; ".join(found)


def in_time(seconds: float) -> str:
    """`50 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _row(device: int, host: int, disk: int, seconds: float | None) -> str:
    time = "?" if seconds is None else in_time(seconds)
    return f"{in_gb(device):>9} {in_gb(host):>9} {in_gb(disk):>9} {time:>12}"


def out_of_memory(phase: str, plan: Plan | None, runtime: Runtime, phases: Mapping[str, PhaseStats]) -> str:
    """Say what a phase that ran out of memory was to take and had taken, and which flag helps."""
    planned = [figures.device for name, figures in (plan.phases if plan else {}).items() if phase in (name, PART[name])]
    taken = phases[phase].peak_bytes if phase in phases else None
    text = f"out of memory in {NAMES.get(phase, phase)}"
    text += f", planned {in_gb(max(planned))}" if planned else ""
    text += f", measured {in_gb(taken)} until then" if taken else ""
    return f"{text}; {cure(phase, runtime)}"


def cure(phase: str, runtime: Runtime) -> str:
    """Name the flag with which a phase takes less memory."""
    if phase != "denoise" and runtime.vae_frames != 1:
        return "try --vae_frames 1"
    if phase != "denoise" and runtime.vae_tile is None:
        return "try --vae_tile 512"
    spread = runtime.parallel.dit_fsdp or runtime.parallel.t5_fsdp
    if runtime.offload is not Offload.BLOCK and not spread:
        return "try --offload block"
    return "try a smaller --size or --frame_num, and end other programs on the device"
