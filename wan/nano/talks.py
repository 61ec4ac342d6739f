"""Videos of faces that talk, made by a pipeline from drawn faces, voices and paths, to be scored by `talking`."""

from __future__ import annotations

import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wan.inputs import Sound
from wan.media import read_video, to_uint8, write_video
from wan.nano import faces, speech
from wan.nano.faces import Face
from wan.nano.pictures import talk_strip
from wan.nano.talking import Take
from wan.request import Request
from wan.speech2video import WanS2V, clip_lengths, dropped


@dataclass(frozen=True)
class Talk:
    """Face, voice and path that a video is asked of."""

    face: Face
    samples: np.ndarray  # float32 at `speech.RATE`
    path: np.ndarray  # [F, 2] of the head
    moves: bool
    prompt: str


def draw_talks(count: int, seed: int, frames: int) -> list[Talk]:
    """Draw talks that are not trained on; of every third one the head moves, as a pose video shows."""
    rng = np.random.default_rng([seed, 4])
    talks = []
    for index in range(count):
        face = faces.sample_face(rng)
        samples = speech.speak(frames / speech.VIDEO_FPS, int(rng.integers(2**31, 2**32))).samples
        moves = index % 3 == 0
        path = faces.wander(face, frames, rng) if moves else faces.still(face, frames)
        talks.append(Talk(face, samples, path, moves, faces.caption(face, rng)))
    return talks


def perform(pipeline: WanS2V, talk: Talk, seed: int, **settings: Any) -> Take:
    """Make the video of a talk from its reference picture with a closed mouth; `settings` are those of a request."""
    from PIL import Image

    picture = faces.render(talk.face, np.zeros(1), faces.still(talk.face, 1))[0]
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {"audio": write_wav(talk.samples, Path(folder) / "voice.wav")}
        if talk.moves:
            given["pose_video"] = Path(folder) / "pose.mp4"
            write_video(faces.pose_video(talk.face, talk.path), given["pose_video"], speech.VIDEO_FPS)
        given |= {"prompt": talk.prompt, "image": Image.fromarray(picture), "seed": seed, "noise_device": "cpu"}
        request = Request.create(pipeline.config, **given, **settings)
        frames = to_uint8(pipeline.video(request)).numpy()
    loudness = speech.envelope(talk.samples, frames=len(frames))
    borders = np.cumsum(clip_lengths(request))[:-1] - dropped(request)
    path = talk.path[: len(frames)]
    return Take(talk.face, loudness, path, talk.moves, frames, tuple(borders.tolist()), speech.VIDEO_FPS)


def write_wav(samples: np.ndarray, path: Path) -> Path:
    """Write mono samples in [-1, 1] as 16-bit wav; returns the path."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(speech.RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return path


def draw_strip(video: str | Path, picture: str | Path) -> None:
    """Draw frames of a video with sound above its waveform, as PNG."""
    frames, fps = read_video(video)
    talk_strip(frames.numpy(), Sound.of(video).waveform.numpy(), picture, speech.RATE, fps)
