"""Public wrapper of a video autoencoder: lists in, lists out, with the published scaling of the latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from wan.checkpoint.loading import load_module
from wan.checkpoint.source import TensorSource, open_source
from wan.finite import require_finite
from wan.modules.vae import LATENTS_AT_ONCE, PIXEL_CHANNELS, CausalVAE, VAEConfig
from wan.modules.vae_blocks import FRAMES_AT_ONCE
from wan.modules.vae_inference import prepare


class VideoVAE:
    """Coder from lists of videos [3, T, H, W] in [-1, 1] to lists of scaled float32 latents [z, T', h, w], and back.

    A list may be any iterable, also a stacked 5-D tensor. Its elements may differ in size; they are coded one by one.
    """

    network: ClassVar[type[CausalVAE]]
    file: ClassVar[str]  # the name of the released weights
    latent_mean: ClassVar[tuple[float, ...]]  # per channel, of the released model's latents; no checkpoint has these
    latent_std: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        z_dim: int | None = None,
        vae_pth: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        tiling: int | None = None,
        frames_at_once: int | None = None,
        conv_dtype: torch.dtype | None = None,
        model: CausalVAE | None = None,
    ):
        """Load `vae_pth`, or wrap `model`. Computes in `dtype`, in any autocast region.

        `z_dim` can only be the published number of latent channels. For short memory: `frames_at_once`, 4 (None), 2 or
        1, of the same values; `conv_dtype` torch.float16 for the convolutions around a stream in `dtype`; `tiling`, the
        edge of tiles in pixels (None: whole frames). Rounding differs. Small tiles cost time, because each is computed
        with a margin of 13 latent pixels around it.
        """
        title, channels = self.network.config_class.title, len(self.latent_mean)
        if z_dim not in (None, channels):
            raise ValueError(f"{title} has {channels} latent channels, got z_dim {z_dim}")
        if (vae_pth is None) == (model is None):
            raise ValueError(f"give vae_pth, the path of {self.file}, or a model; exactly one of the two")
        self.dtype = dtype
        self.device = torch.device(device)
        if model is None:  # of any size: its tensors show the architecture
            source, config = open_vae(self.network, vae_pth)
            model = load_module(lambda: self.network(config), source, dtype=dtype, device=device)
        self.model = model.to(self.device, dtype)
        if self.model.z_dim != channels:
            raise ValueError(f"the VAE has {self.model.z_dim} latent channels, the published statistics {channels}")
        prepare(self.model, self.device, conv_dtype)
        self.cure = "--vae_dtype fp32" if conv_dtype is torch.float16 else ""
        self.tiling, self.frames_at_once = tiling, frames_at_once or FRAMES_AT_ONCE[-1]
        self.mean = torch.tensor(self.latent_mean, device=self.device).view(-1, 1, 1, 1)
        # Upstream multiplies and divides by the rounded reciprocal; dividing by the std itself differs by 5e-6.
        self.inverse_std = 1.0 / torch.tensor(self.latent_std, device=self.device).view(-1, 1, 1, 1)

    def encode(self, videos: Iterable[Tensor]) -> list[Tensor]:
        """Encode videos [3, T, H, W] to latents [z, 1 + (T - 1) // 4, h, w], float32, deterministic.

        Any float dtype and device. Frames after the last full group of 4 are ignored.
        """
        return [self._encode_one(video) for video in videos]

    def decode(self, latents: Iterable[Tensor]) -> list[Tensor]:
        """Decode latents [z, T', h, w] to videos [3, 4T' - 3, H, W], float32, clamped to [-1, 1]."""
        return [self._decode_one(latent).to(self.device) for latent in latents]

    def decode_stream(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode [z, T', h, w] as `decode` does, and yield consecutive chunks [3, f, H, W].

        Chunks are on the device. With tiles they are on the CPU, where the video is put together.
        Raises FloatingPointError for values that are not finite.
        """
        if latent.ndim != 4 or latent.shape[0] != self.model.z_dim:
            raise ValueError(f"a latent must be [{self.model.z_dim}, T, h, w], got {list(latent.shape)}")
        latent = latent.to(self.device, torch.float32) / self.inverse_std + self.mean
        steps = self.model.decode_chunks(latent[None], tile=self._tile(), at_once=self.frames_at_once)
        while (chunk := self._next(steps)) is not None:
            require_finite(chunk, "decoding", self.cure)  # before the clamp, which would turn infinity into white
            yield chunk[0].float().clamp_(-1, 1)

    def _encode_one(self, video: Tensor) -> Tensor:
        if video.ndim != 4:
            raise ValueError(f"encode takes a list of videos [3, T, H, W], got an element of shape {list(video.shape)}")
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            frames = LATENTS_AT_ONCE * self.model.config.stride[0]
            mean = self.model.encode(video[None], frames, self._tile(), self.frames_at_once)[0].float()
        require_finite(mean, "encoding by the VAE", self.cure)
        return (mean - self.mean) * self.inverse_std

    def _decode_one(self, latent: Tensor) -> Tensor:
        video, start = None, 0
        for chunk in self.decode_stream(latent):
            if video is None:  # chunks are written into it: joining them at the end would hold every frame twice
                time, height, width = self.model.config.stride
                t, h, w = latent.shape[1:]
                video = chunk.new_empty(PIXEL_CHANNELS, (t - 1) * time + 1, h * height, w * width)
            video[:, start : start + chunk.shape[1]] = chunk
            start += chunk.shape[1]
        return video

    def _next(self, steps: Iterator[Tensor]) -> Tensor | None:
        # Entered for each chunk: a region that is open across `yield` would also apply to the caller.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return next(steps, None)

    def _tile(self) -> int | None:
        if self.tiling is None:
            return None
        stride = self.model.config.stride[1]
        if self.tiling < stride:
            raise ValueError(f"tiling must be None or at least {stride} pixels, got {self.tiling}; 256 is a good start")
        return self.tiling // stride


def open_vae(network: type[CausalVAE], path: str | Path) -> tuple[TensorSource, VAEConfig]:
    """Open the tensors of a VAE, compare their checksums, and read the architecture off them."""
    source = open_source(path, checksums=True)
    return source, source.inferred(network.config_class.from_state)
