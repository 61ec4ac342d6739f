"""Checks of files before their weights are read: each wrong file is named before anything is sampled."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runs import sample
from wan.checking import check_checkpoint, expert_config
from wan.checkpoint.loading import read_config
from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.modules.model import WanModel
from wan.nano.random import write_random_checkpoint
from wan.request import Request
from wan.runtime import Runtime
from wan.text2video import WanT2V

CONFIG = NANO_CONFIGS["t2v-A14B"]
LOW, WEIGHTS = "low_noise_model", "low_noise_model/diffusion_pytorch_model.safetensors"
T5, VAE, TOKENIZER = CONFIG.t5_checkpoint, CONFIG.vae_checkpoint, f"{CONFIG.t5_tokenizer}/tokenizer.json"


@pytest.fixture
def folder(tmp_path):
    return write_random_checkpoint(tmp_path / "ckpt")


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        check_checkpoint(folder, CONFIG)
    message = str(caught.value)
    assert len(message) < 5000 and all(line.isprintable() for line in message.splitlines())
    return message


def change_pth(folder: Path, file: str, **tensors: torch.Tensor | None) -> None:
    """Replace tensors by name (`.` is written `__`), or take them out."""
    state = torch.load(folder / file, weights_only=True)
    state |= {name.replace("__", "."): value for name, value in tensors.items()}
    torch.save({name: value for name, value in state.items() if value is not None}, folder / file)


def change_json(path: Path, change: Callable) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def lora(folder: Path) -> None:
    names = {
        f"blocks.{i}.self_attn.q.lora_{way}.weight": torch.zeros(4, 32) for i in range(2) for way in ("up", "down")
    }
    save_file(names, folder / WEIGHTS)


def of_another_task(folder: Path) -> None:
    other = write_random_checkpoint(folder.parent / "i2v", "i2v-A14B")
    (folder / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())


def fp8(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["blocks.0.ffn.0.weight"] = state["blocks.0.ffn.0.weight"].to(torch.float8_e4m3fn)
    save_file(state, folder / WEIGHTS)


def append(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes() + data) and None


def pth(file: str, **tensors: torch.Tensor | None) -> Callable[[Path], None]:
    return lambda folder: change_pth(folder, file, **tensors)


def vae_of_the_hybrid(folder: Path) -> None:
    other = write_random_checkpoint(folder.parent / "ti2v", "ti2v-5B")
    (folder / VAE).write_bytes((other / "Wan2.2_VAE.pth").read_bytes())


def flipped(folder: Path) -> None:
    data = bytearray((folder / VAE).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / VAE).write_bytes(data)


def tokenizer(change: Callable) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / TOKENIZER, change)


def cut(file: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size]) and None


def write(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(data) and None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lora, [LOW, "a LoRA, to be applied to a model"]),
        (of_another_task, [LOW, "patch_embedding.weight: [32, 36, 1, 2, 2] in the file, [32, 16, 1, 2, 2] needed"]),
        (fp8, [LOW, "float8_e4m3fn"]),
        (append(WEIGHTS, bytes(8)), [LOW, "its tensors end at byte"]),
        (append(T5, bytes(8)), [T5, "does not end where its directory ends"]),
        (cut(T5, -100), [T5, "damaged, truncated"]),
        (
            pth(T5, blocks__1000000000__norm1__weight=torch.zeros(1)),
            [T5, "1 unexpected:\n    blocks.1000000000."],
        ),
        (pth(T5, token_embedding__weight=torch.zeros(1).expand(10**9, 16)), [T5, "token_embedding.weight repeats"]),
        (pth(T5, token_embedding__weight=torch.zeros(())), [T5, "token_embedding.weight has shape []"]),
        (pth(T5, blocks__0__attn__q__weight=torch.zeros(0, 16)), [T5, "blocks.0.attn.q.weight has shape [0, 16]"]),
        (pth(T5, blocks__0__attn__k__weight=None), [T5, "missing", "blocks.0.attn.k.weight"]),
        (pth(T5, blocks__0__ffn__fc1__weight=torch.zeros(32, 16, dtype=torch.complex64)), [T5, "complex64"]),
        (pth(T5, token_embedding__weight=torch.zeros(3, 16)), ["token ids up to", T5, "embeds 3 tokens"]),
        (vae_of_the_hybrid, [VAE, "not the tensors of VAE 2.1; they look like VAE 2.2"]),
        (flipped, [VAE, "Bad CRC-32"]),
        (pth(VAE, encoder__conv1__weight=torch.zeros(0, 3, 3, 3, 3)), [VAE, "encoder.conv1.weight has shape [0, 3"]),
        (pth(VAE, conv2__weight=torch.zeros(())), [VAE, "conv2.weight has shape []"]),
        (pth(VAE, decoder__head__2__bias=None), [VAE, "missing", "decoder.head.2.bias"]),
        (cut(TOKENIZER, 200), ["tokenizer.json is damaged or no tokenizer"]),
        (write(TOKENIZER, b"version https://git-lfs.github.com/spec/v1\n"), ["tokenizer.json is a Git-LFS pointer"]),
        (write(TOKENIZER, b"<!doctype html><html>"), ["tokenizer.json is a web page"]),
        (write(TOKENIZER, b'{"version": "1.0", "weight_map": {}}'), ["tokenizer.json is damaged or no tokenizer"]),
        (write(TOKENIZER, b"[" * 100_000), ["tokenizer.json is damaged or no tokenizer"]),
        (tokenizer(lambda t: t["model"]["vocab"].update(far=100_000)), ["token ids up to 100000", T5, "embeds"]),
        (tokenizer(lambda t: t["model"].update(vocab={"<unk>": 0, "a": 1})), ["another model", "<pad> must have id 0"]),
        (write(T5, b"<html>"), [f"{T5} is a web page"]),
        (write(VAE, b"version https://git-lfs.github.com/spec/v1\n"), [f"{VAE} is a Git-LFS pointer"]),
        (write(f"{LOW}/config.json", b"version https://git-lfs.github.com/spec/v1\n"), ["config.json is a Git-LFS"]),
    ],
)
def test_each_wrong_file_is_named(folder, damage, words):
    damage(folder)
    message = refusal(folder)
    assert all(word in message for word in words), message


def test_an_encoder_of_another_width_is_refused(folder):
    write_random_checkpoint(folder)
    for expert in CONFIG.experts:
        path = folder / expert / "config.json"
        change_json(path, lambda values: values.update(text_dim=24))
        state = load_file(path.parent / "diffusion_pytorch_model.safetensors")
        state["text_embedding.0.weight"] = torch.zeros(32, 24)
        save_file(state, path.parent / "diffusion_pytorch_model.safetensors")
    assert "gives text states of width 16" in refusal(folder) and "reads 24" in refusal(folder)


@pytest.mark.parametrize("change", [{"text_len": 8}, {"patch_size": [1, 1, 1]}, {"in_dim": 36}])
def test_what_a_task_needs_of_any_model(folder, change):
    change_json(folder / LOW / "config.json", lambda values: values.update(change))
    assert "this is another model" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("dim", 4800), ("num_layers", 30), ("text_len", 256), ("eps", 1e-5), ("patch_size", [1, 1, 1])]
)
def test_a_released_config_contradicts_its_preset_in_nothing(tmp_path, field, value):
    """The config of a miniature may say anything that fits the task."""
    released = WAN_CONFIGS["t2v-A14B"]
    described = {"_class_name": "WanModel"} | released.architecture()
    del described["text_dim"]  # as in the released files, which do not tell everything
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert expert_config(tmp_path, released, ".").text_dim == 4096
    (tmp_path / "config.json").write_text(json.dumps(described | {field: value}))
    with pytest.raises(ValueError, match=rf"config.json has {field} .*, and --task t2v-A14B needs"):
        expert_config(tmp_path, released, ".")


def test_files_of_another_format_under_a_usual_name_give_the_same_latent(folder):
    def latent():
        pipeline = WanT2V(CONFIG, folder, runtime=Runtime.from_flags(device="cpu", dtype="fp32"))
        return pipeline.generate("a red circle", size=(64, 64), frame_num=1, sampling_steps=1, seed=3)

    before = latent()
    save_file(torch.load(folder / VAE, weights_only=True), folder / VAE)
    state = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}  # unmapped: it is replaced
    torch.save(state, folder / WEIGHTS)
    assert torch.equal(latent(), before)


def test_without_its_number_of_heads_a_model_makes_the_same_video(tmp_path):
    from wan.configs import nano_checkpoint

    def latent(folder):
        pipeline = WanT2V(CONFIG, folder, runtime=Runtime.from_flags(device="cpu", dtype="fp32"))
        request = Request.create(CONFIG, prompt="a red circle", frame_num=1, steps=2, seed=3)
        return sample(pipeline, request)

    whole = nano_checkpoint("t2v-A14B")
    shutil.copytree(whole, tmp_path / "less", ignore=shutil.ignore_patterns("*.safetensors", "*.pth"))
    for file in (*whole.rglob("*.safetensors"), *whole.rglob("*.pth")):
        (tmp_path / "less" / file.relative_to(whole)).symlink_to(file)
    for expert in CONFIG.experts:
        change_json(tmp_path / "less" / expert / "config.json", lambda values: values.pop("num_heads"))
    assert torch.equal(latent(tmp_path / "less"), latent(whole))


@pytest.mark.parametrize("field", ["dim", "num_heads", "text_len", "num_layers", "text_dim", "eps"])
def test_a_field_that_is_missing_makes_no_other_model(field):
    """With the embedded checkpoint, whose sizes are its task's."""
    from wan.configs import nano_checkpoint

    whole = nano_checkpoint("t2v-A14B")
    model = WanModel.from_pretrained(whole, LOW).config
    less = {name: value for name, value in read_config(whole / LOW).items() if name != field}
    assert type(model).from_dict(less, CONFIG.architecture()) == model
