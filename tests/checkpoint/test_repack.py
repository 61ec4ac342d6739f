"""Repacked checkpoints: the same videos from mapped files of half the size, whole or not at all, never stale."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_experts import write_lora
from wan import cli, media
from wan.checkpoint import repack as program, repacked
from wan.checkpoint.repacked import INDEX, freshest
from wan.checkpoint.source import open_source
from wan.choices import QUANTIZED
from wan.configs import NANO_CONFIGS
from wan.experts import load_expert
from wan.forecast import models_of, work_of
from wan.modules.model import WanModel
from wan.modules.quantised import QuantisedLinear
from wan.nano.random import write_random_checkpoint
from wan.parser import exit_code
from wan.planner import host_bytes
from wan.request import Request
from wan.runtime import Host, Offload, Runtime


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp("original") / "ckpt")
    text = next(folder.glob("models_t5*"))
    torch.save({name: weight.float() for name, weight in torch.load(text).items()}, text)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "ckpt")


def repack(folder, *flags):
    return exit_code(lambda: program.main([str(folder), *flags]), "repack")


def video(folder, path):
    words = [
        "--task",
        "t2v-A14B",
        "--ckpt_dir",
        str(folder),
        "--size",
        "64*64",
        "--frame_num",
        "5",
        "--prompt",
        "a cat",
    ]
    words += ["--sample_steps", "2", "--base_seed", "3", "--device", "cpu", "--no_metadata", "--save_file", str(path)]
    assert cli.main([*words, "--progress", "none"]) == cli.DONE
    return media.read_video(path)[0]


def test_a_repacked_checkpoint_makes_the_same_video_from_mapped_files(folder, tmp_path, caplog):
    before = video(folder, tmp_path / "a.mp4")
    assert repack(folder) == 0
    places = [folder / name / "repacked" for name in ("high_noise_model", "low_noise_model")]
    assert all((place / INDEX).is_file() for place in places) and len(list(folder.glob("*.repacked"))) == 1
    for part in (folder / "high_noise_model", next(folder.glob("models_t5*pth"))):  # the new ones alone are read
        source = open_source(freshest(part))
        assert {entry.file.parent for entry in source.entries.values()} == {repacked.place_of(part)}
    found = open_source(places[0])
    for name in found.names():
        assert found.dtype(name) == (torch.float32 if WanModel.keeps_float32(name) else torch.bfloat16)
    blocks = [name.split(".")[1] for name in found.names() if name.startswith("blocks.")]
    assert blocks == sorted(blocks, key=int) and not found.names()[0].startswith("blocks.")
    assert torch.equal(video(folder, tmp_path / "b.mp4"), before)
    assert "ignored" not in caplog.text


def test_nothing_is_converted_and_all_stays_mapped(folder, monkeypatch):
    assert repack(folder) == 0
    part = folder / "low_noise_model"
    source = open_source(freshest(part))
    copied = []
    usual = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, *a, **k: copied.append(x.dtype) if k.get("copy") else None or usual(x, *a, **k)
    )
    shutil.copy(part / "config.json", freshest(part))
    WanModel.from_pretrained(freshest(part), dtype=torch.bfloat16)
    assert not copied
    assert sum(entry.stop - entry.start for entry in source.entries.values()) < 0.8 * sum(
        entry.stop - entry.start for entry in open_source(part).entries.values()
    )


def test_a_stale_copy_is_ignored_in_one_line(folder, caplog):
    assert repack(folder) == 0
    part = folder / "low_noise_model"
    [file] = part.glob("*.safetensors")
    tensors = load_file(file)
    tensors["blocks.0.ffn.0.bias"] += 1
    save_file(tensors, file)
    assert freshest(part) == part and freshest(folder / "high_noise_model") != folder / "high_noise_model"
    assert caplog.text.count("low_noise_model/repacked is ignored: it was made of other weights") == 1
    assert repack(folder) == 0
    assert freshest(part) == part / "repacked"
    assert torch.equal(
        open_source(freshest(part)).get("blocks.0.ffn.0.bias"), tensors["blocks.0.ffn.0.bias"].bfloat16()
    )


def test_a_run_that_ended_early_goes_on_and_is_not_used(folder, monkeypatch):
    written, usual = [], repacked._write

    def write(file, *rest):
        if len(written) == 2:
            raise OSError("the disk is full")
        usual(file, *rest)
        written.append(file)

    monkeypatch.setattr(repacked, "_write", write)
    assert repack(folder) == 2
    part = folder / "high_noise_model"
    assert freshest(part) == part and len(list((part / "repacked").iterdir())) == 2
    written.clear()
    monkeypatch.setattr(repacked, "_write", lambda file, *rest: (usual(file, *rest), written.append(file)))
    assert repack(folder) == 0
    assert freshest(part) == part / "repacked"
    assert len([file for file in written if file.parent.parent == part]) == 1  # of three


def test_what_was_written_is_read_again(folder, monkeypatch, capsys):
    import safetensors.torch

    usual = safetensors.torch.save_file

    def damaged(tensors, *rest, **options):
        usual({name: tensor + 1 for name, tensor in tensors.items()}, *rest, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", damaged)
    assert repack(folder) == 2
    assert "was not written right" in capsys.readouterr().err
    assert not [file for file in (folder / "high_noise_model").rglob("*") if "repacked/" in str(file)]


def test_a_folder_without_models_is_refused(tmp_path, capsys):
    assert repack(tmp_path) == 2
    assert "has no transformer and no text encoder" in capsys.readouterr().err
    assert repack(tmp_path / "nothing") == 2


def test_a_full_disk_is_noticed_before_anything_is_written(folder, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 2000))
    assert repack(folder) == 2
    error = capsys.readouterr().err
    match = re.search(rf"{folder} has 2.0 kB left, and ([\d.]+) (kB|MB) are to be written; make room there", error)
    assert match and not [path for path in folder.rglob("*") if "repacked" in path.name]
    monkeypatch.undo()
    assert repack(folder) == 0
    written = [path for path in folder.rglob("*.safetensors") if "repacked" in str(path)]
    needed = {"kB": 1e3, "MB": 1e6}[match[2]] * float(match[1])
    assert sum(path.stat().st_size for path in written) == pytest.approx(needed, rel=0.5)
    (written[0].parent / INDEX).unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    assert repack(folder) == 0, "only the index is missing"


KINDS = pytest.mark.parametrize("kind", QUANTIZED)


def load(folder, kind, task="t2v-A14B", config=None, beside=None, **flags):
    config = config or NANO_CONFIGS[task]
    runtime = Runtime.from_flags(device="cpu", quantize=kind, **flags)
    return load_expert(folder, config, config.experts[-1], runtime, Offload.NONE, beside=beside)


def tensors_of(model):
    return dict((*model.named_parameters(), *model.named_buffers()))


def assert_same(one, other):
    one, other = tensors_of(one), tensors_of(other)
    assert list(one) == list(other)
    assert [name for name in one if not repacked.same_bits(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("task", "kind", "flags"),
    [
        *(("t2v-A14B", kind, flags) for kind in QUANTIZED for flags in ({}, {"convert_model_dtype": True})),
        *(("s2v-14B", "fp8", {}), ("animate-14B", "int8", {})),
    ],
)
def test_matrices_of_8_bits_are_those_that_are_made_at_load(tmp_path, monkeypatch, task, kind, flags):
    folder = write_random_checkpoint(tmp_path, task)
    expected = load(folder, kind, task, **flags)
    assert repack(folder, "--dtype", kind) == 0
    part = folder / NANO_CONFIGS[task].experts[-1]
    place = part / f"repacked-{kind}"
    assert freshest(part, kind) == place and freshest(part) == part
    copied, usual = [], torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, *a, **k: (k.get("copy") and copied.append(x.dtype)) or usual(x, *a, **k)
    )
    found = load(folder, kind, task, **flags)
    assert bool(copied) == bool(flags), "else all are views of the files"
    assert_same(found, expected)
    layers = [[m for m in model.modules() if isinstance(m, QuantisedLinear)] for model in (found, expected)]
    assert [layer.dtype for layer in layers[0]] == [layer.dtype for layer in layers[1]] != []


@KINDS
def test_other_runs_ignore_them(folder, kind, caplog):
    other = next(name for name in QUANTIZED if name != kind)
    before = [load(folder, other), load(folder, None), load(folder, kind, dtype="fp32")]
    assert repack(folder, "--dtype", kind) == 0
    for model, how in zip(before, ({"kind": other}, {"kind": None}, {"kind": kind, "dtype": "fp32"}), strict=True):
        assert_same(load(folder, **how), model)
    assert repack(folder) == 0, "both copies may be there"
    part = folder / "low_noise_model"
    assert freshest(part, other) == part / "repacked" and freshest(part, kind) == part / f"repacked-{kind}"
    assert_same(load(folder, other), before[0])
    assert "ignored" not in caplog.text


def test_a_lora_is_applied_to_8_bits_as_without_the_copy(folder, tmp_path):
    lora = write_lora(tmp_path / "lora.safetensors", load(folder, None, dtype="fp32"))
    config = NANO_CONFIGS["t2v-A14B"].copy(lora_checkpoint=str(tmp_path / "lora.safetensors"), uses_lora=True)
    how = [{"beside": lora}, {"config": config}]
    expected = [load(folder, "fp8", **options) for options in how]
    assert repack(folder, "--dtype", "fp8") == 0
    for model, options in zip(expected, how, strict=True):
        assert_same(load(folder, "fp8", **options), model)


@KINDS
def test_the_plan_counts_8_bits_as_mapped(folder, kind):
    """Nothing is quantised in memory, so weights may stay in their files while they stream."""
    config = NANO_CONFIGS["t2v-A14B"]
    runtime = Runtime(torch.device("cuda"), quantize=kind, offload=Offload.BLOCK, host=Host.MAPPED)
    work = work_of(config, Request.create(config, prompt="a cat"))
    before = models_of(config, folder, runtime)
    assert repack(folder, "--dtype", kind) == 0
    after = models_of(config, folder, runtime)
    weights = sum(tensor.nbytes for tensor in tensors_of(load(folder, kind)).values())
    assert after.experts == before.experts == after.stored == (weights,) * 2
    assert after.is_mapped and not before.is_mapped
    assert host_bytes(after, work, runtime)["denoise"] < host_bytes(before, work, runtime)["denoise"]


def test_8_bits_of_a_model_of_no_task_are_refused(folder, capsys):
    part = folder / "low_noise_model"
    [file] = part.glob("*.safetensors")
    tensors = load_file(file)
    tensors["vace_patch_embedding.weight"] = torch.zeros(1)
    save_file(tensors, file)
    assert repack(folder, "--dtype", "fp8") == 2
    assert "VACE" in capsys.readouterr().err
