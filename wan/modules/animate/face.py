"""The face of a clip: motion vectors to tokens of latent frames, and the adapters that add them to the video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.modules.animate.config import AnimateModelConfig
from wan.modules.attention import attention
from wan.modules.layers import Float32Linear, Linear, WanLayerNorm, WanRMSNorm
from wan.modules.motion import MotionEncoder

KeysValues = tuple[Tensor, Tensor]  # of all latent frames, [B, f, n, heads, D] each


class FaceEncoder(MotionEncoder):
    """Encoder of motion vectors, one per video frame, to tokens of latent frames; float32 throughout."""

    def __init__(self, config: AnimateModelConfig):
        width = config.face_encoder_hidden_dim
        super().__init__(config.motion_encoder_dim, config.face_encoder_num_heads, (width, width, width))
        self.out_proj = Float32Linear(width, config.dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, config.dim))

    def forward(self, motion: Tensor) -> Tensor:
        """Encode motion [B, 4 * t - 3, motion_encoder_dim] to tokens [B, t, heads + 1, C]; the last one is learned."""
        tokens = self.out_proj(self.local(motion.transpose(1, 2)))
        padding = self.padding_tokens.float().expand(*tokens.shape[:2], 1, -1)
        return torch.cat([tokens, padding], dim=2)


class FaceBlock(nn.Module):
    """Attention from the tokens of a latent frame to the face tokens of that frame."""

    def __init__(self, config: AnimateModelConfig):
        super().__init__()
        dim, self.num_heads = config.dim, config.num_heads
        self.norm = WanLayerNorm(dim, config.eps)  # of the tokens of the video, and of those of the face
        self.linear1_kv, self.linear1_q, self.linear2 = Linear(dim, 2 * dim), Linear(dim, dim), Linear(dim, dim)
        self.q_norm, self.k_norm = (WanRMSNorm(config.head_dim, config.eps) for _ in range(2))
        self.attend = attention

    def keys_values(self, faces: Tensor) -> KeysValues:
        """Make keys and values of face tokens [B, f, n, C]; they depend on no timestep."""
        keys, values = self.linear1_kv(self.norm(faces)).chunk(2, dim=-1)
        return self.k_norm(self.heads(keys)).to(values.dtype), self.heads(values)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x [B, f, N, C] with the keys and values of the same frames -> what is added to x."""
        q = self.q_norm(self.heads(self.linear1_q(self.norm(x)))).to(values.dtype)
        found = self.attend(q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1))
        return self.linear2(found.flatten(2)).unflatten(0, x.shape[:2])

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


class FaceAdapter(nn.Module):
    """Adapters behind every few blocks of the trunk, in order."""

    def __init__(self, config: AnimateModelConfig):
        super().__init__()
        count = config.num_layers // config.face_adapter_interval
        self.fuser_blocks = nn.ModuleList(FaceBlock(config) for _ in range(count))

    def keys_values(self, tokens: Tensor) -> tuple[KeysValues, ...]:
        """Make keys and values of each adapter, of face tokens [B, t, n, C]; the reference frame in front has none."""
        faces = F.pad(tokens, (0, 0, 0, 0, 1, 0))
        return tuple(block.keys_values(faces) for block in self.fuser_blocks)
