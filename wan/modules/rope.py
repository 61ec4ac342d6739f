"""Rotary position embedding over frames, rows and columns.

Angles are computed in float64 and applied in float32: float32 angles are visibly wrong at high positions, float32
rotations are not. Positions are integers and may be negative (some tasks place reference tokens before frame 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wan.geometry import MAX_POSITION


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Count the complex pairs of the frame, row and column axes in a head of `head_dim` channels: 128 -> 22, 21, 21."""
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary embedding, got {head_dim}")
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def grid_positions(grid: tuple[int, int, int], device: torch.device | str | None = None) -> Tensor:
    """Positions [F*H*W, 3] of a (frames, rows, columns) grid of patches, frame-major."""
    for name, size in zip(("frames", "rows", "columns"), grid, strict=True):
        if size > MAX_POSITION:
            raise ValueError(f"the grid has {size} {name}; rotary positions end at {MAX_POSITION}")
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def rope_table(positions: Tensor, head_dim: int, theta: float = 10000.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(cos, sin) rows [L, head_dim/2, 2] for integer positions [L, 3]; built in float64 on the CPU, stored as `dtype`.

    Pair j of an axis with m channels turns by position * theta^(-2j/m); the exponent uses the axis' own width m. The
    CPU is used because not every device has float64 (MPS); the table is small and built once per grid.
    """
    columns, places = [], positions.cpu().to(torch.float64)
    for axis, pairs in enumerate(axis_pairs(head_dim)):
        exponent = torch.arange(pairs, dtype=torch.float64) / max(pairs, 1)
        columns.append(places[:, axis, None] * theta**-exponent)
    angles = torch.cat(columns, dim=1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x [B, L, N, D] by a table [B or 1, L, D/2, 2]; float32 arithmetic and result."""
    x = x.float()
    if torch.compiler.is_compiling() or x.device.type == "mps":  # real arithmetic fuses; complex does not
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = table[:, :, None].unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(table)[:, :, None]).flatten(-2)


def rope_params(max_seq_len: int, dim: int, theta: float = 10000) -> Tensor:
    """Make upstream's table of one axis of `dim` channels, complex128 [max_seq_len, dim/2]."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = torch.arange(max_seq_len, dtype=torch.float64)[:, None] * theta**-exponent
    return torch.polar(torch.ones_like(angles), angles)


def rope_apply(x: Tensor, grid_sizes: Tensor, freqs: Tensor) -> Tensor:
    """Rotate as `rotate` does, under upstream's name and arguments; float32.

    x [B, L, N, D]; grid_sizes [B, 3], patches (frames, rows, columns) of each sample, followed by padding tokens;
    freqs complex [positions, D/2], the tables of the three axes side by side.
    """
    pairs = axis_pairs(x.shape[-1])
    table = torch.tensor([1.0, 0.0], device=x.device).repeat(*x.shape[:2], sum(pairs), 1)
    for rows, grid in zip(table, grid_sizes.tolist(), strict=True):
        positions = grid_positions(tuple(grid)).to(freqs.device)
        turns = [axis[place] for axis, place in zip(freqs.split(pairs, dim=1), positions.unbind(1), strict=True)]
        rows[: len(positions)] = torch.view_as_real(torch.cat(turns, dim=1)).to(rows)
    return rotate(x, table)
