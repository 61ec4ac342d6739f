"""Tell what a run would take, before it starts: `python -m wan.plan`, with the flags of `generate.py`.

Without `--ckpt_dir` the released model of `--task` is planned, by its known sizes. `--card` plans for a card that is
not here, `--table` writes the table of docs/memory.md. Nothing that is printed is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from wan.arguments import build_parser
from wan.cards import CARDS
from wan.checkpoint.layout import repository
from wan.configs import WAN_CONFIGS, get_config
from wan.finding import DEFAULT_TASK
from wan.forecast import Work, released_models, work_of
from wan.geometry import format_size, parse_size
from wan.jobs import PIPELINES
from wan.parallel import ALONE, Parallel
from wan.parser import exit_code
from wan.planner import Plan, Room, choices, choose, in_gb, in_time, lines, room_of
from wan.planning import plan, request_of, runtime_of, task_of_inputs
from wan.runtime import CPU, Host, Offload, Runtime, named_policy
from wan.typed import number, one_of, whole
from wan.values import named

CUDA = torch.device("cuda:0")
ON_CUDA = Runtime(CUDA, offload=Offload.AUTO, t5_device=CUDA, compile=None)
# Rows of the table: task, size, with an image.
CASES = (
    ("t2v-A14B", "832*480", False),
    ("t2v-A14B", "1280*720", False),
    ("i2v-A14B", "1280*720", True),
    ("ti2v-5B", "1280*704", False),
)
# Cards of the table, each with the GiB of its host, and how several share the work.
MACHINES = (
    *(("H200", 256, ALONE), ("L40S", 128, ALONE), ("RTX 5090", 128, ALONE), ("RTX 4090", 64, ALONE)),
    *(("RTX 4090", 32, ALONE), ("RTX 4080", 32, ALONE), ("RTX 4070", 32, ALONE), ("RTX 4060", 32, ALONE)),
    *(("RTX 4060", 64, Parallel(2, cfg_size=2)), ("RTX 4060", 64, Parallel(2, ulysses_size=2))),
    *(("RTX 4090", 64, Parallel(2, cfg_size=2)), ("RTX 4090", 64, Parallel(2, ulysses_size=2))),
    ("RTX 4090", 128, Parallel(4, cfg_size=2, ulysses_size=2)),
    ("H100", 1024, Parallel(8, cfg_size=2, ulysses_size=4)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    parser.prog = "python -m wan.plan"
    own = parser.add_argument_group("planning")
    own.add_argument("--card", type=one_of(tuple(CARDS)), metavar="NAME", help="plan for a card; default: this machine")
    own.add_argument("--cards", type=whole, metavar="N", default=1, help="how many of that card; default: 1")
    own.add_argument("--host_memory", type=number, metavar="GIB", help="of that machine; default: that of this one")
    own.add_argument("--table", action="store_true", help="write the table of docs/memory.md; default: one plan")
    args = parser.parse_args(arguments)
    for line in table() if args.table else planned(args):
        print(line)
    return 0


def planned(args: Any) -> Iterator[str]:
    """Plan the run of the arguments, and yield lines about it. Raises ValueError when it does not fit."""
    if args.ckpt_dir is not None and args.card is None:
        job = plan(args)
        config, request, found = job.config, job.request, job.plan
    else:
        config = get_config(args.task or task_of_inputs(args) or DEFAULT_TASK)
        with named({}):
            request = request_of(args, config, None)
        shapes = _shapes(config, request)
        if args.cards != 1 and not args.card:
            raise ValueError(f"--cards {args.cards} needs --card, the name of these cards")
        runtime = runtime_of(args, {}, args.cards if args.card else None)
        if args.card:
            here = torch.device("cpu") if args.t5_cpu else CUDA
            policy = named_policy(args.offload, args.offload_model)
            runtime = replace(runtime, device=CUDA, t5_device=here, offload=policy)
            card = CARDS[args.card]
            room = replace(room_of(Runtime(CPU)), device=card.memory, card=card, name=args.card)
        else:
            room = room_of(runtime)
        if args.host_memory:
            room = replace(room, host=int(args.host_memory * 2**30))
        if args.card and room.host is not None:  # the cards share it
            room = replace(room, host=room.host // args.cards)
        work = work_of(config, request, max(shapes), len(shapes))
        found = choose(released_models(config, runtime), work, runtime, room)
    what = f"{repository(config)}, {format_size(request.framing.used)}, {request.steps} steps"
    yield f"{what}, on {args.card or found.runtime.device}: --offload {found.runtime.offload.value}"
    yield from lines(found)
    if how := choices(found):
        yield how


def _shapes(config: Any, request: Any) -> list[Any]:
    pipeline = PIPELINES[config.name]
    return [pipeline.latent_shape(config, request, index) for index in range(pipeline.num_clips(request))]


def table() -> Iterator[str]:
    """Yield the lines of the table: what `--offload auto` chooses on each card, for each case."""
    yield "| task, size, frames | card | host GiB | flags that `auto` stands for | GPU GB | host GB | predicted |"
    yield "|---|---|---|---|---|---|---|"
    for task, size, has_image in CASES:
        work = work_at(task, size, has_image)
        models = released_models(work.config, ON_CUDA)
        for name, gib, parallel in MACHINES:
            count = parallel.world_size
            cards = f"{count}x {name}" if count > 1 else name
            what = (
                f"| {task}{', from an image' * has_image}, {size.replace('*', 'x')}, {work.frames} | {cards} | {gib} "
            )
            room = Room(CARDS[name].memory, (gib << 30) // count, CARDS[name], name)
            try:
                found = choose(models, work, replace(ON_CUDA, parallel=parallel), room)
            except ValueError as error:
                yield f"{what}| none: {error} | | | |"
                continue
            figures = f"{_gb(found.device)} | {_gb(found.host)} | {in_time(found.seconds)}"
            yield f"{what}| {flags_of_plan(found)} | {figures} |"


def work_at(task: str, size: str, has_image: bool = False) -> Work:
    """Say what the defaults of a task compute at a size."""
    config = WAN_CONFIGS[task]
    frames = -(-config.frame_num // config.vae_stride[0])
    return Work(config, parse_size(size), frames, config.sample_steps, 2, has_image=has_image)


def flags_of_plan(found: Plan) -> str:
    """Write the choices of a plan as flags, and those that have no flag in words."""
    runtime, parallel = found.runtime, found.runtime.parallel
    words = ["--cfg_parallel"] * (parallel.cfg_size == 2)
    words += ["--ulysses_size", str(parallel.ulysses_size)] * (parallel.ulysses_size > 1)
    words += ["--offload", runtime.offload.value, *["--compile"] * bool(runtime.compile), *runtime.vae_flags]
    text = f"`{' '.join(words)}`"
    if runtime.stay:
        text += f", {in_gb(runtime.stay)} of blocks stay"
    if runtime.together:
        text += ", branches together"
    return (
        text + {Host.ALL: "", Host.ONE: ", one expert in host memory", Host.MAPPED: ", from mapped files"}[runtime.host]
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"


if __name__ == "__main__":
    sys.exit(exit_code(main, "python -m wan.plan"))
