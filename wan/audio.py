"""Read the sound of any file, and give it to a video. PyAV is imported where it is used."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wan.containers import first_stream, open_media
from wan.files import atomic_file
from wan.media import MOVFLAGS

CONTAINER_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")  # each file has its own
AUDIO_BIT_RATE = 192_000
# Nothing that can be heard is lost or mirrored: 117 dB below 7 kHz at 16 kHz.
RESAMPLING = "filter_size=128:phase_shift=12:cutoff=0.97:kaiser_beta=12"
MOST_PLACED = 8  # channels; of more nobody knows the places, and all become one
AAC_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)  # Hz; the first replaces others


def sound_chunks(path: str | Path, rate: int) -> Iterator[np.ndarray]:
    """Decode the first sound of a file, in chunks of float32 [n] at `rate` Hz: the mean of its channels.

    Raises FileNotFoundError, and ValueError for a file without sound or with damage.
    """
    with open_media(path, "sound", "wav") as container:
        stream = first_stream(container.streams.audio, path, "sound", "wav")
        taken, given = Fraction(0), 0

        def counted() -> Iterator[Any]:
            nonlocal taken
            for frame in container.decode(stream):
                taken += Fraction(frame.samples, frame.rate)
                yield frame

        # without the silence nothing comes of a sound that is shorter than the filter
        filters = ("apad", "whole_len=4096"), ("aresample", f"{rate}:osf=flt:{RESAMPLING}")
        for frame in _filtered(counted(), *filters):  # packed: PyAV reads past the planes of more than 8 channels
            mean = frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(axis=1, dtype=np.float32)
            chunk = mean[: max(0, math.ceil(taken * rate) - given)]
            given += len(chunk)
            yield chunk


def has_sound(path: str | Path) -> bool:
    """Tell whether a file has a track of sound. Raises FileNotFoundError, and ValueError for no film or sound."""
    with open_media(path) as container:
        return bool(container.streams.audio)


def add_audio(
    video: str | Path, audio: str | Path, start: float = 0, length: float | None = None, keeps_frames: bool = False
) -> None:
    """Give an mp4 the first sound of another file, in place of its own; it ends with the shorter of the two.

    `keeps_frames`: only the sound is cut. The sound is taken from `start` on, for `length` seconds. Pictures and whole
    AAC sound are copied, other sound is encoded. The file changes as a whole or not at all. Raises FileNotFoundError,
    and ValueError for a file without video or sound.
    """
    import av

    with (
        open_media(video) as pictures,
        open_media(audio, "sound", "wav") as sound,
        atomic_file(video, overwrite=True) as temporary,
    ):
        seen = first_stream(pictures.streams.video, video, "video")
        heard = first_stream(sound.streams.audio, audio, "sound", "wav")
        with av.open(str(temporary), "w", format="mp4", options={"movflags": MOVFLAGS}) as out:
            out.metadata.update({key: value for key, value in pictures.metadata.items() if key not in CONTAINER_TAGS})
            packets = [_copied(pictures, seen, out), _audio_packets(sound, heard, out, start, length)]
            left = _seconds(audio, "audio") - Fraction(start)
            end = min(_seconds(video, "video"), left if length is None else min(left, Fraction(length)))
            for packet in heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base):
                if packet.dts * packet.time_base < end or (keeps_frames and packet.stream.type == "video"):
                    out.mux(packet)


def _seconds(path: str | Path, kind: str) -> Fraction:
    """End of the first stream of that kind in seconds, by its packets: headers may lack it, or round it."""
    with open_media(path) as container:
        packets = (packet for packet in container.demux(**{kind: 0}) if packet.pts is not None)
        return max((Fraction(p.pts + (p.duration or 0)) * p.time_base for p in packets), default=Fraction(0))


def _copied(source: Any, stream: Any, out: Any) -> Iterator[Any]:
    """Yield the packets of a stream for `out`, unchanged."""
    copy = out.add_stream_from_template(stream)
    packets = (packet for packet in source.demux(stream) if packet.dts is not None)
    return (setattr(packet, "stream", copy) or packet for packet in packets)


def _audio_packets(source: Any, stream: Any, out: Any, start: float, length: float | None) -> Iterator[Any]:
    """Yield the packets of a part of a stream for `out`, as AAC."""
    if stream.codec_context.name == "aac" and not start and length is None:
        return _copied(source, stream, out)
    rate = stream.rate if stream.rate in AAC_RATES else AAC_RATES[0]
    count = stream.channels
    layout = "mono" if count == 1 or count > MOST_PLACED else "stereo"
    mix = [("pan", "mono|c0=" + "+".join(f"{1 / count}*c{n}" for n in range(count)))] if count > MOST_PLACED else []
    encoder = out.add_stream("aac", rate=rate, layout=layout, bit_rate=AUDIO_BIT_RATE)
    first = round(start * rate)
    last = "" if length is None else f":end_sample={first + round(length * rate)}"

    def encode() -> Iterator[Any]:
        even = _filtered(source.decode(stream), *mix, ("aresample", f"{rate}:osf=fltp:ochl={layout}:{RESAMPLING}"))
        for frame in _filtered(even, ("atrim", f"start_sample={first}{last}"), ("asetpts", "N/SR/TB")):
            yield from encoder.encode(frame)
        yield from encoder.encode(None)

    return encode()


def _filtered(frames: Iterable[Any], *filters: tuple[str, str]) -> Iterator[Any]:
    """Send frames of sound through filters of FFmpeg, each a name and its arguments."""
    import av

    graph, sink, kind = None, None, None

    def finished(frame: Any) -> Iterator[Any]:
        if graph is not None:
            graph.push(frame)
            with suppress(BlockingIOError):  # it waits for more
                while True:
                    yield sink.pull()

    with suppress(EOFError):  # the filters have given all, perhaps before the frames end
        for frame in frames:
            if kind != (kind := (frame.rate, frame.layout.name, frame.format.name)):
                with suppress(EOFError):
                    yield from finished(None)  # the file goes on with other sound
                graph, rate = av.filter.Graph(), frame.rate
                source = {"layout": frame.layout.name, "format": frame.format.name, "time_base": Fraction(1, rate)}
                nodes = [graph.add_abuffer(sample_rate=rate, **source)]
                nodes += [graph.add(*each) for each in (*filters, ("abuffersink", ""))]
                for one, other in pairwise(nodes):
                    one.link_to(other)
                graph.configure()
                sink = nodes[-1]
            yield from finished(frame)
        yield from finished(None)
