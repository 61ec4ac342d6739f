"""Diffusion transformer of all five tasks.

`WanModel.forward` is embed -> trunk -> unembed. The trunk leads from raw patches through the blocks to predicted ones.
It is a list of steps, each with its modules. Code that runs or visits the list can shard, stream, cache or quantise it
without knowing the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from wan.modules.attention import attention
from wan.modules.layers import (
    FeedForward,
    Float32Linear,
    Linear,
    WanLayerNorm,
    WanRMSNorm,
    compute_type,
    norm_modulate,
    sinusoidal_embedding_1d,
)
from wan.modules.model_config import WanModelConfig
from wan.modules.rope import (
    grid_positions,
    rope_apply as rope_apply,
    rope_params as rope_params,
    rope_table,
    rotate,
)
from wan.modules.steps import (
    Conditioning,
    Prepared,
    Segment,
    Segments,
    Size,
    Step,
    Tokens,
    by_segment,
    of_branches,
    run_blocks,
)


class WanSelfAttention(nn.Module):
    """Multi-head self-attention: RMS norm on q and k over the full width, then rotary embedding per head."""

    def __init__(self, config: WanModelConfig):
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q = WanRMSNorm(dim, config.eps) if config.qk_norm else nn.Identity()
        self.norm_k = WanRMSNorm(dim, config.eps) if config.qk_norm else nn.Identity()
        self.attend = attention  # sequence parallelism and named backends replace it

    def forward(self, x: Tensor, rope: Tensor, kv_lens: Sequence[int] | None) -> Tensor:
        """x [B, L, C] -> [B, L, C]."""
        v = self.v(x)
        q = rotate(self.heads(self.norm_q(self.q(x))), rope).to(v.dtype)
        k = rotate(self.heads(self.norm_k(self.k(x))), rope).to(v.dtype)
        return self.o(self.attend(q, k, self.heads(v), kv_lens).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


class WanCrossAttention(WanSelfAttention):
    """Attention from video tokens to text states: no rotary embedding, and no mask, so that padded rows take part."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, L, C], context [B, text_len, C] -> [B, L, C]."""
        return self.o(self.read(self.query(x), context, self.k, self.norm_k, self.v))

    def query(self, x: Tensor) -> Tensor:
        """Make queries in the type of x; float32 ones would be alive while the kernel works."""
        return self.norm_q(self.q(x)).to(x.dtype)

    def read(self, q: Tensor, context: Tensor, key: nn.Module, norm: nn.Module, value: nn.Module) -> Tensor:
        """Attend from queries [B, L, C] to keys and values that are made of a context [B, n, C] -> [B, L, C]."""
        v = value(context)
        return self.attend(*map(self.heads, (q.to(v.dtype), norm(key(context)).to(v.dtype), v))).flatten(2)


class WanAttentionBlock(nn.Module):
    """Modulated self-attention, cross-attention to the text, modulated feed-forward."""

    def __init__(self, config: WanModelConfig, cross_attention: type[WanCrossAttention]):
        super().__init__()
        dim, self.eps = config.dim, config.eps
        self.self_attn = WanSelfAttention(config)
        self.norm3 = WanLayerNorm(dim, config.eps, elementwise_affine=True) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = cross_attention(config)
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))

    def forward(self, tokens: Tokens, cond: Conditioning) -> Tokens:
        x, segments = tokens.x, tokens.segments
        table = self.modulation.float() + cond.modulation  # [S, 6, C]
        attn, ffn = table[:, 0:3], table[:, 3:6]  # shift, scale, gate
        modulated, half = partial(norm_modulate, eps=self.eps), compute_type(self.self_attn.q)

        # LN(x) * (1 + scale) + shift goes into a branch, and x + branch * gate, float32 as the gate is, comes out
        # No name holds the input of a branch longer than it is needed.
        h = by_segment(modulated, segments, attn[:, :2], x, dtype=half)
        h = self.self_attn(h, tokens.rope, tokens.lengths)
        x = by_segment(torch.addcmul, segments, attn[:, 2:], x, h)
        h = self.norm3(x).to(half)
        h = self.cross_attn(h, cond.prepared.context)
        x = x + h
        h = by_segment(modulated, segments, ffn[:, :2], x, dtype=half)
        h = self.ffn(h)
        x = by_segment(torch.addcmul, segments, ffn[:, 2:], x, h)
        return tokens._replace(x=x)


class Head(nn.Module):
    """Final modulated norm and projection to patches; float32 throughout, modulated by the raw time embedding."""

    def __init__(self, config: WanModelConfig):
        super().__init__()
        self.eps = config.eps
        self.head = Float32Linear(config.dim, math.prod(config.patch_size) * config.out_dim)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: Tensor, segments: Segments, time: Tensor) -> Tensor:
        """x [B, L, C], time [S, C] -> [B, L, patch volume * out_dim], channel fastest."""
        table = self.modulation.float() + time[:, None]
        modulated = partial(norm_modulate, eps=self.eps)
        return self.head(by_segment(modulated, segments, table, x.float()))


def patchify(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, C, F, H, W] -> [B, L, C * prod(patch)], tokens in frame-row-column order."""
    f, h, w = patch
    return rearrange(x, "b c (F f) (H h) (W w) -> b (F H W) (c f h w)", f=f, h=h, w=w)


class PatchEmbedding(nn.Conv3d):
    """Embedding of non-overlapping patches: it has the weights of a convolution, and computes a matrix product."""

    def forward(self, patches: Tensor) -> Tensor:
        """[B, L, C * prod(patch)] -> [B, L, dim]."""
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class WanModel(nn.Module):
    """Transformer of T2V, I2V and TI2V, with the parameter names of the released checkpoints.

    Build it as `WanModel(config)` or, as upstream's users do, `WanModel(model_type=..., dim=..., ...)`. Weights are
    zero until they are loaded (`from_pretrained`) or drawn (`init_weights`). Models of other tasks replace the classes.
    """

    config_class: ClassVar[type[WanModelConfig]] = WanModelConfig
    block_class: ClassVar[type[WanAttentionBlock]] = WanAttentionBlock
    cross_attention_class: ClassVar[type[WanCrossAttention]] = WanCrossAttention
    # For the forecast of memory: tokens beside those of a clip, in latent frames, and bytes beside those of a token's
    # values, for each of these.
    extra_frames: ClassVar[float] = 0
    extra_bytes: ClassVar[float] = 0

    def __init__(self, config: WanModelConfig | str | None = None, **options: Any):
        super().__init__()
        if isinstance(config, str):  # upstream's first positional argument is model_type
            options["model_type"], config = config, None
        self.config = config = self.config_class(**options) if config is None else config
        vars(self).update(vars(config))  # model.dim, model.num_layers, ...: upstream's scripts read these
        dim = config.dim
        self.patch_embedding = PatchEmbedding(config.in_dim, dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(Linear(config.text_dim, dim), nn.GELU("tanh"), Linear(dim, dim))
        self.time_embedding = nn.Sequential(Float32Linear(config.freq_dim, dim), nn.SiLU(), Float32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Float32Linear(dim, 6 * dim))
        blocks = (self.block_class(config, self.cross_attention_class) for _ in range(config.num_layers))
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(config)
        self.run_blocks = run_blocks  # to be replaced from outside: see the module docstring

    def forward(
        self,
        x: Sequence[Tensor],
        t: Tensor,
        context: Sequence[Tensor] | Prepared,
        seq_len: int | None = None,
        y: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Predict the flow velocity (noise - data) of each sample, float32 [out_dim, F, H, W].

        x: latents [C, F, H, W], which may differ in size; t: timesteps [B] or [B, seq_len] in 0..1000; context: text
        states [len, text_dim], len <= text_len; seq_len: padded token count, at least the longest sample's (tokens
        beyond it are never computed); y: condition channels [C', F, H, W] appended to each x.

        A loop passes the value of `prepare` as `context`, and `time_features` of its timestep and of 0 as `t`; then
        nothing moves between host and device. With timesteps per token the device is asked for their values.
        """
        if isinstance(context, Prepared):
            prepared, features = context, t[: context.num_timesteps]
        else:
            prepared, features = self._prepare_call(x, t, context, seq_len, y=y)
        return self.branches(x, features, [prepared])[0]

    def branches(self, x: Sequence[Tensor], features: Tensor, prepared: Sequence[Prepared]) -> list[list[Tensor]]:
        """Predict what `forward` does, under each of several conditions.

        Every step of the trunk works on all of them before the next one: its weights may be there for a moment only.
        """
        inputs = [self.embed(x, features[: branch.num_timesteps], branch) for branch in prepared]
        if len(inputs) == 1:
            [(tokens, cond)], through = inputs, prepared[0].through
            run = partial(through, self.run_blocks) if through else self.run_blocks
            done = [run(self.trunk(), tokens, cond)]
        else:
            tokens, conds = (list(values) for values in zip(*inputs, strict=True))
            del inputs
            done = self.run_blocks(list(map(of_branches, self.trunk())), tokens, conds)
        return [self.unembed(tokens, branch.sizes) for tokens, branch in zip(done, prepared, strict=True)]

    def prepare(
        self,
        context: Sequence[Tensor],
        sizes: Sequence[Size],
        segments: Sequence[tuple[int, int]] | None = None,
        y: Sequence[Tensor] | None = None,
    ) -> Prepared:
        """Compute all that depends on no timestep, for `forward`; sizes (frames, rows, columns) are those of latents.

        segments: (tokens, row) one after the other; row 0 has the timestep of a step, row 1 timestep 0; None: row 0 for
        all. context and y: as in `forward`. Models of other tasks take and return more.
        """
        for c in context:
            if c.shape[0] > self.config.text_len:
                raise ValueError(f"a context has {c.shape[0]} rows; the model reads at most {self.config.text_len}")
        grids = tuple(self.grid(size) for size in sizes)
        lengths = tuple(map(math.prod, grids))
        rope = self.rope(grids, self.device)
        padding = lengths if len(set(lengths)) > 1 else None
        laid, parts = [], [part for part in segments or [(max(lengths), 0)] if part[0]]
        for count, row in parts:
            start = laid[-1].stop if laid else 0
            laid.append(Segment(start, start + count, torch.full((len(sizes),), row, device=self.device)))
        num_timesteps = 1 + max(row for _, row in parts)
        return Prepared(self.embed_text(context), rope, tuple(laid), num_timesteps, padding, tuple(sizes), y)

    def _prepare_call(self, x, t, context, seq_len=None, **inputs) -> tuple[Prepared, Tensor]:
        """Prepare the arguments of the public `forward`, and the features of its timesteps. Raises ValueError."""
        if len(context) != len(x) or t.shape[0] != len(x):
            raise ValueError(f"{len(x)} samples need as many contexts and timesteps, got {len(context)}, {t.shape[0]}")
        sizes = [latent.shape[1:] for latent in x]
        longest = max(math.prod(self.grid(size)) for size in sizes)
        if seq_len is not None and seq_len < longest:
            raise ValueError(f"seq_len {seq_len} is shorter than the longest sample, {longest} tokens")
        if t.ndim == 2 and t.shape[1] < longest:
            raise ValueError(f"t has {t.shape[1]} timesteps per sample for {longest} tokens")
        # the plain method: FSDP's would give the weights away that this forward has gathered
        prepared = type(self).prepare(self, context, sizes, **inputs)
        segments, timesteps = segment_timesteps(t, longest) if t.ndim == 2 else own_timesteps(t, prepared)
        prepared = replace(prepared, segments=segments, num_timesteps=len(timesteps))
        return prepared, time_features(timesteps, self.config.freq_dim, self.device)

    def trunk(self) -> Sequence[Step]:
        """List the steps of all computation per token; models of other tasks insert adapters here."""
        first, last = Step(self.embed_patches, (self.patch_embedding,)), Step(self.predict_patches, (self.head,))
        return (first, *(Step(block, (block,)) for block in self.blocks), last)

    def apart(self) -> Sequence[nn.Module]:
        """List modules inside those of a step that `prepare` alone calls."""
        return ()

    def embed_patches(self, tokens: Tokens, cond: Conditioning) -> Tokens:
        return tokens._replace(x=self.patch_embedding(tokens.x))

    def predict_patches(self, tokens: Tokens, cond: Conditioning) -> Tokens:
        return tokens._replace(x=self.head(tokens.x, tokens.segments, cond.time))

    def embed(self, x: Sequence[Tensor], features: Tensor, prepared: Prepared) -> tuple[Tokens, Conditioning]:
        """Make raw patches and the input of every step, from latents and rows of time features [S, freq_dim]."""
        if prepared.y is not None:
            x = [torch.cat(pair) for pair in zip(x, prepared.y, strict=True)]
        wanted = self.config.in_dim
        if wrong := [latent.shape[0] for latent in x if latent.shape[0] != wanted]:
            hint = " (is y, the image condition, missing?)" if prepared.y is None and wrong[0] < wanted else ""
            raise ValueError(f"the model takes {wanted} channels, got {wrong[0]}{hint}")
        patches = [patchify(latent[None], self.config.patch_size)[0] for latent in x]
        tokens = nn.utils.rnn.pad_sequence(patches, batch_first=True)
        time = self.time_embedding(features)
        cond = Conditioning(time, self.time_projection(time).unflatten(1, (6, -1)), prepared)
        return Tokens(tokens, prepared.rope, prepared.segments, prepared.lengths), cond

    def embed_text(self, context: Sequence[Tensor]) -> Tensor:
        """Project text states of B prompts to [B, text_len, C]; rows beyond a prompt are zero before the MLP only."""
        rows = [F.pad(c, (0, 0, 0, self.config.text_len - c.shape[0])) for c in context]
        return self.text_embedding(torch.stack(rows))

    def rope(self, grids: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
        """Return rotary rows [B or 1, L, D/2, 2] of a batch of grids, kept for the next call with the same grids."""
        key = (grids, device)
        cached = self.__dict__.get("_rope_cache")
        if cached is None or cached[0] != key:
            tables = {grid: rope_table(grid_positions(grid), self.config.head_dim) for grid in dict.fromkeys(grids)}
            rows = [tables[grid] for grid in (grids if len(tables) > 1 else grids[:1])]
            batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # padding has zero queries: finite, and dropped
            cached = self.__dict__["_rope_cache"] = (key, batch.to(device))
        return cached[1]

    def unembed(self, tokens: Tokens, sizes: Sequence[Size]) -> list[Tensor]:
        """Put predicted patches back into latents of the given (frames, rows, columns), without padding."""
        f, h, w = self.config.patch_size
        out = []
        for row, size in zip(tokens.x, sizes, strict=True):
            frames, rows, columns = self.grid(size)
            row = row[: frames * rows * columns].unflatten(0, (frames, rows, columns))
            out.append(rearrange(row, "F H W (f h w c) -> c (F f) (H h) (W w)", f=f, h=h, w=w))
        return out

    def grid(self, size: Size) -> tuple[int, int, int]:
        """Count the patches (frames, rows, columns) of a latent of that size."""
        (f, h, w), beyond = zip(*map(divmod, size, self.config.patch_size), strict=True)
        if any(beyond):
            raise ValueError(f"latent size {tuple(size)} is no multiple of patch {self.config.patch_size}")
        return f, h, w

    @staticmethod
    def keeps_float32(name: str) -> bool:
        """Tell whether a parameter stays float32 by default when matrices become bfloat16."""
        return name.startswith(("time_embedding", "time_projection", "head.")) or "norm" in name or "modulation" in name

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        *,
        torch_dtype: torch.dtype | None = None,
        shard: Callable[[nn.Module], nn.Module] | None = None,
        config: WanModelConfig | None = None,
        change: Callable[[str, Tensor], Tensor] | None = None,
    ) -> WanModel:
        """Load a model from its folder or single file; `dtype` is that of the matrices, None as stored.

        `config.json`, in the folder or beside the file, has the architecture; for published sizes the tensors show it.
        Fields and names of tensors may be Diffusers'. `torch_dtype` is the name of `dtype` in other libraries. `shard`
        spreads the empty model over processes (`distributed.fsdp.spread_parameters`), and each reads its part. `config`
        replaces config.json. `change` is that of `checkpoint.loading.load_module`.
        """
        from wan.checkpoint.loading import load_module
        from wan.checkpoint.recognise import recognise

        path = Path(folder) / (subfolder or "")
        try:
            config = config or cls.config_class.read(path)
        except FileNotFoundError as error:
            if not path.is_dir():
                raise
            raise FileNotFoundError(f"{error}; it is {recognise(path).what}, and a model folder is needed") from None
        policy = {"dtype": dtype or torch_dtype, "keep_float32": cls.keeps_float32}
        return load_module(lambda: cls(config), path, device=device, shard=shard, change=change, **policy)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and the parameters for `from_pretrained`; existing files are replaced.

        Raises ValueError for a model whose weights were packed for a CPU: load it with `from_pretrained` to save it.
        """
        from wan.checkpoint.loading import save_safetensors_folder

        with torch.device("meta"):
            missing = type(self)(self.config).state_dict().keys() - self.state_dict().keys()
        if missing:
            raise ValueError(
                f"{len(missing)} parameters of the model, such as {min(missing)}, are packed for inference; load it "
                "with WanModel.from_pretrained to save it"
            )
        save_safetensors_folder(self.state_dict(), folder, {"_class_name": "WanModel"} | self.config.to_dict())

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the blocks compute."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw weights for training from scratch: Xavier for matrices, zero output, so that the first velocity is 0."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name == "head.head.weight":
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:  # of a norm
                nn.init.ones_(parameter)
            elif "modulation" in name:
                nn.init.normal_(parameter, std=self.config.dim**-0.5, generator=generator)
            elif name.startswith(("text_embedding", "time_embedding")):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:
                with torch.no_grad():
                    nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)


def time_features(t: Tensor, dim: int, device: torch.device) -> Tensor:
    """Make sinusoidal features of timesteps [S], float32 [S, dim] on `device`; computed in float64, which MPS lacks."""
    return sinusoidal_embedding_1d(dim, t.cpu() if t.device.type == "mps" else t).float().to(device)


def own_timesteps(t: Tensor, prepared: Prepared) -> tuple[Segments, Tensor]:
    """Give every sample its own timestep of t [B] where segments have row 0, and timestep 0 where they have row 1."""
    if prepared.num_timesteps == 1:
        timesteps, last = t, 0
    else:
        timesteps, last = torch.cat([t, t.new_zeros(1)]), len(t)
    own = torch.arange(len(t), device=prepared.rope.device)
    return tuple(s._replace(rows=own.where(s.rows == 0, last)) for s in prepared.segments), timesteps


def segment_timesteps(t: Tensor, length: int) -> tuple[Segments, Tensor]:
    """Turn timesteps [B, >= length] into segments of the first `length` tokens and distinct timesteps [S]."""
    t = t[:, :length]
    changes = (t[:, 1:] != t[:, :-1]).any(dim=0).nonzero()[:, 0] + 1  # tokens at which any sample changes
    if not len(changes):
        return (Segment(0, length, torch.arange(len(t), device=t.device)),), t[:, 0]
    edges = [0, *changes.tolist(), length]
    values, rows = t[:, edges[:-1]].unique(return_inverse=True)
    return tuple(map(Segment, edges[:-1], edges[1:], rows.unbind(1))), values
