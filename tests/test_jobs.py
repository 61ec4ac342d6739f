"""A video of several clips: the clips are kept, and a run that was killed goes on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from tests.command_line import resume_command
from tests.test_media import write_tone
from tests.three_clips import CLIPS, ThreeClips
from wan import cli, jobs, media, output, planning
from wan.clips import ClipSampled, FramesDecoded, SampledClip, StepDone
from wan.configs import NANO_CONFIGS
from wan.inputs import Sound
from wan.nano.random import write_random_checkpoint
from wan.request import Request
from wan.runtime import Runtime
from wan.stored import Stored
from wan.text2video import WanT2V

ROOT = Path(__file__).parents[1]
FLAGS = ["--device", "cpu", "--progress", "none"]
ASKED = ["--prompt", "a red circle", "--frame_num", "5", "--sample_steps", "3", "--base_seed", "1"]
NEW = [*FLAGS, *ASKED, "--save_file", "a.mp4"]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # the same rounding in every run


def program(checkpoint, kill):
    return [sys.executable, "-m", "tests.three_clips", str(checkpoint), kill]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("nano"))


@pytest.fixture
def three_clips(monkeypatch, tmp_path, checkpoint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(jobs.PIPELINES, "t2v-A14B", ThreeClips)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: checkpoint)
    return ThreeClips


def files(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_run_that_is_killed_in_every_phase_of_every_clip_writes_the_same_file(three_clips, checkpoint):
    """Each run goes on where the last one was killed, to be killed a phase later, until the tenth one ends."""

    def run(kill, *arguments):
        return subprocess.run([*program(checkpoint, kill), *arguments], env=ENVIRONMENT).returncode

    assert run("never", *FLAGS, *ASKED, "--save_file", "whole.mp4") == 0
    assert media.written("whole.mp4")[0] == 14
    for index in range(CLIPS):
        for phase in ("encode", "denoise", "decode"):
            resume = ["--resume", "a.clips", *FLAGS] if Path("a.clips").exists() else NEW
            assert run(f"{phase}:{index}", *resume) == -9
            kept = index + (phase == "decode")
            assert len(output.kept_clips(Path("a.clips"))) == kept and not Path("a.mp4").exists()
    assert run("never", "--resume", "a.clips", *FLAGS) == 0
    assert Path("a.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert files() == ["a.mp4", "whole.mp4"], "clips and partial files are gone"


def test_two_processes_make_the_clips_together(three_clips, checkpoint):
    """The end of a clip is decoded by one process and given to the other."""
    one = [*program(checkpoint, "never"), *FLAGS, *ASKED, "--dtype", "fp32", "--save_file", "whole.mp4"]
    subprocess.run(one, env=ENVIRONMENT, check=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    two = [sys.executable, *launch, *program(checkpoint, "never")[1:], *NEW, "--dtype", "fp32"]
    subprocess.run(two, env=ENVIRONMENT, check=True)
    assert files() == ["a.mp4", "whole.mp4"]
    a, b = (media.read_video(name)[0].float() for name in files())
    assert (a - b).abs().mean() < 0.2, "rounding, and what the video encoder makes of it"
    assert (a - b.roll(1, dims=0)).abs().mean() > 1


def test_a_failure_says_how_to_go_on(three_clips, monkeypatch, capsys):
    def broken(self, phase, index):
        if (phase, index) == ("encode", 2):
            raise RuntimeError("encoder")

    with monkeypatch.context() as patch:
        patch.setattr(three_clips, "die_in", broken)
        assert cli.main(NEW) == cli.FAILED
    error = capsys.readouterr().err
    assert "2 of 3 clips are sampled and not lost; go on with: " in error
    command = resume_command(error)
    assert command[:2] == ["--resume", "a.clips"] and "--attention" in command
    assert files() == ["a.clips"] and files("a.clips") == ["00000.safetensors", "00001.safetensors"]
    assert cli.main(command) == cli.DONE and files() == ["a.mp4"]


def test_a_clip_is_written_once(three_clips, monkeypatch):
    usual, seen = output.save_clip, []
    monkeypatch.setattr(output, "save_clip", lambda clip, path, text: seen.append(path.name) or usual(clip, path, text))
    assert cli.main(NEW) == cli.DONE
    assert seen == ["00000.safetensors", "00001.safetensors", "00002.safetensors"]


def test_a_folder_of_clips_that_vanished_is_written_again(three_clips, monkeypatch, capsys):
    def vanish(self, phase, index):
        if (phase, index) == ("denoise", 1):
            output.remove_clips(Path("a.clips"))
        if (phase, index) == ("decode", 2):
            raise RuntimeError("codec")

    with monkeypatch.context() as patch:
        patch.setattr(three_clips, "die_in", vanish)
        assert cli.main(NEW) == cli.FAILED
    assert len(files("a.clips")) == 3
    assert cli.main(resume_command(capsys.readouterr().err)) == cli.DONE and files() == ["a.mp4"]


def kept(count, shape=(16, 2, 8, 8), **changes):
    request = json.dumps(request_of().to_dict() | {"checkpoint": "nano"})
    Path("a.clips").mkdir()
    for index in range(count):
        output.add_clip(replace(SampledClip(torch.zeros(shape)), **changes), Path("a.clips"), index, request)


def request_of():
    return Request.create(NANO_CONFIGS["t2v-A14B"], prompt="a red circle", frame_num=5, steps=3, seed=1)


@pytest.mark.parametrize(
    "count, changes, text",
    [
        (0, {}, "a.clips is a folder without kept clips"),
        (4, {}, "a.clips holds 4 clips, and a video of its request has 3"),
        (2, {"shape": (16, 3, 8, 8)}, "00000.safetensors holds a latent of shape [16, 3, 8, 8]"),
        (1, {"lead": torch.full((16, 1, 8, 8), float("nan"))}, "holds values that are not finite"),
    ],
)
def test_clips_that_cannot_be_their_requests_are_refused_and_kept(three_clips, capsys, count, changes, text):
    kept(count, **changes)
    assert cli.main(["--resume", "a.clips", *FLAGS]) == cli.WRONG
    assert text in capsys.readouterr().err and len(files("a.clips")) == count


def test_clips_behind_a_gap_are_sampled_again(three_clips, monkeypatch):
    kept(2)
    Path("a.clips/00000.safetensors").rename("a.clips/00002.safetensors")
    assert output.kept_clips(Path("a.clips")) == []


# ---------------------------------------------------------------- the events of a run


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return ThreeClips(NANO_CONFIGS["t2v-A14B"], checkpoint, runtime=Runtime.from_flags(device="cpu", dtype="fp32"))


def test_a_run_reports_what_is_done_in_order(pipeline):
    kinds = [(type(event), event.index, event.count) for event in pipeline.run(request_of())]
    whole = [event for index in range(3) for event in [(StepDone, index, 3)] * 3 + [(ClipSampled, index, 3)]]
    assert [kind for kind in kinds if kind[0] is not FramesDecoded] == whole
    assert [index for kind, index, _ in kinds if kind is FramesDecoded] == sorted(
        index for kind, index, _ in kinds if kind is FramesDecoded
    )


def test_kept_clips_are_decoded_and_not_sampled(pipeline):
    events = list(pipeline.run(request_of()))
    clips = [event.clip for event in events if isinstance(event, ClipSampled)]
    again = list(pipeline.run(request_of(), clips))
    assert {type(event) for event in again} == {FramesDecoded}
    frames = [torch.cat([e.frames for e in run if isinstance(e, FramesDecoded)], dim=1) for run in (events, again)]
    assert frames[0].shape == (3, 14, 64, 64) and torch.equal(*frames)


def test_closing_a_run_cancels_it(pipeline):
    run = pipeline.run(request_of())
    assert next(run).step == 1
    run.close()
    assert list(run) == [] and list(pipeline.phases) == ["encode", "denoise"]
    assert torch.is_grad_enabled()


def test_phases_add_up_over_clips(pipeline, monkeypatch):
    from wan import memory

    times = iter(range(100))
    monkeypatch.setattr(memory.time, "perf_counter", lambda: next(times))
    list(pipeline.run(request_of()))
    assert {name: stats.seconds for name, stats in pipeline.phases.items()} == dict.fromkeys(pipeline.phases, 3)


def test_grad_mode_is_the_callers_between_events(pipeline):
    for _ in pipeline.run(request_of()):
        assert torch.is_grad_enabled()


# ---------------------------------------------------------------- going on


def test_inputs_are_read_again_and_must_be_the_same(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    config = NANO_CONFIGS["i2v-A14B"]
    asked = Request.create(config, prompt="a circle", image=tmp_path / "a.png", seed=1)
    stored = Stored(Request.from_dict(asked.to_dict()), {})
    assert stored.request.image.pixels is None
    assert stored.with_inputs(stored.request, tmp_path).image.pixels.size == (64, 64)
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has changed since the first clips of the video were sampled"):
        stored.with_inputs(stored.request, tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="which is not there"):
        stored.with_inputs(stored.request, tmp_path)


def test_other_weights_do_not_go_on_with_clips(three_clips, monkeypatch, tmp_path_factory, capsys):
    def broken(self, phase, index):
        if index == 1:
            raise RuntimeError("encoder")

    with monkeypatch.context() as patch:
        patch.setattr(three_clips, "die_in", broken)
        assert cli.main(NEW) == cli.FAILED
    other = write_random_checkpoint(tmp_path_factory.mktemp("other"), seed=5)
    assert cli.main(["--resume", "a.clips", "--ckpt_dir", str(other), *FLAGS]) == cli.WRONG
    assert "these weights are not those that sampled the other clips" in capsys.readouterr().err


def test_a_latent_of_an_earlier_version_is_resumed(three_clips, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setitem(jobs.PIPELINES, "t2v-A14B", WanT2V)
    request = json.dumps(request_of().to_dict() | {"checkpoint": "nano", "video": "a.mp4"})
    save_file({"latent": torch.randn(16, 2, 8, 8)}, "a.latent.safetensors", {"wan_request": request})
    assert cli.main(["--resume", "a.latent.safetensors", *FLAGS]) == cli.DONE and files() == ["a.mp4"]


def test_a_video_is_given_its_sound(three_clips, monkeypatch):
    write_tone(Path("a.wav"), 5.0)
    monkeypatch.setattr(three_clips, "sound", staticmethod(lambda request: Sound.of("a.wav")))
    assert cli.main(NEW) == cli.DONE
    assert media.written("a.mp4")[0] == 14 and output.REQUEST_KEY in media.read_metadata("a.mp4")
    with av.open("a.mp4") as container:
        assert len(container.streams.audio) == 1
