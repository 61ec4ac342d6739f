"""The command line: its refusals and their texts, its plan, its files, and its recovery."""

import json
import logging
import re
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from tqdm import tqdm

from tests.performances import write_performance
from wan import cli, jobs, media, output, planning, progress as progress_of
from wan.arguments import build_parser, flag_names, str2bool
from wan.clips import ClipSampled, FramesDecoded, SampledClip, StepDone
from wan.configs import NANO_CONFIGS, get_config
from wan.distributed.replica import Replica
from wan.framing import Framing
from wan.memory import PhaseStats
from wan.nano.random import write_random_checkpoint
from wan.request import Request
from wan.text2video import WanT2V

ROOT = Path(__file__).parents[1]
NANO = ["--prompt", "a red circle", "--device", "cpu", "--progress", "none"]


class StubT2V(WanT2V):
    """Pipeline without weights: the latent is a constant, the video grey. `fail` names the phase that breaks."""

    fail: tuple[str, BaseException] | None = None
    steps_seen = 0

    def __init__(self, config, checkpoint_dir, runtime):
        self.phases = {"encode": PhaseStats(0.1, 2**30)}
        self.calls = Counter()
        self.replica = Replica(runtime.parallel, runtime.device)

    def run(self, request, kept=()):
        kept = list(kept)
        if not kept:
            steps = []
            kept = [SampledClip(self.sample(request, lambda *step: steps.append(StepDone(0, 1, *step))))]
            yield from steps
            yield ClipSampled(0, 1, kept[0])
        for frames in self.decode(kept[0].latent, request.framing):
            yield FramesDecoded(0, 1, frames)

    def sample(self, request, on_step):
        for done in range(1, request.steps + 1):
            if on_step:
                on_step(done, request.steps, torch.zeros(1))
            type(self).steps_seen = done
            self.break_in("denoise")
        return torch.full((16, 5, 8, 8), 0.5)

    def decode(self, latent, framing):
        assert latent.eq(0.5).all()
        yield torch.zeros(3, 1, 64, 64)
        self.break_in("decode")
        yield torch.zeros(3, 16, 64, 64)

    def break_in(self, phase):
        if self.fail and self.fail[0] == phase:
            raise self.fail[1]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("nano"))


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, checkpoint, caplog):
    """An empty current folder, a random miniature as the embedded checkpoint, and no torchrun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: checkpoint)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    caplog.set_level(logging.INFO)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(StubT2V, "fail", None)
    monkeypatch.setattr(StubT2V, "steps_seen", 0)
    monkeypatch.setitem(jobs.PIPELINES, "t2v-A14B", StubT2V)
    return StubT2V


def planned(*flags):
    return planning.plan(build_parser().parse_args([*NANO, *flags]))


def resumed(*flags):
    return planning.plan(build_parser().parse_args(["--resume", "a.latent.safetensors", "--device", "cpu", *flags]))


def files():
    return sorted(path.name for path in Path().iterdir())


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
        (["--audio", "talk.wav"], "--audio is not used by t2v-A14B, only by s2v-14B; leave it out"),
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


# ---------------------------------------------------------------- what is planned


def test_nano_says_what_it_is(caplog):
    for flags in ([], ["--ckpt_dir", "nano"]):
        caplog.clear()
        job = planned(*flags)
        assert job.config.family == "nano" and (job.request.framing.saved, job.request.frame_num) == ((64, 64), 17)
        assert "the embedded nano model runs, a toy" in caplog.text
        assert "hf download Wan-AI/Wan2.2-T2V-A14B" in caplog.text


def test_a_nano_folder_is_recognised_by_its_config(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: tmp_path)
    assert planned("--ckpt_dir", str(checkpoint)).config.family == "nano"


@pytest.mark.parametrize("task, place", [(task, config.experts[-1]) for task, config in NANO_CONFIGS.items()])
@pytest.mark.parametrize(
    "content, family",
    [
        ('{"family": "nano"}', "nano"),
        ('{"family": "nano-2"}', "wan2.2"),
        ('{"family": "wan2.2"}', "wan2.2"),
        ("{}", "wan2.2"),
        ('["family", "nano"]', "wan2.2"),
        ('{"family": "nano"', "wan2.2"),
        (None, "wan2.2"),
    ],
)
def test_the_family_is_read_from_the_config_beside_the_weights(monkeypatch, tmp_path, task, place, content, family):
    """Whatever follows, the folder is checked as what its own words make it."""
    folder = tmp_path / "mine"
    (folder / place).mkdir(parents=True)
    if content is not None:
        (folder / place / "config.json").write_text(content)

    class Seen(Exception):
        pass

    def check(folder, config):
        raise Seen(config.family)

    monkeypatch.setattr(planning, "check_checkpoint", check)
    size = {"nano": [], "wan2.2": ["--size", "1280*704" if task == "ti2v-5B" else "1280*720"]}[family]
    files = {"image": "first_frame.png", "audio": "talk.wav"}
    needed = {name: ROOT / "examples" / file for name, file in files.items()}
    if task == "animate-14B":
        needed["performance"] = write_performance(tmp_path / "performance")
    names = (names[0] for names in NANO_CONFIGS[task].needs)
    given = [word for name in names for word in (flag_names(task)[name], str(needed[name]))]
    with pytest.raises(Seen, match=f"^{re.escape(family)}$"):
        planned("--task", task, "--ckpt_dir", str(folder), *size, *given)


def test_the_embedded_folder_is_nano_by_any_path(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "read_text", lambda *_: pytest.fail("its config need not say so"))
    monkeypatch.setattr(planning, "check_checkpoint", lambda folder, config: None)
    monkeypatch.setattr(planning, "with_plan", lambda job: job)
    monkeypatch.setattr(planning, "_warn_about_long_prompts", lambda *_: None)
    (tmp_path / "link").symlink_to(checkpoint)
    for path in (checkpoint, tmp_path / "link", Path("link"), checkpoint / "low_noise_model" / ".."):
        assert planned("--ckpt_dir", str(path)).config.family == "nano"


def test_a_released_folder_gets_the_released_config(checkpoint, monkeypatch):
    monkeypatch.setattr(planning, "_is_nano", lambda folder, config: False)
    monkeypatch.setattr(planning, "check_checkpoint", lambda folder, config: None)  # a miniature stands in for it
    monkeypatch.setattr(planning, "with_plan", lambda job: job)
    job = planned("--ckpt_dir", str(checkpoint), "--size", "832x480")
    assert job.request.framing.saved == (832, 480)
    assert (job.request.steps, job.request.shift, job.request.guidance) == (40, 12.0, (3.0, 4.0))


def test_a_released_model_without_a_gpu_is_said_to_be_slow(checkpoint, monkeypatch, caplog):
    monkeypatch.setattr(planning, "_is_nano", lambda folder, config: False)
    monkeypatch.setattr(planning, "check_checkpoint", lambda folder, config: None)
    monkeypatch.setattr(planning, "with_plan", lambda job: job)
    flags = ["--ckpt_dir", str(checkpoint), "--size", "832x480", "--prompt", "a fox"]
    planning.plan(build_parser().parse_args([*flags, "--device", "cpu"]))
    assert "no GPU" not in caplog.text
    job = planning.plan(build_parser().parse_args(flags))
    assert ("no GPU is found" in caplog.text) == (job.runtime.device.type == "cpu")


def test_flags_reach_the_request_and_the_runtime():
    job = planned(
        *("--negative_prompt", "", "--size", "64x64", "--frame_num", "5", "--sample_steps", "3", "--base_seed", "7"),
        *("--sample_guide_scale", "2,1.5", "--sample_shift", "4", "--sample_solver", "dpm++", "--fps", "12"),
        *("--boundary", "0.5", "--noise_device", "cpu", "--dtype", "fp32", "--attention", "sdpa", "--compile"),
    )
    assert job.request == Request(
        task="t2v-A14B",
        prompt="a red circle",
        negative_prompt="",
        framing=Framing((64, 64), (64, 64), (64, 64)),
        frame_num=5,
        steps=3,
        shift=4.0,
        guidance=(2.0, 1.5),
        solver="dpm++",
        seed=7,
        fps=12,
        boundary=0.5,
        noise_device="cpu",
    )
    assert (job.runtime.dtype, job.runtime.attention, job.runtime.compile) == (torch.float32, "sdpa", True)


@pytest.mark.parametrize("flags", [["--offload_model"], ["--offload_model", "--overwrite"], ["--offload_model", "1"]])
def test_offload_model_needs_no_value(flags):
    assert build_parser().parse_args(flags).offload_model is True


def test_a_flag_given_twice_is_said(caplog):
    job = planned("--prompt", "a blue square", "--sample_steps", "3")
    assert job.request.prompt == "a blue square" and "--prompt is given 2 times; the last one counts" in caplog.text
    assert "--sample_steps" not in caplog.text


def test_every_upstream_flag_of_text_to_video_is_accepted():
    command = (
        "--task t2v-A14B --size 64*64 --frame_num 17 --ckpt_dir nano --offload_model True --ulysses_size 1 --t5_cpu "
        "--save_file a.mp4 --prompt_extend_method local_qwen --prompt_extend_target_lang zh --base_seed -1 "
        "--sample_solver unipc --sample_steps 2 --sample_shift 5.0 --sample_guide_scale 5.0 --convert_model_dtype"
    )
    job = planned(*command.split())
    assert job.runtime.convert_model_dtype and job.video == Path("a.mp4") and job.request.guidance == (5.0, 5.0)


def test_a_missing_prompt_is_announced(caplog):
    job = planning.plan(build_parser().parse_args(["--device", "cpu"]))
    assert f"no --prompt: using the example {job.request.prompt!r}" in caplog.text


def test_a_long_prompt_is_warned_about(caplog):
    planned("--prompt", "a red circle " * 30 + "on navy")
    assert "the text encoder reads 64 tokens and the prompt has 93; this part is cut off: " in caplog.text
    assert "circle on navy\n" in caplog.text


@pytest.mark.parametrize(
    "text, value",
    [("True", True), ("yes", True), ("T", True), ("1", True), ("false", False), ("N", False), ("0", False)],
)
def test_str2bool(text, value):
    assert str2bool(text) is value


def test_help_is_grouped(capsys):
    assert cli.main(["--help"]) == cli.DONE
    text = capsys.readouterr().out
    for group in (
        "what to make:",
        "output:",
        "how to run:",
        "from an image (i2v-A14B, ti2v-5B, s2v-14B):",
        "speech-to-video:",
        "character animation and replacement:",
    ):
        assert group in text


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


# ---------------------------------------------------------------- runs


def test_a_run_writes_the_video_and_nothing_else(stub, caplog):
    assert cli.main([*NANO, "--save_file", "a.mp4", "--base_seed", "5"]) == cli.DONE
    assert files() == ["a.mp4"]
    frames, fps = media.read_video("a.mp4")
    assert frames.shape == (17, 64, 64, 3) and fps == 8
    assert "64*64, 17 frames at 8 fps, 20 steps of unipc, shift 3, guidance 3, seed 5" in caplog.text
    assert re.search(r"prompt: a red circle\n.*reading the weights in .*\n", caplog.text)
    assert re.search(r"expected memory about \d+\.\d GiB -> a\.mp4", caplog.text)
    assert re.search(
        r"saved a\.mp4: 17 frames, 64\*64; encode 0\.1 s, decode and write .* s; peak memory 1\.00", caplog.text
    )


def test_too_little_memory_is_said_before_the_start(stub, monkeypatch, caplog):
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.DONE and "GiB; a smaller" not in caplog.text
    monkeypatch.setattr(jobs, "total_memory", lambda device: 2**20)
    assert cli.main([*NANO, "--save_file", "b.mp4"]) == cli.DONE
    assert "cpu has only 0.0 GiB; a smaller --size or --frame_num needs less" in caplog.text


def test_the_request_is_stored_and_repeated(stub, checkpoint):
    flags = [
        "--base_seed",
        "5",
        "--sample_steps",
        "3",
        "--sample_guide_scale",
        "2,4",
        "--negative_prompt",
        "",
        "--fps",
        "9",
    ]
    assert cli.main([*NANO, *flags, "--dtype", "fp32", "--save_file", "a.mp4"]) == cli.DONE
    stored = json.loads(media.read_metadata("a.mp4")[output.REQUEST_KEY])
    assert stored["checkpoint"] == "nano" and stored["seed"] == 5 and set(stored["versions"]) == {"wan", "torch"}
    first = planned(*flags)

    def again(*flags):
        return planning.plan(build_parser().parse_args(["--device", "cpu", "--from_video", "a.mp4", *flags]))

    repeated = again()
    assert repeated.request == first.request and repeated.runtime.dtype == torch.float32
    assert again("--base_seed", "6").request.seed == 6
    assert again("--prompt", "a blue square", "--dtype", "bf16").request.prompt == "a blue square"


def test_private_videos_have_no_request(stub, capsys):
    assert cli.main([*NANO, "--save_file", "a.mp4", "--no_metadata"]) == cli.DONE
    assert not {output.REQUEST_KEY, "comment"} & set(media.read_metadata("a.mp4"))
    assert cli.main(["--from_video", "a.mp4"]) == cli.WRONG
    assert "a.mp4 has no stored request" in capsys.readouterr().err


def write_stored(path, **values):
    request = Request.create(get_config("t2v-A14B", "nano"), prompt="p", seed=1).to_dict() | values
    media.write_video(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), path, 8, {output.REQUEST_KEY: json.dumps(request)})


def test_a_released_video_is_not_repeated_with_nano(capsys):
    write_stored("a.mp4", checkpoint="wan2.2")
    assert cli.main(["--from_video", "a.mp4"]) == cli.WRONG
    assert "was made with a t2v-A14B checkpoint; give its folder with --ckpt_dir" in capsys.readouterr().err


def test_a_video_of_another_device_is_warned_about(caplog):
    write_stored("a.mp4", device="cuda")
    planning.plan(build_parser().parse_args(["--from_video", "a.mp4", "--device", "cpu"]))
    assert "the video was made on cuda and this runs on cpu" in caplog.text


@pytest.mark.parametrize("values", [{"steps": 0}, {"size": 5}, {"guidance": None}, {"task": 3}])
def test_damaged_requests_are_refused(capsys, values):
    write_stored("a.mp4", **values)
    assert cli.main(["--from_video", "a.mp4", "--device", "cpu"]) == cli.WRONG


def test_progress(stub, caplog, capsys):
    flags = [*NANO[:-2], "--sample_steps", "20"]
    assert cli.main([*flags, "--progress", "plain", "--save_file", "a.mp4"]) == cli.DONE
    assert "step 1/20" in caplog.text and "step 20/20, 0 s left" in caplog.text
    assert cli.main([*flags, "--progress", "bar", "--save_file", "b.mp4"]) == cli.DONE
    assert "20/20" in capsys.readouterr().err
    caplog.clear()
    assert cli.main([*flags, "--progress", "none", "--save_file", "c.mp4"]) == cli.DONE
    assert "20/20" not in capsys.readouterr().err and "step 1" not in caplog.text


def lines_of(progress, monkeypatch, caplog, ticks, total):
    """Return the log of steps that end at the seconds `ticks` of a clock that starts anywhere."""
    clock = iter(ticks)
    monkeypatch.setattr(time, "perf_counter", lambda: 1000.0 + next(clock))
    caplog.clear()
    with progress_of.reporter(progress) as on_step:
        for done in range(1, total + 1):
            on_step(StepDone(0, 1, done, total, torch.zeros(1)))
    return [record.getMessage() for record in caplog.records if "step" in record.getMessage()]


@pytest.mark.parametrize(
    "ticks, lines",
    [
        ([70], ["step 1/1"]),
        ([70, 73], ["step 1/2", "step 2/2, 0 s left"]),
        ([70, 73, 78], ["step 1/3", "step 2/3, 3 s left", "step 3/3, 0 s left"]),  # loading does not count
        (
            range(100, 163, 3),  # 21 steps of 3 s, the first of which came after 100 s
            ["step 1/21", *(f"step {n}/21, {3 * (21 - n)} s left" for n in range(2, 21, 2)), "step 21/21, 0 s left"],
        ),
        (
            [10, *range(30, 410, 20)],
            ["step 1/20", *(f"step {n}/20, {20 * (20 - n)} s left" for n in range(2, 21, 2))],
        ),
    ],
)
def test_plain_lines_come_at_every_tenth_with_the_time_left(monkeypatch, caplog, ticks, lines):
    assert lines_of("plain", monkeypatch, caplog, ticks, len(ticks)) == lines


def test_the_bar_counts_every_step_and_reckons_from_the_second(monkeypatch, capsys):
    class Bar(tqdm):
        seen: ClassVar = []

        def update(self, n=1):
            super().update(n)
            Bar.seen.append((self.n, self.total, self.initial))

    monkeypatch.setattr("tqdm.tqdm", Bar)
    with progress_of.reporter("bar") as on_step:
        for done in (1, 2, 3):
            on_step(StepDone(0, 1, done, 3, torch.zeros(1)))
    assert Bar.seen == [(1, 3, 1), (2, 3, 1), (3, 3, 1)]
    assert "denoising" in capsys.readouterr().err


# ---------------------------------------------------------------- when things break


@pytest.mark.parametrize("error", [RuntimeError("codec"), OSError(28, "No space left on device"), MemoryError()])
def test_a_failed_decode_is_resumed(stub, monkeypatch, capsys, error):
    stub.fail = ("decode", error)
    assert cli.main([*NANO, "--save_file", "a.mp4", "--base_seed", "5", "--fps", "11"]) == cli.FAILED
    message = capsys.readouterr().err
    assert "the sampled video is not lost; finish it with: python generate.py --resume a.latent.safetensors" in message
    assert files() == ["a.latent.safetensors"]

    stub.fail = ("denoise", AssertionError("resuming must not sample"))
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu"]) == cli.DONE
    assert files() == ["a.mp4"]
    assert media.read_video("a.mp4")[1] == 11
    assert json.loads(media.read_metadata("a.mp4")[output.REQUEST_KEY])["seed"] == 5


def test_a_failed_encoder_is_resumed(stub, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("encoder")

    with monkeypatch.context() as patch:
        patch.setattr(media, "_to_yuv", broken)
        assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    assert files() == ["a.latent.safetensors"]
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu", "--save_file", "b.mp4"]) == cli.DONE
    assert files() == ["b.mp4"]


def test_a_latent_that_cannot_be_kept_does_not_end_the_run(stub, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(output, "save_clip", full)
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.DONE
    assert "the latent could not be kept (No space left on device)" in caplog.text
    assert files() == ["a.mp4"]


def test_latents_of_failed_runs_do_not_replace_each_other(stub):
    stub.fail = ("decode", RuntimeError("codec"))
    for _ in range(2):
        assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.FAILED
    assert files() == ["a-2.latent.safetensors", "a.latent.safetensors"]


def test_a_video_is_not_resumed_and_a_latent_not_repeated(stub, capsys):
    assert cli.main([*NANO, "--save_file", "a b.mp4"]) == cli.DONE
    stub.fail = ("decode", RuntimeError("codec"))
    assert cli.main([*NANO, "--save_file", "c d.mp4"]) == cli.FAILED
    assert cli.main(["--resume", "a b.mp4"]) == cli.WRONG
    said = capsys.readouterr().err
    assert "a b.mp4 is a video or picture, and --resume finishes a kept latent" in said
    assert "give --from_video 'a b.mp4'" in said
    Image.new("RGB", (4, 4)).save("foreign.png")
    assert cli.main(["--resume", "foreign.png"]) == cli.WRONG
    assert "foreign.png is a video or picture" in (said := capsys.readouterr().err) and "--from_video" not in said
    assert cli.main(["--from_video", "c d.latent.safetensors"]) == cli.WRONG
    assert "is a kept latent, not a video; finish it with --resume 'c d.latent.safetensors'" in capsys.readouterr().err


def test_resume_changes_nothing_about_the_request(stub, capsys):
    assert cli.main(["--resume", "a.latent.safetensors", "--prompt", "other", "--base_seed", "1"]) == cli.WRONG
    assert "--resume only decodes what was sampled already; --prompt, --base_seed cannot" in capsys.readouterr().err


@pytest.mark.parametrize("content, text", [(None, "there is no file"), (b"text", "is not a saved latent")])
def test_resuming_from_something_else(capsys, content, text):
    if content:
        Path("a.latent.safetensors").write_bytes(content)
    assert cli.main(["--resume", "a.latent.safetensors"]) == cli.WRONG
    assert text in capsys.readouterr().err


def test_interrupting_the_sampling_leaves_nothing(stub, capsys):
    stub.fail = ("denoise", KeyboardInterrupt())
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert files() == []


def test_interrupting_the_decoding_says_how_to_go_on(stub, capsys):
    stub.fail = ("decode", KeyboardInterrupt())
    assert cli.main([*NANO, "--save_file", "a.mp4"]) == cli.INTERRUPTED
    assert (
        "interrupted; the sampled video is not lost; finish it with: python generate.py --resume a.latent.safetensors"
        in capsys.readouterr().err
    )
    assert files() == ["a.latent.safetensors"]


def test_a_defect_shows_its_traceback_and_a_full_disk_does_not(stub, caplog, capsys):
    stub.fail = ("denoise", RuntimeError("shapes"))
    assert cli.main(NANO) == cli.FAILED
    assert "this is a defect" in caplog.text and "failed: shapes" in capsys.readouterr().err
    caplog.clear()
    stub.fail = ("denoise", OSError("disk"))
    assert cli.main(NANO) == cli.FAILED
    assert "defect" not in caplog.text and "failed: disk" in capsys.readouterr().err


# ---------------------------------------------------------------- the real pipeline, random weights


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_end_to_end(dtype):
    flags = ["--frame_num", "5", "--sample_steps", "3", "--base_seed", "3", "--dtype", dtype, "--attention", "sdpa"]
    assert cli.main([*NANO, *flags, "--save_file", "a.mp4"]) == cli.DONE
    again = ["--from_video", "a.mp4", "--save_file", "b.mp4", "--device", "cpu", "--attention", "sdpa"]
    assert cli.main([*again, "--progress", "none"]) == cli.DONE
    assert media.read_video("a.mp4")[0].shape == (5, 64, 64, 3)
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
