"""Films that are cut off: no part of a Matroska, WebM or AVI file passes for a shorter film."""

import numpy as np
import pytest

from tests.faults.drivings import FILMS, films, stored
from wan import media
from wan.containers import is_cut_off


@pytest.fixture(params=sorted(suffix for suffix, kind in FILMS.items() if kind[0] in ("matroska", "webm", "avi")))
def film(request):
    if request.param not in films():
        pytest.skip("this FFmpeg does not write it")
    return films()[request.param]


def test_a_film_is_refused_wherever_it_is_cut(film, tmp_path):
    path = tmp_path / "v"
    path.write_bytes(film)
    assert not is_cut_off(path) and len(media.frame_times(path)[0]) == 6
    path.write_bytes(film + b"more")
    assert not is_cut_off(path)
    for at in np.linspace(300, len(film) - 1, 30).astype(int):
        path.write_bytes(film[:at])
        with pytest.raises(ValueError, match=r"is cut off after [0-6] frames|is not a video that can be read"):
            media.frame_times(path)


def test_lengths_that_nobody_knew_are_no_fault(tmp_path):
    """Programs that write to a pipe leave them open."""
    path = tmp_path / "v"
    segment, length = b"\x18S\x80g", 8
    for suffix in (".mkv", ".webm"):
        content = bytearray(films()[suffix])
        at = content.index(segment) + 4
        assert content[at] == 1, "a number of eight bytes"
        content[at : at + length] = b"\x01" + b"\xff" * 7
        path.write_bytes(content[:-30])
        assert not is_cut_off(path)
    for told in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
        path.write_bytes(b"RIFF" + told + films()[".avi"][8:-30])
        assert not is_cut_off(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x1aE\xdf\xa3", b"\x1aE\xdf\xa3\0", b"\x1aE\xdf\xa3\x9f" + b"\0" * 99, b"RIF"]
)
def test_headers_that_end_early_tell_nothing(content, tmp_path):
    (tmp_path / "v").write_bytes(content)
    assert not is_cut_off(tmp_path / "v")


@pytest.mark.parametrize("told", [(6000, 6000), (64, 64)])
def test_huge_frames_are_refused(tmp_path, told):
    (tmp_path / "v").write_bytes(stored((6000, 6000), told))
    with pytest.raises(ValueError, match=r"frames (are larger than|of 6000\*6000 pixels, and at most) 8192\*4352"):
        list(media.upright_frames(tmp_path / "v"))
