"""A sampled video is never lost, however writing its latent or its file fails."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.command_line import BROKEN, NANO, ROOT, fail_and_resume, files, planned, resume_command
from wan import cli, media, output
from wan.clips import SampledClip
from wan.nano.random import write_random_checkpoint
from wan.request import Picture

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
def test_every_name_of_a_video_has_room_for_its_latent(stub, capsys, name):
    fail_and_resume(stub, capsys, f"--save_file=./{name}" if name.startswith("~") else f"--save_file={name}")
    assert files() == [name]


def test_the_folder_may_have_any_name(stub, capsys):
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


def test_a_name_that_is_too_long_is_refused_first(stub, capsys):
    assert cli.main([*NANO, "--save_file", "x" * 300 + ".mp4"]) == cli.WRONG
    assert "File name too long" in capsys.readouterr().err and stub.steps_seen == 0


def test_a_link_to_nowhere_is_an_existing_file(stub, capsys):
    Path("a.mp4").symlink_to("nowhere")
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.WRONG
    assert "a.mp4 exists already, a link to nowhere" in capsys.readouterr().err
    Path("a.latent.safetensors").symlink_to("nowhere")
    stub.fail = BROKEN
    assert cli.main([*NANO, "--save_file", "a.mp4", "--overwrite"]) == cli.FAILED
    assert "a-2.latent.safetensors" in files()


# ---------------------------------------------------------------- what a latent says about itself


def test_a_latent_does_not_depend_on_its_metadata(stub, capsys):
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


def test_the_name_of_the_video_is_kept_whatever_the_latent_is_called(stub, capsys):
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
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=plain, capture_output=True, text=True)
    assert done.stdout == repr("猫.mp4".encode())
    escaped = "猫.mp4".encode().decode("ascii", "surrogateescape")
    assert os.fsencode(output.video_path(Path("a.latent.safetensors"), escaped)) == "猫.mp4".encode()


# ---------------------------------------------------------------- when a latent goes, and when it stays


@pytest.mark.parametrize(
    "found, reason", [((16, (64, 64)), "holds 16 frames"), ((17, (64, 32)), "of (64, 32)"), ((0, (0, 0)), "holds 0")]
)
def test_a_latent_stays_until_the_file_is_what_was_asked(stub, monkeypatch, capsys, found, reason):
    monkeypatch.setattr(media, "written", lambda _: found)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    assert reason in capsys.readouterr().err and "a.latent.safetensors" in files()


def test_a_latent_stays_when_the_file_is_cut_short(stub, monkeypatch, capsys):
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
def test_a_latent_that_cannot_be_its_requests_is_refused_and_kept(stub, capsys, latent, text):
    request = planned("--base_seed", "1").request.to_json(checkpoint="nano")
    output.save_clip(SampledClip(latent), Path("a.latent.safetensors"), request)
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu"]) == cli.WRONG
    assert text in capsys.readouterr().err and files() == ["a.latent.safetensors"]


@pytest.fixture
def own_checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("own checkpoint"), seed=5)


def test_a_latent_of_an_own_nano_checkpoint_is_resumed_with_it(stub, capsys, own_checkpoint):
    command = fail_and_resume(stub, capsys, "--ckpt_dir", str(own_checkpoint), "--save_file", "a.mp4")
    assert command[command.index("--ckpt_dir") + 1] == str(own_checkpoint) and files() == ["a.mp4"]


def test_other_weights_decode_a_latent_only_when_asked(stub, capsys, own_checkpoint, caplog):
    stub.fail = BROKEN
    assert cli.main([*NANO, "--ckpt_dir", str(own_checkpoint), "--save_file", "a.mp4"]) == cli.FAILED
    stub.fail = None
    capsys.readouterr()
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu"]) == cli.WRONG
    error = capsys.readouterr().err
    assert f"was sampled with the checkpoint {own_checkpoint}" in error and "--ckpt_dir nano" in error
    assert cli.main(["--resume", "a.latent.safetensors", "--ckpt_dir", "nano", "--device", "cpu"]) == cli.DONE
    assert "the latent stays" in caplog.text and files() == ["a.latent.safetensors", "a.mp4"]


def test_a_video_of_other_weights_is_repeated_with_a_warning(stub, capsys, own_checkpoint, caplog):
    assert cli.main([*NANO, "--ckpt_dir", str(own_checkpoint), "--save_file", "a.mp4"]) == cli.DONE
    assert cli.main(["--from_video", "a.mp4", "--device", "cpu", "--save_file", "b.mp4"]) == cli.DONE
    assert "this runs with others: expect another video" in caplog.text
    assert files() == ["a.mp4", "b.mp4"], "this run's own latent goes"
    caplog.clear()
    again = ["--from_video", "a.mp4", "--ckpt_dir", str(own_checkpoint), "--device", "cpu", "--save_file", "c.mp4"]
    assert cli.main(again) == cli.DONE and "expect another video" not in caplog.text


def test_flags_that_decoding_needs_are_in_the_resume_command(stub, capsys):
    command = fail_and_resume(
        stub, capsys, "--vae_tile", "64", "--vae_frames", "2", "--no_metadata", "--save_file", "a.mp4"
    )
    assert command[-5:] == ["--vae_tile", "64", "--vae_frames", "2", "--no_metadata"]
    assert not {output.REQUEST_KEY, "comment"} & set(media.read_metadata("a.mp4"))
