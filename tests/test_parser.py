"""The command's answers to typing mistakes."""

import pytest

from wan.arguments import build_parser

QUOTES = "more than one word is put in quotes, "


def refusal(capsys, *typed):
    """Return the one line on stderr, without the program's name and the hint at the end."""
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(typed)
    out, error = capsys.readouterr()
    assert end.value.code == 2 and out == "" and error.count("\n") == 1
    assert error.startswith("generate.py: error: ") and error.endswith(" (see --help)\n")
    return error.removeprefix("generate.py: error: ").removesuffix(" (see --help)\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *((flag, "--prompt") for flag in ("--promt", "-prompt", "--PROMPT", "--prompts", "-p", "--promp")),
        *(
            (flag, "--sample_steps")
            for flag in ("--sample-steps", "--sampling_steps", "--steps", "--num_inference_steps")
        ),
        *((flag, "--frame_num") for flag in ("--frame-num", "--num_frames", "--frames", "--length")),
        *((flag, "--sample_guide_scale") for flag in ("--guidance_scale", "--cfg", "--sample_guidance_scale")),
        *((flag, "--base_seed") for flag in ("--seed", "--base-seed", "--baseseed")),
        *((flag, "--save_file") for flag in ("-o", "--output", "--savefile", "--save-file")),
        *((flag, "--ckpt_dir") for flag in ("--ckpt", "--checkpoint", "--ckpt-dir", "--model_path", "--ckptdir")),
        ("--width", "--size"),
        ("--offload_models", "--offload_model"),
        ("--cpu_offload", "--offload"),
        ("--convert_dtype", "--convert_model_dtype"),
        ("--vae_tiling", "--vae_tile"),
        ("--image_path", "--image"),
    ],
)
def test_misspelt_flags(capsys, typed, meant):
    assert refusal(capsys, typed, "x") == f"unrecognized arguments: {typed} x; did you mean {meant}?"
    assert f"did you mean {meant}?" in refusal(capsys, "--t5_cpu", f"{typed}=x y")


def test_unknown_flags_get_no_bad_advice(capsys):
    assert refusal(capsys, "--zzz", "1") == "unrecognized arguments: --zzz 1"


@pytest.mark.parametrize(
    ("flag", "value", "meant"),
    [
        *(
            ("--task", name, "t2v-A14B")
            for name in ("t2v", "T2V-a14b", "wan2.2-t2v", "Wan2.2-T2V-A14B", "t2v_A14B", "t2v-14B")
        ),
        *(("--task", name, "ti2v-5B") for name in ("ti2v", "TI2V", "Wan2.2-TI2V-5B")),
        ("--task", "i2v", "i2v-A14B"),
        ("--task", "animate", "animate-14B"),
        ("--sample_solver", "UniPC", "unipc"),
        ("--sample_solver", "dpmpp", "dpm++"),
        ("--dtype", "BF16", "bf16"),
        ("--fit", "cropped", "crop"),
        ("--attention", "flash-2", "flash2"),
    ],
)
def test_misspelt_names(capsys, flag, value, meant):
    assert f"argument {flag}: invalid choice: '{value}'; did you mean {meant}? (choose from " in refusal(
        capsys, flag, value
    )


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (["--t5_cpu", "True"], "--t5_cpu takes no value: given, it is on; leave out 'True'"),
        (["--t5_cpu=1"], "--t5_cpu takes no value: given, it is on; leave out '1'"),
        (["--dit_fsdp", "false"], "--dit_fsdp takes no value: given, it is on; leave out --dit_fsdp false"),
        (["--overwrite=no"], "--overwrite takes no value: given, it is on; leave out --overwrite no"),
        (["--prompt", "a", "red", "circle"], f"--prompt got only 'a': {QUOTES}--prompt \"a red circle\""),
        (["--prompt=a", "cat", "--overwrite"], f"--prompt got only 'a': {QUOTES}--prompt \"a cat\""),
        (["--image", "my", "cat.jpg"], f"--image got only 'my': {QUOTES}--image \"my cat.jpg\""),
        (["a", "red", "circle"], "no flag stands before 'a'; a prompt is given as --prompt \"a red circle\""),
        (
            ["--overwrite", "a", "cat"],
            "--overwrite takes no value, and no flag stands before 'a'; a prompt is given as --prompt \"a cat\"",
        ),
        (["--prompt", "'a", "cat'"], '\' does not hold words together in this shell; write --prompt "a cat"'),
        (
            ["--prompt", "\u201ca", "cat\u201d"],
            '\u201c does not hold words together in this shell; write --prompt "a cat"',
        ),
        (["\u2013prompt", "a cat"], "'\u2013prompt' begins with a dash that is no hyphen; type --prompt"),
        (["--overwrite", "\u2014size=64*64"], "'\u2014size=64*64' begins with a dash that is no hyphen; type --size"),
        (["--size", "1280", "720"], "--size takes one value, without spaces: --size 1280*720"),
        (["--size", "1280", "x", "720"], "--size takes one value, without spaces: --size 1280x720"),
        (
            ["--sample_guide_scale", "3", "4"],
            "--sample_guide_scale takes one value, without spaces: --sample_guide_scale 3,4",
        ),
        (["--frame_num", "17", "frames"], "unrecognized arguments: frames; --frame_num takes one value"),
        (["--prompt"], "--prompt needs a value"),
        (["--prompt", "--size", "64*64"], "--prompt needs a value, and --size follows"),
        (
            ["--prompt", "-cat"],
            "--prompt needs a value, and -cat looks like a flag; a value that begins with - is written --prompt=-cat",
        ),
        (
            ["--prompt", "a cat", " "],
            "a lone ' ' is no argument; the sign that continues a line must be the last character of it",
        ),
        (
            ["--overwrite", "^"],
            "a lone '^' is no argument; the sign that continues a line must be the last character of it",
        ),
        (["--overwrite", ""], "an argument is empty; a shell variable that is not set, in quotes, looks like this"),
        (["-help"], "unrecognized arguments: -help; did you mean --help?"),
    ],
)
def test_each_mistake_has_its_sentence(capsys, typed, text):
    assert refusal(capsys, *typed) == text


def test_correct_lines_are_left_alone():
    typed = [
        "--prompt",
        "- a cat",
        "--base_seed",
        "-1",
        "--negative_prompt=-dark",
        "--sample_shift=5",
        "--offload_model",
    ]
    args = build_parser().parse_args([*typed, "--size", "64x64", "--prompt", "\u2013 a dash"])
    assert (args.prompt, args.negative_prompt, args.base_seed, args.size) == ("\u2013 a dash", "-dark", -1, (64, 64))
    assert args.typed["--prompt"] == 2 and args.typed["--size"] == 1 and args.typed["--fps"] == 0
