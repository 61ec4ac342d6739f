"""Sound of any file becomes speech at 16 kHz, and the original goes into the video."""

import random
import tracemalloc
import wave
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from wan.audio import add_audio, sound_chunks
from wan.inputs import LONGEST_SOUND, SPEECH_RATE, Sound
from wan.media import write_video

FORMATS = [
    ("a.wav", "pcm_s16le", 16000, "mono", 1e-4),
    ("a.wav", "pcm_s16le", 44100, "stereo", 1e-4),
    ("a.wav", "pcm_f32le", 48000, "5.1", 1e-4),
    ("a.wav", "pcm_s24le", 8000, "mono", 1e-4),
    ("a.wav", "pcm_u8", 11025, "mono", 0.01),
    ("a.flac", "flac", 96000, "stereo", 1e-4),
    ("a.mp3", "libmp3lame", 44100, "stereo", 0.02),
    ("a.m4a", "aac", 44100, "mono", 0.02),
    ("a.mp4", "aac", 48000, "stereo", 0.02),
    ("a.ogg", "vorbis", 44100, "stereo", 0.05),
    ("a.opus", "libopus", 48000, "stereo", 0.05),
    ("a.mkv", "flac", 22050, "mono", 1e-4),
    ("a.webm", "libopus", 48000, "mono", 0.05),
]
CONTAINERS = {"m4a": "ipod", "opus": "ogg", "mkv": "matroska"}


def tone(times, pitch=440.0):
    """Sound with an envelope, so that shifts show, and a beginning and end of silence."""
    return 0.5 * np.sin(2 * np.pi * pitch * times) * np.sin(np.pi * times / times[-1]) ** 2


def write_sound(path, codec="pcm_s16le", rate=16000, layout="mono", seconds=2.0, signal=tone, pictures=False):
    """Encode a sound, the loudest in the last channel; their mean is the signal."""
    channels = av.AudioLayout(layout).nb_channels
    weights = np.arange(1, channels + 1) / np.arange(1, channels + 1).mean()
    samples = signal(np.arange(round(seconds * rate)) / rate)
    with av.open(str(path), "w", format=CONTAINERS.get(path.suffix[1:], path.suffix[1:])) as out:
        if pictures:
            film = out.add_stream("libx264", rate=16)
            film.width = film.height = 32
            film.pix_fmt = "yuv420p"
        stream = out.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        if codec in ("libmp3lame", "aac", "libopus"):
            stream.bit_rate = 256_000
        if pictures:
            for _ in range(round(seconds * 16)):
                out.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            out.mux(film.encode(None))
        planes = (weights[:, None] / 2 * samples[None]).astype(np.float32)
        for start in range(0, len(samples), 1000):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(planes[:, start : start + 1000]), format="fltp", layout=layout
            )
            frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def heard(path):
    """Decode the sound of a video, [channels, samples]."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(("name", "codec", "rate", "layout", "near"), FORMATS)
def test_any_file_becomes_the_mean_of_its_channels_at_16_khz(tmp_path, name, codec, rate, layout, near):
    path = write_sound(tmp_path / name, codec, rate, layout)
    sound = Sound.of(path)
    samples, expected = sound.waveform.numpy(), tone(np.arange(32_000) / 16_000) / 2
    assert samples.dtype == np.float32 and abs(len(samples) - 32_000) <= (0 if near < 0.01 else 1100)
    assert np.abs(samples[:31_000] - expected[:31_000]).max() < near
    assert str(sound) == f"{len(samples) / 16_000:.3f} s"


@pytest.mark.parametrize("channels", [3, 9, 24, 64])
def test_channels_without_places_are_heard(tmp_path, channels):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((channels, 2, 22050, 0, "NONE", ""))
        samples = np.where(np.arange(channels) == channels - 1, 8000, 0).astype(np.int16)
        file.writeframes(np.tile(samples, (20_000, 1)).tobytes())
    middle = Sound.of(tmp_path / "a.wav").waveform[4000:8000]
    assert (middle - 8000 / 32768 / channels).abs().max() < 1e-5
    write_video(np.zeros((8, 32, 32, 3), np.uint8), tmp_path / "a.mp4", 16)
    add_audio(tmp_path / "a.mp4", tmp_path / "a.wav")
    assert heard(tmp_path / "a.mp4").shape[1] > 10_000


@pytest.mark.parametrize("row", [1, 5, 6, 7, 9, 11])
def test_damage_is_read_or_refused_by_name(tmp_path, row):
    name, codec, rate, layout, _ = FORMATS[row]
    whole = write_sound(tmp_path / name, codec, rate, layout, seconds=0.3).read_bytes()
    draw, refused = random.Random(row), 0
    for number in range(24):
        damaged = bytearray(whole[: draw.randrange(12, len(whole))] if number % 3 == 0 else whole)
        for _ in range(number % 3 * 10):
            damaged[draw.randrange(4, len(damaged))] = draw.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            assert Sound.of(tmp_path / name).waveform.isfinite().all()
        except ValueError as error:
            refused += 1
            assert name in str(error)
    assert refused or codec in ("pcm_s16le", "libmp3lame"), "these have no checks"


def test_the_sound_of_a_video_is_read(tmp_path):
    path = write_sound(tmp_path / "a.mp4", "aac", 44100, pictures=True)
    assert abs(Sound.of(path).samples - 32_000) < 1100


def test_what_16_khz_cannot_hold_is_removed_and_the_rest_kept(tmp_path):
    for pitch, level in ((440, 0.25), (6800, 0.25), (9000, 0), (15_000, 0)):
        steady = write_sound(
            tmp_path / f"{pitch}.wav", "pcm_f32le", 44100, signal=lambda t, p=pitch: 0.5 * np.sin(2 * np.pi * p * t)
        )
        samples = Sound.of(steady).waveform[4000:28_000]
        assert abs(samples.abs().max() - level) < 1e-3
        if level:
            ideal = 0.25 * torch.sin(2 * torch.pi * pitch * torch.arange(4000, 28_000, dtype=torch.float64) / 16_000)
            assert (samples - ideal).abs().max() < 1e-4, "not even a fraction of a sample is lost"


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
@pytest.mark.parametrize("samples", [1, 2, 100])
def test_the_shortest_files_run(tmp_path, rate, samples):
    path = write_sound(tmp_path / "a.wav", rate=rate, seconds=samples / rate, signal=lambda t: t * 0 + 0.5)
    assert Sound.of(path).samples == -(-samples * 16_000 // rate)


def test_an_hour_is_read_in_chunks(tmp_path):
    """The memory of decoding does not depend on the length: each chunk is a small part of the file."""
    path = write_sound(tmp_path / "a.flac", "flac", 8000, seconds=60, signal=lambda t: t * 0)
    tracemalloc.start()
    sizes = [len(chunk) for chunk in sound_chunks(path, SPEECH_RATE)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 60 * SPEECH_RATE and max(sizes) < 20_000 and peak < 2e6


# ---------------------------------------------------------------- the input


def test_a_sound_is_stored_without_its_samples_and_found_again(tmp_path):
    path = write_sound(tmp_path / "a.wav")
    sound = Sound.of(str(path))
    again = Sound.from_dict(sound.to_dict())
    assert again == sound and again.waveform is None and again.samples == 32_000
    write_sound(path, signal=lambda t: tone(t, 300))
    assert Sound.of(path).sha256 != sound.sha256


def test_a_part_has_the_samples_of_its_seconds(tmp_path):
    sound = Sound.of(write_sound(tmp_path / "a.wav"))
    part = sound.part(0.5, 1)
    assert (part.samples, part.start, part.length) == (16_000, 0.5, 1)
    assert torch.equal(part.waveform, sound.waveform[8_000:24_000])
    assert sound.part().waveform.data_ptr() == sound.waveform.data_ptr() and sound.part().samples == 32_000
    assert sound.part(1.5, 9).samples == 8_000, "as far as there is sound"
    assert Sound.from_dict(sound.to_dict()).part(0.5, 1).samples == 16_000, "also of a stored request"
    assert sound.part(1.99999, 1e-9).samples == 1


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ((2, None), r"audio_start 2 is beyond the end of .*a\.wav, which has 2 s; try a smaller one"),
        ((-1, None), "audio_start must be 0 or more, got -1"),
        ((0, 0), "audio_len must be above 0 seconds, got 0; leave it out for all"),
        ((0, -3), "audio_len must be above 0"),
        ((float("nan"), None), "audio_start must be a finite number"),
    ],
)
def test_parts_that_are_not_there_are_refused(tmp_path, part, text):
    with pytest.raises(ValueError, match=text):
        Sound.of(write_sound(tmp_path / "a.wav")).part(*part)


def test_files_without_sound_are_refused_by_name(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "none.wav").touch()
    write_video(np.zeros((3, 32, 32, 3), np.uint8), tmp_path / "silent.mp4", 16)
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    write_sound(tmp_path / "nan.wav", "pcm_f32le", signal=lambda t: t * np.nan)
    cut = write_sound(tmp_path / "cut.flac", "flac")
    cut.write_bytes(cut.read_bytes()[:500])
    cases = {
        "text.wav": "is not a sound that can be read; convert it to wav",
        "none.wav": "is empty",
        "silent.mp4": "has no sound in it; name a file that has",
        "empty.wav": "has a track of sound, and nothing in it",
        "nan.wav": "has samples that are not finite numbers",
        "cut.flac": "is not a sound that can be read",
    }
    for name, text in cases.items():
        with pytest.raises(ValueError) as error:
            Sound.of(tmp_path / name)
        assert name in str(error.value) and text in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.wav"):
        Sound.of(tmp_path / "absent.wav")
    with pytest.raises(ValueError, match="is a folder"):
        Sound.of(tmp_path)
    for value in (None, "", 3, "https://example.org/a.wav"):
        with pytest.raises(ValueError, match=r"audio is the path of a file|nothing is fetched"):
            Sound.of(value)


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"path": None, "samples": 3, "sha256": ""},
        {"path": "a.wav", "samples": 0, "sha256": ""},
        {"path": "a.wav", "samples": 10**12, "sha256": ""},
        {"path": "a.wav", "samples": 1.5, "sha256": ""},
        {"path": "a.wav", "samples": 9, "sha256": 3},
        {"path": "a\0.wav", "samples": 9, "sha256": ""},
    ],
)
def test_stored_sounds_are_checked(values):
    with pytest.raises(ValueError):
        Sound.from_dict(values)


def test_endless_files_are_refused(tmp_path, monkeypatch):
    assert LONGEST_SOUND >= 3600
    monkeypatch.setattr("wan.inputs.LONGEST_SOUND", 1)
    with pytest.raises(ValueError, match=r"a\.wav has more than 0 hours of sound; cut it first"):
        Sound.of(write_sound(tmp_path / "a.wav"))


# ---------------------------------------------------------------- in the video


@pytest.mark.parametrize(("start", "length"), [(0, None), (0.5, None), (0.25, 0.75)])
@pytest.mark.parametrize(("name", "codec", "rate", "layout"), [FORMATS[n][:4] for n in (1, 2, 4, 6, 7, 9)])
def test_the_original_sound_of_the_part_is_in_the_video(tmp_path, name, codec, rate, layout, start, length):
    """Picture and sound end within one frame, and the sound is where it was, in its own rate and channels."""
    source = write_sound(tmp_path / f"source-{name}", codec, rate, layout)
    seconds = length or 2.0 - start
    video = tmp_path / "video.mp4"
    write_video(np.zeros((round(seconds * 16), 32, 32, 3), np.uint8), video, 16)
    add_audio(video, source, start, length)
    with av.open(str(video)) as container:
        stream = container.streams.audio[0]
        ends = [float(s.duration * s.time_base) for s in container.streams]
        assert stream.codec_context.name == "aac" and stream.rate == min(rate, 48000)
        assert stream.channels == (1 if layout == "mono" else 2)
    assert abs(ends[0] - seconds) < 1e-3 and abs(ends[1] - seconds) < 1 / 16
    samples = heard(video).mean(axis=0)
    place = np.argmax(np.convolve(np.abs(samples), np.ones(200) / 200, "same")) / min(rate, 48000)
    assert abs(place + start - 1) < 0.1 or not start < 1 < start + seconds, "the loudest place of the source is at 1 s"


def test_sound_that_ends_first_does_not_cut_pictures_that_began(tmp_path):
    video = tmp_path / "a.mp4"
    write_video(np.zeros((21, 32, 32, 3), np.uint8), video, 16)
    add_audio(video, write_sound(tmp_path / "a.wav", seconds=1.28))
    with av.open(str(video)) as container:
        ends = [float(s.duration * s.time_base) for s in container.streams]
    assert ends[0] == 21 / 16 and 0 <= ends[1] - 1.28 < 1 / 16


def test_pairs_of_samples_keep_their_distance(tmp_path):
    """Two clicks stay as far from each other as they were: no sample is lost between chunks."""
    clicks = lambda t: np.where(np.isin(np.round(t * 8000).astype(int), (4000, 12_000)), 0.9, 0.0)  # noqa: E731
    samples = Sound.of(write_sound(tmp_path / "a.wav", rate=8000, signal=clicks)).waveform
    peaks = (samples > 0.2).nonzero()[:, 0].tolist()
    assert {8000, 24_000} <= set(peaks) and max(b - a for a, b in pairwise(peaks)) in range(15_990, 16_001)
