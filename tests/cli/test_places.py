"""The command line: places where files cannot be, and what is said of them before anything is computed."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.command_line import BROKEN, NANO, ROOT, fail_and_resume, files, resume_command
from wan import cli, media, output


def broken_folder(monkeypatch, folder, error):
    """Make writing below `folder` fail from now on, as on a full disk."""
    from safetensors import torch as library

    usual = library.save_file

    def save_file(tensors, path, *args):
        if Path(path).resolve().is_relative_to(Path(folder).resolve()):
            raise error
        return usual(tensors, path, *args)

    monkeypatch.setattr(library, "save_file", save_file)


@pytest.fixture
def temporary_folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_full_disk_sends_it_to_the_other_folder(stub, monkeypatch, capsys, caplog, temporary_folder):
    from safetensors import SafetensorError

    broken_folder(monkeypatch, ".", SafetensorError("I/O error: No space left on device (os error 28)"))
    stub.fail = BROKEN
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    command = resume_command(capsys.readouterr().err)
    kept = temporary_folder / "a.latent.safetensors"
    assert command[1] == str(kept) and kept.exists() and files() == []
    assert "No space left on device" in caplog.text and f"the latent is kept in {kept}" in caplog.text
    stub.fail = None
    assert cli.main(command) == cli.DONE
    assert files() == ["a.mp4"] and not kept.exists()


def test_a_folder_that_vanished_is_made_again(stub, monkeypatch, capsys):
    usual = stub.sample

    def sample(self, *arguments):
        Path("out").rmdir()
        return usual(self, *arguments)

    monkeypatch.setattr(stub, "sample", sample)
    assert cli.main([*NANO, "--output_dir", "out", "--save_file", "a.mp4"]) == cli.DONE
    assert files() == ["out"]


def test_the_latent_needs_no_temporary_folder_where_its_own_will_do(stub, monkeypatch, capsys):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    fail_and_resume(stub, capsys, "--save_file", "a.mp4")
    assert files() == ["a.mp4"]


def test_a_folder_that_became_a_file(stub, monkeypatch, capsys, temporary_folder):
    usual = stub.sample

    def sample(self, *arguments):
        Path("out").rmdir()
        Path("out").touch()
        return usual(self, *arguments)

    monkeypatch.setattr(stub, "sample", sample)
    assert cli.main([*NANO, "--output_dir", "out", "--save_file", "a.mp4"]) == cli.FAILED
    assert (temporary_folder / "a.latent.safetensors").exists()
    error = capsys.readouterr().err
    assert cli.main(resume_command(error)) == cli.DONE and (temporary_folder / "a.mp4").exists()
    assert "it is no folder: 'out'" in error


@pytest.mark.parametrize("becomes", ["nothing", "a file"])
def test_a_folder_that_vanishes_while_decoding(stub, monkeypatch, capsys, temporary_folder, becomes):
    """The latent vanishes with it, and is written again."""
    usual = stub.decode

    def decode(self, latent, framing):
        yield from usual(self, latent, framing)
        shutil.rmtree("out")
        if becomes == "a file":
            Path("out").touch()

    with monkeypatch.context() as patch:
        patch.setattr(stub, "decode", decode)
        assert cli.main([*NANO, "--output_dir", "out", "--save_file", "a.mp4"]) == cli.FAILED
    error = capsys.readouterr().err
    assert "out/" in error.splitlines()[0]
    assert cli.main(resume_command(error)) == cli.DONE
    made = Path("out") if becomes == "nothing" else temporary_folder
    assert [path.name for path in made.iterdir()] == ["a.mp4"]


def test_a_latent_that_was_not_kept_is_written_when_decoding_fails(stub, monkeypatch, capsys, caplog):
    """The disk was full, and the unfinished video is gone by then."""
    usual, calls = output.keep_clips, []

    def keep_clips(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return usual(*arguments)

    monkeypatch.setattr(output, "keep_clips", keep_clips)
    fail_and_resume(stub, capsys, "--save_file", "a.mp4")
    assert "the latent could not be kept" in caplog.text and files() == ["a.mp4"]


def test_two_runs_that_take_the_same_name_at_once(stub, monkeypatch, capsys):
    """The other one is written between this one's planning and its end."""
    usual = stub.sample

    def sample(self, *arguments):
        Path("a.latent.safetensors").write_text("another run's")
        Path("a.mp4").write_text("another run's")
        return usual(self, *arguments)

    monkeypatch.setattr(stub, "sample", sample)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    command = resume_command(capsys.readouterr().err)
    assert files() == ["a-2.latent.safetensors", "a.latent.safetensors", "a.mp4"]
    assert command[-2:] == ["--save_file", "a-2.mp4"]
    assert cli.main(command) == cli.DONE
    assert files() == ["a-2.mp4", "a.latent.safetensors", "a.mp4"]
    assert Path("a.mp4").read_text() == "another run's"


def test_a_resumed_video_that_fails_is_resumed_under_its_own_name_and_rate(stub, capsys):
    stub.fail = BROKEN
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    command = [*resume_command(capsys.readouterr().err), "--save_file", "b.mp4", "--fps", "30"]
    Path("a.mp4").write_text("another run's")
    assert cli.main(command) == cli.FAILED
    command = resume_command(capsys.readouterr().err)
    stub.fail = None
    assert cli.main(command) == cli.DONE and files() == ["a.mp4", "b.mp4"]
    assert media.read_video("b.mp4")[1] == 30


def test_a_folder_of_the_name_is_not_overwritten(stub, monkeypatch, capsys):
    usual = stub.sample

    def sample(self, *arguments):
        Path("a.mp4").mkdir()
        return usual(self, *arguments)

    monkeypatch.setattr(stub, "sample", sample)
    assert cli.main([*NANO, "--save_file", "a.mp4", "--overwrite"]) == cli.FAILED
    assert cli.main(resume_command(capsys.readouterr().err)) == cli.DONE
    assert files() == ["a-2.mp4", "a.mp4"]


def test_a_latent_that_cannot_be_removed_is_no_failure(stub, monkeypatch, capsys, caplog):
    usual = Path.unlink

    def unlink(self, *arguments, **named):
        if stub.steps_seen and self.name.endswith(output.LATENT_SUFFIX):
            raise PermissionError(13, "Permission denied")
        usual(self, *arguments, **named)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.DONE
    assert "could not be removed" in caplog.text and files() == ["a.latent.safetensors", "a.mp4"]


def test_an_overwritten_video_is_resumed_with_overwrite(stub, capsys):
    Path("a.mp4").write_text("old")
    command = fail_and_resume(stub, capsys, "--save_file", "a.mp4", "--overwrite")
    assert "--overwrite" in command and files() == ["a.mp4"] and Path("a.mp4").read_bytes() != b"old"


def test_too_little_room_is_refused_before_sampling(stub, monkeypatch, capsys):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.WRONG
    assert "has 1.0 kB left, and " in capsys.readouterr().err and stub.steps_seen == 0


def test_a_limit_of_file_sizes_is_refused_before_sampling(stub, monkeypatch, capsys):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.WRONG
    assert "(ulimit -f)" in capsys.readouterr().err and stub.steps_seen == 0


def test_a_real_limit_of_file_sizes(tmp_path):
    """The limit holds the latent but not the video: the latent stays and says how to go on."""
    flags = [
        "--prompt",
        "a red circle",
        "--device",
        "cpu",
        "--sample_steps",
        "1",
        "--save_file",
        str(tmp_path / "a.mp4"),
    ]
    command = ["bash", "-c", 'ulimit -f 4; exec "$@"', "x", sys.executable, "generate.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == cli.WRONG and "(ulimit -f)" in done.stderr
