"""Faults of the trainer's files: its configuration, clips and captions, its caches, and the state it continues."""

import io
import json
import os
from random import Random
from typing import Any

import torch

from tests.faults import damage, texts, weights
from tests.faults.scene import Input, Scene


def training(scene: Scene) -> Input:
    """Damage a configuration file of the trainer."""
    from wan.training.config import TrainConfig

    rng = scene.rng
    path = scene.folder / "config.toml"
    values = TRAINING | {"checkpoint": str(scene.base.folder / "t2v-A14B")}
    what, values = texts.edited(rng, values)
    path.write_bytes(_toml(values).encode("utf-8", "surrogatepass"))
    if rng.random() < 0.4:
        what = scene.spoil(path, damage.bytewise)
    return Input(what, (), call=lambda: TrainConfig.from_toml(os.fspath(path)))


TRAINING = {
    "checkpoint": "", "output": "out", "task": "t2v-A14B", "family": "nano", "expert": "low_noise_model",
    "device": "cpu", "data": {"videos": "videos", "cache": "cache", "size": [64, 64], "frame_num": 17, "fps": 8.0},
    "loop": {"steps": 2, "batch_size": 1, "learning_rate": 1e-4, "betas": [0.9, 0.99], "optimizer": "adamw"},
    "flow": {"shift": 5.0, "t_min": 0.0, "t_max": 875.0, "sigma_distribution": "uniform", "channels": 4},
}  # fmt: skip


def _toml(values: Any) -> str:
    """Write a table as TOML, as far as TOML can hold it."""
    if not isinstance(values, dict):
        return json.dumps(values)
    lines = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for key, table in values.items():
        if isinstance(table, dict):
            lines += [f"[{json.dumps(key)}]", *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def trained(scene: Scene) -> Input:
    """Start a finished run again with one of its files damaged."""
    from wan.training.__main__ import main

    rng = scene.rng
    files = scene.base.link_training(scene.folder)
    name = rng.choice((*files, "out/state/state.pt", "cache/index.json"))
    if name.startswith("clips/"):  # which are read where there is no cache
        for other in files:
            if other.startswith("cache/"):
                (scene.folder / other).unlink()
    ways = {".json": texts.edited_json, ".pt": _faulty_state, ".safetensors": weights.faulty_safetensors}
    path = scene.folder / name
    what = scene.spoil(path, ways.get(path.suffix, damage.bytewise), special=0.3)
    return Input(
        f"{name}: {what}", (path.name, path.parent.name), call=lambda: main(["config.toml"]), uses_up=("out/", "cache/")
    )


def _faulty_state(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Replace one part of the state of a run, at any depth, by something else."""
    if rng.random() < 0.3:
        return weights.faulty_archive(rng, data)
    state = torch.load(io.BytesIO(data), weights_only=True)
    place, key = state, rng.choice(list(state))
    while isinstance(place[key], dict) and place[key] and rng.random() < 0.7:
        place, key = place[key], rng.choice(list(place[key]))
    if rng.random() < 0.3:
        del place[key]
        return f"without {key}", weights.saved(rng, state)[1]
    place[key] = rng.choice((None, 5, -1, 10**30, "x", [], {}, torch.zeros(3), torch.full((2, 2), float("nan"))))
    return f"{key} is {place[key]!r:.30}", weights.saved(rng, state)[1]
