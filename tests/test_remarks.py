"""A line tells which flags have no effect; it names no others."""

import pytest

from tests.performances import write_performance
from wan.arguments import build_parser
from wan.configs import get_config
from wan.program import shell_word
from wan.remarks import without_effect
from wan.request import Request
from wan.runtime import Runtime


def remarks(*flags, task="t2v-A14B"):
    args = build_parser().parse_args(["--prompt", "a red circle", *flags])
    request = Request.create(
        get_config(task, "nano"),
        prompt=args.prompt,
        **{
            name: value
            for name, value in (
                ("negative_prompt", args.negative_prompt),
                ("guidance", args.sample_guide_scale),
                ("boundary", args.boundary),
                ("steps", args.sample_steps),
            )
            if value is not None
        },
    )
    runtime = Runtime.from_flags(device="cpu", t5_cpu=args.t5_cpu, vae_tile=args.vae_tile)
    return list(without_effect(args, request, runtime, samples=not args.resume))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["--negative_prompt", "dark", "--sample_guide_scale", "1"],
            "--negative_prompt has no effect at guidance 1",
        ),
        (["--sample_guide_scale", "0"], "the prompt has no effect at guidance 0"),
        (["--boundary", "0"], "the low-noise expert makes no step with boundary 0, 20 steps and"),
        (["--boundary", "1"], "the high-noise expert makes no step with boundary 1, 20 steps and shift 3"),
        (
            ["--sample_guide_scale", "3,4", "--sample_steps", "1"],
            "the low-noise expert makes no step with",
        ),
        (["--offload_model"], "--offload_model has no effect: on the CPU"),
        (["--t5_cpu"], "--t5_cpu has no effect"),
        (["--vae_tile", "64"], "--vae_tile 64 has no effect: whole frames are no larger"),
        (["--output_dir", "out", "--save_file", "/a.mp4"], "--output_dir has no effect: --save_file is a whole path"),
        (["--prompt_extend_method", "dashscope"], "--prompt_extend_method has no effect without --use_prompt_extend"),
        (["--prompt", __file__], f"--prompt {shell_word(__file__)} is taken as the text itself, the file is not read"),
        (["--resume", "x", "--dtype", "fp32", "--compile"], "--dtype, --compile has no effect: --resume only decodes"),
    ],
)
def test_no_effect(flags, text):
    (remark,) = remarks(*flags)
    assert remark.startswith(text)


def test_guidance_below_one_counts_as_one_where_the_original_has_none(tmp_path):
    config = get_config("animate-14B", "nano")
    request = Request.create(config, performance=write_performance(tmp_path), guidance=0.5)
    assert set(request.guidance) == {1}
    args = build_parser().parse_args(["--sample_guide_scale", "0.5"])
    (remark,) = without_effect(args, request, Runtime.from_flags(device="cpu"), samples=True)
    assert remark == "--sample_guide_scale 0.5 counts as 1 for animate-14B"
    assert set(Request.create(get_config("t2v-A14B", "nano"), prompt="a", guidance=0.5).guidance) == {0.5}


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--negative_prompt", "", "--sample_guide_scale", "1"],
        ["--negative_prompt", "dark"],
        ["--negative_prompt", "dark", "--sample_guide_scale", "1,3"],
        ["--boundary", "0.5"],
        ["--offload_model", "False"],
        ["--output_dir", "out", "--save_file", "a.mp4"],
        ["--resume", "x", "--fps", "9"],
    ],
)
def test_what_works_is_not_remarked_upon(flags):
    assert remarks(*flags) == []


def test_one_model_has_no_experts():
    assert remarks("--sample_guide_scale", "3", "--sample_steps", "1", task="ti2v-5B") == []
