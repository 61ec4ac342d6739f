import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint.memory import MemorySource
from wan.checkpoint.loading import save_safetensors_folder
from wan.checkpoint.source import open_source

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.arange(6, dtype=torch.bfloat16),
    "c.weight": torch.arange(10, dtype=torch.float16).reshape(5, 2),
}


class RunsCode:
    """Object whose unpickling would create the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def same(source, expected=TENSORS):
    return set(source.names()) == set(expected) and all(
        source.shape(name) == tuple(tensor.shape)
        and source.dtype(name) == tensor.dtype
        and torch.equal(source.get(name), tensor)
        for name, tensor in expected.items()
    )


@pytest.fixture
def shards(tmp_path):
    save_safetensors_folder(TENSORS, tmp_path / "model", {}, max_shard_bytes=48)
    return tmp_path / "model"


def rewrite_index(folder, change):
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_every_container_gives_the_same_tensors(tmp_path, shards):
    save_file(TENSORS, tmp_path / "one.safetensors")
    torch.save(TENSORS, tmp_path / "one.pth")
    torch.save({"state_dict": TENSORS}, tmp_path / "wrapped.ckpt")
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert len(list(shards.glob("*.safetensors"))) == 2
    for path in (shards, tmp_path / "one.safetensors", *(tmp_path / n for n in ("one.pth", "wrapped.ckpt", "old.pt"))):
        assert same(open_source(path)), path
        assert str(path) in open_source(path).description


def test_a_folder_with_one_file_needs_no_index(tmp_path):
    save_file(TENSORS, tmp_path / "any-name.safetensors")
    assert same(open_source(tmp_path))


def test_numbered_shards_are_read_without_their_index(shards):
    (shards / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert same(open_source(shards))
    next(iter(sorted(shards.glob("*.safetensors"))[1:])).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 2 .*diffusion_pytorch_model-00002-of-00002"):
        open_source(shards)


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    save_file(TENSORS, tmp_path / "one.safetensors")
    torch.save(TENSORS, tmp_path / "one.pth")
    for file in ("one.safetensors", "one.pth"):
        open_source(tmp_path / file).get("a.weight").zero_()
        assert same(open_source(tmp_path / file))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        open_source(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.safetensors"):
        open_source(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07something else")
    with pytest.raises(ValueError, match="is no weight file: neither safetensors nor"):
        open_source(tmp_path / "model.onnx")
    for name in ("x", "y"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"several checkpoints, name one: x\.safetensors, y\.safetensors"):
        open_source(tmp_path)


def test_all_missing_shards_are_named_at_once(tmp_path):
    save_safetensors_folder(TENSORS, tmp_path, {}, max_shard_bytes=1)
    for i in (1, 3):
        (tmp_path / f"diffusion_pytorch_model-0000{i}-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of 3 weight files: .*-00001-of-00003.*, .*-00003-of-00003"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "entry",
    ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.pth", 7, "x" * 999 + ".safetensors"],
)
def test_an_index_may_only_name_files_beside_it(shards, entry):
    rewrite_index(shards, lambda weight_map: weight_map.update({"a.weight": entry}))
    with pytest.raises(ValueError, match=r"places a\.weight in .* only the name of a safetensors file"):
        open_source(shards)


def test_an_index_that_is_none_is_refused(shards):
    (shards / "diffusion_pytorch_model.safetensors.index.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="not an index"):
        open_source(shards)


def test_an_index_must_agree_with_its_shards(shards):
    first = "diffusion_pytorch_model-00001-of-00002.safetensors"
    rewrite_index(shards, lambda weight_map: weight_map.update({"d.weight": first}))
    with pytest.raises(ValueError, match=r"00001-of-00002\.safetensors lacks tensors .*: d\.weight"):
        open_source(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    save_file(TENSORS, shards / "diffusion_pytorch_model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"repeats tensors .*: a\.weight"):
        open_source(shards)


def test_a_truncated_safetensors_file_names_file_and_tensor(tmp_path):
    path = tmp_path / "one.safetensors"
    save_file(TENSORS, path)
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    with pytest.raises(ValueError, match=r"one\.safetensors is truncated: tensor \w\.weight ends at byte"):
        open_source(path)
    path.write_bytes(data[:20])
    with pytest.raises(ValueError, match=r"one\.safetensors is not a complete safetensors file"):
        open_source(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty: it has 0 bytes"):
        open_source(path)


def write_header(path, header: dict, data: int = 64, length: int | None = None):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}, "shape .4. needs 16 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "needs 16 bytes from byte"),  # overlaps the second
        ({"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}, "unknown dtype F99"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "damaged safetensors header"),
        ({"dtype": "F32", "shape": [2]}, "damaged safetensors header"),
        ([], "damaged safetensors header"),
        ({"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}, "damaged safetensors header"),
        ({"dtype": "F32", "shape": [10**4000], "data_offsets": [0, 4]}, "damaged safetensors header"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "damaged safetensors header"),
        ({"dtype": "F\x1b" * 999, "shape": [1], "data_offsets": [0, 4]}, r"unknown dtype F.x1bF"),
        ({"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}, "needs 16 bytes from byte"),  # a hole behind it
    ],
)
def test_headers_are_checked(tmp_path, fields, message):
    other = {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}
    write_header(tmp_path / "x.safetensors", {"a": fields, "b": other})
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "x.safetensors")


def test_data_end_where_the_file_ends(tmp_path):
    write_header(tmp_path / "x.safetensors", {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, data=24)
    with pytest.raises(ValueError, match=r"tensors end at byte \d+, the file at \d+"):
        open_source(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "text",
    [b"{" + b"[" * 9999, b'{"\xff": 1}', b'{"a": NaN}', b'{"\\ud800": []}', b'{"__metadata__": {"a": 1}}', b"{}" * 2],
)
def test_bad_headers_are_refused_as_the_library_would_later(tmp_path, text):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match="damaged safetensors header"):
        open_source(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", "a Git-LFS pointer"),
        (b"\n<!DOCTYPE html><html><title>\x1b]0;owned</title>", "a web page"),
        (b"", "empty"),
    ],
)
def test_what_a_failed_download_left_is_named(tmp_path, shards, start, kind):
    files = [tmp_path / "x.safetensors", tmp_path / "x.pth", next(shards.glob("*.safetensors"))]
    for file in files:
        file.write_bytes(start)
        with pytest.raises(ValueError, match=f"{file.name} is {kind}"):
            open_source(shards if file.parent == shards else file)


def test_a_suffix_never_decides_over_the_content(tmp_path, shards):
    save_file(TENSORS, tmp_path / "x.pth")
    torch.save(TENSORS, tmp_path / "x.safetensors")
    assert same(open_source(tmp_path / "x.pth")) and same(open_source(tmp_path / "x.safetensors"))
    assert same(open_source(tmp_path)), "a folder with it"
    second = shards / "diffusion_pytorch_model-00002-of-00002.safetensors"
    torch.save({name: open_source(second).get(name).clone() for name in open_source(second).names()}, second)
    assert same(open_source(shards))


def test_a_count_in_a_name_does_not_make_a_message_of_megabytes(tmp_path):
    save_file(TENSORS, tmp_path / "model-00001-of-99999.safetensors")
    with pytest.raises(FileNotFoundError, match="lacks most of the 99999 files") as caught:
        open_source(tmp_path)
    assert len(str(caught.value)) < 2000


def test_a_header_cannot_ask_for_unbounded_memory(tmp_path):
    write_header(tmp_path / "x.safetensors", {}, length=2**62)
    with pytest.raises(ValueError, match="announces a header of"):
        open_source(tmp_path / "x.safetensors")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, new_format):
    victim = tmp_path / "victim"
    path = tmp_path / "bad.pth"
    torch.save({"a": torch.ones(2), "b": RunsCode(victim)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"bad\.pth is refused"):
        open_source(path)
    assert not victim.exists()


def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path):
    torch.save({"a": torch.ones(2), "step": 3}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not a plain state dict: step is no tensor"):
        open_source(tmp_path / "x.pth")
    torch.save([torch.ones(2)], tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds a list, not a dict"):
        open_source(tmp_path / "x.pth")


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01, 0.0])
def test_a_truncated_pickle_names_the_file(tmp_path, keep):
    path = tmp_path / "short.pth"
    torch.save({"a": torch.ones(5000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"short\.pth is (damaged|empty)"):
        open_source(path)


def test_a_state_dict_is_a_source():
    assert same(MemorySource(TENSORS))
    assert MemorySource(TENSORS).shapes()["c.weight"] == (5, 2)
