"""A sampled video is never lost, however writing its latent or its file fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_cli import NANO, checkpoint, files, planned, stub, workplace  # noqa: F401 - fixtures
from wan import cli, media, output
from wan.clips import SampledClip
from wan.nano.random import write_random_checkpoint
from wan.request import Picture

BROKEN = ("decode", RuntimeError("codec"))


def resume_command(text):
    """Return the flags of the resume command in a message, as a shell reads them."""
    line = re.search(r"(?:finish it|go on) with: (.*)", text)[1]
    script = f"set -- {line}; printf '%s\\0' \"$@\""
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    return [os.fsdecode(word) for word in words[2:]]


def fail_and_resume(stub, capsys, *flags, more=()):  # noqa: F811
    """Make a run whose decoding fails, then run the command that it printed."""
    stub.fail = BROKEN
    assert cli.main([*NANO, *flags]) == cli.FAILED
    command = resume_command(capsys.readouterr().err)
    stub.fail = ("denoise", AssertionError("resuming must not sample"))
    assert cli.main([*command, "--progress", "none", *more]) == cli.DONE
    return command


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "x" * 251 + ".mp4",
        "猫" * 80 + ".mp4",
        "😀" * 62 + ".mp4",
        "a:b.mp4",
        "-a.mp4",
        "--overwrite.mp4",
        "it's a $name.mp4",
        "two\nlines\t\x1b[31m.mp4",
        os.fsdecode(b"\xba\xec.mp4"),
        "two words.MP4",
        "~root.mp4",
        "~nobody here.mp4",
    ],
)
def test_every_name_of_a_video_has_room_for_its_latent(stub, capsys, name):  # noqa: F811
    fail_and_resume(stub, capsys, f"--save_file=./{name}" if name.startswith("~") else f"--save_file={name}")
    assert files() == [name]


def test_the_folder_may_have_any_name(stub, capsys):  # noqa: F811
    folder = os.fsdecode("c:d/ü\n/".encode() + b"\xba\xec")
    fail_and_resume(stub, capsys, "--output_dir", folder, "--save_file", "a.mp4")
    assert [path.name for path in Path(folder).iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("prompt", ["猫" * 80, "😀 猫" * 30, "𠀀" * 90, os.fsdecode(b"red \xe7\x8c\xab")])
def test_default_names_fit(prompt):
    name = planned("--prompt", prompt, "--base_seed", str(2**63 - 1)).video.name
    assert len(os.fsencode(name)) <= 255


def test_a_default_name_holds_what_the_file_system_can(monkeypatch):
    def ascii_only(name):
        return name.encode("ascii")

    monkeypatch.setattr(output.os, "fsencode", ascii_only)
    assert output.slug("a 猫 cat é") == "a__cat"
    assert output.slug("猫") == "video"


def test_a_name_that_is_too_long_is_refused_first(stub, capsys):  # noqa: F811
    assert cli.main([*NANO, "--save_file", "x" * 300 + ".mp4"]) == cli.WRONG
    assert "File name too long" in capsys.readouterr().err and stub.steps_seen == 0


def test_a_link_to_nowhere_is_an_existing_file(stub, capsys):  # noqa: F811
    Path("a.mp4").symlink_to("nowhere")
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.WRONG
    assert "a.mp4 exists already, a link to nowhere" in capsys.readouterr().err
    Path("a.latent.safetensors").symlink_to("nowhere")
    stub.fail = BROKEN
    assert cli.main([*NANO, "--save_file", "a.mp4", "--overwrite"]) == cli.FAILED
    assert "a-2.latent.safetensors" in files()


# ---------------------------------------------------------------- what a latent says about itself


def test_a_latent_does_not_depend_on_its_metadata(stub, capsys):  # noqa: F811
    """An image may have a name that is not UTF-8; JSON escapes what it cannot write."""
    job = planned("--save_file", "a.mp4", "--base_seed", "1", "--prompt", "two\nlines \x1b[31m and \\ud800")
    picture = Picture(os.fsdecode(b"\xba\xec.png"), (64, 64), "0" * 16)
    job = replace(job, request=replace(job.request, image=picture))
    stub.fail = BROKEN
    assert cli.run(job) == cli.FAILED
    stored = json.loads(output.stored_request(Path("a.latent.safetensors")))
    assert (stored["image"]["path"], stored["prompt"]) == (picture.path, job.request.prompt)
    stub.fail = None
    assert cli.run(job) == cli.DONE
    assert json.loads(media.read_metadata("a.mp4")[output.REQUEST_KEY])["image"]["path"] == picture.path


def test_the_name_of_the_video_is_kept_whatever_the_latent_is_called(stub, capsys):  # noqa: F811
    stub.fail = BROKEN
    assert cli.main([*NANO, "--save_file", "猫" * 80 + ".mp4"]) == cli.FAILED
    os.rename(files()[0], "kept.latent.safetensors")
    stub.fail = None
    assert cli.main(["--resume", "kept.latent.safetensors", "--device", "cpu"]) == cli.DONE
    assert files() == ["猫" * 80 + ".mp4"]


@pytest.mark.parametrize("name", ["../b.mp4", "/tmp/b.mp4", "", 5, "a\0b.mp4", "..", "\ud800.mp4"])
def test_a_latent_of_a_stranger_names_no_place_elsewhere(name):
    assert output.video_path(Path("folder/a.latent.safetensors"), name) == Path("folder/a.mp4")


def test_names_that_another_locale_stored_are_the_same_bytes():
    """A process that reads names as UTF-8 stores one; another that knows only ASCII finds the file; and the reverse."""
    code = "import os; from wan import output; from pathlib import Path; "
    code += "print(os.fsencode(output.video_path(Path('a.latent.safetensors'), '\\u732b.mp4')), end='')"
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=plain, capture_output=True, text=True)
    assert done.stdout == repr("猫.mp4".encode())
    escaped = "猫.mp4".encode().decode("ascii", "surrogateescape")
    assert os.fsencode(output.video_path(Path("a.latent.safetensors"), escaped)) == "猫.mp4".encode()


# ---------------------------------------------------------------- places


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


def test_a_full_disk_sends_it_to_the_other_folder(stub, monkeypatch, capsys, caplog, temporary_folder):  # noqa: F811
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


def test_a_folder_that_vanished_is_made_again(stub, monkeypatch, capsys):  # noqa: F811
    usual = stub.sample

    def sample(self, *arguments):
        Path("out").rmdir()
        return usual(self, *arguments)

    monkeypatch.setattr(stub, "sample", sample)
    assert cli.main([*NANO, "--output_dir", "out", "--save_file", "a.mp4"]) == cli.DONE
    assert files() == ["out"]


def test_the_latent_needs_no_temporary_folder_where_its_own_will_do(stub, monkeypatch, capsys):  # noqa: F811
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    fail_and_resume(stub, capsys, "--save_file", "a.mp4")
    assert files() == ["a.mp4"]


def test_a_folder_that_became_a_file(stub, monkeypatch, capsys, temporary_folder):  # noqa: F811
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
def test_a_folder_that_vanishes_while_decoding(stub, monkeypatch, capsys, temporary_folder, becomes):  # noqa: F811
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


def test_a_latent_that_was_not_kept_is_written_when_decoding_fails(stub, monkeypatch, capsys, caplog):  # noqa: F811
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


def test_two_runs_that_take_the_same_name_at_once(stub, monkeypatch, capsys):  # noqa: F811
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


def test_a_resumed_video_that_fails_is_resumed_under_its_own_name_and_rate(stub, capsys):  # noqa: F811
    stub.fail = BROKEN
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    command = [*resume_command(capsys.readouterr().err), "--save_file", "b.mp4", "--fps", "30"]
    Path("a.mp4").write_text("another run's")
    assert cli.main(command) == cli.FAILED
    command = resume_command(capsys.readouterr().err)
    stub.fail = None
    assert cli.main(command) == cli.DONE and files() == ["a.mp4", "b.mp4"]
    assert media.read_video("b.mp4")[1] == 30


def test_a_folder_of_the_name_is_not_overwritten(stub, monkeypatch, capsys):  # noqa: F811
    usual = stub.sample

    def sample(self, *arguments):
        Path("a.mp4").mkdir()
        return usual(self, *arguments)

    monkeypatch.setattr(stub, "sample", sample)
    assert cli.main([*NANO, "--save_file", "a.mp4", "--overwrite"]) == cli.FAILED
    assert cli.main(resume_command(capsys.readouterr().err)) == cli.DONE
    assert files() == ["a-2.mp4", "a.mp4"]


def test_a_latent_that_cannot_be_removed_is_no_failure(stub, monkeypatch, capsys, caplog):  # noqa: F811
    usual = Path.unlink

    def unlink(self, *arguments, **named):
        if stub.steps_seen and self.name.endswith(output.LATENT_SUFFIX):
            raise PermissionError(13, "Permission denied")
        usual(self, *arguments, **named)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.DONE
    assert "could not be removed" in caplog.text and files() == ["a.latent.safetensors", "a.mp4"]


def test_an_overwritten_video_is_resumed_with_overwrite(stub, capsys):  # noqa: F811
    Path("a.mp4").write_text("old")
    command = fail_and_resume(stub, capsys, "--save_file", "a.mp4", "--overwrite")
    assert "--overwrite" in command and files() == ["a.mp4"] and Path("a.mp4").read_bytes() != b"old"


def test_too_little_room_is_refused_before_sampling(stub, monkeypatch, capsys):  # noqa: F811
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.WRONG
    assert "has 1.0 kB left, and " in capsys.readouterr().err and stub.steps_seen == 0


def test_a_limit_of_file_sizes_is_refused_before_sampling(stub, monkeypatch, capsys):  # noqa: F811
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
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == cli.WRONG and "(ulimit -f)" in done.stderr


# ---------------------------------------------------------------- when a latent goes, and when it stays


@pytest.mark.parametrize(
    "found, reason", [((16, (64, 64)), "holds 16 frames"), ((17, (64, 32)), "of (64, 32)"), ((0, (0, 0)), "holds 0")]
)
def test_a_latent_stays_until_the_file_is_what_was_asked(stub, monkeypatch, capsys, found, reason):  # noqa: F811
    monkeypatch.setattr(media, "written", lambda _: found)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    assert reason in capsys.readouterr().err and "a.latent.safetensors" in files()


def test_a_latent_stays_when_the_file_is_cut_short(stub, monkeypatch, capsys):  # noqa: F811
    """The header is whole, as on a disk that lost the last block."""
    usual = media.written

    def written(path):
        os.truncate(path, os.path.getsize(path) - 100)
        return usual(path)

    with monkeypatch.context() as patch:
        patch.setattr(media, "written", written)
        assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    assert files() == ["a.latent.safetensors", "a.mp4"]
    assert cli.main(resume_command(capsys.readouterr().err)) == cli.DONE
    assert files() == ["a-2.mp4", "a.mp4"]


@pytest.mark.parametrize(
    "latent, text",
    [
        (torch.full((16, 5, 8, 8), float("nan")), "not finite"),
        (torch.full((16, 5, 8, 8), float("inf")), "not finite"),
        (torch.ones(16, 5, 8, 8, dtype=torch.int64), "values of the type torch.int64"),
        (torch.ones(16, 5, 8, 8).to(torch.float8_e4m3fn), "values of the type torch.float8_e4m3fn"),
        (torch.zeros(16, 5, 8, 4), r"a latent of shape [16, 5, 8, 4]"),
        (torch.zeros(16, 4, 8, 8), "17 frames has [16, 5, 8, 8]"),
        (torch.zeros(8, 5, 8, 8), "64*64 and 17 frames has [16, 5, 8, 8]"),
        (torch.zeros(1), "a latent of shape [1]"),
    ],
)
def test_a_latent_that_cannot_be_its_requests_is_refused_and_kept(stub, capsys, latent, text):  # noqa: F811
    request = planned("--base_seed", "1").request.to_json(checkpoint="nano")
    output.save_clip(SampledClip(latent), Path("a.latent.safetensors"), request)
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu"]) == cli.WRONG
    assert text in capsys.readouterr().err and files() == ["a.latent.safetensors"]


@pytest.fixture
def own_checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("own checkpoint"), seed=5)


def test_a_latent_of_an_own_nano_checkpoint_is_resumed_with_it(stub, capsys, own_checkpoint):  # noqa: F811
    command = fail_and_resume(stub, capsys, "--ckpt_dir", str(own_checkpoint), "--save_file", "a.mp4")
    assert command[command.index("--ckpt_dir") + 1] == str(own_checkpoint) and files() == ["a.mp4"]


def test_other_weights_decode_a_latent_only_when_asked(stub, capsys, own_checkpoint, caplog):  # noqa: F811
    stub.fail = BROKEN
    assert cli.main([*NANO, "--ckpt_dir", str(own_checkpoint), "--save_file", "a.mp4"]) == cli.FAILED
    stub.fail = None
    capsys.readouterr()
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu"]) == cli.WRONG
    error = capsys.readouterr().err
    assert f"was sampled with the checkpoint {own_checkpoint}" in error and "--ckpt_dir nano" in error
    assert cli.main(["--resume", "a.latent.safetensors", "--ckpt_dir", "nano", "--device", "cpu"]) == cli.DONE
    assert "the latent stays" in caplog.text and files() == ["a.latent.safetensors", "a.mp4"]


def test_a_video_of_other_weights_is_repeated_with_a_warning(stub, capsys, own_checkpoint, caplog):  # noqa: F811
    assert cli.main([*NANO, "--ckpt_dir", str(own_checkpoint), "--save_file", "a.mp4"]) == cli.DONE
    assert cli.main(["--from_video", "a.mp4", "--device", "cpu", "--save_file", "b.mp4"]) == cli.DONE
    assert "this runs with others: expect another video" in caplog.text
    assert files() == ["a.mp4", "b.mp4"], "this run's own latent goes"
    caplog.clear()
    again = ["--from_video", "a.mp4", "--ckpt_dir", str(own_checkpoint), "--device", "cpu", "--save_file", "c.mp4"]
    assert cli.main(again) == cli.DONE and "expect another video" not in caplog.text


def test_flags_that_decoding_needs_are_in_the_resume_command(stub, capsys):  # noqa: F811
    command = fail_and_resume(
        stub, capsys, "--vae_tile", "64", "--vae_frames", "2", "--no_metadata", "--save_file", "a.mp4"
    )
    assert command[-5:] == ["--vae_tile", "64", "--vae_frames", "2", "--no_metadata"]
    assert not {output.REQUEST_KEY, "comment"} & set(media.read_metadata("a.mp4"))


# ---------------------------------------------------------------- requests to end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_request_to_end_says_how_to_go_on(stub, monkeypatch, capsys, number):  # noqa: F811
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


def test_a_request_while_the_latent_is_written_waits(stub, monkeypatch, capsys):  # noqa: F811
    usual = output.save_clip

    def save_clip(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return usual(*arguments)

    monkeypatch.setattr(output, "save_clip", save_clip)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "interrupted; the sampled video is not lost; finish it with: " in capsys.readouterr().err and files() == [
        "a.latent.safetensors"
    ]


def test_two_requests_at_once_are_one(stub, monkeypatch, capsys):  # noqa: F811
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
def test_an_interrupt_between_the_parts_has_no_traceback(stub, monkeypatch, capsys, name):  # noqa: F811
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, name, interrupted)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "generate.py: interrupted" in capsys.readouterr().err


def test_what_is_done_is_said_when_a_later_video_is_interrupted(stub, monkeypatch, capsys):  # noqa: F811
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


def test_what_is_done_is_said_when_a_later_video_fails(stub, monkeypatch, capsys):  # noqa: F811
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


def test_a_progress_bar_that_breaks_loses_nothing(stub, monkeypatch, capsys):  # noqa: F811
    import tqdm

    def broken(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(tqdm.tqdm, "update", broken)
    flags = ["--device", "cpu", "--prompt", "a red circle", "--progress", "bar", "--save_file", "a.mp4"]
    assert cli.main(flags) == cli.DONE and files() == ["a.mp4"]


def test_partial_files_of_dead_processes_are_swept(stub, caplog):  # noqa: F811
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
    assert "removed 1 unfinished files of runs that were killed" in caplog.text
