"""Speech-to-video: the clips of a video, their conditions, and the command, with random weights."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.recorded import write_lossless, write_wav
from wan import cli, media, tts
from wan.clips import ClipSampled, FramesDecoded
from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.nano.random import write_random_checkpoint
from wan.request import Request
from wan.runtime import Runtime
from wan.speech2video import WanS2V, clip_lengths, history

RELEASED, NANO = WAN_CONFIGS["s2v-14B"], NANO_CONFIGS["s2v-14B"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("s2v"), "s2v-14B")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with 1.25 seconds of a tone, a picture and a pose video of one second."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    write_wav(folder / "a.wav", tone(1.25))
    Image.fromarray(rng.integers(0, 256, (70, 64, 3), dtype=np.uint8)).save(folder / "a.png")
    write_lossless(folder / "pose.mkv", rng.integers(0, 256, (25, 48, 64, 3), dtype=np.uint8), 25)
    return folder


def tone(seconds):
    return 0.5 * np.sin(np.arange(round(16_000 * seconds)) / 20)


def sound_of(samples, folder):
    return write_wav(folder / f"{samples}.wav", np.zeros(samples))


def request(files, config=NANO, samples=None, **changes):
    audio = files / "a.wav" if samples is None else sound_of(samples, files)
    given = {"image": files / "a.png", "audio": audio, "seed": 5, "steps": 2} | changes
    return Request.create(config, prompt="a face", **given)


# ---- the clips of a video ----


@pytest.mark.parametrize(
    ("seconds", "clips", "frames"),
    [
        (5.016, [84], 81),  # upstream makes 160
        (1 / 16_000, [4], 1),
        (4.8125, [80], 77),
        (5.0, [84], 80),
        (5.5, [80, 12], 88),
        (10.0, [80, 84], 160),
        (15.2, [80, 80, 88], 244),
    ],
)
def test_clips_fit_the_sound(files, seconds, clips, frames):
    asked = request(files, RELEASED, samples=round(seconds * 16_000))
    assert clip_lengths(asked) == clips and WanS2V.num_frames(asked) == frames
    assert WanS2V.num_clips(asked) == len(clips)
    shapes = [WanS2V.latent_shape(RELEASED, asked, index)[1] for index in range(len(clips))]
    assert shapes == [length // 4 for length in clips]


@pytest.mark.parametrize("infer_frames", [4, 8, 48, 80, 96, 120])
@pytest.mark.parametrize("start_from_ref", [False, True])
def test_pictures_are_as_long_as_the_sound_for_every_length(files, infer_frames, start_from_ref):
    given = request(files, RELEASED, frame_num=infer_frames, start_from_ref=start_from_ref)
    for samples in (1, 999, 1000, 1001, 15_999, 16_000, 16_001, 48_000, 77_000, 80_000, 80_256, 160_000, 1_000_003):
        asked = replace(given, audio=replace(given.audio, samples=samples, waveform=None))
        lengths, wanted = clip_lengths(asked), -(-samples * 16 // 16_000)
        assert WanS2V.num_frames(asked) == wanted
        assert 0 <= sum(lengths) - (0 if start_from_ref else 3) - wanted < 4  # nothing is computed for nothing
        assert all(0 < n <= 120 and n % 4 == 0 for n in lengths)
        assert all(n == infer_frames for n in lengths[:-1]) and lengths[-1] <= infer_frames * 1.1


def test_as_upstream_makes_whole_clips_with_one_for_the_rest(files):
    for samples, count in ((80_256, 2), (16_000, 1), (79_000, 1), (160_500, 3)):
        asked = request(files, RELEASED, samples=samples, as_upstream=True)
        assert clip_lengths(asked) == [80] * count and WanS2V.num_frames(asked) == 80 * count - 3
    assert WanS2V.num_frames(replace(asked, start_from_ref=True)) == 240


def test_a_number_of_clips_is_a_limit(files):
    asked = request(files, RELEASED, samples=400_000, num_clip=2)
    assert clip_lengths(asked) == [80, 80] and WanS2V.num_frames(asked) == 157
    assert clip_lengths(replace(asked, num_clip=99)) == [80, 80, 80, 80, 84]
    assert clip_lengths(replace(asked, num_clip=99, as_upstream=True)) == [80] * 5


# ---- what a clip is made from ----


class Kept:
    """Speech features whose values are the numbers of their frames."""

    def clip(self, first, count):
        return torch.arange(first, first + count).clamp(min=0).float().expand(1, 3, 8, count)


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return WanS2V(NANO, checkpoint, runtime=Runtime.from_flags(device="cpu", dtype="fp32"))


def clips_of(pipeline, monkeypatch, asked):
    monkeypatch.setattr(pipeline, "speech", lambda request: Kept())
    with torch.no_grad():
        tail = torch.zeros(3, 73, 64, 64)
        return [pipeline.clip(asked, n, tail if n else None) for n in range(pipeline.num_clips(asked))]


def heard(clip):
    return clip.positive["audio_input"][0, 0, 0].int().tolist()


def test_a_frame_of_the_video_hears_its_own_sound(pipeline, files, monkeypatch):
    first, second = clips = clips_of(pipeline, monkeypatch, request(files, frame_num=12))  # 20 frames of sound
    assert heard(first) == [0, 0, 0, *range(9)] and first.drop == 4  # the picture and three frames are left out
    assert heard(second) == [*range(9, 21)]
    assert not any(clip.negative["audio_input"].any() for clip in clips)
    assert [clip.seed for clip in clips] == [5, 6]


def test_as_upstream_hears_three_frames_early(pipeline, files, monkeypatch):
    first, second, *_ = clips_of(pipeline, monkeypatch, request(files, frame_num=12, as_upstream=True))
    assert heard(first) == [*range(12)] and heard(second) == [*range(12, 24)] and first.drop == 4


def test_starting_from_the_picture_has_a_history_and_no_offset(pipeline, files, monkeypatch):
    first, *_ = clips_of(pipeline, monkeypatch, request(files, frame_num=12, start_from_ref=True))
    assert heard(first) == [*range(12)] and first.drop == 73
    assert first.positive["motion_latents"][0].shape == first.lead.shape == (16, 19, 8, 8)


def test_a_first_clip_has_no_history_and_the_picture_in_front(pipeline, files, monkeypatch):
    first, second, *_ = clips_of(pipeline, monkeypatch, request(files, frame_num=12))
    assert first.positive["motion_latents"] is None and first.lead.shape == (16, 1, 8, 8)
    assert torch.equal(second.positive["motion_latents"][0], second.lead) and second.drop == 73
    assert torch.equal(second.positive["ref_latents"][0], first.lead)


def test_history_is_grey_then_the_picture_then_the_video():
    pixels, video = torch.ones(3, 1, 2, 2), torch.full((3, 5, 2, 2), 0.5)
    values = lambda *args: history(*args)[0, :, 0, 0].tolist()  # noqa: E731
    assert values(pixels, None, 8, True) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert values(pixels, video, 8, True) == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert values(pixels, video, 8, False) == [0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert values(pixels, video, 4, False) == [0.5] * 4


def test_shared_inputs_are_encoded_once(pipeline, files, monkeypatch):
    calls, encode = [], pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda videos: calls.append(videos[0].shape[1]) or encode(videos))
    clips_of(pipeline, monkeypatch, request(files, frame_num=12))
    assert calls == [1, 73]  # the picture once, and the history of the second clip


def test_a_run_goes_on_after_the_clips_that_are_kept(pipeline, files):
    asked = request(files, frame_num=12)
    events = list(pipeline.run(asked))
    whole = [event.frames for event in events if isinstance(event, FramesDecoded)]
    sampled = [event.clip for event in events if isinstance(event, ClipSampled)]
    assert len(sampled) == 2
    for count in (1, 2):
        again = list(pipeline.run(asked, sampled[:count]))
        assert sum(isinstance(event, ClipSampled) for event in again) == 2 - count
        frames = [event.frames for event in again if isinstance(event, FramesDecoded)]
        assert torch.equal(torch.cat(frames, dim=1), torch.cat(whole, dim=1))


# ---- the command ----


def generate(checkpoint, files, out, *flags):
    # fmt: off
    return cli.main([
        "--task", "s2v-14B", "--ckpt_dir", str(checkpoint), "--image", str(files / "a.png"), "--audio",
        str(files / "a.wav"), "--prompt", "a face", "--base_seed", "1", "--sample_steps", "1", "--infer_frames", "16",
        "--size", "64*64", "--save_file", str(out), "--device", "cpu", "--dtype", "fp32", *flags,
    ])
    # fmt: on


def lengths(path: Path) -> list[Fraction]:
    """Seconds of the video and of the sound."""
    with av.open(str(path)) as container:
        streams = (container.streams.video[0], container.streams.audio[0])
        return [Fraction(stream.duration) * stream.time_base for stream in streams]


def test_one_command_makes_a_video_with_its_sound(checkpoint, files, tmp_path):
    assert generate(checkpoint, files, tmp_path / "a.mp4") == cli.DONE
    frames, rate = media.read_video(tmp_path / "a.mp4")
    assert frames.shape == (20, 64, 64, 3) and rate == 16
    video, sound = lengths(tmp_path / "a.mp4")
    assert video == Fraction(5, 4) and abs(video - sound) <= Fraction(1, 16)
    # repeated from the video, with the sound and the picture where they are
    again = ["--from_video", str(tmp_path / "a.mp4"), "--ckpt_dir", str(checkpoint), "--device", "cpu"]
    assert cli.main([*again, "--save_file", str(tmp_path / "b.mp4")]) == cli.DONE
    assert torch.equal(media.read_video(tmp_path / "b.mp4")[0], frames)


def test_what_is_sampled_is_finished_with_its_sound(checkpoint, files, tmp_path, monkeypatch, capsys):
    sound = tmp_path / "a.wav"
    sound.write_bytes((files / "a.wav").read_bytes())
    monkeypatch.setattr(media, "write", lambda *_: (_ for _ in ()).throw(OSError("the disk is gone")))
    flags = ("--audio", str(sound), "--num_clip", "1")
    assert generate(checkpoint, files, tmp_path / "a.mp4", *flags) == cli.FAILED
    monkeypatch.undo()
    resume = ["--resume", str(tmp_path / "a.latent.safetensors"), "--ckpt_dir", str(checkpoint), "--device", "cpu"]
    sound.rename(tmp_path / "b.wav")
    assert cli.main(resume) == cli.WRONG and "a.wav, which is not there" in capsys.readouterr().err
    (tmp_path / "b.wav").rename(sound)
    assert cli.main([*resume, "--fps", "8"]) == cli.WRONG and "belong to the sound" in capsys.readouterr().err
    assert cli.main(resume) == cli.DONE and len(media.read_video(tmp_path / "a.mp4")[0]) == 13
    assert lengths(tmp_path / "a.mp4")[1] > 0


def test_a_part_of_the_sound_is_heard(checkpoint, files, tmp_path):
    part = ("--audio_start", "0.25", "--audio_len", "0.75")
    assert generate(checkpoint, files, tmp_path / "a.mp4", *part) == cli.DONE
    video, sound = lengths(tmp_path / "a.mp4")
    assert video == Fraction(3, 4) and abs(video - sound) <= Fraction(1, 16)


def test_clips_are_files_as_well(checkpoint, files, tmp_path):
    assert generate(checkpoint, files, tmp_path / "a.mp4", "--keep_clips") == cli.DONE
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a-clip001.mp4", "a-clip002.mp4", "a.mp4"]
    parts = [media.read_video(tmp_path / f"a-clip00{number}.mp4")[0] for number in (1, 2)]
    assert [len(part) for part in parts] == [13, 7]
    video, sound = lengths(tmp_path / "a-clip002.mp4")
    assert video == Fraction(7, 16) and abs(video - sound) <= Fraction(1, 16)
    assert generate(checkpoint, files, tmp_path / "b.mp4", "--keep_clips", "--save_file", str(tmp_path / "a.mp4")) == 2


def test_frame_num_changes_nothing_and_says_so(checkpoint, files, tmp_path, caplog):
    assert generate(checkpoint, files, tmp_path / "a.mp4", "--frame_num", "81", "--num_clip", "1") == cli.DONE
    assert "--frame_num is not used by s2v-14B" in caplog.text
    assert len(media.read_video(tmp_path / "a.mp4")[0]) == 13


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--infer_frames", "81"], "--infer_frames must be a multiple of 4 from 4 on, got 81; try 80 or 84"),
        (["--infer_frames", "124"], "--infer_frames can be at most 120, got 124"),
        (["--num_clip", "0"], "--num_clip must be at least 1, got 0"),
        (["--audio_start", "2"], "--audio_start 2 is beyond the end of"),
        (["--audio_len", "0"], "--audio_len must be above 0 seconds"),
        (["--audio_start", "-1"], "--audio_start must be 0 or more"),
        (["--last_image", "a.png"], "--last_image is not used by s2v-14B"),
        (["--sample_guide_scale", "3,4"], "is for two experts, and s2v-14B has one model"),
    ],
)
def test_wrong_values_are_refused_before_weights_are_read(checkpoint, files, tmp_path, capsys, flags, message):
    assert generate(checkpoint, files, tmp_path / "a.mp4", *flags) == cli.WRONG
    assert message in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_settings_of_speech_are_refused_for_other_tasks():
    with pytest.raises(ValueError, match="num_clip is not a setting of t2v-A14B"):
        Request.create(WAN_CONFIGS["t2v-A14B"], prompt="x", num_clip=2)


def test_a_pose_video_changes_the_video_and_no_frames_are_read_twice(checkpoint, files, tmp_path, monkeypatch):
    assert generate(checkpoint, files, tmp_path / "a.mp4") == cli.DONE
    assert generate(checkpoint, files, tmp_path / "b.mp4", "--pose_video", str(files / "pose.mkv")) == cli.DONE
    plain, posed = (media.read_video(tmp_path / name)[0] for name in ("a.mp4", "b.mp4"))
    assert plain.shape == posed.shape and not torch.equal(plain, posed)


# ---- spoken texts ----


@pytest.fixture
def engine(monkeypatch):
    """Replace the engine by half a second of a tone; yields the list of what was said."""
    said = []

    def speak(spoken, file):
        said.append(spoken)
        write_wav(file, tone(0.5))

    monkeypatch.setattr(tts, "find_engine", lambda *_: speak)
    return said


def test_a_text_is_spoken_and_its_sound_is_kept_for_repeating(checkpoint, files, tmp_path, engine):
    flags = ("--enable_tts", "--tts_text", "Hello", "--tts_prompt_audio", "voice.wav")
    assert generate(checkpoint, files, tmp_path / "a.mp4", *flags) == cli.DONE
    assert [(spoken.text, spoken.prompt_audio) for spoken in engine] == [("Hello", "voice.wav")]
    frames = media.read_video(tmp_path / "a.mp4")[0]
    assert len(frames) == 8 and sorted(path.suffix for path in tmp_path.iterdir()) == [".mp4", ".wav"]
    again = ["--from_video", str(tmp_path / "a.mp4"), "--ckpt_dir", str(checkpoint), "--device", "cpu"]
    assert cli.main([*again, "--save_file", str(tmp_path / "b.mp4")]) == cli.DONE
    assert len(engine) == 1 and torch.equal(media.read_video(tmp_path / "b.mp4")[0], frames)


def test_nothing_to_say_is_refused(checkpoint, files, tmp_path, capsys, engine):
    assert generate(checkpoint, files, tmp_path / "a.mp4", "--enable_tts") == cli.WRONG
    assert "--enable_tts needs --tts_text" in capsys.readouterr().err and not engine


def test_without_a_program_that_speaks_the_error_says_what_to_install(checkpoint, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tts.shutil, "which", lambda name: None)
    monkeypatch.setattr(tts, "find_spec", lambda name: None)
    assert generate(checkpoint, files, tmp_path / "a.mp4", "--enable_tts", "--tts_text", "Hello") == cli.WRONG
    assert "install espeak-ng" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_text_without_enable_tts_has_no_effect_and_a_sound_beside_it_is_not_used(
    checkpoint, files, tmp_path, caplog, engine
):
    assert generate(checkpoint, files, tmp_path / "a.mp4", "--tts_text", "Hello") == cli.DONE
    assert "--tts_text has no effect without --enable_tts" in caplog.text and not engine
    assert generate(checkpoint, files, tmp_path / "b.mp4", "--tts_text", "Hello", "--enable_tts") == cli.DONE
    assert "--audio is not used" in caplog.text


def test_the_class_speaks_as_well(pipeline, files, tmp_path, monkeypatch, engine):
    monkeypatch.chdir(tmp_path)
    video = pipeline.generate(
        "a face", files / "a.png", None, True, "voice.wav", None, "Hello", infer_frames=16, sampling_steps=1, seed=1
    )
    assert video.shape == (3, 8, 64, 64) and Path("tts.wav").exists()
    with pytest.raises(ValueError, match="tts_text"):
        pipeline.generate("a face", files / "a.png", enable_tts=True)
