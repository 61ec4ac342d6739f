"""Parallel: the division of a run among processes. The public flags for several GPUs become this value."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from wan.program import torchrun_line

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Parallel:
    """Division of work: `cfg_size * ulysses_size` processes, a replica, make one video; replicas make different ones.

    In a replica two groups take one branch of guidance each (`cfg_size` 2), and in a group each process takes a share
    of the tokens. The flags spread the parameters of the transformers and of the text encoder over a replica.
    """

    world_size: int = 1
    cfg_size: int = 1
    ulysses_size: int = 1
    dit_fsdp: bool = False
    t5_fsdp: bool = False

    @property
    def replica_size(self) -> int:
        return self.cfg_size * self.ulysses_size

    @property
    def replicas(self) -> int:
        return self.world_size // self.replica_size

    def __post_init__(self) -> None:
        if self.cfg_size not in (1, 2):
            raise ValueError(f"guidance has two branches, for 1 or 2 groups of processes; got {self.cfg_size}")
        self._check_launch()
        if self.world_size % self.cfg_size:
            raise ValueError(
                f"--cfg_parallel needs an even number of processes, and torchrun started {self.world_size}"
            )
        group = self.world_size // self.cfg_size
        if self.ulysses_size < 1 or group % self.ulysses_size:
            half = f", half of the {self.world_size} with --cfg_parallel" if self.cfg_size == 2 else ""
            choices = ", ".join(str(n) for n in range(1, group + 1) if group % n == 0)
            raise ValueError(
                f"--ulysses_size must divide the number of processes, {group}{half}; {self.ulysses_size} does not, "
                f"choose one of {choices}"
            )
        for flag, given in (("--dit_fsdp", self.dit_fsdp), ("--t5_fsdp", self.t5_fsdp)):
            if given and self.replica_size == 1:
                raise ValueError(
                    f"{flag} spreads a model over the processes that make one video together, and with --ulysses_size "
                    f"1 that is one; use --ulysses_size {self.world_size}"
                )

    def _check_launch(self) -> None:
        """Raise ValueError for flags that need several processes."""
        if self.world_size > 1:
            return
        wanted = [
            *(["--ulysses_size"] if self.ulysses_size > 1 else []),
            *(["--cfg_parallel"] if self.cfg_size > 1 else []),
            *(["--dit_fsdp"] if self.dit_fsdp else []),
            *(["--t5_fsdp"] if self.t5_fsdp else []),
        ]
        if wanted:
            count = max(2, self.replica_size)
            need = f"{' and '.join(wanted)} need{'s' if len(wanted) == 1 else ''}"
            raise ValueError(f"{need} several processes, and this is one; start with {torchrun_line(count)}")

    @classmethod
    def from_flags(
        cls,
        *,
        world_size: int = 1,
        ulysses_size: int | None = None,
        cfg_parallel: bool = False,
        dit_fsdp: bool = False,
        t5_fsdp: bool = False,
        num_videos: int = 1,
    ) -> Parallel:
        """Fold the public flags.

        `ulysses_size` None uses all processes: as many replicas as there are videos, but one when a model is spread.
        """
        cfg_size = 2 if cfg_parallel else 1
        if ulysses_size is None:
            group = world_size // cfg_size
            replicas = 1 if dit_fsdp or t5_fsdp else math.gcd(group, num_videos)
            ulysses_size = max(1, group // replicas)
        return cls(world_size, cfg_size, ulysses_size, dit_fsdp, t5_fsdp)

    def token_parts(self, guided: bool) -> int:
        """Count the processes that share the tokens of a forward; without guidance those of the other branch help."""
        return self.ulysses_size if guided else self.replica_size

    def describe(self, guided: bool = True) -> str:
        """Describe the division in a line for the log, "" for one process. `guided`: some step has two branches."""
        if self.world_size == 1:
            return ""
        parts = [f"{self.world_size} processes"]
        if self.replicas > 1:
            parts.append(f"{self.replicas} videos at a time")
        if self.cfg_size > 1 and guided:
            parts.append("the two guidance branches side by side")
        if self.token_parts(guided) > 1:
            parts.append(f"tokens in {self.token_parts(guided)} parts")
        spread = [name for name, given in (("transformer", self.dit_fsdp), ("text encoder", self.t5_fsdp)) if given]
        if spread:
            parts.append(f"{' and '.join(spread)} spread over {self.replica_size}")
        return ", ".join(parts)

    def remarks(self, *, num_videos: int, num_heads: int, guided: bool = True, tiled: bool = False) -> list[str]:
        """List remarks on processes that are not used well, each with a better flag. `tiled`: decoding is in tiles."""
        remarks = []
        if num_videos < self.replicas:
            idle = (self.replicas - num_videos) * self.replica_size
            better = self.world_size // self.cfg_size
            remarks.append(
                f"{idle} of {self.world_size} processes have nothing to do: they would compute the same video again. "
                f"Share it with --ulysses_size {better}, or make more with --num_videos {self.replicas}"
            )
        elif num_videos % self.replicas:
            remarks.append(
                f"{num_videos} videos are no multiple of {self.replicas} at a time: in the last round some processes "
                f"wait; --num_videos {math.ceil(num_videos / self.replicas) * self.replicas} costs no more time"
            )
        token_parts = self.token_parts(guided)
        heads = shares(num_heads, token_parts)
        if heads[0] != heads[-1]:
            even = ", ".join(str(n) for n in range(1, num_heads + 1) if num_heads % n == 0)
            remarks.append(
                f"{num_heads} attention heads in {token_parts} parts are {heads[0]} or {heads[-1]} each: "
                f"attention works at {num_heads / (heads[0] * token_parts):.0%}; parts that divide the heads are "
                f"{even}"
            )
        if tiled and self.replica_size > 1:
            remarks.append(
                f"--vae_tile: one process decodes, tile by tile, and {self.replica_size - 1} wait for it; without the "
                f"flag each decodes a band of every frame, in about 1/{self.replica_size} of the memory"
            )
        return remarks


ALONE = Parallel()  # one process


def shares(total: int, parts: int) -> list[int]:
    """Divide `total` into `parts` as evenly as possible, larger shares first: (40, 3) -> [14, 13, 13]."""
    return [total // parts + (i < total % parts) for i in range(parts)]


# ---- the environment of torchrun ----


def launched_size(environ: Mapping[str, str] = os.environ) -> int:
    """Count the processes that torchrun started, by the environment. Raises ValueError when it contradicts itself."""
    text = environ.get("WORLD_SIZE") or "1"
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"WORLD_SIZE must be a number of processes, got {text!r}; start with torchrun, which sets it")
    size = int(text)
    if size == 1:
        return 1
    command = f"{torchrun_line(size)}, or unset WORLD_SIZE to run one process"
    missing = [name for name in NEEDED if not environ.get(name)]
    if missing:
        raise ValueError(f"WORLD_SIZE is {size}, but {', '.join(missing)} not set; start with {command}")
    if int(environ["RANK"]) >= size:
        raise ValueError(f"RANK {environ['RANK']} does not exist among WORLD_SIZE {size}; start with {command}")
    local = int(environ.get("LOCAL_WORLD_SIZE", size))
    if local > size or (environ.get("GROUP_WORLD_SIZE") == "1" and local != size):
        raise ValueError(
            f"WORLD_SIZE is {size}, but torchrun started {local} processes here; leave WORLD_SIZE to torchrun"
        )
    return size


def launched_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Rank of this process: `get_rank` returns it after all have joined."""
    return int(environ["RANK"]) if launched_size(environ) > 1 else 0


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Number of this process on its machine, which is the number of its GPU."""
    return int(environ.get("LOCAL_RANK", 0))
