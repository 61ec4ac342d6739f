"""docs/from_wan22.md is true: its flags, defaults, imports and script are tried."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import tempfile
from dataclasses import replace
from datetime import datetime
from functools import cache, reduce
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import wan
import wan.configs
from wan import planning
from wan.arguments import build_parser
from wan.configs import IMPLEMENTED_TASKS, NANO_CONFIGS, SIZE_CONFIGS, SUPPORTED_SIZES, WAN_CONFIGS
from wan.configs.shared_config import Presets
from wan.geometry import parse_size
from wan.media import read_video
from wan.nano.random import write_random_checkpoint
from wan.output import default_name
from wan.parallel import Parallel
from wan.request import Request, check_supported_size
from wan.runtime import Runtime

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "from_wan22.md").read_text(encoding="utf-8")
# Flags of the original's command, from its documentation.
FLAGS = """task size frame_num ckpt_dir offload_model ulysses_size t5_fsdp t5_cpu dit_fsdp save_file prompt
    use_prompt_extend prompt_extend_method prompt_extend_model prompt_extend_target_lang base_seed image
    sample_solver sample_steps sample_shift sample_guide_scale convert_model_dtype src_root_path refert_num
    replace_flag use_relighting_lora num_clip audio enable_tts tts_prompt_audio tts_prompt_text tts_text
    pose_video start_from_ref infer_frames""".split()


def table(title: str) -> list[list[str]]:
    """Yield the rows of the table with that heading; cells have no marks of code."""
    lines = PAGE.split(f"| {title} |", 1)[1].splitlines()[2:]
    rows = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.replace("<!-- planned -->", "").strip(" |").split("|")] for row in rows]


def code(text: str) -> str:
    return re.search("`([^`]*)`", text)[1]


def code_words(text: str) -> list[str]:
    return re.findall("`([^`]*)`", text)


def block(title: str) -> str:
    return re.search(r"```python.*?\n(.*?)```", PAGE.split(f"## {title}\n", 1)[1], flags=re.S)[1]


def refusal(*arguments: str) -> str:
    with pytest.raises(ValueError) as error:
        planning.plan(build_parser().parse_args([*arguments, "--prompt", "a red circle"]))
    return str(error.value)


ITEMS = ("installation", "command", "file", "name")  # tables of what exists, or does not; flags have rules of their own
# What the original's documentation names, beside its flags and sizes.
NAMED = """
    requirements.txt | requirements_s2v.txt | requirements_animate.txt | flash_attn | poetry install
    poetry run pip install flash-attn | pip install .[dev] | huggingface-cli download | modelscope download
    --task t2v-A14B | --task i2v-A14B | --task ti2v-5B | --task s2v-14B | --task animate-14B
    --offload_model True --convert_model_dtype | --offload_model --prompt | --t5_cpu
    --dit_fsdp --t5_fsdp --ulysses_size 8 | preprocess_data.py | --retarget_flag | --h_len 1 --replace_flag
    examples/wan_animate/animate/ | examples/wan_animate/replace/ | 'dashscope' | 'local_qwen' | bash tests/test.sh
    make format | isort generate.py wan | yapf | black . | isort .
    wan/text2video.py wan/image2video.py wan/textimage2video.py wan/speech2video.py wan/animate.py
    wan/modules/model.py wan/modules/attention.py wan/modules/t5.py wan/modules/tokenizers.py wan/modules/vae2_1.py
    wan/modules/vae2_2.py wan/modules/s2v/ wan/modules/animate/ wan/configs/shared_config.py wan/configs/wan_t2v_A14B.py
    wan/configs/wan_i2v_A14B.py wan/configs/wan_ti2v_5B.py wan/configs/wan_s2v_14B.py wan/configs/wan_animate_14B.py
    wan/distributed/fsdp.py wan/distributed/sequence_parallel.py wan/distributed/ulysses.py wan/distributed/util.py
    wan/utils/fm_solvers.py wan/utils/fm_solvers_unipc.py wan/utils/prompt_extend.py wan/utils/system_prompt.py
    wan/utils/utils.py
    wan_shared_cfg free_model sp_attn_forward sp_dit_forward rope_apply rope_params FLASH_ATTN_2_AVAILABLE
    FLASH_ATTN_3_AVAILABLE umt5_xxl T5Model T5Encoder T5Decoder WanVAE_ CausalConv3d save_pretrained
    pipeline.text_encoder pipeline.vae pipeline.model pipeline.low_noise_model pipeline.high_noise_model pipeline.device
    pipeline.boundary pipeline.num_train_timesteps pipeline.sp_size
"""


def items(title: str) -> list[tuple[str, str]]:
    """List the items of a table with their status; a row may have several."""
    return [(item, status) for cell, status in table(f"{title} | here") for item in code_words(cell)]


@cache
def is_later(status: str) -> bool:
    """Tell whether a row says that something comes later; what it waits for must not exist."""
    if not status.startswith("later: "):
        return False
    awaited = status.removeprefix("later: ").partition(" ")[0]
    if awaited in WAN_CONFIGS:
        assert awaited not in IMPLEMENTED_TASKS, f"{awaited} exists: move its rows"
        assert "not available yet" in refusal("--task", awaited, "--image", "a.png")
    else:
        assert "." in awaited and not (ROOT / awaited).exists(), f"{awaited} exists, or is no file: move its rows"
    return True


def exists(item: str) -> bool | None:
    """Tell whether an item of the page exists or works here; None for a command of other programs."""
    words = [word for word in shlex.split(item) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    files = [word for word in words if re.fullmatch(r"(\./)?[\w.]+(/[\w.]+)*(\.(py|txt|sh|JPG|wav|png|mp4)|/)", word)]
    if words[0] in ("python", "torchrun") and "generate.py" in words:
        args = build_parser().parse_args(words[words.index("generate.py") + 1 :])  # also where it comes later
        return args.task in IMPLEMENTED_TASKS
    if words[0] in ("pip", "bash", "python") and files:
        return (ROOT / files[0]).is_file()
    if len(words) == 1 and files:
        return (ROOT / item).is_dir() if item.endswith("/") else (ROOT / item).is_file()
    if words[0] == "make":
        return subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0
    if item.startswith("pipeline."):
        return any(hasattr(kind, item.partition(".")[2]) or item in made() for kind in (wan.WanT2V, wan.WanTI2V))
    if re.fullmatch(r"wan(\.\w+)+", item):
        return named(item)
    return None


def named(path: str) -> bool:
    """Tell whether a dotted name can be imported: a module, or an attribute of one, or of a class in one."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        try:
            reduce(getattr, parts[count:], found)
        except (AttributeError, ImportError):  # a lazy name that says why it is not there
            return False
        return True
    return False


@cache
def made() -> set[str]:
    """List the attributes of a pipeline of each kind that give a value."""
    found = set()
    for task, kind in (("t2v-A14B", wan.WanT2V), ("ti2v-5B", wan.WanTI2V)):
        with tempfile.TemporaryDirectory() as folder:
            pipeline = kind(NANO_CONFIGS[task], write_random_checkpoint(Path(folder), task))
            names = [item for item, _ in items("name") if item.startswith("pipeline.")]
            found |= {name for name in names if getattr(pipeline, name.partition(".")[2], None) is not None}
    return found


def test_everything_that_the_original_names_has_a_row():
    cells = " ".join(item for title in ITEMS for item, _ in items(title))
    wanted = [
        part.strip() for line in NAMED.splitlines() for part in (line.split("|") if "|" in line else line.split())
    ]
    assert len(wanted) > 70 and [part for part in wanted if part and part not in cells] == []


@pytest.mark.parametrize("title", ITEMS)
def test_a_row_says_what_is_so(title):
    """A row that says "later" or "gone" for what exists is wrong, and so is one that says "same" for what does not."""
    for item, status in items(title):
        assert re.match("same|(better|later|gone): ", status), (item, status)
        is_here = not is_later(status) and not status.startswith("gone: ")
        problem = f"{item} is {'not ' * is_here}here, and its row says {status!r}: move it"
        assert exists(item) in (None, is_here), problem


def test_attributes_of_pipelines_have_values():
    assert {item for item, status in items("name") if item.startswith("pipeline.")} == made()


def test_every_flag_of_the_original_has_its_row():
    assert sorted(code(flag) for flag, _ in table("flag | here")) == sorted(f"--{flag}" for flag in FLAGS)


def test_flags_are_what_the_page_says():
    known = build_parser()._option_string_actions
    for flag, status in table("flag | here"):
        assert code(flag) in known, "known, also where it comes later"
        assert is_later(status) or re.match("(same|better)\\b", status), status


def test_the_flags_that_are_new_exist():
    new = PAGE.split("New flags:")[1].split("- Less memory")[0]
    named = re.findall("`(--[a-z_]+)`", new)
    assert len(named) > 10 and set(named) <= set(build_parser()._option_string_actions)
    assert set(re.findall("`(--[a-z_]+)`", PAGE)) <= set(build_parser()._option_string_actions)


@pytest.mark.parametrize("column, task", list(enumerate(IMPLEMENTED_TASKS, start=1)))
def test_values_of_the_tasks(column, task):
    rows = table("value | `t2v-A14B` | `i2v-A14B` | `ti2v-5B`")
    assert len(rows) == 6
    for row in rows:
        assert getattr(WAN_CONFIGS[task], code(row[0])) == ast.literal_eval(code(row[column])), row


def test_defaults_that_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    is_true = {
        "`--ulysses_size`": lambda: Parallel.from_flags(world_size=4).ulysses_size == 4,
        "`--size` of ti2v-5B": lambda: WAN_CONFIGS["ti2v-5B"].size == "1280*704",
        "`--image` of i2v-A14B": lambda: "--image" in refusal("--task", "i2v-A14B"),
        "`--prompt` with an image": lambda: (
            Request.create(WAN_CONFIGS["i2v-A14B"], image=Image.new("RGB", (64, 64))).prompt == ""
        ),
        "`--task` with `--image`": lambda: (
            planning.task_of_inputs(build_parser().parse_args(["--image", "a.png"])) == "i2v-A14B"
        ),
        "weights": lambda: Runtime.from_flags(device="cpu").dtype_name == "bf16",
        "`--save_file`": lambda: (
            default_name("t2v-A14B", (64, 64), "a*b", 7, datetime(2026, 1, 31))
            == "t2v-A14B_64x64_a_b_7_20260131_000000.mp4"
        ),
    }
    rows = table("default of | original | here")
    assert "the few defaults that differ" in (ROOT / "README.md").read_text("utf-8")
    assert [row[0] for row in rows] == list(is_true)
    assert [name for name, check in is_true.items() if not check()] == []


def test_arguments_and_defaults_of_the_methods(monkeypatch):
    """The original's arguments can be passed, by name and in their order; none of them has a default of its own."""
    monkeypatch.setattr(wan.pipeline.WanPipeline, "video", lambda self, request, **how: (request, how))
    image = Image.new("RGB", (96, 54))
    for method, text in table("method | the original's defaults"):
        name, function = code(method).split(".")
        pipeline = object.__new__(getattr(wan, name))
        pipeline.config = WAN_CONFIGS[pipeline.task]
        call = ast.parse(f"f({code(text)})").body[0].value
        stated = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        inputs = [image] if "img" not in stated and name != "WanT2V" and function != "t2v" else []
        bound = getattr(pipeline, function)
        assert all(p.default in (None, p.empty) for p in inspect.signature(bound).parameters.values())
        request, how = bound("a fox", *inputs, *stated.values())
        by_name, _ = bound("a fox", *inputs, **stated)
        assert replace(by_name, seed=0) == replace(request, seed=0), "positions count, too"
        assert (request.frame_num, request.steps) == (stated["frame_num"], stated["sampling_steps"])
        assert request.guidance == (5.0, 5.0) and request.shift == 5.0 and how["offload_model"] is True


@pytest.mark.parametrize("line", [ast.unparse(line) for line in ast.parse(block("Imports")).body])
def test_imports(line):
    exec(line, {})


def test_sizes_are_those_of_the_original():
    """The command takes the sizes of the task, and refuses the other ones that the original knows."""
    rows = {task: code_words(sizes) for tasks, sizes in table("task | sizes") for task in code_words(tasks)}
    assert rows == {task: [*sizes] for task, sizes in SUPPORTED_SIZES.items()}
    for task in IMPLEMENTED_TASKS:
        for size in SIZE_CONFIGS:
            if size in rows[task] or task == "s2v-14B":
                check_supported_size(WAN_CONFIGS[task], parse_size(size))
            else:
                with pytest.raises(ValueError, match="is not one that"):
                    check_supported_size(WAN_CONFIGS[task], parse_size(size))


def test_the_requirements_of_a_task_exist_with_it():
    for task, name in (("s2v-14B", "requirements_s2v.txt"), ("animate-14B", "requirements_animate.txt")):
        assert task not in IMPLEMENTED_TASKS or (ROOT / name).is_file(), f"{task} needs its {name}"


def test_the_script_runs_as_it_stands(tmp_path, monkeypatch):
    """It runs on a random miniature in place of the released weights, at a tiny size."""
    write_random_checkpoint(tmp_path / "Wan2.2-T2V-A14B")
    small = Presets(replace(NANO_CONFIGS["t2v-A14B"], frame_num=5))
    monkeypatch.setattr(wan.configs, "WAN_CONFIGS", small)
    monkeypatch.setitem(wan.configs.SIZE_CONFIGS, "1280*720", (48, 32))
    monkeypatch.chdir(tmp_path)
    script = block("A script")
    assert script.count("cfg.sample_steps = 30\n") == 1
    names: dict = {}
    exec(script.replace("cfg.sample_steps = 30", "cfg.sample_steps = 2"), names)
    assert names["video"].shape == (3, 5, 32, 48) and names["video"].dtype == torch.float32
    frames, fps = read_video(tmp_path / "video.mp4")
    assert frames.shape == (5, 32, 48, 3) and fps == 8
    assert small["t2v-A14B"].sample_steps == 20


@pytest.mark.parametrize("task", ["i2v-A14B", "ti2v-5B"])
def test_scripts_that_start_from_an_image(task, tmp_path):
    """The calls of the original's `generate.py`, with a picture in memory."""
    cfg, image = NANO_CONFIGS[task], Image.new("RGB", (64, 64), "navy")
    folder = write_random_checkpoint(tmp_path, task)
    settings = {
        "frame_num": 5,
        "shift": cfg.sample_shift,
        "sample_solver": "dpm++",
        "sampling_steps": 2,
        "guide_scale": cfg.sample_guide_scale,
        "seed": 3,
        "offload_model": True,
    }
    if task == "ti2v-5B":
        pipeline = wan.WanTI2V(config=cfg, checkpoint_dir=str(folder), device_id=0, rank=0, t5_cpu=True)
        video = pipeline.generate("a cat", img=image, size=(64, 64), max_area=64 * 64, **settings)
        assert pipeline.generate("a cat", img=None, size=(64, 32), max_area=64 * 64, **settings).shape == (3, 5, 32, 64)
    else:
        pipeline = wan.WanI2V(config=cfg, checkpoint_dir=str(folder), device_id=0, rank=0, convert_model_dtype=True)
        video = pipeline.generate("a cat", image, max_area=64 * 64, **settings)
    assert video.shape == (3, 5, 64, 64) and video.isfinite().all()


def test_a_loop_that_is_built_from_the_parts_gives_the_video_of_the_pipeline(tmp_path):
    """Some scripts sample by themselves, with text encoder, transformer, scheduler and autoencoder by their names."""
    cfg, folder = NANO_CONFIGS["t2v-A14B"], write_random_checkpoint(tmp_path)
    cfg.param_dtype = torch.float32
    whole = wan.WanT2V(cfg, folder)
    expected = whole.generate("a red circle", (32, 32), 5, 3.0, "unipc", 3, (2.0, 4.0), "blurred", 7)

    device = whole.device
    encoder = wan.modules.T5EncoderModel(
        text_len=cfg.text_len,
        dtype=cfg.t5_dtype,
        device=device,
        checkpoint_path=str(folder / cfg.t5_checkpoint),
        tokenizer_path=str(folder / cfg.t5_tokenizer),
    )
    vae = wan.modules.Wan2_1_VAE(vae_pth=str(folder / cfg.vae_checkpoint), device=device)
    experts = [
        wan.modules.WanModel.from_pretrained(str(folder), subfolder=name).eval().requires_grad_(False).to(device)
        for name in (cfg.low_noise_checkpoint, cfg.high_noise_checkpoint)
    ]
    context, context_null = (encoder([text], device) for text in ("a red circle", "blurred"))
    generator = torch.Generator(device=device).manual_seed(7)
    latent = torch.randn(vae.model.z_dim, 2, 4, 4, device=device, generator=generator)
    scheduler = wan.utils.FlowUniPCMultistepScheduler(
        num_train_timesteps=cfg.num_train_timesteps, shift=1, use_dynamic_shifting=False
    )
    scheduler.set_timesteps(3, device=device, shift=3.0)
    with torch.no_grad():
        for t in scheduler.timesteps:
            is_high = t.item() >= cfg.boundary * cfg.num_train_timesteps
            model, scale = experts[is_high], (2.0, 4.0)[is_high]
            arguments = {"t": torch.stack([t]), "seq_len": 8}
            cond = model([latent], context=context, **arguments)[0]
            uncond = model([latent], context=context_null, **arguments)[0]
            guided = uncond + scale * (cond - uncond)
            step = scheduler.step(guided[None], t, latent[None], return_dict=False, generator=generator)
            latent = step[0].squeeze(0)
    torch.testing.assert_close(vae.decode([latent])[0].cpu(), expected, atol=1e-4, rtol=0)
