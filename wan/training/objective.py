"""Objective of a text-conditioned DiT: captions become text states, some are dropped, the rest is flow matching."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.checkpoint.source import read_header
from wan.files import shown
from wan.modules.model import WanModel
from wan.training.config import FlowConfig, LoopConfig
from wan.training.loop import Objective
from wan.training.loss import Loss, flow_loss
from wan.values import quoted

TextStates = Callable[[Sequence[str]], list[Tensor]]  # captions -> states [len, text_dim] of each


@dataclass
class FlowBatch:
    latents: Tensor  # [B, C, T, H, W] float32, one grid
    captions: list[str]
    conditions: Tensor | None = None  # [B, C', T, H, W]: channels beside the latent (I2V's y)
    inputs: dict[str, Tensor] = field(default_factory=dict)  # [B, ...]: other arguments of the model, by name


def flow_objective(model: WanModel, text: TextStates, config: FlowConfig) -> Objective:
    """Make `objective(FlowBatch, generator) -> Loss`; a dropped caption is the empty prompt, as at inference.

    The inputs `config.dropped_inputs` of samples without a caption are zeros: guidance leaves them out with the text.
    With `config.channels` the model ignores the other channels, and goes on ignoring them because they have no loss.
    """
    if config.channels is not None:
        ignore_channels(model, config.channels)

    def objective(batch: FlowBatch, generator: torch.Generator) -> Loss:
        dropped = torch.rand(len(batch.captions), generator=generator) < config.text_dropout
        context = text(["" if d else c for c, d in zip(batch.captions, dropped.tolist(), strict=True)])
        device = model.patch_embedding.weight.device
        data = batch.latents.to(device)
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        for name in set(config.dropped_inputs) & set(inputs):
            kept = (~dropped).to(inputs[name]).view(-1, *[1] * (inputs[name].ndim - 1))
            inputs[name] = inputs[name] * kept
        if batch.conditions is not None:
            inputs["y"] = list(batch.conditions.to(device))

        def velocity(noisy: Tensor, timesteps: Tensor) -> Tensor:
            if timesteps.ndim == 2:  # by frame; the model takes them by token
                _, rows, columns = model.grid(noisy.shape[2:])
                timesteps = timesteps.repeat_interleave(rows * columns, dim=1)
            return torch.stack(model(list(noisy), timesteps, context=context, **inputs))

        return flow_loss(velocity, data, config, generator)

    return objective


@torch.no_grad()
def ignore_channels(model: WanModel, kept: int) -> None:
    """Let the model neither read nor change latent channels other than the first `kept`."""
    channels = model.config.out_dim
    model.patch_embedding.weight[:, kept:channels] = 0
    for parameter in (model.head.head.weight, model.head.head.bias):
        parameter.unflatten(0, (-1, channels))[:, kept:] = 0


class TrainedText:
    """Text states from an encoder that is trained as well; token ids are kept per caption."""

    def __init__(self, encoder: nn.Module, tokenize: Callable[[str], Sequence[int]]):
        self.encoder, self.tokenize = encoder, tokenize
        self._ids: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> list[Tensor]:
        for caption in captions:
            if caption not in self._ids:
                self._ids[caption] = torch.tensor(self.tokenize(caption), dtype=torch.long)
        ids = nn.utils.rnn.pad_sequence([self._ids[c] for c in captions], batch_first=True)
        lengths = torch.tensor([len(self._ids[c]) for c in captions])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = next(self.encoder.parameters()).device
        # padding comes back as zero rows, with which the model pads as well: no sample needs its own slice
        return list(self.encoder(ids.to(device), mask.long().to(device)))


class StoredText:
    """Text states from a safetensors file, computed once, with one tensor per caption that is read on use."""

    def __init__(self, path: Path, device: torch.device | str = "cpu"):
        from safetensors import safe_open

        shapes = {name: entry.shape for name, entry in read_header(path).items()}
        self._path = path
        self._file = safe_open(path, "pt")
        self._rows = {caption: name for name, caption in (self._file.metadata() or {}).items() if name in shapes}
        self._device = device
        self.widths = {shape[1] if len(shape) == 2 else 0 for shape in shapes.values()}

    def check(self, captions: Iterable[str], text_dim: int) -> None:
        """Raise ValueError when a caption has no text states here, or states have another width than a model reads."""
        missing = [caption for caption in ("", *captions) if caption not in self._rows]
        if missing or self.widths != {text_dim}:
            what = f"has no text states of {quoted(missing[0])}" if missing else f"has none of width {text_dim} alone"
            raise ValueError(f"{shown(self._path)} {what}; delete it, and it is made again")

    def __call__(self, captions: Sequence[str]) -> list[Tensor]:
        return [self._file.get_tensor(self._rows[c]).float().to(self._device) for c in captions]

    @staticmethod
    def write(path: Path, captions: Sequence[str], encode: Callable[[str], Tensor]) -> None:
        """Encode every distinct caption, and the empty one, to [len, dim]."""
        from safetensors.torch import save_file

        names = {f"{i:06d}": caption for i, caption in enumerate(sorted({"", *captions}))}
        save_file({name: encode(c).cpu().contiguous() for name, c in names.items()}, path, metadata=names)


def prepare_model(model: WanModel, config: LoopConfig) -> None:
    """Make training steps fast, with the same results: compiled blocks, quicker attention on a CPU."""
    on_cpu = model.patch_embedding.weight.device.type == "cpu"
    if on_cpu:
        model.embed_text = partial(embed_short_text, model)
    for module in model.modules() if on_cpu else ():
        if hasattr(module, "attend"):
            module.attend = matmul_attention
    for block in model.blocks:
        if on_cpu:
            block.cross_attn.attend = partial(matmul_attention, total_keys=model.config.text_len)
        if config.compile:
            block.compile()


def embed_short_text(model: WanModel, context: Sequence[Tensor], multiple: int = 32) -> Tensor:
    """Do as `WanModel.embed_text` with less padding: [B, n, C], n <= text_len; the last row is padding if n is less.

    All padding becomes the same row, so one copy with the weight of all of them is enough (see `matmul_attention`).
    """
    longest = max(len(c) for c in context)
    length = min(model.config.text_len, (longest // multiple + 1) * multiple)
    return model.text_embedding(torch.stack([F.pad(c, (0, 0, 0, length - len(c))) for c in context]))


def matmul_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_lens: Sequence[int] | None = None, *, total_keys: int = 0
) -> Tensor:
    """Compute `modules.attention.attention` by matrix products, for short sequences on a CPU; differentiable.

    The fused kernel's backward pass is slow there in bfloat16: 380 of 900 ms per step for the nano model (batch 64, 80
    tokens, two cores of a Xeon with AMX). With `total_keys` the last key has the weight of all missing ones.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
    if total_keys > k.shape[2]:
        repeats = F.pad(scores.new_zeros(k.shape[2] - 1), (0, 1), value=math.log(total_keys - k.shape[2] + 1))
        scores = scores + repeats
    if kv_lens is not None:
        keys = torch.arange(k.shape[2], device=k.device)
        padding = torch.stack([keys >= length for length in kv_lens])
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    return (F.softmax(scores, -1).to(v.dtype) @ v).transpose(1, 2)
