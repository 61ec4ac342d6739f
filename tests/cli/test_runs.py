"""The command line: its runs, and its recovery when things break."""

import json
import re
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from tqdm import tqdm

from tests.command_line import NANO, files, planned
from wan import cli, jobs, media, output, planning, progress as progress_of
from wan.arguments import build_parser
from wan.clips import StepDone
from wan.configs import get_config
from wan.request import Request

# ---------------------------------------------------------------- runs


def test_a_run_writes_the_video_and_nothing_else(stub, caplog):
    assert cli.main([*NANO, "--save_file", "a.mp4", "--base_seed", "5"]) == cli.DONE
    assert files() == ["a.mp4"]
    frames, fps = media.read_video("a.mp4")
    assert frames.shape == (17, 64, 64, 3) and fps == 8
    assert "64*64, 17 frames at 8 fps, 20 steps of unipc, shift 3, guidance 3, seed 5" in caplog.text
    assert re.search(r"prompt: a red circle\n.*reading the weights in .*\n", caplog.text)
    assert re.search(r"expected memory about \d+\.\d GiB -> a\.mp4", caplog.text)
    assert re.search(
        r"saved a\.mp4: 17 frames, 64\*64; encode 0\.1 s, decode and write .* s; peak memory 1\.00", caplog.text
    )


def test_too_little_memory_is_said_before_the_start(stub, monkeypatch, caplog):
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.DONE and "GiB; a smaller" not in caplog.text
    monkeypatch.setattr(jobs, "total_memory", lambda device: 2**20)
    assert cli.main([*NANO, "--save_file", "b.mp4"]) == cli.DONE
    assert "cpu has only 0.0 GiB; a smaller --size or --frame_num needs less" in caplog.text


def test_the_request_is_stored_and_repeated(stub, checkpoint):
    flags = [
        "--base_seed",
        "5",
        "--sample_steps",
        "3",
        "--sample_guide_scale",
        "2,4",
        "--negative_prompt",
        "",
        "--fps",
        "9",
    ]
    assert cli.main([*NANO, *flags, "--dtype", "fp32", "--save_file", "a.mp4"]) == cli.DONE
    stored = json.loads(media.read_metadata("a.mp4")[output.REQUEST_KEY])
    assert stored["checkpoint"] == "nano" and stored["seed"] == 5 and set(stored["versions"]) == {"wan", "torch"}
    first = planned(*flags)

    def again(*flags):
        return planning.plan(build_parser().parse_args(["--device", "cpu", "--from_video", "a.mp4", *flags]))

    repeated = again()
    assert repeated.request == first.request and repeated.runtime.dtype == torch.float32
    assert again("--base_seed", "6").request.seed == 6
    assert again("--prompt", "a blue square", "--dtype", "bf16").request.prompt == "a blue square"


def test_private_videos_have_no_request(stub, capsys):
    assert cli.main([*NANO, "--save_file", "a.mp4", "--no_metadata"]) == cli.DONE
    assert not {output.REQUEST_KEY, "comment"} & set(media.read_metadata("a.mp4"))
    assert cli.main(["--from_video", "a.mp4"]) == cli.WRONG
    assert "a.mp4 has no stored request" in capsys.readouterr().err


def write_stored(path, **values):
    request = Request.create(get_config("t2v-A14B", "nano"), prompt="p", seed=1).to_dict() | values
    media.write_video(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), path, 8, {output.REQUEST_KEY: json.dumps(request)})


def test_a_released_video_is_not_repeated_with_nano(capsys):
    write_stored("a.mp4", checkpoint="wan2.2")
    assert cli.main(["--from_video", "a.mp4"]) == cli.WRONG
    assert "was made with a t2v-A14B checkpoint; give its folder with --ckpt_dir" in capsys.readouterr().err


def test_a_video_of_another_device_is_warned_about(caplog):
    write_stored("a.mp4", device="cuda")
    planning.plan(build_parser().parse_args(["--from_video", "a.mp4", "--device", "cpu"]))
    assert "the video was made on cuda and this runs on cpu" in caplog.text


@pytest.mark.parametrize("values", [{"steps": 0}, {"size": 5}, {"guidance": None}, {"task": 3}])
def test_damaged_requests_are_refused(capsys, values):
    write_stored("a.mp4", **values)
    assert cli.main(["--from_video", "a.mp4", "--device", "cpu"]) == cli.WRONG


def test_progress(stub, caplog, capsys):
    flags = [*NANO[:-2], "--sample_steps", "20"]
    assert cli.main([*flags, "--progress", "plain", "--save_file", "a.mp4"]) == cli.DONE
    assert "step 1/20" in caplog.text and "step 20/20, 0 s left" in caplog.text
    assert cli.main([*flags, "--progress", "bar", "--save_file", "b.mp4"]) == cli.DONE
    assert "20/20" in capsys.readouterr().err
    caplog.clear()
    assert cli.main([*flags, "--progress", "none", "--save_file", "c.mp4"]) == cli.DONE
    assert "20/20" not in capsys.readouterr().err and "step 1" not in caplog.text


def lines_of(progress, monkeypatch, caplog, ticks, total):
    """Return the log of steps that end at the seconds `ticks` of a clock that starts anywhere."""
    clock = iter(ticks)
    monkeypatch.setattr(time, "perf_counter", lambda: 1000.0 + next(clock))
    caplog.clear()
    with progress_of.reporter(progress) as on_step:
        for done in range(1, total + 1):
            on_step(StepDone(0, 1, done, total, torch.zeros(1)))
    return [record.getMessage() for record in caplog.records if "step" in record.getMessage()]


@pytest.mark.parametrize(
    "ticks, lines",
    [
        ([70], ["step 1/1"]),
        ([70, 73], ["step 1/2", "step 2/2, 0 s left"]),
        ([70, 73, 78], ["step 1/3", "step 2/3, 3 s left", "step 3/3, 0 s left"]),  # loading does not count
        (
            range(100, 163, 3),  # 21 steps of 3 s, the first of which came after 100 s
            ["step 1/21", *(f"step {n}/21, {3 * (21 - n)} s left" for n in range(2, 21, 2)), "step 21/21, 0 s left"],
        ),
        (
            [10, *range(30, 410, 20)],
            ["step 1/20", *(f"step {n}/20, {20 * (20 - n)} s left" for n in range(2, 21, 2))],
        ),
    ],
)
def test_plain_lines_come_at_every_tenth_with_the_time_left(monkeypatch, caplog, ticks, lines):
    assert lines_of("plain", monkeypatch, caplog, ticks, len(ticks)) == lines


def test_the_bar_counts_every_step_and_reckons_from_the_second(monkeypatch, capsys):
    class Bar(tqdm):
        seen: ClassVar = []

        def update(self, n=1):
            super().update(n)
            Bar.seen.append((self.n, self.total, self.initial))

    monkeypatch.setattr("tqdm.tqdm", Bar)
    with progress_of.reporter("bar") as on_step:
        for done in (1, 2, 3):
            on_step(StepDone(0, 1, done, 3, torch.zeros(1)))
    assert Bar.seen == [(1, 3, 1), (2, 3, 1), (3, 3, 1)]
    assert "denoising" in capsys.readouterr().err


# ---------------------------------------------------------------- when things break


@pytest.mark.parametrize("error", [RuntimeError("codec"), OSError(28, "No space left on device"), MemoryError()])
def test_a_failed_decode_is_resumed(stub, monkeypatch, capsys, error):
    stub.fail = ("decode", error)
    assert cli.main([*NANO, "--save_file", "a.mp4", "--base_seed", "5", "--fps", "11"]) == cli.FAILED
    message = capsys.readouterr().err
    assert "the sampled video is not lost; finish it with: python generate.py --resume a.latent.safetensors" in message
    assert files() == ["a.latent.safetensors"]

    stub.fail = ("denoise", AssertionError("resuming must not sample"))
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu"]) == cli.DONE
    assert files() == ["a.mp4"]
    assert media.read_video("a.mp4")[1] == 11
    assert json.loads(media.read_metadata("a.mp4")[output.REQUEST_KEY])["seed"] == 5


def test_a_failed_encoder_is_resumed(stub, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("encoder")

    with monkeypatch.context() as patch:
        patch.setattr(media, "_to_yuv", broken)
        assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    assert files() == ["a.latent.safetensors"]
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu", "--save_file", "b.mp4"]) == cli.DONE
    assert files() == ["b.mp4"]


def test_a_latent_that_cannot_be_kept_does_not_end_the_run(stub, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(output, "save_clip", full)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.DONE
    assert "the latent could not be kept (No space left on device)" in caplog.text
    assert files() == ["a.mp4"]


def test_latents_of_failed_runs_do_not_replace_each_other(stub):
    stub.fail = ("decode", RuntimeError("codec"))
    for _ in range(2):
        assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    assert files() == ["a-2.latent.safetensors", "a.latent.safetensors"]


def test_a_video_is_not_resumed_and_a_latent_not_repeated(stub, capsys):
    assert cli.main([*NANO, "--save_file", "a b.mp4"]) == cli.DONE
    stub.fail = ("decode", RuntimeError("codec"))
    assert cli.main([*NANO, "--save_file", "c d.mp4"]) == cli.FAILED
    assert cli.main(["--resume", "a b.mp4"]) == cli.WRONG
    said = capsys.readouterr().err
    assert "a b.mp4 is a video or picture, and --resume finishes a kept latent" in said
    assert "give --from_video 'a b.mp4'" in said
    Image.new("RGB", (4, 4)).save("foreign.png")
    assert cli.main(["--resume", "foreign.png"]) == cli.WRONG
    assert "foreign.png is a video or picture" in (said := capsys.readouterr().err) and "--from_video" not in said
    assert cli.main(["--from_video", "c d.latent.safetensors"]) == cli.WRONG
    assert "is a kept latent, not a video; finish it with --resume 'c d.latent.safetensors'" in capsys.readouterr().err


def test_resume_changes_nothing_about_the_request(stub, capsys):
    assert cli.main(["--resume", "a.latent.safetensors", "--prompt", "other", "--base_seed", "1"]) == cli.WRONG
    assert "--resume only decodes what was sampled already; --prompt, --base_seed cannot" in capsys.readouterr().err


@pytest.mark.parametrize("content, text", [(None, "there is no file"), (b"text", "is not a saved latent")])
def test_resuming_from_something_else(capsys, content, text):
    if content:
        Path("a.latent.safetensors").write_bytes(content)
    assert cli.main(["--resume", "a.latent.safetensors"]) == cli.WRONG
    assert text in capsys.readouterr().err


def test_interrupting_the_sampling_leaves_nothing(stub, capsys):
    stub.fail = ("denoise", KeyboardInterrupt())
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert files() == []


def test_interrupting_the_decoding_says_how_to_go_on(stub, capsys):
    stub.fail = ("decode", KeyboardInterrupt())
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert (
        "interrupted; the sampled video is not lost; finish it with: python generate.py --resume a.latent.safetensors"
        in capsys.readouterr().err
    )
    assert files() == ["a.latent.safetensors"]


def test_a_defect_shows_its_traceback_and_a_full_disk_does_not(stub, caplog, capsys):
    stub.fail = ("denoise", RuntimeError("shapes"))
    assert cli.main(NANO) == cli.FAILED
    assert "this is a defect" in caplog.text and "failed: shapes" in capsys.readouterr().err
    caplog.clear()
    stub.fail = ("denoise", OSError("disk"))
    assert cli.main(NANO) == cli.FAILED
    assert "defect" not in caplog.text and "failed: disk" in capsys.readouterr().err


# ---------------------------------------------------------------- the real pipeline, random weights


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_end_to_end(dtype):
    flags = ["--frame_num", "5", "--sample_steps", "3", "--base_seed", "3", "--dtype", dtype, "--attention", "sdpa"]
    assert cli.main([*NANO, *flags, "--save_file", "a.mp4"]) == cli.DONE
    again = ["--from_video", "a.mp4", "--save_file", "b.mp4", "--device", "cpu", "--attention", "sdpa"]
    assert cli.main([*again, "--progress", "none"]) == cli.DONE
    assert media.read_video("a.mp4")[0].shape == (5, 64, 64, 3)
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
