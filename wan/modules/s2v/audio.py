"""Audio of speech-to-video: tokens of latent frames, and their injection into the tokens of the video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.modules.layers import Float32Linear, Linear, compute_type, norm_modulate
from wan.modules.model import WanCrossAttention
from wan.modules.motion import MotionEncoder
from wan.modules.s2v.config import S2VModelConfig


class AudioTrunk(MotionEncoder):
    """Encoder of a signal with one vector per video frame, to tokens and one global vector per latent frame."""

    def __init__(self, audio_dim: int, dim: int, tokens: int):
        widths = dim // 4, dim // 2, dim
        super().__init__(audio_dim, tokens, widths)
        self.conv1_global = type(self.conv2)(audio_dim, widths[0])
        self.final_linear = Float32Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, audio_dim, L] -> global vectors [B, L', 1, dim], and tokens [B, L', tokens + 1, dim], float32."""
        local = self.local(x)
        padding = self.padding_tokens.float().expand(*local.shape[:2], 1, -1)
        whole = self.final_linear(self.trunk(self.conv1_global(x)))
        return whole[:, :, None], torch.cat([local, padding], dim=2)


class CausalAudioEncoder(nn.Module):
    """Mean of the layers of a speech encoder with learned weights, then `AudioTrunk`; float32 throughout."""

    def __init__(self, config: S2VModelConfig):
        super().__init__()
        self.encoder = AudioTrunk(config.audio_dim, config.dim, config.num_audio_token)
        self.weights = nn.Parameter(torch.full((1, config.audio_layers, 1, 1), 0.01))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, layers, audio_dim, L], one per video frame -> global vectors and tokens of `AudioTrunk`."""
        weights = F.silu(self.weights.float())
        return self.encoder((features.float() * weights).sum(dim=1) / weights.sum(dim=1))

    def of_clip(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the F features of a clip to F / 4 latent frames.

        The released model puts 73 copies of the first feature in front, and drops 19 latent frames. One copy and one
        latent frame give the same, because convolutions that repeat their first step continue a constant.
        """
        whole, tokens = self(torch.cat([features[..., :1], features], dim=-1))
        return whole[:, 1:], tokens[:, 1:]


class AdaLayerNorm(nn.Module):
    """Layer norm that is shifted and scaled by a vector of each latent frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = Linear(dim, 2 * dim)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """x [B, f, N, C], vector [B, f, 1, C] -> float32 [B, f, N, C]."""
        shift, scale = self.linear(F.silu(vector)).float().chunk(2, dim=-1)
        return norm_modulate(x.float(), shift, scale, eps=1e-5)


class AudioInjector(nn.Module):
    """Cross-attention from the tokens of each latent frame to its audio tokens, for several places in the trunk."""

    def __init__(self, config: S2VModelConfig):
        super().__init__()
        count = len(config.audio_inject_layers)
        self.injector = nn.ModuleList(WanCrossAttention(config) for _ in range(count))
        self.injector_adain_layers = nn.ModuleList(AdaLayerNorm(config.dim) for _ in range(count))

    def at(self, number: int) -> tuple[WanCrossAttention, AdaLayerNorm]:
        """Return the modules of the injector of that number."""
        return self.injector[number], self.injector_adain_layers[number]


def inject(x: Tensor, vectors: Tensor, audio: Tensor, attention: WanCrossAttention, norm: AdaLayerNorm) -> Tensor:
    """Add what audio says to the tokens of latent frames.

    x [B, f, N, C]; vectors [B, f, 1, C] and audio tokens [B, f, n, C] of the same frames -> [B, f, N, C].
    """
    queries = norm(x, vectors).to(compute_type(attention.q))
    found = attention(queries.flatten(0, 1), audio.flatten(0, 1))
    return x + found.unflatten(0, x.shape[:2])
