"""Values of --ckpt_dir in the real command: each is used, or recognised and refused, before weights are read."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.published import DATA, WEIGHTS, core_map, make_diffusers, make_safetensors, manifest, write_header
from tests.performances import write_performance
from wan import cli, planning
from wan.arguments import build_parser
from wan.checkpoint.formats import COMFYUI_PREFIX
from wan.configs import NANO_CONFIGS, WAN_CONFIGS, get_config, nano_checkpoint
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1
from wan.nano.random import write_random_checkpoint
from wan.text2video import WanT2V

IMAGE = str(Path(__file__).parents[1] / "examples" / "first_frame.png")
GIVEN = {
    "i2v-A14B": ["--image", IMAGE],
    "s2v-14B": ["--image", IMAGE, "--audio", str(Path(IMAGE).with_name("talk.wav"))],
}
NANO = nano_checkpoint("t2v-A14B")
COMMON = ["--prompt", "a red circle", "--device", "cpu", "--progress", "none"]
HIGH, LOW = "high_noise_model", "low_noise_model"
LORA = {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": (4, 8)}


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    GIVEN["animate-14B"] = ["--src_root_path", str(write_performance(folder / "performance"))]
    return {task: write_random_checkpoint(folder / task, task) for task in NANO_CONFIGS}


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, caplog):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)


@pytest.fixture
def t2v(originals, tmp_path):
    return shutil.copytree(originals["t2v-A14B"], tmp_path / "mine")


@pytest.fixture
def ti2v(originals, tmp_path):
    return shutil.copytree(originals["ti2v-5B"], tmp_path / "five")


def refused(capsys, folder, *flags) -> str:
    """Return the error line of a run that must end before it samples."""
    assert cli.main([*COMMON, "--ckpt_dir", str(folder), *flags]) == cli.WRONG
    error = capsys.readouterr().err
    assert "Traceback" not in error and "--local-dir " + str(folder) not in error
    return error


def planned(folder, *flags):
    return planning.plan(build_parser().parse_args([*COMMON, "--ckpt_dir", str(folder), *flags]))


def video(folder, *flags) -> bytes:
    flags = ["--frame_num", "5", "--sample_steps", "2", "--base_seed", "1", "--no_metadata", "--overwrite", *flags]
    assert cli.main([*COMMON, "--ckpt_dir", str(folder), *flags, "--save_file", "out.mp4"]) == cli.DONE
    with open("out.mp4", "rb") as file:
        return file.read()


# ---- the task ----


@pytest.mark.parametrize("task", NANO_CONFIGS)
def test_the_task_is_taken_from_the_folder(originals, task, caplog):
    shutil.copytree(originals[task], "Wan2.2-T2V-A14B")  # its name decides nothing
    image = GIVEN.get(task, [])
    assert planned("Wan2.2-T2V-A14B", *image).config == NANO_CONFIGS[task]
    assert f"is a checkpoint of {task}: --task {task}" in caplog.text


@pytest.mark.parametrize("task", NANO_CONFIGS)
@pytest.mark.parametrize("lacks", ["config.json", "weights"])
def test_either_config_or_tensors_tell_the_task(originals, task, lacks, tmp_path, capsys):
    folder = shutil.copytree(originals[task], tmp_path / "partial")
    for file in folder.rglob("config.json" if lacks == "config.json" else WEIGHTS):
        file.unlink()
    other = next(name for name in NANO_CONFIGS if name != task)
    assert f"is a checkpoint of {task}, not of {other}; give --task {task}" in refused(capsys, folder, "--task", other)


def test_a_task_that_contradicts_the_folder(ti2v, capsys):
    error = refused(capsys, ti2v, "--task", "t2v-A14B")
    assert "five is a checkpoint of ti2v-5B, not of t2v-A14B; give --task ti2v-5B, or with --ckpt_dir the" in error
    assert "hf download" not in error


@pytest.mark.parametrize(
    "task, config, files",
    [
        ("animate-14B", {"_class_name": "WanAnimateModel", "dim": 5120, "in_dim": 36, "out_dim": 16}, {}),
        ("animate-14B", {"motion_encoder_dim": 512, "use_img_emb": True}, {}),
        ("animate-14B", {}, {"face_adapter.fuser_blocks.0.k_norm.weight": (128,)}),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--task", "t2v-A14B"]])
def test_a_model_without_a_type_is_told_by_its_parts(task, config, files, flags, capsys, tmp_path):
    folder = tmp_path / "Wan2.2-T2V-A14B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if files:
        write_header(folder / WEIGHTS, files)
    assert cli.main([*COMMON, "--ckpt_dir", str(folder), *flags]) == cli.WRONG
    error = capsys.readouterr().err
    assert (
        f"is a checkpoint of {task}, not of t2v-A14B" if flags else f"task {task} needs --src_root_path DIR"
    ) in error


# ---- another folder is meant ----


@pytest.mark.parametrize(
    "part", [HIGH, LOW, f"{LOW}/{WEIGHTS}", f"{LOW}/config.json", "google", "google/umt5-xxl", "Wan2.1_VAE.pth"]
)
def test_a_part_of_a_checkpoint(t2v, part, capsys, monkeypatch):
    error = refused(capsys, t2v / part)
    role = "one of the two experts" if part in (HIGH, LOW) else "a part"
    assert f"is {role} of the t2v-A14B checkpoint {t2v}, and not a checkpoint folder itself" in error
    assert f"give --ckpt_dir {t2v}" in error and "hf download" not in error
    assert "--task" not in error
    assert "--task t2v-A14B" in refused(capsys, t2v / part, "--task", "ti2v-5B")
    monkeypatch.chdir(t2v)
    assert f"give --ckpt_dir {t2v}" in refused(capsys, part)


def test_the_folder_of_several_checkpoints(t2v, ti2v, tmp_path, capsys):
    error = refused(capsys, tmp_path)
    assert f"a folder with 2 checkpoints in it: {ti2v} (ti2v-5B), {t2v} (t2v-A14B)" in error
    assert "give one of them with --ckpt_dir" in error and "hf download" not in error


def test_the_folder_around_one_checkpoint(ti2v, tmp_path, capsys):
    assert (
        f"a folder with a checkpoint of ti2v-5B in it, and not a checkpoint folder itself; give --ckpt_dir {ti2v}"
        in (refused(capsys, tmp_path))
    )


@pytest.mark.parametrize("place", ["", "models--Wan-AI--Wan2.2-TI2V-5B", "models--Wan-AI--Wan2.2-TI2V-5B/snapshots"])
def test_the_hugging_face_cache(originals, place, tmp_path, capsys):
    repository = tmp_path / "hub" / "models--Wan-AI--Wan2.2-TI2V-5B"
    for name in ("blobs", "refs", "snapshots"):
        (repository / name).mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir()
    for number, file in enumerate(path for path in originals["ti2v-5B"].rglob("*") if path.is_file()):
        shutil.copy(file, repository / "blobs" / str(number))
        link = snapshot / file.relative_to(originals["ti2v-5B"])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(repository / "blobs" / str(number))
    error = refused(capsys, tmp_path / "hub" / place)
    assert f"a checkpoint of ti2v-5B in it, and not a checkpoint folder itself; give --ckpt_dir {snapshot}" in error
    assert planned(snapshot).config.name == "ti2v-5B"
    if place.endswith("B"):
        assert "a folder of the Hugging Face cache" in error


def test_the_cache_with_two_snapshots_means_the_one_called_main(originals, tmp_path, capsys):
    repository = tmp_path / "models--Wan-AI--Wan2.2-TI2V-5B"
    for revision in ("aaa", "bbb"):
        shutil.copytree(originals["ti2v-5B"], repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    assert f"give --ckpt_dir {repository}/snapshots/aaa" in refused(capsys, repository)


def test_the_cache_without_a_snapshot(tmp_path, capsys):
    (tmp_path / "models--Wan-AI--Wan2.2-TI2V-5B" / "blobs").mkdir(parents=True)
    assert "cache without a snapshot" in refused(capsys, tmp_path / "models--Wan-AI--Wan2.2-TI2V-5B")


# ---- something else ----


def make_pipeline(source, folder, task):
    """A Diffusers pipeline folder."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    for expert, name in zip(reversed(NANO_CONFIGS[task].experts), ("transformer", "transformer_2"), strict=False):
        (folder / name).mkdir()
        for file in ("config.json", WEIGHTS):
            shutil.copy(source / expert / file, folder / name)
        make_diffusers(folder / name, family="nano")
    return folder


@pytest.mark.parametrize("task, size", [("t2v-A14B", 126), ("ti2v-5B", 34)])
@pytest.mark.parametrize("place", ["", "transformer", f"transformer/{WEIGHTS}"])
def test_a_diffusers_pipeline(originals, task, size, place, tmp_path, capsys):
    folder = make_pipeline(originals[task], tmp_path / "theirs", task)
    error = refused(capsys, folder / place)
    assert "a Diffusers pipeline (WanPipeline), whose parts lie under other names" in error
    name = f"Wan2.2-{task.upper()}"
    assert f"hf download Wan-AI/{name} --local-dir {name} ({size} GB), then --ckpt_dir {name}" in error


def test_another_model_of_diffusers(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert "a Diffusers pipeline (FluxPipeline)" in refused(capsys, tmp_path)


def test_the_parts_of_a_diffusers_pipeline_can_be_linked(originals, t2v, tmp_path):
    """It works as docs/checkpoints.md says, without another download."""
    network = CausalVAE2_1(VAEConfig(dim=8))  # the published names are those of its number of blocks
    network.init_weights(torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), t2v / "Wan2.1_VAE.pth")
    before = video(t2v)
    theirs = make_pipeline(t2v, tmp_path / "theirs", "t2v-A14B")
    names = json.loads((DATA / "vae_diffusers_keymap.json").read_text())["map"]["wan2_1_vae"]
    make_safetensors(t2v / "Wan2.1_VAE.pth", theirs / "vae" / WEIGHTS, names)
    text = core_map("umt5", 1)
    make_safetensors(t2v / NANO_CONFIGS["t2v-A14B"].t5_checkpoint, theirs / "text_encoder" / "model.safetensors", text)
    shutil.copytree(t2v / "google/umt5-xxl", theirs / "tokenizer")
    linked = tmp_path / "linked"
    linked.mkdir()
    links = {"transformer": HIGH, "transformer_2": LOW}
    for name in ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer"):
        (linked / links.get(name, name)).symlink_to(theirs / name)
    assert planned(linked).config.name == "t2v-A14B"
    assert video(linked) == before


def test_the_model_of_a_small_diffusers_pipeline_can_be_linked(originals, ti2v, tmp_path):
    theirs = make_pipeline(originals["ti2v-5B"], tmp_path / "theirs", "ti2v-5B") / "transformer"
    for name in ("config.json", WEIGHTS):
        (ti2v / name).unlink()
        (ti2v / name).symlink_to(theirs / name)
    assert planned(ti2v).config == NANO_CONFIGS["ti2v-5B"]


@pytest.mark.parametrize("naming", ["released", "comfyui"])
def test_single_files_of_released_size_need_no_config(naming, tmp_path):
    folder, prefix = tmp_path / "single", COMFYUI_PREFIX if naming == "comfyui" else ""
    shapes = {prefix + name: shape for name, shape in manifest("wan_t2v_A14B").items()}
    for expert in (HIGH, LOW):
        write_header(folder / expert / f"wan2.2_t2v_{expert}_14B_fp16.safetensors", shapes, "F16")
    names = core_map("umt5", 24)
    text = {names[name]: shape for name, shape in manifest("umt5_xxl_encoder").items()}
    write_header(folder / "umt5_xxl_fp16.safetensors", text, "F16")
    write_header(folder / "wan_2.1_vae.safetensors", manifest("wan2_1_vae"))
    shutil.copytree(NANO / "google", folder / "google")
    assert planned(folder).config == WAN_CONFIGS["t2v-A14B"]


@pytest.mark.parametrize(
    "content, words",
    [
        ({"a.gguf": b"GGUF"}, "a folder with a.gguf (a GGUF file, which this version does not read)"),
        ({"HighNoise/a.gguf": b"GGUF"}, "a.gguf (a GGUF file"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": LORA}, "a folder with a LoRA"),
        ({"lora.safetensors": LORA}, "a folder with a LoRA"),
        ({"notes.txt": b"hello"}, "a folder without weights; it holds notes.txt"),
        ({"diffusion_models/a.safetensors": LORA, "vae/b.safetensors": LORA}, "a folder of models for ComfyUI"),
        ({"a.safetensors": "wan_t2v_A14B"}, "a folder with a T2V-A14B expert (or Wan2.1 T2V-14B)"),
        ({"a.safetensors": "wan2_1_vae", "b.safetensors": "umt5_xxl_encoder"}, "a.safetensors (VAE 2.1"),
        ({"a.safetensors": "wan_i2v_A14B", "b.safetensors": "wan_i2v_A14B"}, "b.safetensors (an I2V-A14B expert)"),
        ({"config.json": b'{"model_type": "t2v", "dim": 5120}', "Wan2.1_VAE.pth": b""}, "a folder with a t2v transf"),
    ],
)
def test_a_folder_of_something_else(content, words, tmp_path, capsys):
    folder = tmp_path / "Wan2.2-T2V-A14B"
    for name, held in content.items():
        put(folder / name, held)
    error = refused(capsys, folder)
    assert "Wan2.2-T2V-A14B is no checkpoint folder, it is" in error and words in error
    assert "hf download" not in error, "the task is not known"
    sizes = {"T2V-A14B": "126", "I2V-A14B": "126", "TI2V-5B": "34", "S2V-14B": "46", "Animate-14B": "tens of"}
    assert f"--ckpt_dir ({', '.join(f'Wan2.2-{name} {size} GB' for name, size in sizes.items())})" in error
    error = refused(capsys, folder, "--task", "t2v-A14B")
    assert "--local-dir Wan2.2-T2V-A14B-2 (126 GB), then --ckpt_dir Wan2.2-T2V-A14B-2" in error


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.gguf", b"GGUF", "a GGUF file"),
        ("a.safetensors", b"GGUF", "a GGUF file"),
        ("a.safetensors", "wan_i2v_A14B", "an I2V-A14B expert"),
        ("a.safetensors", LORA, "a LoRA"),
        ("a.pth", b"PK", "a single file of weights"),
        ("a.latent.safetensors", LORA, "a latent; --resume decodes one"),
        ("a.mp4", b"", "a video; --from_video repeats one"),
        ("a.png", b"", "a picture; --image makes a video from one"),
        ("a.zip", b"PK", "an archive; unpack it"),
        ("a", b"", "a file without weights"),
        ("a.bin", b"\0\0", "a file without weights"),
    ],
)
def test_a_file(name, content, words, tmp_path, capsys):
    put(tmp_path / name, content)
    assert f"{name} is no checkpoint folder, it is {words}" in refused(capsys, tmp_path / name)


def test_the_checkpoint_that_lies_here_is_named_instead_of_a_download(originals, tmp_path, capsys):
    shutil.copytree(originals["t2v-A14B"], "Wan2.2-T2V-A14B")
    put(tmp_path / "other" / "notes.txt", b"")
    error = refused(capsys, "other", "--task", "t2v-A14B")
    assert "released checkpoint: --ckpt_dir Wan2.2-T2V-A14B" in error and "hf download" not in error


# ---- nothing there, or only a part of it ----


def test_a_folder_in_other_letters(capsys):
    def advice(folder):
        assert cli.main([*COMMON, "--ckpt_dir", folder]) == cli.WRONG
        return capsys.readouterr().err

    download = "hf download Wan-AI/Wan2.2-TI2V-5B --local-dir wan2.2-ti2v-5b (34 GB) and add --task ti2v-5B"
    assert download in advice("wan2.2-ti2v-5b")
    os.mkdir("Wan2.2-T2V-A14B")
    assert "did you mean" not in advice("Wan2.2-I2V-A14B"), "another model"
    os.mkdir("Wan2.2-TI2V-5B")
    assert "folder Wan2.2-TI2V-5; did you mean Wan2.2-TI2V-5B? Else download it with: hf" in advice("Wan2.2-TI2V-5")
    error = advice("wan2.2-ti2v-5b")
    assert "no checkpoint folder wan2.2-ti2v-5b; did you mean Wan2.2-TI2V-5B?" in error and "download" not in error


@pytest.mark.parametrize("exists", [False, True])
def test_no_folder_or_an_empty_one(exists, capsys):
    for name in ("Wan2.2-TI2V-5B", "models", "some/Wan2.2-TI2V-5B"):
        if exists:
            os.makedirs(name)

    def advice(folder, *flags):
        assert cli.main([*COMMON, "--ckpt_dir", folder, *flags]) == cli.WRONG
        return capsys.readouterr().err

    five = "hf download Wan-AI/Wan2.2-TI2V-5B --local-dir Wan2.2-TI2V-5B"
    assert f"{five} (34 GB) and add --task ti2v-5B" in advice("Wan2.2-TI2V-5B")
    assert f"{five} (34 GB)" in advice("Wan2.2-TI2V-5B", "--task", "ti2v-5B")
    assert "hf download Wan-AI/Wan2.2-T2V-A14B --local-dir models (126 GB)" in advice("models")
    if not exists:
        assert five in advice("Wan-AI/Wan2.2-TI2V-5B"), "an identifier, not a folder"
        assert "--local-dir Wan2.2-T2V-A14B (126 GB)" in advice("Wan2.2-TI2V-5B", "--task", "t2v-A14B")


@pytest.mark.parametrize("task", NANO_CONFIGS)
def test_a_download_that_was_broken_off_is_continued(originals, task, tmp_path, capsys):
    folder = shutil.copytree(originals[task], tmp_path / "begun")
    (folder / get_config(task).vae_checkpoint).unlink()
    for file in folder.rglob("config.json"):
        file.write_text(file.read_text().replace('"family"', '"kin"'))
    image = GIVEN.get(task, [])
    assert cli.main([*COMMON, "--ckpt_dir", str(folder), *image]) == cli.WRONG
    error = capsys.readouterr().err
    assert f"begun is not a complete checkpoint of {task}" in error
    assert f"--local-dir {folder} (" in error


def test_hidden_files_are_not_nothing(tmp_path, capsys):
    put(tmp_path / "home" / ".profile", b"")
    assert "a folder without weights; it holds hidden files" in refused(capsys, tmp_path / "home")


# ---- from Python ----


def test_python_hears_the_same_without_flags(ti2v, t2v):
    for folder, words in ((ti2v, "is a checkpoint of ti2v-5B, not of t2v-A14B"), (t2v / LOW, "one of the two experts")):
        with pytest.raises(ValueError, match=words) as caught:
            WanT2V(WAN_CONFIGS["t2v-A14B"], folder)
        assert "--" not in str(caught.value)


# ---- complete, but not as it should be ----


@pytest.mark.parametrize("how", ["copy", "link", "folder"])
def test_two_experts_that_are_the_same_are_warned_about(t2v, how, caplog):
    high, low = t2v / HIGH / WEIGHTS, t2v / LOW / WEIGHTS
    low.unlink()
    if how == "copy":
        shutil.copyfile(high, low)
    elif how == "link":
        low.symlink_to(high)
    else:
        shutil.rmtree(t2v / LOW)
        (t2v / LOW).symlink_to(t2v / HIGH)
    planned(t2v)
    assert f"{HIGH} and {LOW} in {t2v} hold the same weights" in caplog.text


def test_nothing_is_said_about_a_sound_checkpoint(t2v, ti2v, caplog):
    planned(t2v), planned(ti2v)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("place", ["", HIGH, LOW, "loras"])
@pytest.mark.parametrize("task", ["t2v-A14B", "ti2v-5B"])
def test_a_lora_beside_a_model_is_named(t2v, ti2v, task, place, caplog):
    folder = t2v if task == "t2v-A14B" else ti2v
    if place in (HIGH, LOW) and task != "t2v-A14B":
        place = ""
    put(folder / place / "style.safetensors", LORA)
    planned(folder)
    assert f"{folder / place / 'style.safetensors'} is a LoRA; it is not applied" in caplog.text


def test_a_single_file_under_any_name_beside_a_lora(t2v, ti2v, caplog):
    before = video(t2v)
    (t2v / LOW / WEIGHTS).rename(t2v / LOW / "wan2.2_low_noise.safetensors")
    put(t2v / LOW / "style.safetensors", LORA)
    assert video(t2v) == before
    assert "style.safetensors is a LoRA; it is not applied" in caplog.text
    (ti2v / WEIGHTS).rename(ti2v / "wan2.2_5B.safetensors")
    make_safetensors(ti2v / "Wan2.2_VAE.pth", ti2v / "Wan2.2_VAE.safetensors")
    assert planned(ti2v).config.name == "ti2v-5B"


# ---- forms that are not read are named before the first step, for every part ----


def prefixed(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def one(dtype):
    def change(state):
        name = next(name for name, tensor in state.items() if tensor.ndim > 1)
        return state | {name: state[name].to(dtype)}

    return change


FORMS = {
    "GGUF": ("a GGUF file", b"GGUF\3\0\0\0"),
    "fp8": ("weights quantised to float8_e4m3fn; use the bf16, fp16 or fp32 file", one(torch.float8_e4m3fn)),
    "int8": ("weights quantised to int8", one(torch.int8)),
    "scaled fp8": ("fp8-, fp4- or int8-quantised weights", lambda state: state | {"scaled_fp8": torch.zeros(2)}),
    "LoRA": ("a LoRA, to be applied to a model", lambda state: {"blocks.0.lora_A.weight": torch.zeros(4, 8)}),
    "all-in-one": (
        "an all-in-one file of ComfyUI",
        lambda state: prefixed("model.diffusion_model.")(state) | {"vae.encoder.conv1.weight": torch.zeros(1, 1)},
    ),
    "diffusion_model.": ("tensors whose names all begin with diffusion_model.", prefixed("diffusion_model.")),
    "pipe.dit.": ("tensors whose names all begin with pipe.dit.", prefixed("pipe.dit.")),
}


OTHER_MODELS = {
    "VACE": ("a VACE, Fun or camera", lambda state: state | {"vace_patch_embedding.weight": torch.zeros(1, 1)}),
    "Fun": ("a VACE, Fun or camera", lambda state: state | {"ref_conv.weight": torch.zeros(1, 1)}),
    "Wan2.1 I2V": ("the Wan2.1 image-to-video transf", lambda state: state | {"img_emb.proj.0.bias": torch.zeros(1)}),
}


@pytest.mark.parametrize(
    "part, form",
    [
        *((part, form) for form in FORMS for part in (HIGH, LOW, "vae_checkpoint", "t5_checkpoint")),
        *((part, form) for form in OTHER_MODELS for part in (HIGH, LOW)),
    ],
)
def test_a_form_that_is_not_read_is_named(t2v, form, part, capsys):
    words, change = (FORMS | OTHER_MODELS)[form]
    file = t2v / (f"{part}/{WEIGHTS}" if part in (HIGH, LOW) else getattr(NANO_CONFIGS["t2v-A14B"], part))
    if callable(change):
        state = change(load_file(file) if file.suffix == ".safetensors" else torch.load(file))
        save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    else:
        file.write_bytes(change + file.read_bytes())
    error = refused(capsys, t2v)
    assert words in error and file.parent.name in error


@pytest.mark.parametrize("kind", ["F4", "F8_E8M0"])
def test_types_of_the_newest_quantisations_are_named(t2v, kind, capsys):
    path = t2v / LOW / WEIGHTS
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header["blocks.0.ffn.0.weight"]["dtype"] = kind
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :])
    assert f"it holds weights quantised to {kind}; use the bf16" in refused(capsys, t2v)


def test_an_expert_folder_of_gguf_files(t2v, capsys):
    (t2v / LOW / WEIGHTS).rename(t2v / LOW / "low.gguf")
    assert "holds no *.safetensors and no *.safetensors.index.json, only low.gguf" in refused(capsys, t2v)


# ---- helpers ----


def put(path, content):
    """Write bytes, or a safetensors file of these shapes or of a released model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_header(path, manifest(content) if isinstance(content, str) else content)
