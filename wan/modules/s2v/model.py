"""Transformer of speech-to-video.

To the tokens of the video come those of the reference picture and of the packed history, at timestep 0. Behind some
blocks audio is injected into the tokens of each latent frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wan.modules.model import PatchEmbedding, WanModel, patchify
from wan.modules.rope import grid_positions, rope_table
from wan.modules.s2v.audio import AudioInjector, CausalAudioEncoder, inject
from wan.modules.s2v.config import S2VModelConfig
from wan.modules.s2v.framepack import FramePacker, history_positions
from wan.modules.steps import Conditioning, Prepared, Size, Step, Tokens, by_frame

REFERENCE_TIME = 30  # position in time of the reference picture; a clip must be shorter
VIDEO, REFERENCE, HISTORY = range(3)  # types of tokens


@dataclass(frozen=True)
class S2VPrepared(Prepared):
    """Values of a clip and branch of guidance; N is the number of tokens of a latent frame."""

    condition: Tensor  # [B, T * N or 1, C] what is added to the tokens of the video: pose and token type
    others: Tensor  # [B, L - T * N, C] tokens of reference and history
    vectors: Tensor  # [B, T, 1, C] audio of each latent frame
    audio: Tensor  # [B, T, n, C] audio tokens of each latent frame


class WanModel_S2V(WanModel):
    """Transformer of speech-to-video, with the parameter names of the released checkpoint."""

    config_class = S2VModelConfig
    extra_frames = 2.5
    extra_bytes = 2.4  # what is added to the tokens, and those of reference and history: counted

    def __init__(self, config: S2VModelConfig | str | None = None, **options):
        super().__init__(config, **options)
        config = self.config
        self.cond_encoder = PatchEmbedding(config.cond_dim, config.dim, config.patch_size, config.patch_size)
        self.trainable_cond_mask = nn.Embedding(3, config.dim)
        self.casual_audio_encoder = CausalAudioEncoder(config)
        self.audio_injector = AudioInjector(config)
        self.frame_packer = FramePacker(config.in_dim, config.dim)

    def forward(
        self,
        x: Sequence[Tensor],
        t: Tensor,
        context: Sequence[Tensor] | Prepared,
        seq_len: int | None = None,
        ref_latents: Sequence[Tensor] | None = None,
        motion_latents: Sequence[Tensor] | None = None,
        cond_states: Sequence[Tensor] | None = None,
        audio_input: Tensor | None = None,
        motion_frames: Sequence[int] = (17, 5),
        add_last_motion: int = 2,
        drop_motion_frames: bool = False,
    ) -> list[Tensor]:
        """Predict the flow velocity of each sample, float32 [out_dim, T, h, w]; all samples have one size.

        x: latents [C, T, h, w]; t: timesteps [B]; context: as in `WanModel.forward`; the other inputs: as in `prepare`.
        `seq_len` and `motion_frames` change nothing: no token is padding, and history of any length has the same effect
        on audio. Raises ValueError for inputs that do not belong together.
        """
        if isinstance(context, Prepared):
            return super().forward(x, t, context)
        if add_last_motion != 2:
            raise ValueError(f"add_last_motion must be 2, got {add_last_motion}: all history has weights, or none")
        if t.ndim != 1:
            raise ValueError(f"t must be one timestep for each sample, got shape {tuple(t.shape)}")
        prepared, features = self._prepare_call(
            x,
            t,
            context,
            ref_latents=ref_latents,
            motion_latents=None if drop_motion_frames else motion_latents,
            cond_states=cond_states,
            audio_input=audio_input,
        )
        return super().forward(x, features, prepared)

    def prepare(
        self,
        context: Sequence[Tensor],
        sizes: Sequence[Size],
        segments: Sequence[tuple[int, int]] | None = None,
        y: Sequence[Tensor] | None = None,
        *,
        ref_latents: Sequence[Tensor] | Tensor,
        motion_latents: Sequence[Tensor] | Tensor | None,
        cond_states: Sequence[Tensor] | Tensor | None,
        audio_input: Tensor,
    ) -> S2VPrepared:
        """Do as `WanModel.prepare`, for B samples of one size, with what else a clip is made from.

        ref_latents [B, C, 1, h, w]: the reference picture; motion_latents [B, C, t, h, w]: frames before the clip, None
        for none; cond_states [B, C, T, h, w]: the pose video, None for none; audio_input [B, layers, audio_dim, 4 * T]:
        states of the speech encoder for each video frame. Lists of samples are taken, too.
        """
        size, *others = set(map(tuple, sizes))
        if others:
            raise ValueError(f"all samples of speech-to-video need one size, got {size} and {others[0]}")
        frames, rows, columns = self.grid(size)
        self._check(size, audio_input)
        per_frame = rows * columns
        kinds = self.trainable_cond_mask(torch.arange(3, device=self.device)).to(self.dtype)
        others = [self.patch_embedding(patches(ref_latents, self.config.patch_size)) + kinds[REFERENCE]]
        positions = [grid_positions((1, rows, columns)) + torch.tensor([REFERENCE_TIME, 0, 0])]
        if motion_latents is not None:
            others.append(self.frame_packer(stacked(motion_latents)) + kinds[HISTORY])
            positions.append(history_positions(rows, columns))
        if cond_states is None:  # zeros, of which the bias is left
            pose = torch.zeros(1, 1, self.config.cond_dim * math.prod(self.config.patch_size), device=self.device)
        else:
            pose = patches(cond_states, self.config.patch_size)
        vectors, audio = self.casual_audio_encoder.of_clip(audio_input.to(self.device))
        others = torch.cat(others, dim=1)
        prepared = super().prepare(context, sizes, [(frames * per_frame, 0), (others.shape[1], 1)], y)
        rope = rope_table(torch.cat(positions), self.config.head_dim)[None].to(self.device)
        return S2VPrepared(
            **vars(prepared) | {"rope": torch.cat([prepared.rope, rope], dim=1)},
            condition=self.cond_encoder(pose) + kinds[VIDEO],
            others=others,
            vectors=vectors.to(self.dtype),
            audio=audio.to(self.dtype),
        )

    def embed(self, x: Sequence[Tensor], features: Tensor, prepared: S2VPrepared) -> tuple[Tokens, Conditioning]:
        """Embed the patches of the video, and put reference and history behind them."""
        tokens, cond = super().embed(x, features, prepared)
        video = self.patch_embedding(tokens.x) + prepared.condition
        return tokens._replace(x=torch.cat([video, prepared.others.expand(len(video), -1, -1)], dim=1)), cond

    def trunk(self) -> Sequence[Step]:
        """List the blocks, each followed by its injection of audio, and the head; `embed` has embedded the patches."""
        _, *steps = super().trunk()
        numbers = {block: number for number, block in enumerate(self.config.audio_inject_layers)}
        for block in sorted(numbers, reverse=True):
            modules = self.audio_injector.at(numbers[block])
            steps.insert(block + 1, Step(partial(self.inject, modules), modules))
        return steps

    def inject(self, modules: tuple[nn.Module, ...], tokens: Tokens, cond: Conditioning) -> Tokens:
        """Inject the audio of each latent frame into its tokens; reference and history stay."""
        prepared: S2VPrepared = cond.prepared
        num_frames, rows, columns = self.grid(prepared.sizes[0])

        def of_frames(x: Tensor, frames: slice) -> Tensor:
            return inject(x, prepared.vectors[:, frames], prepared.audio[:, frames], *modules)

        return tokens._replace(x=by_frame(of_frames, tokens, rows * columns, num_frames))

    def _check(self, size: Size, audio_input: Tensor) -> None:
        """Raise ValueError for a size or audio that the model cannot take."""
        frames, rows, columns = size
        if rows % 8 or columns % 8:
            raise ValueError(f"rows and columns of a latent must be multiples of 8, got {rows} and {columns}")
        if frames > REFERENCE_TIME:
            raise ValueError(f"a clip has at most {REFERENCE_TIME} latent frames, got {frames}")
        wanted = (self.config.audio_layers, self.config.audio_dim, 4 * frames)
        if tuple(audio_input.shape[1:]) != wanted:
            raise ValueError(f"audio_input must be [B, {', '.join(map(str, wanted))}], got {list(audio_input.shape)}")


def stacked(samples: Sequence[Tensor] | Tensor) -> Tensor:
    """Make one tensor of samples of one size."""
    return samples if isinstance(samples, Tensor) else torch.stack(list(samples))


def patches(samples: Sequence[Tensor] | Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Patchify samples of one size."""
    return patchify(stacked(samples), patch)
