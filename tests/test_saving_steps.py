"""Options that save work: guidance in a part of the steps, reused blocks, explicit noise levels, presets."""

import logging
import re

import pytest
import torch

from wan import cli, media, planning
from wan.arguments import parse
from wan.choices import PRESETS, SOLVERS
from wan.configs import get_config
from wan.nano.random import write_random_checkpoint
from wan.parallel import Parallel
from wan.request import Request, overridden
from wan.sampling import make_solver
from wan.stored import read_stored

NANO = get_config("t2v-A14B", "nano")
QUICK = ["--device", "cpu", "--dtype", "fp32", "--frame_num", "5", "--base_seed", "5", "--progress", "none"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("nano"))


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, checkpoint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: checkpoint)


def made(name, *flags):
    """Run the command; return the frames."""
    assert cli.main(["--prompt", "a red circle", *QUICK, "--save_file", f"{name}.mp4", *flags]) == cli.DONE
    return media.read_video(f"{name}.mp4")[0]


def refused(capsys, *flags):
    assert cli.main(["--prompt", "a red circle", *QUICK, *flags]) == cli.WRONG
    return capsys.readouterr().err


def asked(*flags):
    return planning.plan(parse(["--prompt", "a red circle", *QUICK, *flags])).request


def said(caplog, pattern):
    return [match for record in caplog.records if (match := re.search(pattern, record.getMessage()))]


def test_guidance_ends_after_its_share_of_the_steps(caplog):
    caplog.set_level(logging.INFO)
    whole = made("whole", "--sample_steps", "4")
    assert not said(caplog, "saved work")
    part = made("part", "--sample_steps", "4", "--cfg_until", "0.5")
    assert said(caplog, "saved work: guidance in 2 steps") and said(caplog, "guidance 3 in 50% of the steps")
    nothing = made("nothing", "--sample_steps", "4", "--cfg_until", "0")
    plain = made("plain", "--sample_steps", "4", "--sample_guide_scale", "1")
    assert (nothing == plain).all() and (part != whole).any() and (part != plain).any()


def test_the_first_steps_with_guidance_are_those_of_a_whole_run(checkpoint):
    from tests.runs import sample
    from wan.runtime import Runtime
    from wan.text2video import WanT2V

    pipeline = WanT2V(NANO, checkpoint, runtime=Runtime.from_flags(device="cpu", dtype="fp32"))
    latents: dict[float, list[torch.Tensor]] = {1.0: [], 0.5: []}
    for share, seen in latents.items():
        request = Request.create(NANO, prompt="a", seed=1, steps=4, frame_num=5, guidance_until=share)
        sample(pipeline, request, lambda step, steps, latent, seen=seen: seen.append(latent))
    equal = [torch.equal(a, b) for a, b in zip(*latents.values(), strict=True)]
    assert equal == [True, True, False, False]


def test_reused_blocks_are_counted(caplog):
    caplog.set_level(logging.INFO)
    made("one", "--sample_steps", "4", "--block_cache", "1")
    assert said(caplog, "blocks reused at changes up to 1")
    [match] = said(caplog, r"all blocks but the first in (\d) of 8 model calls")
    assert 4 <= int(match[1]) < 8  # the first step of each expert runs whole, in both branches


@pytest.mark.parametrize("threshold", ["0.3", "1"])
def test_reused_blocks_are_the_same_where_weights_are_streamed(caplog, threshold):
    caplog.set_level(logging.INFO)
    resident = made("one", "--sample_steps", "4", "--block_cache", threshold)
    assert (made("two", "--sample_steps", "4", "--block_cache", threshold, "--offload", "block") == resident).all()
    counts = [match[0] for match in said(caplog, r"all blocks but the first in \d of 8 model calls")]
    assert len(counts) in (0, 2) and len(set(counts)) <= 1


def test_without_a_threshold_nothing_is_cached():
    assert (made("one", "--sample_steps", "2") == made("two", "--sample_steps", "2", "--block_cache", "0")).all()


def test_noise_levels_are_those_of_the_steps(caplog):
    caplog.set_level(logging.INFO)
    levels = make_solver("euler", 3, 5.0)._sigmas[:-1]
    usual = made("usual", "--sample_solver", "euler", "--sample_steps", "3", "--sample_shift", "5")
    given = made("given", "--sample_solver", "euler", "--sample_sigmas", ",".join(map(repr, levels)))
    assert (usual == given).all() and said(caplog, "3 steps of euler at 1, 0.909, 0.714")


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_noise_levels_from_1(solver):
    schedule = make_solver(solver, 4, 1.0, sigmas=(1.0, 0.9, 0.5, 0.2))
    x = torch.randn(4)
    for t in schedule.timesteps:
        x = schedule.step(torch.sin(x), t, x)
    assert x.isfinite().all() and schedule.timesteps.tolist() == [1000, 900, 500, 200]


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--sample_sigmas", "0.5,0.8"], "--sample_sigmas: sigmas must fall strictly within (0, 1]"),
        (["--sample_sigmas", "nan"], "--sample_sigmas must be a finite number, got nan"),
        (["--sample_sigmas", "0.9,0.5", "--sample_steps", "3"], "are 2 steps, and --sample_steps is 3; leave one out"),
        (["--sample_sigmas", "0.9,0.5", "--sample_shift", "3"], "--sample_shift 3 would move them; leave one out"),
        (["--cfg_until", "50"], "--cfg_until is a share and must lie in 0..1, got 50"),
        (["--block_cache", "-0.1"], "--block_cache is a share and must lie in 0..1, got -0.1"),
    ],
)
def test_wrong_values_are_refused(capsys, flags, text):
    assert text in refused(capsys, *flags)


def test_words_in_place_of_noise_levels_are_refused(capsys):
    assert cli.main(["--prompt", "a", "--sample_sigmas", "high"]) == cli.WRONG
    assert "needs numbers between commas, as 1,0.8,0.4" in capsys.readouterr().err


def test_a_cache_and_branches_side_by_side_exclude_each_other():
    request = Request.create(NANO, prompt="a", reuse=0.1)
    request.check_parallel(Parallel(2, 1, 2))
    with pytest.raises(ValueError, match="use --ulysses_size 2 in place of --cfg_parallel"):
        request.check_parallel(Parallel(2, 2, 1))


def test_a_preset_fills_what_is_not_given():
    request = asked("--preset", "4-step")
    preset = PRESETS["4-step"]
    assert (request.sigmas, request.steps, request.shift) == (preset["sigmas"], 4, 1.0)
    assert (request.solver, tuple(request.guidance), request.boundary) == ("euler", (1, 1), preset["boundary"])
    high = make_solver(request.solver, 4, 1.0, sigmas=request.sigmas).timesteps >= 1000 * request.boundary
    assert high.tolist() == [True, True, False, False]
    changed = asked("--preset", "4-step", "--sample_steps", "8", "--sample_guide_scale", "2")
    assert (changed.sigmas, changed.steps, changed.shift) == (None, 8, NANO.sample_shift)
    assert changed.guidance.low_noise == 2 and changed.solver == "euler"


def test_a_preset_has_no_boundary_for_a_task_with_one_model(tmp_path):
    folder = write_random_checkpoint(tmp_path / "ti2v", "ti2v-5B")
    request = asked("--preset", "4-step", "--task", "ti2v-5B", "--ckpt_dir", str(folder))
    assert request.boundary is None and request.steps == 4


def test_stored_options_are_repeated_and_replaced():
    made("first", "--preset", "4-step", "--cfg_until", "0.5", "--block_cache", "0.2")
    stored = read_stored(parse(["--from_video", "first.mp4"])).request
    assert stored.sigmas == PRESETS["4-step"]["sigmas"] and (stored.guidance_until, stored.reuse) == (0.5, 0.2)

    def again(*flags):
        return planning.plan(parse(["--from_video", "first.mp4", "--device", "cpu", "--save_file", "x.mp4", *flags]))

    assert again().request == stored
    other = again("--sample_steps", "6", "--block_cache", "0").request
    assert (other.sigmas, other.steps, other.shift, other.reuse) == (None, 6, NANO.sample_shift, 0)
    assert again("--sample_sigmas", "1,0.5").request.steps == 2


def test_noise_levels_replace_steps_and_the_other_way_round():
    both = {"steps": 4, "shift": 1.0, "sigmas": (1.0, 0.5), "seed": 1}
    assert overridden(both, {"steps": 3}) == {"seed": 1, "steps": 3}
    assert overridden(both, {"sigmas": (0.5,)}) == {"seed": 1, "sigmas": (0.5,)}
    assert overridden(both, {"seed": 2}) == both | {"seed": 2}
    usual = {"steps": 4, "shift": 3.0, "sigmas": None}
    assert overridden(usual, {"steps": 3}) == {"steps": 3, "shift": 3.0, "sigmas": None}


def test_a_flag_without_effect_is_said(caplog):
    made("one", "--sample_steps", "1", "--sample_guide_scale", "1", "--cfg_until", "0.5")
    assert said(caplog, "--cfg_until 0.5 has no effect at guidance 1")
