"""Pictures of results, drawn with Pillow: videos with their prompts underneath, and a table as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (34, 38, 48), (128, 134, 146)
TRACK = (232, 234, 239)
TINTS = ((46, 110, 220), (238, 148, 56), (96, 170, 110), (170, 120, 200))


def contact_strip(videos: Sequence[np.ndarray], prompts: Sequence[str], marks: Sequence[str], path: str | Path) -> None:
    """Draw videos in one PNG: each is a row of five evenly spaced frames, with prompt and faint mark underneath.

    videos: uint8 [F, H, W, 3] each, of one size. Raises ValueError when there is none or the counts differ.
    """
    if not videos or not len(videos) == len(prompts) == len(marks):
        raise ValueError(f"need one prompt per video and at least one video, got {len(videos)} and {len(prompts)}")
    from PIL import Image, ImageDraw

    height, width = videos[0].shape[1:3]
    frames, gap, inner, line = 5, 14, 2, 15
    strip = frames * (width + inner) - inner
    columns = min(3, len(videos))
    cell_w, cell_h = strip + gap, height + line * 3 + gap
    rows = -(-len(videos) // columns)
    sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (video, prompt, mark) in enumerate(zip(videos, prompts, marks)):
        left, top = gap + place % columns * cell_w, gap + place // columns * cell_h
        for n, index in enumerate(np.linspace(0, len(video) - 1, frames).round().astype(int)):
            sheet.paste(Image.fromarray(np.ascontiguousarray(video[index])), (left + n * (width + inner), top))
        lines = _wrap(draw, prompt, strip, _font(12))[:2]
        for n, text in enumerate(lines):
            draw.text((left, top + height + 3 + n * line), text, INK, _font(12))
        draw.text((left, top + height + 3 + len(lines) * line), mark, FAINT, _font(11))
    _save(sheet, path)


def film_strip(
    rows: Sequence[tuple[np.ndarray | None, np.ndarray]], path: str | Path, columns: int = 9, edge: int = 128
) -> None:
    """Draw videos, uint8 [F, H, W, 3] of any sizes, below each other, each behind a still picture or none, as PNG."""
    from PIL import Image

    gap = 4
    sheet = Image.new("RGB", ((columns + 1) * (edge + gap) + 2 * gap, len(rows) * (edge + gap) - gap), PAPER)
    for row, (still, video) in enumerate(rows):
        shown = video[np.linspace(0, len(video) - 1, columns).round().astype(int)]
        for place, frame in enumerate((still, *shown)):
            if frame is not None:
                image = Image.fromarray(np.ascontiguousarray(frame)).resize((edge, edge), Image.Resampling.NEAREST)
                sheet.paste(image, (place * (edge + gap) + 3 * gap * (place > 0), row * (edge + gap)))
    _save(sheet, path)


def talk_strip(
    frames: np.ndarray, samples: np.ndarray, path: str | Path, rate: int = 16_000, fps: float = 16, columns: int = 12
) -> None:
    """Draw evenly spaced frames of uint8 [F, H, W, 3] above the waveform of mono samples, each at its time, as PNG."""
    from PIL import Image, ImageDraw

    height, width = frames.shape[1:3]
    scale = max(1, 96 // width)
    cell, gap, wave = width * scale, 4, 90
    columns = min(columns, len(frames))
    total = columns * (cell + gap) - gap
    sheet = Image.new("RGB", (total, height * scale + gap + wave), PAPER)
    draw = ImageDraw.Draw(sheet)
    seconds = max(len(frames) / fps, 1 / fps)
    for n in range(columns):  # the frame in the middle of its part of the sound
        middle = (n * (cell + gap) + cell / 2) / total * seconds
        frame = Image.fromarray(np.ascontiguousarray(frames[min(int(middle * fps), len(frames) - 1)]))
        sheet.paste(frame.resize((cell, height * scale), Image.Resampling.NEAREST), (n * (cell + gap), 0))
    top, half = height * scale + gap, wave / 2 - 2
    loudest = max(float(np.abs(samples).max(initial=0)), 1e-6)
    edges = (np.arange(total + 1) / total * seconds * rate).astype(int)
    for x, (start, end) in enumerate(pairwise(edges)):
        part = samples[start : max(end, start + 1)]
        if len(part):
            low, high = (top + wave / 2 - half * float(v) / loudest for v in (part.max(), part.min()))
            draw.line((x, low, x, high), TINTS[0])
    _save(sheet, path)


def bar_chart(
    rates: Mapping[str, Mapping[str, float]],
    path: str | Path,
    title: str,
    note: str,
    targets: Mapping[str, float],
    chance: Mapping[str, float],
) -> None:
    """Draw `rates[series][measure]`, shares in 0..1, as horizontal bars grouped by measure; written as PNG.

    A full line marks the target of a measure, a dotted one the share that guessing reaches.
    """
    from PIL import Image, ImageDraw

    series, measures = list(rates), list(next(iter(rates.values())))
    left, span, bar, right, head = 170, 420, 16, 70, 64
    group = len(series) * (bar + 3) + 16
    image = Image.new("RGB", (left + span + right, head + len(measures) * group + 34), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((16, 10), title, INK, _font(16))
    x = 16
    for name, tint in zip(series, TINTS):
        draw.rectangle((x, 39, x + 10, 49), tint)
        draw.text((x + 15, 37), name, INK, _font(12))
        x += 32 + round(draw.textlength(name, _font(12)))
    for row, measure in enumerate(measures):
        top = head + row * group
        draw.text((16, top + (group - 16) / 2 - 9), measure, INK, _font(13))
        for n, (name, tint) in enumerate(zip(series, TINTS)):
            y, rate = top + n * (bar + 3), rates[name][measure]
            draw.rectangle((left, y, left + span, y + bar), TRACK)
            if rate > 0:
                draw.rectangle((left, y, left + round(span * rate), y + bar), tint)
            draw.text((left + span + 8, y + 1), f"{100 * rate:.1f} %", INK, _font(12))
        bottom = top + len(series) * (bar + 3)
        if measure in targets:
            draw.line(_upright(left, span, targets[measure], top, bottom), INK, 2)
        if measure in chance:
            for y in range(top - 2, bottom, 5):
                draw.line(_upright(left, span, chance[measure], y, y + 2), INK, 1)
    draw.text((16, image.height - 26), note, FAINT, _font(11))
    _save(image, path)


def _upright(left: int, span: int, share: float, top: int, bottom: int) -> tuple[int, int, int, int]:
    x = left + round(span * share)
    return x, top - 2, x, bottom - 1


def _wrap(draw: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a text into lines no wider than `width` pixels; a longer word keeps its own line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _save(image: Image.Image, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256).save(path, format="PNG", optimize=True)
