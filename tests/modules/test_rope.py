import pytest
import torch

from wan.modules.rope import axis_pairs, grid_positions, rope_apply, rope_params, rope_table, rotate


@pytest.mark.parametrize(("head_dim", "pairs"), [(128, (22, 21, 21)), (40, (8, 6, 6)), (16, (4, 2, 2)), (2, (1, 0, 0))])
def test_the_frame_axis_gets_the_remainder(head_dim, pairs):
    assert axis_pairs(head_dim) == pairs


def test_an_odd_head_is_refused():
    with pytest.raises(ValueError, match="must be even"):
        axis_pairs(15)


def test_positions_run_frame_major():
    assert grid_positions((2, 1, 2)).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]


def test_a_grid_beyond_the_table_is_refused():
    with pytest.raises(ValueError, match="1025 columns"):
        grid_positions((1, 1, 1025))


def test_rotation_keeps_lengths_and_depends_on_the_difference_of_positions_only():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 24, generator=generator)

    def score(a, b):
        return (
            rotate(q, rope_table(torch.tensor([a]), 24)[None]) * rotate(k, rope_table(torch.tensor([b]), 24)[None])
        ).sum()

    torch.testing.assert_close(score([5, 3, 2], [1, 1, 1]), score([14, 7, 1], [10, 5, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(score([-2, 0, 0], [-6, 0, 0]), score([4, 0, 0], [0, 0, 0]), atol=1e-5, rtol=0)
    rotated = rotate(q, rope_table(torch.tensor([[900, 31, 7]]), 24)[None])
    torch.testing.assert_close(rotated.norm(), q.norm())


def test_real_and_complex_arithmetic_agree(monkeypatch):
    x = torch.randn(2, 5, 3, 16, generator=torch.Generator().manual_seed(1))
    table = rope_table(grid_positions((1, 1, 5)), 16)[None]
    plain = rotate(x, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, table), plain)


def test_high_positions_need_the_float64_angles():
    """The negative control of the precision rule: angles in bfloat16 are visibly wrong at the end of the table."""
    positions = torch.tensor([[1023, 1023, 1023]])
    exact = rope_table(positions, 128, dtype=torch.float64)
    exponent = (torch.arange(22) / 22).bfloat16()
    coarse = (positions[:, 0, None].bfloat16() * 10000**-exponent).cos()
    assert (rope_table(positions, 128) - exact).abs().max() < 1e-6
    assert (coarse - exact[:, :22, 0]).abs().max() > 0.1


def test_upstreams_names_rotate_alike():
    """Samples of two grids, padded to one length."""
    x = torch.randn(2, 8, 3, 16, generator=torch.Generator().manual_seed(0))
    freqs = torch.cat([rope_params(1024, 16 - 4 * (16 // 6)), *[rope_params(1024, 2 * (16 // 6))] * 2], dim=1)
    assert freqs.shape == (1024, 8) and freqs.dtype == torch.complex128
    found = rope_apply(x, torch.tensor([[2, 2, 2], [1, 2, 3]]), freqs)
    for row, sample, grid in zip(found, x, ((2, 2, 2), (1, 2, 3))):
        table = rope_table(grid_positions(grid), 16)
        torch.testing.assert_close(row[: len(table)], rotate(sample[None, : len(table)], table[None])[0])
        assert torch.equal(row[len(table) :], sample[len(table) :]), "padding is not turned"
    assert found.dtype == torch.float32
    with pytest.raises(ValueError, match="1025 columns"):
        rope_apply(x, torch.tensor([[1, 1, 1025]] * 2), freqs)
