"""Read and write images and video. PyAV and Pillow are imported where they are used."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan import images
from wan.containers import PICTURE_MARKS, first_stream, is_cut_off, open_media
from wan.files import atomic_file, disk_named, shown
from wan.values import called, real

log = logging.getLogger(__name__)

CRF = 10  # nearly lossless to the eye; equal to upstream's quality setting
MAX_FPS = 999_999  # players count time in microseconds
BT709 = 1  # the number of BT.709 in the colour tables of H.264 (primaries, transfer and matrix alike)
LIMITED_RANGE = 1  # luma 16..235, as players expect of H.264
LUMA = (16 + np.arange(256) * (219 / 255)).round().astype(np.uint8)  # of levels of grey
MOVFLAGS = "use_metadata_tags+faststart"

Rate = int | Fraction  # frames per second
Frames = np.ndarray | Tensor  # uint8 [F, H, W, 3], RGB


def to_uint8(video: Tensor) -> Tensor:
    """Float [3, F, H, W] in [-1, 1] -> uint8 [F, H, W, 3]: clamped, scaled to 0..255 and truncated, as upstream."""
    return ((video.float().clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8).permute(1, 2, 3, 0)


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1]."""
    return pixels.float().div(255).sub(0.5).div(0.5).movedim(-1, -3)


def check_fps(fps: Any) -> None:
    """Refuse rates that a file cannot play. Raises ValueError."""
    if real("fps", fps) < 0.001:
        raise ValueError(f"{called('fps')} must be at least 1, got {shown(str(fps), 60)}")
    if fps > MAX_FPS:
        raise ValueError(
            f"{called('fps')} can be at most {MAX_FPS}, got {shown(str(fps), 60)}: faster files do not play"
        )


def is_picture(path: str | Path) -> bool:
    """Tell whether a name ends as that of a picture, which `write` makes of one frame."""
    return Path(path).suffix.lower() in images.WRITTEN


def write(
    chunks: Iterable[Frames] | Frames, path: str | Path, fps: Rate, metadata: dict[str, str], overwrite: bool = False
) -> int:
    """Do as `write_video`, or write a picture of one frame if the name ends so: lossless WebP, JPEG of quality 95."""
    if not is_picture(path):
        return write_video(chunks, path, fps, metadata, overwrite)
    frames = list(_frames(chunks))
    if len(frames) != 1:
        raise ValueError(f"{path} is the name of a picture and there are {len(frames)} frames; let it end in .mp4")
    with atomic_file(path, overwrite) as temporary:
        images.write_image(frames[0], temporary, images.WRITTEN[Path(path).suffix.lower()], metadata)
    return 1


def write_video(
    chunks: Iterable[Frames] | Frames,
    path: str | Path,
    fps: Rate,
    metadata: dict[str, str] | None = None,
    overwrite: bool = False,
) -> int:
    """Encode chunks of frames, uint8 [f, H, W, 3] RGB, as they come, to an H.264 mp4; returns the number of frames.

    Colours are BT.709 in limited range, and tagged so. Odd sides grow by one repeated row or column: yuv420p needs even
    ones. `metadata` becomes container tags. The file appears complete or not at all. Raises FileExistsError when it
    exists and may not be replaced, ValueError when there is no frame.
    """
    count = 0
    with video_writer(path, fps, metadata, overwrite) as add:
        for frame in _frames(chunks):
            add(frame)
            count += 1
    return count


@contextmanager
def video_writer(
    path: str | Path, fps: Rate, metadata: dict[str, str] | None = None, overwrite: bool = False, **options: str
) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that adds a frame, uint8 [H, W, 3] RGB or [H, W] grey, to a file of `write_video`.

    The file appears when the block succeeds. `options` are those of the encoder, such as crf="0" for a lossless file.
    Raises as `write_video`.
    """
    import av
    from av.video.reformatter import VideoReformatter

    check_fps(fps)
    path, stream, converter = Path(path), None, VideoReformatter()
    with atomic_file(path, overwrite) as temporary:
        flags = {"movflags": MOVFLAGS}
        if fps > 1000:  # its edit list counts milliseconds, and frames that last less would be cut off
            flags["movie_timescale"] = str(math.ceil(fps))
        try:
            with av.open(str(temporary), "w", format="mp4", options=flags) as container:
                container.metadata.update(metadata or {})

                def add(frame: np.ndarray) -> None:
                    nonlocal stream
                    if stream is None:
                        size = {"height": frame.shape[0], "width": frame.shape[1]}
                        stream = _open_stream(container, fps, **size, options=options)
                    container.mux(stream.encode(_to_yuv(frame, converter)))

                yield add
                if stream is None:
                    raise ValueError(f"there are no frames to write to {path}")
                container.mux(stream.encode(None))
        except av.error.FFmpegError as error:
            if isinstance(error, OSError) and error.filename is None:  # its folder is gone, the disk is full
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise


def frame_times(path: str | Path) -> tuple[list[Fraction], Fraction]:
    """List when each frame of a video is shown, in seconds from the first one on, and the end of the last one.

    Headers of packets are read, no frame is decoded. Raises FileNotFoundError, and ValueError without frames, and for
    a file that is cut off: what is left of it would pass for a shorter video.
    """
    cure = "copy it again, or convert what is left"
    with open_media(path) as container:
        stream = first_stream(container.streams.video, path, "video")
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        shows: list[tuple[int | None, int]] = []  # start and length; the packets themselves are as large as the file
        for packet in container.demux([stream, *container.streams.audio]):
            if packet.is_corrupt:
                raise ValueError(f"{shown(path)} is cut off after {len(shows)} frames: {cure}")
            if packet.stream_index == stream.index and _is_shown(packet):
                shows.append((packet.pts, packet.duration or 0))
        if is_cut_off(path):
            raise ValueError(f"{shown(path)} is cut off after {len(shows)} frames: {cure}")
        if not shows:
            raise ValueError(f"{shown(path)} has no frames; name a video that has")
        if any(start is None for start, _ in shows):
            return [number / rate for number in range(len(shows))], len(shows) / rate
        times = sorted(start * stream.time_base for start, _ in shows)
        end = max(start + length for start, length in shows) * stream.time_base
        return [time - times[0] for time in times], max(end, times[-1] + 1 / rate) - times[0]


def read_video(path: str | Path) -> tuple[Tensor, float]:
    """Decode to uint8 [F, H, W, 3] RGB and the frame rate in Hz. Raises FileNotFoundError, ValueError without video."""
    with open_media(path) as container:
        stream = first_stream(container.streams.video, path, "video")
        stream.thread_type = "AUTO"
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        rate = stream.average_rate or stream.guessed_rate
    if not frames or not rate:
        raise ValueError(f"{path} has no frames")
    return torch.stack(frames), float(rate)


def written(path: str | Path) -> tuple[int, tuple[int, int]]:
    """Count the complete frames of a file, and return its size (width, height) too. Raises ValueError for damage."""
    if is_picture(path):
        return 1, images.read_image(path).size
    with open_media(path) as container:
        stream = container.streams.video[0]
        count = sum(_is_shown(packet) and not packet.is_corrupt for packet in container.demux(stream))
        return count, (stream.width, stream.height)


def _is_shown(packet: Any) -> bool:
    """Tell whether a packet has a frame that players show: an edit list cuts off others, as trimmed videos have one."""
    return packet.size > 0 and not packet.is_discard


def upright_frames(path: str | Path) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Decode frames one by one: the time in seconds from the first one on, and uint8 [H, W, 3] RGB as players show it.

    Raises FileNotFoundError, and ValueError for a file without video or with damage.
    """
    with open_media(path) as container:
        stream = first_stream(container.streams.video, path, "video")
        stream.thread_type = "AUTO"
        start, last = None, Fraction(0)
        for number, frame in enumerate(container.decode(stream)):
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            time = number / rate if frame.pts is None else frame.pts * frame.time_base
            start = time if start is None else start
            last = max(last, time - start)  # players show frames in order, whatever a file says
            yield last, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def frame_rate(path: str | Path) -> Fraction:
    """Frames per second of a video, on average. Raises FileNotFoundError, and ValueError without video."""
    with open_media(path) as container:
        stream = first_stream(container.streams.video, path, "video")
        return stream.average_rate or stream.guessed_rate or Fraction(25)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the tags of a video or picture that `write` made. Raises FileNotFoundError, ValueError for other files."""
    if Path(path).is_file():
        with disk_named(Path(path)), open(path, "rb") as file:
            head = file.read(12)
        if any(mark in head for mark in PICTURE_MARKS):
            return images.read_metadata(Path(path))[0]
    with open_media(path) as container:
        return dict(container.metadata)


def save_image(image: Frames, path: str | Path, overwrite: bool = True) -> None:
    """Write uint8 [H, W, 3] RGB in the format of the suffix (png, jpg, ...), complete or not at all."""
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"{path} does not end like an image; try {Path(path).with_suffix('.png').name}")
    with atomic_file(path, overwrite) as temporary:
        Image.fromarray(_numpy(image)).save(temporary, kind)


def contact_sheet(frames: Frames, path: str | Path, columns: int = 6, limit: int = 24) -> None:
    """Write a picture of up to `limit` frames, evenly spaced in time, in rows of `columns`; uint8 [F, H, W, 3]."""
    frames = _numpy(frames)
    if not len(frames):
        raise ValueError("a contact sheet needs at least one frame")
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(limit, len(frames))).round().astype(int))
    sheet = side_by_side(frames[chosen], columns, border=255)
    save_image(sheet, path)


def side_by_side(pictures: Frames, columns: int, border: int = 0) -> np.ndarray:
    """Put pictures or clips, uint8 [N, ..., H, W, 3], in rows of `columns`: [..., H', W', 3], two pixels apart."""
    pictures = _numpy(pictures)
    gap, columns = 2, min(columns, len(pictures))
    height, width = pictures.shape[-3:-1]
    rows = -(-len(pictures) // columns)
    size = rows * (height + gap) + gap, columns * (width + gap) + gap
    sheet = np.full((*pictures.shape[1:-3], *size, 3), border, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = (n * (side + gap) + gap for n, side in zip(divmod(place, columns), (height, width)))
        sheet[..., top : top + height, left : left + width, :] = picture
    return sheet


def _open_stream(container: Any, fps: Rate, height: int, width: int, options: dict[str, str]) -> Any:
    stream = container.add_stream("libx264", rate=fps)
    stream.width, stream.height = width + width % 2, height + height % 2
    stream.pix_fmt = "yuv420p"
    # The same request must give the same file. Without mbtree=0 about one file in a hundred differed for equal frames
    # (x264 of PyAV 18, 2 cores under load; none of 300 with it, and none with asm=0).
    stream.options = {"crf": str(CRF), "x264-params": "mbtree=0"} | options
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = LIMITED_RANGE
    return stream


def _to_yuv(frame: np.ndarray, converter: Any) -> Any:
    """uint8 [H, W, 3] RGB, or [H, W] grey -> a limited-range BT.709 yuv420p frame with even sides.

    A `converter` that is used again keeps its tables, which take as long as a frame.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    odd = [(0, side % 2) for side in frame.shape[:2]] + [(0, 0)] * (frame.ndim - 2)
    even = np.pad(frame, odd, mode="edge") if np.any(odd) else frame
    if even.ndim == 2:
        chroma = np.full((even.shape[0] // 2, even.shape[1]), 128, np.uint8)
        yuv = av.VideoFrame.from_ndarray(np.concatenate([LUMA.take(even), chroma]), format="yuv420p")
    else:
        yuv = converter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
    yuv.colorspace, yuv.color_range = Colorspace.ITU709, ColorRange.MPEG
    return yuv


def _frames(chunks: Iterable[Frames] | Frames) -> Iterator[np.ndarray]:
    """Yield single frames, uint8 [H, W, 3], of one clip or of chunks of it."""
    for chunk in [chunks] if isinstance(chunks, (np.ndarray, Tensor)) else chunks:
        frames = _numpy(chunk)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        yield from frames


def _numpy(frames: Frames | Sequence[np.ndarray]) -> np.ndarray:
    return frames.cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
