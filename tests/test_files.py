"""Files that appear whole or not at all; the writers of media, output and checkpoint use these."""

import os

import pytest

from wan.files import atomic_file, check_writable


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
