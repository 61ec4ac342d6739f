"""The command line: its refusals and their texts, and the names of its files."""

import re
from datetime import datetime
from pathlib import Path

import pytest

from tests.command_line import NANO, files, planned, resumed
from wan import cli, media, output, planning

# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "  "], "the prompt is empty"),
        (["--size", "1280*720"], "the nano model of t2v-A14B makes; try 64*64"),
        (["--size", "big"], "size must be WIDTH*HEIGHT in pixels, for example 1280*720, got 'big'"),
        (["--frame_num", "16"], "frame_num must be 4n+1, got 16; try 13 or 17"),
        (["--frame_num", "-3"], "frame_num must be 4n+1, got -3; try 1"),
        (["--sample_steps", "0"], "sample_steps must be at least 1, got 0"),
        (["--sample_shift", "-1"], "sample_shift must be above 0, got -1"),
        (["--sample_guide_scale", "high"], "guidance is one number or low,high (for example 5 or 3,4), got 'high'"),
        (["--sample_solver", "ddim"], "invalid choice: 'ddim'"),
        (["--attention", "magic"], "invalid choice: 'magic'"),
        (["--attention", "flash2"], "attention backend 'flash2' needs a CUDA device"),
        (["--task", "t2v"], "invalid choice: 't2v'"),
        (
            ["--task", "t2v-A14B", "--src_root_path", "a"],
            "--src_root_path is not used by t2v-A14B, only by animate-14B",
        ),
        (
            ["--task", "t2v-A14B", "--image", "cat.jpg"],
            "--image is not used by t2v-A14B, only by i2v-A14B, ti2v-5B",
        ),
        (["--task", "t2v-A14B", "--last_image", "cat.jpg"], "--last_image is not used by t2v-A14B, only by i2v-A14B"),
        (["--image", "cat.jpg"], "there is no image cat.jpg"),
        (["--fit", "crop"], "--fit is not used by t2v-A14B, only by i2v-A14B"),
        (
            ["--task", "t2v-A14B", "--audio", "talk.wav"],
            "--audio is not used by t2v-A14B, only by s2v-14B; leave it out",
        ),
        (["--ulysses_size", "8"], "--ulysses_size needs several processes, and this is one; start with torchrun"),
        (["--dit_fsdp", "--cfg_parallel"], "--cfg_parallel and --dit_fsdp need several processes"),
        (["--num_videos", "0"], "--num_videos must be at least 1, got 0"),
        (["--device", "tpu"], "--device 'tpu' is not a device"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--offload_model", "maybe"], "a yes or no was expected (true, false, yes, no, 1, 0), got 'maybe'"),
        (["--convert_model_dtype", "--dtype", "fp32"], "contradicts --dtype fp32"),
        (["--ckpt_dir", "nowhere"], "there is no checkpoint folder nowhere"),
        (["--save_file", "a.gif"], "--save_file must end in .mp4, got a.gif; try a.mp4"),
        (["--save_file", "a.gif", "--frame_num", "1"], "must end in .png, .jpg, .jpeg, .webp or .mp4, got a.gif"),
        (["--save_file", "."], "is a folder"),
        (["--from_video", "gone.mp4"], "there is no file gone.mp4"),
        (["--from_video", "."], ". is a folder; name one file in it"),
        (["--fps", "0"], "fps must be at least 1"),
        (["--boundary", "875"], "boundary is a share of the timesteps and must lie in 0..1, got 875"),
        (["--sample_step", "3"], "unrecognized arguments: --sample_step 3"),
        (["--frames", "17"], "unrecognized arguments: --frames 17; did you mean --frame_num?"),
        (["--output_dir", "~nobody-of-that-name/x"], "names the home folder of an unknown user"),
        (["--save_file", "a\0b"], "a path cannot hold a NUL character"),
        (["--negative_prompt", "\udcba\udcec"], "the text is not UTF-8, perhaps GBK"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(flags, text, capsys, stub):
    assert cli.main([*NANO, *flags]) == cli.WRONG
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error and error.startswith("generate.py: error: ")
    assert stub.steps_seen == 0 and files() == []


def test_an_incomplete_checkpoint_lists_what_is_missing(capsys, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    (broken / "low_noise_model").mkdir(parents=True)
    assert cli.main([*NANO, "--ckpt_dir", str(broken)]) == cli.WRONG
    error = capsys.readouterr().err
    for name in ("high_noise_model/", "low_noise_model/", "models_t5_umt5", "tokenizer.json", "Wan2.1_VAE.pth"):
        assert name in error
    assert files() == ["broken"]


def test_a_partial_copy_without_the_nano_checkpoint(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: tmp_path / "absent")
    assert cli.main(NANO) == cli.WRONG
    assert "the embedded nano checkpoint of t2v-A14B is not in this copy" in capsys.readouterr().err


def test_a_process_without_the_others_says_how_to_start(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(NANO) == cli.WRONG
    assert "not set; start with torchrun --nproc_per_node=8 generate.py" in capsys.readouterr().err


def test_several_videos_have_seeds_and_names_of_their_own():
    job = planned("--num_videos", "3", "--base_seed", "7", "--save_file", "a.mp4")
    assert [(variant.request.seed, variant.video.name) for variant in job.variants()] == [
        (7, "a-1.mp4"),
        (8, "a-2.mp4"),
        (9, "a-3.mp4"),
    ]
    Path("a-2.mp4").touch()
    with pytest.raises(FileExistsError, match=r"a-2\.mp4 exists already"):
        planned("--num_videos", "3", "--save_file", "a.mp4")
    assert [variant.video.name for variant in planned("--save_file", "a.mp4").variants()] == ["a.mp4"]


def test_one_process_of_torchrun_is_fine(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert planned().request.prompt == "a red circle"


def test_an_existing_file_is_kept(capsys, stub):
    Path("a.mp4").write_text("precious")
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.WRONG
    assert "a.mp4 exists already; choose another name, or give --overwrite" in capsys.readouterr().err
    assert Path("a.mp4").read_text() == "precious"
    assert cli.main([*NANO, "--save_file", "a.mp4", "--overwrite"]) == cli.DONE
    assert len(media.read_video("a.mp4")[0]) == 17


def test_an_unreadable_file_is_one_line(capsys, monkeypatch):
    def unreadable(*_):
        raise PermissionError(13, "Permission denied", "high_noise_model/config.json")

    monkeypatch.setattr(planning, "check_checkpoint", unreadable)
    assert cli.main(NANO) == cli.WRONG
    assert re.fullmatch(r"generate.py: error: .*Permission denied.*\n", capsys.readouterr().err.splitlines(True)[-1])


def test_an_unwritable_folder(capsys):
    Path("file").touch()
    assert cli.main([*NANO, "--output_dir", "file"]) == cli.WRONG
    assert "choose another --output_dir" in capsys.readouterr().err


def test_settings_of_other_tasks_are_ignored_with_a_warning(caplog):
    planned("--refert_num", "5", "--infer_frames", "80")
    assert "--refert_num is not used by t2v-A14B, only by animate-14B; it changes nothing here" in caplog.text
    assert "--infer_frames is not used by t2v-A14B" in caplog.text


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "prompt, name",
    [
        ("Two cats, boxing!", "Two_cats_boxing"),
        ('a/b\\c:d*e?"f<g>|h\t\n', "a_b_c_d_e_f_g_h"),
        ("../../etc/passwd", "etc_passwd"),
        ("两只猫 在打架", "两只猫_在打架"),
        ("😀", "video"),
        ("x" * 300, "x" * 50),
        ("trailing... ", "trailing"),
    ],
)
def test_slugs_are_safe(prompt, name):
    assert output.slug(prompt) == name


def test_default_name():
    name = output.default_name("t2v-A14B", (1280, 720), "Two cats", 42, datetime(2026, 1, 31, 23, 59, 58))
    assert name == "t2v-A14B_1280x720_Two_cats_42_20260131_235958.mp4"


def test_a_name_that_ends_in_a_slash_is_a_folder(stub):
    assert planned("--save_file", "new/").video.parent == Path("new")
    assert planned("--save_file", "new/", "--output_dir", "out").video.parent == Path("out/new")
    assert re.fullmatch(r"t2v-A14B_64x64_a_red_circle_.*\.mp4", planned("--save_file", "new/").video.name)
    stub.fail = ("decode", RuntimeError("codec"))
    cli.main([*NANO, "--save_file", "a.mp4"])
    assert resumed("--save_file", "new/").video == Path("new/a.mp4")


def test_output_paths():
    assert planned("--output_dir", "out").video.parent == Path("out")
    assert planned("--output_dir", "out", "--save_file", "a").video == Path("out/a.mp4")
    assert re.fullmatch(r"t2v-A14B_64x64_a_red_circle_\d+_\d{8}_\d{6}\.mp4", planned().video.name)
