"""The umT5 text encoder: a prompt becomes a sequence of text states.

Parameter names are those of the released `models_t5_umt5-xxl-enc-bf16.pth`, so the file loads as it is. umT5 differs
from T5 in one point that matters here: every layer owns its position bias.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.checkpoint.loading import load_module
from wan.checkpoint.source import open_source
from wan.modules.steps import Step, run_blocks
from wan.modules.tokenizers import HuggingfaceTokenizer

# Limits far beyond any model, yet small enough to build a model without weights.
T5_LARGEST = dict.fromkeys(("vocab_size", "dim", "dim_attn", "dim_ffn", "num_heads"), 1 << 24) | {"num_layers": 1000}


@dataclass(frozen=True)
class T5Config:
    vocab_size: int
    dim: int  # width of the residual stream and of the text states
    dim_attn: int
    dim_ffn: int
    num_heads: int
    num_layers: int
    num_buckets: int = 32  # relative distances share this many bias values, half of them per sign
    max_distance: int = 128  # tokens; all larger distances share the last bucket
    eps: float = 1e-6

    def __post_init__(self):
        for name, largest in T5_LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"T5Config.{name} must be at least 1 and at most {largest}, got {getattr(self, name)}")
        if self.dim_attn % self.num_heads:
            raise ValueError(f"dim_attn {self.dim_attn} must be a multiple of num_heads {self.num_heads}")
        if self.num_buckets % 4 or self.num_buckets < 4:
            raise ValueError(f"num_buckets must be a positive multiple of 4, got {self.num_buckets}")
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(f"max_distance must exceed num_buckets / 4, got {self.max_distance}")

    @classmethod
    def from_state(cls, shapes: Mapping[str, Sequence[int]]) -> "T5Config":
        """Infer every size from names and shapes; they do not tell `max_distance` and `eps`, which stay default.

        Raises ValueError naming the tensors of a umT5 encoder that are missing or have wrong shapes.
        """
        named = ("token_embedding", "blocks.0.attn.q", "blocks.0.ffn.fc1", "blocks.0.pos_embedding.embedding")
        names = [f"{name}.weight" for name in named]
        if missing := [name for name in names if name not in shapes]:
            raise ValueError(f"not a umT5 text encoder in the Wan layout: the checkpoint has no {', '.join(missing)}")
        if odd := [name for name in names if len(shapes[name]) != 2 or 0 in shapes[name]]:
            raise ValueError(
                f"not a umT5 text encoder: {odd[0]} has shape {list(shapes[odd[0]])}, not rows and columns"
            )
        embedding, q, fc1, bias = (shapes[name] for name in names)
        numbers = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,3})\.", name))}
        return cls(
            vocab_size=embedding[0],
            dim=embedding[1],
            dim_attn=q[0],
            dim_ffn=fc1[0],
            num_heads=bias[1],
            num_layers=max(numbers) + 1,  # a larger number is an unexpected name
            num_buckets=bias[0],
        )


UMT5_XXL = T5Config(vocab_size=256384, dim=4096, dim_attn=4096, dim_ffn=10240, num_heads=64, num_layers=24)


class T5Encoder(nn.Module):
    """Token ids [B, L] -> text states [B, L, dim]. Trainable; runs in the dtype of its weights."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(T5Block(config) for _ in range(config.num_layers))
        self.norm = T5Norm(config.dim, config.eps)
        self.run_blocks = run_blocks  # to be replaced from outside, as that of the transformer

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids [B, L], mask [B, L] (0 = padding, never attended) -> [B, L, dim], zero where the mask is 0."""
        length = ids.shape[1]
        offsets = torch.arange(1 - length, length, device=ids.device)  # every key index - query index that occurs
        buckets = relative_buckets(offsets, self.config.num_buckets, self.config.max_distance)
        packing = Packing.of(ids, mask)
        x = self.run_blocks(self.trunk(), self.token_embedding(packing.pack(ids)), (buckets, packing))
        return packing.unpack(self.norm(x))

    def trunk(self) -> list[Step]:
        """List the blocks with their weights; the condition of these steps is (buckets, packing)."""
        return [Step(lambda x, cond, block=block: block(x, *cond), (block,)) for block in self.blocks]

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw weights for training: variance-preserving, with q scaled so that unscaled attention starts soft."""
        config = self.config
        head_dim = config.dim_attn // config.num_heads
        std = {
            "token_embedding": 1.0,
            "q": (config.dim * head_dim) ** -0.5,
            **dict.fromkeys(("k", "v", "0", "fc1", "embedding"), config.dim**-0.5),  # 0: the gate; then position bias
            "o": config.dim_attn**-0.5,
            "fc2": config.dim_ffn**-0.5,
        }
        for name, module in self.named_modules():
            if isinstance(module, T5Norm):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std[name.split(".")[-1]], generator=generator)


@dataclass(frozen=True)
class Packing:
    """Packing of a [B, L] batch without padding: all but attention runs on the R real tokens, as [R, C]."""

    shape: tuple[int, int]
    rows: Tensor | None  # [R] positions of the tokens in the flattened batch; None: all of them
    mask: Tensor | None  # [B, L], True where there is a token

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor | None) -> "Packing":
        rows = None if mask is None else mask.flatten().nonzero()[:, 0]
        if rows is None or len(rows) == ids.numel():
            return cls(tuple(ids.shape), None, None)
        return cls(tuple(ids.shape), rows, mask.bool())

    def pack(self, x: Tensor) -> Tensor:
        """[B, L, ...] -> [R, ...]."""
        x = x.flatten(0, 1)
        return x if self.rows is None else x[self.rows]

    def unpack(self, x: Tensor) -> Tensor:
        """[R, C] -> [B, L, C], zeros in place of padding."""
        if self.rows is not None:
            x = x.new_zeros(math.prod(self.shape), x.shape[1]).index_copy(0, self.rows, x)
        return x.unflatten(0, self.shape)


class T5EncoderModel:
    """Text encoder with its tokenizer: prompts -> one tensor of text states per prompt.

    Sizes come from the checkpoint's own tensors. `shard_fn` spreads the empty module over processes (FSDP), and each
    reads its part. `.model` is the module. `.tokenizer` counts tokens, so that a caller can warn about the end of a
    prompt beyond `text_len`.
    """

    def __init__(
        self,
        text_len: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        *,
        checkpoint_path: str | Path,
        tokenizer_path: str | Path,
        shard_fn: Callable[[nn.Module], nn.Module] | None = None,
    ):
        self.text_len = text_len
        self.tokenizer = HuggingfaceTokenizer(tokenizer_path, seq_len=text_len, clean="whitespace")
        self.model = model = load_t5(checkpoint_path, dtype, device, shard_fn)
        check_tokenizer(self.tokenizer, model.config, checkpoint_path)

    @torch.no_grad()
    def __call__(self, texts: str | Sequence[str], device: torch.device | str) -> list[Tensor]:
        """Encode texts to states [len, dim] on `device`, one per text; len counts the end token, at most `text_len`.

        Only real tokens are computed. Positions are relative and padding is never attended, so the result equals that
        of the padded `text_len` tokens. Several texts in one call read the weights once.
        """
        ids, mask = self.tokenizer(texts, return_mask=True)
        lengths = mask.sum(dim=1).tolist()
        longest = max(lengths)
        home = next(self.model.parameters()).device
        padding = None if min(lengths) == longest else mask[:, :longest].to(home)  # none: the device is not asked
        states = self.model(ids[:, :longest].to(home), padding).to(device)
        return [row[:length] for row, length in zip(states, lengths, strict=True)]


class T5Block(nn.Module):
    """Self-attention and gated feed-forward, each with its own norm and residual."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.norm1 = T5Norm(config.dim, config.eps)
        self.attn = T5Attention(config)
        self.norm2 = T5Norm(config.dim, config.eps)
        self.ffn = T5FeedForward(config)
        self.pos_embedding = T5RelativeEmbedding(config)

    def forward(self, x: Tensor, buckets: Tensor, packing: Packing) -> Tensor:
        """x [R, C], buckets [2L-1] -> [R, C]."""
        bias = self.pos_embedding(buckets)
        x = clamp_overflow(x + self.attn(self.norm1(x), bias, packing))
        return clamp_overflow(x + self.ffn(self.norm2(x)))


class T5Attention(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.k = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.v = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.o = nn.Linear(config.dim_attn, config.dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor, packing: Packing) -> Tensor:
        """x [R, C], bias [1, N, L, L] -> [R, C]."""
        q, k, v = (self._heads(packing.unpack(project(x))) for project in (self.q, self.k, self.v))
        bias = bias.to(q.dtype)
        if packing.mask is not None:  # the bias of a masked key is replaced, not added to
            bias = bias.masked_fill(~packing.mask[:, None, None, :], torch.finfo(q.dtype).min)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # T5 does not scale by 1/sqrt(D)
        return self.o(packing.pack(x.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, L, N*D] -> [B, N, L, D]


class T5FeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(config.dim, config.dim_ffn, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(config.dim, config.dim_ffn, bias=False)
        self.fc2 = nn.Linear(config.dim_ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x) * self.gate(x))


class T5RelativeEmbedding(nn.Module):
    """Position bias of one layer: one value per head and distance bucket."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.embedding = nn.Embedding(config.num_buckets, config.num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """buckets [2L-1] of the offsets 1-L .. L-1 -> bias [1, N, L, L], rows queries, columns keys."""
        length = (buckets.shape[0] + 1) // 2
        by_offset = self.embedding(buckets).t()  # [N, 2L-1]
        # The bias depends on key - query alone: row i of a sliding window holds the query L-1-i.
        return by_offset.unfold(1, length, 1).flip(1)[None]


class T5Norm(nn.Module):
    """RMS norm without mean or bias. Statistics are float32; values take the weight's dtype before the product."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.float().square().mean(dim=-1, keepdim=True) + self.eps)
        return x.to(self.weight.dtype) * self.weight


def relative_buckets(relative_position: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Find the bucket of each `key index - query index`: one per small distance, logarithmic beyond (arXiv:1910.10683).

    The upper half of the buckets is for keys after the query. The logarithm is float32 and truncated, as in the
    training of the released weights.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = relative_position.abs()
    ratio = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    logarithmic = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, logarithmic) + half * (relative_position > 0)


def clamp_overflow(x: Tensor) -> Tensor:
    """Clamp float16 residual sums to just below the largest finite value if one overflowed; no other dtype."""
    if x.dtype != torch.float16:
        return x
    largest = torch.finfo(x.dtype).max
    limit = torch.where(torch.isinf(x).any(), largest - 1000, largest).to(x.dtype)  # on the device: no synchronisation
    return x.clamp(-limit, limit)


def umt5_xxl(
    encoder_only: bool = False,
    return_tokenizer: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> T5Encoder:
    """Make the encoder of the released size with random weights, under upstream's name; needs `encoder_only=True`."""
    if not encoder_only or return_tokenizer:
        raise ValueError("umt5_xxl needs encoder_only=True and no return_tokenizer: only the encoder was released")
    with torch.device("meta"):
        model = T5Encoder(UMT5_XXL).to(dtype)
    model.to_empty(device=device).init_weights()
    return model


def load_t5(
    path: str | Path,
    dtype: torch.dtype,
    device: torch.device | str,
    shard: Callable[[nn.Module], nn.Module] | None = None,
) -> T5Encoder:
    """Load the encoder of a checkpoint, of the size that its tensors show; Transformers' names are understood too."""
    source = open_source(path)
    config = source.inferred(T5Config.from_state)
    return load_module(lambda: T5Encoder(config), source, dtype=dtype, device=device, shard=shard)


def check_tokenizer(tokenizer: HuggingfaceTokenizer, config: T5Config, checkpoint: str | Path) -> None:
    """Raise ValueError when a tokenizer can give ids that the embedding of the text encoder does not have."""
    if tokenizer.largest_id >= config.vocab_size:
        raise ValueError(
            f"the tokenizer in {tokenizer.name} has token ids up to {tokenizer.largest_id}, and {checkpoint} embeds "
            f"{config.vocab_size} tokens: they belong to different checkpoints"
        )
