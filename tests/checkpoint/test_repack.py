"""Repacked checkpoints: the same videos from mapped files of half the size, whole or not at all, never stale."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from wan import cli, media
from wan.checkpoint import repack as program, repacked
from wan.checkpoint.repacked import INDEX, freshest
from wan.checkpoint.source import open_source
from wan.modules.model import WanModel
from wan.nano.random import write_random_checkpoint
from wan.parser import exit_code


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp("original") / "ckpt")
    text = next(folder.glob("models_t5*"))
    torch.save({name: weight.float() for name, weight in torch.load(text).items()}, text)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "ckpt")


def repack(folder):
    return exit_code(lambda: program.main([str(folder)]), "repack")


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
