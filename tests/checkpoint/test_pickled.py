"""Files of torch.save: only tensors are read, and every fault is one ValueError that names the file."""

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from wan.checkpoint.source import open_source

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.weight": torch.arange(600_000, dtype=torch.bfloat16)}


def refusal(path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        open_source(path, **options)
    message = str(caught.value)
    assert str(path) in message and len(message) < 1000 and message.isprintable()
    assert "weights_only" not in message, "torch's advice is to switch safety off"
    return message


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


def rezipped(path, change, compression=zipfile.ZIP_STORED):
    """Write the archive again with `change(name, data)` of each record and new checksums."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    return path


def with_pickle(path, data: bytes):
    return rezipped(saved(path, TENSORS), lambda name, old: data if name.endswith("data.pkl") else old)


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda victim: Calls(open, str(victim), "w"), "open"),
        (lambda victim: Calls(bytearray, 10**11), "bytearray"),
        (lambda victim: torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
        (lambda victim: torch.empty(10**12, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (lambda victim: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "_rebuild_qtensor"),
    ],
)
def test_anything_but_plain_tensors_is_refused_by_name(tmp_path, make, named, old_format):
    value = {**TENSORS, "x": make(tmp_path / "victim")}
    message = refusal(saved(tmp_path / "x.pth", value, _use_new_zipfile_serialization=not old_format))
    assert "refused: it holds more than tensors" in message and named in message
    assert not (tmp_path / "victim").exists()


def cycle() -> dict:
    state = {}
    state["state_dict"] = state
    return state


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (cycle(), "state_dict is no tensor"),
        ({3: torch.ones(2)}, "3 is a int, not the name of a tensor"),
        ({("a", "b"): torch.ones(2)}, "is a tuple, not the name"),
        ({"a": torch.ones(1).expand(10**9, 96)}, "a repeats its data: shape [1000000000, 96], strides (0, 0)"),
        ({"a": torch.arange(10.0).unfold(0, 5, 1)}, "a repeats its data: shape [6, 5], strides (1, 1)"),
        ({"\x1b[31m" + "n" * 300: 3}, r"\x1b[31mn"),
        ({f"n{i}": i for i in range(1000)}, "and 992 more"),
        ([torch.ones(2)], "holds a list, not a dict"),
        ({"state_dict": {"state_dict": TENSORS}}, "state_dict is no tensor"),
    ],
)
def test_a_dict_of_something_else_is_refused(tmp_path, value, reason):
    assert reason in refusal(saved(tmp_path / "x.pth", value))


def test_views_parameters_and_odd_attributes_are_plain_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(a=base.T, b=torch.nn.Parameter(base), c=base[1:, 1:], d=torch.ones(0, 5), e=torch.tensor(3.0))
    state.keys = "shadowed"  # ends up in the file, as the _metadata of a state dict does
    source = open_source(saved(tmp_path / "x.pth", state))
    assert all(torch.equal(source.get(name), value) for name, value in OrderedDict.items(state))
    assert type(source.get("b")) is torch.Tensor


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02h\x77.",  # a memo that does not exist
        b"\x80\x02}X\x04\x00",  # cut inside a name
        b"\x80\x02.",  # nothing on the stack
        b"\x80\x02cno newline",
        b"\x80\x02}]s.",
        b"\x80\x02\x8a\xff1.",
        b"\x80\x02Qq\x00.",
        b"\x80\x02}(K\x01K\x02u." + b"(" * 5000,
        pickle.dumps({"a": 1}, protocol=4),
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\xff" * 100,
        b"\x80\x02" + b"]" * 1_000_001 + b".",
    ],
)
def test_a_damaged_pickle_is_refused(tmp_path, data):
    refusal(with_pickle(tmp_path / "x.pth", data))
    (tmp_path / "old.pth").write_bytes(data)
    refusal(tmp_path / "old.pth")


def test_an_archive_must_be_as_torch_writes_it(tmp_path):
    path = tmp_path / "x.pth"
    assert "is compressed" in refusal(rezipped(saved(path, TENSORS), lambda name, data: data, zipfile.ZIP_DEFLATED))
    assert "does not end" in refusal(_appended(saved(path, TENSORS), bytes(8)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/readme", "no pickle")
    refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x/data.pkl", "y/data.pkl"):
            archive.writestr(name, pickle.dumps({}, protocol=2))
    refusal(path)


def _appended(path, data: bytes):
    path.write_bytes(path.read_bytes() + data)
    return path


def test_checksums_find_flipped_bytes(tmp_path):
    """Checksums of small records are always compared, as they cost nothing; those of large ones on demand."""
    path = saved(tmp_path / "x.pth", TENSORS)
    whole = path.read_bytes()
    small, large = whole.index(TENSORS["a.weight"].numpy().tobytes()), len(whole) // 2
    assert open_source(path, checksums=True).names() == list(TENSORS)
    path.write_bytes(whole[:small] + b"\xff" + whole[small + 1 :])
    assert "Bad CRC-32" in refusal(path)
    path.write_bytes(whole[:large] + bytes([whole[large] ^ 1]) + whole[large + 1 :])
    open_source(path)
    assert "Bad CRC-32" in refusal(path, checksums=True)


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "x.pth", TENSORS)
    finally:
        torch.serialization.set_crc32_options(True)
    assert open_source(path, checksums=True).names() == list(TENSORS)


def test_what_a_trainer_stores_beside_the_state_dict_is_ignored(tmp_path):
    more = {"epoch": 3, "hparams": {"rank": [4, 4.0, None]}, "optimizer": {"0": torch.ones(2)}}
    source = open_source(saved(tmp_path / "x.ckpt", {**more, "state_dict": TENSORS}))
    assert source.names() == list(TENSORS) and torch.equal(source.get("a.weight"), TENSORS["a.weight"])


def test_entries_below_a_name_are_read_whatever_the_others_are(tmp_path):
    path = saved(tmp_path / "x.pth", {**TENSORS, "b.more": torch.ones(1), "c": "text", 4: []})
    source = open_source(path, below="b.")
    assert source.names() == ["b.weight", "b.more"] and torch.equal(source.get("b.weight"), TENSORS["b.weight"])
    assert "is not a plain state dict" in refusal(path)


def test_imports_of_entries_that_are_not_read_are_refused_as_well(tmp_path):
    value = {"state_dict": TENSORS, "callback": Calls(open, str(tmp_path / "victim"), "w")}
    assert "refused: it holds more than tensors" in refusal(saved(tmp_path / "x.ckpt", value), below="a.")
    assert not (tmp_path / "victim").exists()
