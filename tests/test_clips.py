"""Clips that share frames, and videos that are made longer."""

from itertools import pairwise

import pytest

from wan.clips import back_and_forth, overlapping


@pytest.mark.parametrize(("longest", "overlap"), [(77, 1), (77, 5), (13, 5), (5, 1)])
def test_clips_cover_a_video_of_any_length_with_few_frames_beyond_it(longest, overlap):
    for count in range(1, 400):
        clips, full = overlapping(count, longest, overlap), overlapping(count, longest, overlap, is_full=True)
        assert len(clips) == len(full), "no more clips than full ones"
        assert {len(clip) for clip in full} == {longest}
        (length,) = {len(clip) for clip in clips}
        assert length % 4 == 1 and length <= longest
        assert clips[0].start == 0 and count <= clips[-1].stop < count + 4 * len(clips)
        for before, after in pairwise(clips):
            assert before.stop - after.start == overlap and length >= 2 * overlap


def test_one_frame_more_does_not_cost_a_full_clip():
    assert overlapping(78, 77, 1) == [range(0, 41), range(40, 81)]
    assert overlapping(78, 77, 1, is_full=True) == [range(0, 77), range(76, 153)]
    assert overlapping(1, 77, 5) == [range(0, 1)] and overlapping(3, 77, 5) == [range(0, 5)]


@pytest.mark.parametrize(("longest", "overlap"), [(1, 1), (9, 5), (5, 5)])
def test_clips_that_are_too_short_to_share_frames_are_refused(longest, overlap):
    with pytest.raises(ValueError, match=f"clips of {longest} frames are too short to share {overlap}"):
        overlapping(100, longest, overlap)


def test_a_short_video_runs_back_and_forth():
    assert back_and_forth(3, 8) == [0, 1, 2, 1, 0, 1, 2, 1]
    assert back_and_forth(1, 3) == [0, 0, 0] and back_and_forth(9, 2) == [0, 1]
