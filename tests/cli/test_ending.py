"""The command line: requests to end, at any time."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.command_line import NANO, files, resume_command
from wan import cli, media, output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_request_to_end_says_how_to_go_on(stub, monkeypatch, capsys, number):
    usual = stub.decode

    def decode(self, latent, framing):
        chunks = usual(self, latent, framing)
        yield next(chunks)
        os.kill(os.getpid(), number)
        yield from chunks

    monkeypatch.setattr(stub, "decode", decode)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "interrupted; the sampled video is not lost; finish it with: " in capsys.readouterr().err
    assert files() == ["a.latent.safetensors"], "no partial file"


def test_a_request_while_the_latent_is_written_waits(stub, monkeypatch, capsys):
    usual = output.save_clip

    def save_clip(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return usual(*arguments)

    monkeypatch.setattr(output, "save_clip", save_clip)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "interrupted; the sampled video is not lost; finish it with: " in capsys.readouterr().err and files() == [
        "a.latent.safetensors"
    ]


def test_two_requests_at_once_are_one(stub, monkeypatch, capsys):
    """The second one comes while the first one is cleaning up."""
    usual = stub.decode

    def decode(self, latent, framing):
        try:
            yield from usual(self, latent, framing)
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(stub, "decode", decode)
    said = cli.print_error

    def print_error(text):
        os.kill(os.getpid(), signal.SIGHUP)
        said(text)

    monkeypatch.setattr(cli, "print_error", print_error)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "the sampled video is not lost" in capsys.readouterr().err and files() == ["a.latent.safetensors"]


@pytest.mark.parametrize("name", ["parse", "plan", "describe", "part_from_processes"])
def test_an_interrupt_between_the_parts_has_no_traceback(stub, monkeypatch, capsys, name):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, name, interrupted)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "generate.py: interrupted" in capsys.readouterr().err


def test_what_is_done_is_said_when_a_later_video_is_interrupted(stub, monkeypatch, capsys):
    made = []
    usual = stub.sample

    def sample(self, request, on_step):
        if made:
            raise KeyboardInterrupt
        made.append(request)
        return usual(self, request, on_step)

    monkeypatch.setattr(stub, "sample", sample)
    assert cli.main([*NANO, "--num_videos", "3", "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "interrupted; written: a-1.mp4" in capsys.readouterr().err and files() == ["a-1.mp4"]


def test_what_is_done_is_said_when_a_later_video_fails(stub, monkeypatch, capsys):
    usual = media.write_video

    def write_video(frames, path, *others):
        if "a-2" in str(path):
            raise OSError(28, "No space left on device")
        return usual(frames, path, *others)

    monkeypatch.setattr(media, "write_video", write_video)
    assert cli.main([*NANO, "--num_videos", "3", "--save_file", "a.mp4"]) == cli.FAILED
    error = capsys.readouterr().err
    assert "written: a-1.mp4; the sampled video is not lost; finish it with: " in error
    assert files() == ["a-1.mp4", "a-2.latent.safetensors"]
    assert "a-2.latent.safetensors" in resume_command(error)


def test_a_progress_bar_that_breaks_loses_nothing(stub, monkeypatch, capsys):
    import tqdm

    def broken(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(tqdm.tqdm, "update", broken)
    flags = ["--device", "cpu", "--prompt", "a red circle", "--progress", "bar", "--save_file", "a.mp4"]
    assert cli.main(flags) == cli.DONE and files() == ["a.mp4"]


def test_partial_files_of_dead_processes_are_swept(stub, caplog):
    from wan import files as file_names

    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = file_names._partial(Path.cwd())
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    elsewhere = dead.with_name(dead.name.replace(file_names._machine(), "0" * 8))
    for path in (mine, dead, elsewhere):
        path.touch()
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.DONE
    assert files() == sorted([mine.name, elsewhere.name, "a.mp4"])
    assert "removed what killed runs had not finished: .wan-" in caplog.text
