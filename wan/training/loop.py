"""Training loop of every objective: accumulate, clip, step, average, log, checkpoint, resume exactly.

A batch is a pure function of (seed, step, micro-batch), and so is the generator that the objective draws from. So the
step number is the whole random state: a run that was killed continues exactly, and a thread can prepare batches ahead.
"""

import json
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wan.checkpoint.pickled import reason_of
from wan.files import atomic_file, shown
from wan.training.config import LoopConfig
from wan.training.ema import EMA
from wan.training.loss import Loss, LossBins
from wan.training.optimizer import Optimizers, make_optimizer
from wan.values import whole

Draw = Callable[[int], Any]  # index of the micro-batch in the run -> batch; must not depend on anything else
Objective = Callable[[Any, torch.Generator], Loss]
STATE_FILE = "state.pt"


def fit(
    module: nn.Module,
    objective: Objective,
    draw: Draw,
    config: LoopConfig,
    folder: Path,
    *,
    preview: Callable[[int], None] | None = None,
    loss_bins: int = 10,
    stop_at: int | None = None,
) -> nn.Module:
    """Train `module` in place to `config.steps`; it then holds the averaged weights and is returned in eval mode.

    `objective(batch, generator)` uses the module it closes over. The state lives in `folder/state.pt` and the log in
    `folder/log.jsonl`; a state found there is continued. `preview(step)` is called with averaged weights every
    `config.preview_every` steps. `stop_at` ends this call early, as a kill would, with the state saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(module, config)
    ema = EMA(module, config.ema_decay)
    step = _load_state(folder, module, optimizer, ema, config)
    report = _Report(folder, config, loss_bins, step)
    end = min(config.steps, stop_at or config.steps)
    with _Ahead(draw, step * config.accumulation, end * config.accumulation) as batches:
        while step < end:
            rate = learning_rate(step, config)
            optimizer.set_learning_rate(rate)
            for micro in range(config.accumulation):
                index = step * config.accumulation + micro
                loss = _evaluate(objective, batches.take(), step_generator(config.seed, index), config, parameters)
                (loss.total / config.accumulation).backward()
                report.add(loss)
            norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            if not norm.isfinite():
                raise FloatingPointError(
                    f"the gradients of step {step + 1} have values that are not finite; lower the learning_rate, or "
                    "look for such values in the data and in the weights that training starts from"
                )
            optimizer.step()
            ema.update()
            step += 1
            report.step(step, norm, rate)
            if step % config.checkpoint_every == 0 or step == end:
                _save_state(folder, module, optimizer, ema, step)
            if preview and config.preview_every and step % config.preview_every == 0:
                # previews have other shapes than training: compiling for them would cost more than it saves
                with ema.applied(), torch.compiler.set_stance("force_eager"):
                    module.eval()
                    preview(step)
                    module.train()
    if step >= config.steps:
        ema.copy_to_module()
    return module.eval()


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then half a cosine down to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def step_generator(seed: int, index: int) -> torch.Generator:
    """The generator of one micro-batch, on the CPU so that every device sees the same draws."""
    return torch.Generator().manual_seed((seed << 40) + index)


def _evaluate(
    objective: Objective, batch: Any, generator: torch.Generator, config: LoopConfig, parameters: list
) -> Loss:
    device = parameters[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bfloat16"):
        return objective(batch, generator)


class _Ahead:
    """Prepares the next batch in a thread while the current one is used."""

    def __init__(self, draw: Draw, start: int, end: int):
        self._draw, self._next, self._end = draw, start, end
        self._pool = ThreadPoolExecutor(1)
        self._future: Future | None = None

    def __enter__(self) -> "_Ahead":
        self._submit()
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self) -> Any:
        batch = self._future.result()
        self._submit()
        return batch

    def _submit(self) -> None:
        if self._next < self._end:
            self._future = self._pool.submit(self._draw, self._next)
            self._next += 1


class _Report:
    """Means between two log lines, written as a readable line to stdout and as JSON to log.jsonl."""

    def __init__(self, folder: Path, config: LoopConfig, loss_bins: int, step: int):
        self._file, self._config = folder / "log.jsonl", config
        self._bins = LossBins(loss_bins)
        self._reset(step)
        print(f"{folder.name}: step {step} of {config.steps}", flush=True)

    def _reset(self, step: int) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._added, self._start, self._since = 0, time.monotonic(), step
        self._bins.reset()

    def add(self, loss: Loss) -> None:
        self._added += 1
        for name, value in {"loss": loss.total, **loss.parts}.items():
            self._sums[name] = self._sums[name] + value.detach()
        if loss.errors is not None:
            self._bins.add(loss.timesteps, loss.errors)

    def step(self, step: int, norm: Tensor, rate: float) -> None:
        if step % self._config.log_every and step != self._config.steps:
            return
        seconds = (time.monotonic() - self._start) / (step - self._since)
        means = {name: float(value) / self._added for name, value in self._sums.items()}
        row = {"step": step, **means, "grad_norm": float(norm), "learning_rate": rate, "ms_per_step": 1000 * seconds}
        bins = self._bins.means()
        with open(self._file, "a") as file:
            file.write(json.dumps({**row, "bins": bins}) + "\n")
        left = (self._config.steps - step) * seconds / 60
        text = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        tail = " ".join(f"{edge}:{value:.3f}" for edge, value in bins.items())
        print(f"step {step}/{self._config.steps}  {text}  left {left:.1f} min  {tail}".rstrip(), flush=True)
        self._reset(step)


def _save_state(folder: Path, module: nn.Module, optimizer: Optimizers, ema: EMA, step: int) -> None:
    state = {"step": step, "module": module.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
    with atomic_file(folder / STATE_FILE, overwrite=True) as file:
        torch.save(state, file)


def _load_state(folder: Path, module: nn.Module, optimizer: Optimizers, ema: EMA, config: LoopConfig) -> int:
    path = folder / STATE_FILE
    if not path.is_file():
        return 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
        step = whole("step", state["step"])
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
    except Exception as error:  # damage shows as almost any exception
        what = f"{shown(path)} is damaged, or not the state of this run ({reason_of(error)})"
        raise ValueError(f"{what}; delete it to start anew") from None
    if not 0 <= step <= config.steps:
        raise ValueError(f"{path} is at step {step}, beyond the {config.steps} asked for; use another folder")
    return step
