"""Write sounds and videos for tests, exactly."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """Write samples in [-1, 1], [n] or [channels, n] of at most two, as 16-bit PCM."""
    samples = np.atleast_2d(np.asarray(samples, dtype=np.float32))
    layout = ("mono", "stereo")[len(samples) - 1]
    pcm = (samples.T * 32767).round().astype(np.int16).reshape(1, -1)
    with av.open(str(path), "w", format="wav") as out:
        stream = out.add_stream("pcm_s16le", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
        frame.rate = rate
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write_lossless(path: Path, frames: np.ndarray, fps: float) -> Path:
    """Write frames, uint8 [F, H, W, 3], that are read back as they are; the name should end in .mkv."""
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(stream.encode(None))
    return path
