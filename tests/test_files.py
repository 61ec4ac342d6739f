"""Files that appear whole or not at all, as every writer makes them, and untrusted text."""

import os
import signal

import pytest

from wan.checkpoint.pickled import load_pickled
from wan.checkpoint.recognise import loras_beside, recognise
from wan.checkpoint.source import is_safetensors, read_contents, read_header
from wan.files import atomic_file, check_writable, no_file, parse_json, read_json, refuse_placeholder, shown
from wan.images import read_image
from wan.media import read_metadata, read_video


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_appears_when_the_block_ends_well(tmp_path, overwrite):
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path, overwrite) as temporary:
        temporary.write_text("done")
        assert temporary.suffix == ".partial", "readers of the folder must not take it for a finished file"
        assert not path.exists()
    assert path.read_text() == "done" and list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("precious")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.txt", overwrite=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "precious")]


def test_the_umask_decides_who_may_read_it(tmp_path):
    (tmp_path / "usual").touch()
    with atomic_file(tmp_path / "a.txt", overwrite=False) as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors makes its files
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_check_writable(tmp_path):
    check_writable(tmp_path / "new" / "a.mp4")
    assert (tmp_path / "new").is_dir() and not list((tmp_path / "new").iterdir())
    with pytest.raises(ValueError, match="is a folder; give the name of a file in it, or use --output_dir"):
        check_writable(tmp_path / "new")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(FileExistsError, match="exists already; choose another name, or give --overwrite"):
        check_writable(tmp_path / "a.mp4")
    check_writable(tmp_path / "a.mp4", overwrite=True)
    with pytest.raises(ValueError, match=r"cannot write to .*; choose another --output_dir"):
        check_writable(tmp_path / "a.mp4" / "b.mp4")


def test_atomic_file_without_links(tmp_path, monkeypatch):
    """Some network and removable file systems have no hard links; a plain rename serves them."""

    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr("os.link", no_links)
    with atomic_file(tmp_path / "a.txt", overwrite=False) as temporary:
        temporary.write_text("done")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a name, 名前", "a name, 名前"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("two\nlines\r\x9b", r"two\nlines\r\x9b"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcba", r"\udcba"),
        ("x" * 300, "x" * 200 + "... (300 characters)"),
        (7, "7"),
    ],
)
def test_what_strangers_wrote_is_shown_escaped_and_cut(text, safe):
    assert shown(text) == safe


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, b"\xff", '{"a": NaN}', "1" * 5000, "", '{"a": "\x00"}', '{"a": 1, "a": 2}']
)
def test_bad_json_is_a_value_error(tmp_path, text):
    with pytest.raises(ValueError):
        parse_json(text)
    path = tmp_path / "x\x1b.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"x\\x1b\.json is (not valid JSON|empty)"):
        read_json(path, 1_000_000)
    with pytest.raises(ValueError, match=r"at most -1|empty"):
        read_json(path, -1)


@pytest.fixture
def fifo(tmp_path):
    """Make a FIFO that nobody writes to; a reader that waits for it is interrupted after a while."""
    signal.alarm(60)
    os.mkfifo(tmp_path / "x.json")
    yield tmp_path / "x.json"
    signal.alarm(0)


@pytest.mark.parametrize("typed", ["photo.jpg", "Photo.JPG ", "fotos/../photo.JPG", "phot.JPG"])
def test_a_name_that_is_nearly_there_is_suggested(tmp_path, typed):
    (tmp_path / "photo.JPG").touch()
    (tmp_path / "fotos").mkdir()
    error = no_file(tmp_path / typed, "image")
    assert isinstance(error, FileNotFoundError) and str(error).startswith("there is no image ")
    assert str(error).endswith("photo.JPG?") or typed.endswith("/photo.JPG")
    assert "mean" not in str(no_file(tmp_path / "video.mp4")) + str(no_file(tmp_path / "gone" / "photo.JPG"))
    assert str(no_file(tmp_path)) == f"{tmp_path} is a folder; name one file in it"


def test_nobody_waits_for_what_is_no_file(fifo):
    for read in (refuse_placeholder, lambda path: read_json(path, 1000), read_contents):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*x\.json"):
            read(fifo)
    assert recognise(fifo).task is None and not is_safetensors(fifo)
    (fifo.parent / "config.json").symlink_to("x.json")
    assert recognise(fifo.parent).task is None


def test_errors_of_the_disk_name_the_file(tmp_path):
    (tmp_path / "x.safetensors").symlink_to("/proc/self/mem")  # a file whose first bytes cannot be read
    for read in (refuse_placeholder, is_safetensors, read_header, load_pickled, read_image, read_video, read_metadata):
        with pytest.raises(OSError, match=r"Input/output error: '.*x\.safetensors'"):
            read(tmp_path / "x.safetensors")


def test_links_in_a_circle_are_passed_over(tmp_path):
    (tmp_path / "a.safetensors").symlink_to("a.safetensors")
    assert loras_beside(tmp_path, ()) == []
