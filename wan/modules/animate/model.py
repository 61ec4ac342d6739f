"""Transformer of character animation and replacement.

The first latent frame is the reference picture, and the others are the video. The pose video is added to the tokens of
the video. All tokens read text and CLIP's tokens of the picture. Behind every fifth block an adapter adds the face to
the tokens of each latent frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.modules.animate.config import IMAGE_TOKENS, AnimateModelConfig
from wan.modules.animate.face import FaceAdapter, FaceBlock, FaceEncoder, KeysValues
from wan.modules.animate.motion_encoder import FaceMotionEncoder
from wan.modules.layers import Linear, WanLayerNorm, WanRMSNorm
from wan.modules.model import PatchEmbedding, WanCrossAttention, WanModel, patchify
from wan.modules.model_config import WanModelConfig
from wan.modules.steps import Conditioning, Prepared, Size, Step, Tokens, by_frame


@dataclass
class BlankFace:
    """Face video of black frames, for the branch that guidance leads away from.

    All its frames have the same tokens, which are computed once from one frame and kept here.
    """

    tokens: Tensor | None = None  # [1, 1, n, C]


@dataclass(frozen=True)
class AnimatePrepared(Prepared):
    """Values of a clip and branch of guidance; the text states have the tokens of the picture in front."""

    pose: Tensor  # [B, L, C] what is added to the tokens: the pose video, behind a frame of zeros
    faces: tuple[KeysValues, ...]  # of each adapter


class ImageCrossAttention(WanCrossAttention):
    """Cross-attention to text and to a picture, which has keys and values of its own; both results are added."""

    def __init__(self, config: WanModelConfig):
        super().__init__(config)
        self.k_img, self.v_img = Linear(config.dim, config.dim), Linear(config.dim, config.dim)
        self.norm_k_img = WanRMSNorm(config.dim, config.eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, L, C], context [B, IMAGE_TOKENS + text_len, C] -> [B, L, C]."""
        q, picture, text = self.query(x), context[:, :IMAGE_TOKENS], context[:, IMAGE_TOKENS:]
        of_text = self.read(q, text, self.k, self.norm_k, self.v)
        return self.o(of_text + self.read(q, picture, self.k_img, self.norm_k_img, self.v_img))


class ImageProjection(nn.Module):
    """Projection of CLIP's tokens to the width of the transformer."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        norms = WanLayerNorm(in_dim, 1e-5, elementwise_affine=True), WanLayerNorm(dim, 1e-5, elementwise_affine=True)
        self.proj = nn.Sequential(norms[0], Linear(in_dim, in_dim), nn.GELU(), Linear(in_dim, dim), norms[1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, in_dim] -> [B, n, dim]."""
        return self.proj(x)


class WanAnimateModel(WanModel):
    """Transformer of character animation, with the parameter names of the released checkpoint."""

    config_class = AnimateModelConfig
    extra_bytes = 2.4  # the pose, and what cross-attention to the picture adds: counted

    def __init__(self, config: AnimateModelConfig | str | None = None, **options):
        super().__init__(config, **options)
        config = self.config
        self.pose_patch_embedding = PatchEmbedding(config.out_dim, config.dim, config.patch_size, config.patch_size)
        self.img_emb = ImageProjection(config.image_dim, config.dim)
        self.motion_encoder = FaceMotionEncoder(config)
        self.face_encoder = FaceEncoder(config)
        self.face_adapter = FaceAdapter(config)

    @property
    def cross_attention_class(self) -> type[WanCrossAttention]:
        """Class of the blocks' cross-attention."""
        return ImageCrossAttention if self.config.use_img_emb else WanCrossAttention

    def forward(
        self,
        x: Sequence[Tensor],
        t: Tensor,
        clip_fea: Tensor | Prepared,
        context: Sequence[Tensor] | None = None,
        seq_len: int | None = None,
        y: Sequence[Tensor] | None = None,
        pose_latents: Tensor | None = None,
        face_pixel_values: Tensor | BlankFace | None = None,
    ) -> list[Tensor]:
        """Predict the flow velocity of each sample, float32 [out_dim, F, h, w]; all samples have one size.

        x: latents [C, F, h, w], the reference frame in front; t: timesteps [B]; context, seq_len, y: as in
        `WanModel.forward`; the other inputs: as in `prepare`. A loop passes the value of `prepare` as third argument.
        Raises ValueError for inputs that do not belong together.
        """
        if isinstance(clip_fea, Prepared):
            return super().forward(x, t, clip_fea)
        if t.ndim != 1:
            raise ValueError(f"t must be one timestep for each sample, got shape {tuple(t.shape)}")
        if context is None or pose_latents is None or face_pixel_values is None:
            raise ValueError("context, pose_latents and face_pixel_values are all needed")
        inputs = {"clip_fea": clip_fea, "pose_latents": pose_latents, "face_pixel_values": face_pixel_values}
        prepared, features = self._prepare_call(x, t, context, seq_len, y=y, **inputs)
        return super().forward(x, features, prepared)

    def prepare(
        self,
        context: Sequence[Tensor],
        sizes: Sequence[Size],
        segments: Sequence[tuple[int, int]] | None = None,
        y: Sequence[Tensor] | None = None,
        *,
        clip_fea: Tensor,
        pose_latents: Tensor,
        face_pixel_values: Tensor | BlankFace,
    ) -> AnimatePrepared:
        """Do as `WanModel.prepare`, for B samples of one size, with what else a clip is made from.

        clip_fea [B, 257, image_dim]: CLIP's tokens of the reference picture; pose_latents [B, C, F - 1, h, w]: the pose
        video; face_pixel_values [B, 3, 4 * F - 7, S, S]: the face video in [-1, 1], or a blank one. F counts latent
        frames with that of the reference picture.
        """
        self._check(sizes, clip_fea, pose_latents, face_pixel_values)
        frames, rows, columns = self.grid(sizes[0])
        prepared = super().prepare(context, sizes, segments, y)
        states = prepared.context
        if self.config.use_img_emb:
            states = torch.cat(
                [self.img_emb(clip_fea.to(self.device)).to(states).expand(len(sizes), -1, -1), states], 1
            )
        pose = self.pose_patch_embedding(patchify(pose_latents.to(self.device), self.config.patch_size))
        tokens = self.face_tokens(face_pixel_values).expand(len(sizes), frames - 1, -1, -1)
        return AnimatePrepared(
            **vars(prepared) | {"context": states},
            pose=F.pad(pose, (0, 0, rows * columns, 0)),
            faces=self.face_adapter.keys_values(tokens),
        )

    def face_tokens(self, faces: Tensor | BlankFace) -> Tensor:
        """Encode faces [B, 3, 4 * t - 3, S, S] to tokens [B, t, n, C] of latent frames; a blank face has t = 1."""
        if isinstance(faces, BlankFace):
            if faces.tokens is None:
                size = self.config.motion_encoder_size
                faces.tokens = self.face_tokens(torch.full((1, 3, 1, size, size), -1.0))
            return faces.tokens
        motion = self.motion_encoder(faces.to(self.device).transpose(1, 2).flatten(0, 1))
        return self.face_encoder(motion.unflatten(0, (len(faces), -1)))

    def trunk(self) -> Sequence[Step]:
        """List the steps of the shared model, with a face adapter behind the first of every few blocks."""
        steps = list(super().trunk())
        for number, block in reversed(list(enumerate(self.face_adapter.fuser_blocks))):
            behind = 2 + number * self.config.face_adapter_interval  # steps: the patch embedding comes first
            steps.insert(behind, Step(partial(self.add_face, number, block), (block,)))
        return steps

    def apart(self) -> Sequence[nn.Module]:
        return [part for block in self.face_adapter.fuser_blocks for part in (block.linear1_kv, block.k_norm)]

    def embed_patches(self, tokens: Tokens, cond: Conditioning) -> Tokens:
        """Embed the patches, and add the pose."""
        x = self.patch_embedding(tokens.x)
        pose = cond.prepared.pose[:, tokens.start : tokens.start + x.shape[1]]
        return tokens._replace(x=x + F.pad(pose, (0, 0, 0, x.shape[1] - pose.shape[1])))

    def add_face(self, number: int, block: FaceBlock, tokens: Tokens, cond: Conditioning) -> Tokens:
        """Add the face of each latent frame to its tokens, by the adapter of that number."""
        keys, values = cond.prepared.faces[number]
        num_frames, rows, columns = self.grid(cond.prepared.sizes[0])

        def of_frames(x: Tensor, frames: slice) -> Tensor:
            return x + block(x, keys[:, frames], values[:, frames])

        return tokens._replace(x=by_frame(of_frames, tokens, rows * columns, num_frames))

    def init_weights(self, generator: torch.Generator) -> None:
        """Do as `WanModel.init_weights`; the motion encoder's own weights get unit variance, as it scales them."""
        super().init_weights(generator)
        for name, parameter in self.motion_encoder.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, generator=generator)

    def _check(self, sizes: Sequence[Size], picture: Tensor, pose: Tensor, faces: Tensor | BlankFace) -> None:
        """Raise ValueError for inputs that the model cannot take."""
        size, *others = set(map(tuple, sizes))
        if others:
            raise ValueError(f"all samples of character animation need one size, got {size} and {others[0]}")
        frames, rows, columns = size
        if frames < 2:
            raise ValueError(f"a clip has the reference frame and one of the video or more, got {frames} latent frame")
        side = self.config.motion_encoder_size
        wanted = {
            "clip_fea": (picture, (IMAGE_TOKENS, self.config.image_dim)),
            "pose_latents": (pose, (self.config.out_dim, frames - 1, rows, columns)),
            "face_pixel_values": (faces, (3, 4 * frames - 7, side, side)),
        }
        for name, (given, shape) in wanted.items():
            if isinstance(given, Tensor) and tuple(given.shape[1:]) != shape:
                raise ValueError(f"{name} must be [B, {', '.join(map(str, shape))}], got {list(given.shape)}")
