"""Faults of weight files: safetensors with wrong headers, archives and pickles of torch.save with foreign content."""

import io
import json
import math
import os
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.faults.texts import HOSTILE, dumped, edited

State = dict[str, Tensor]
SIZES = (0, 1, 2, 3, 7, 10**4, 10**9, 2**31, 2**62, 2**63 - 1, 2**64)


# ---------------------------------------------------------------- safetensors


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a safetensors file into header and tensors."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: str | bytes, tensors: bytes, length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


def faulty_safetensors(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Make one thing of a safetensors file wrong, or at least unusual."""
    header, tensors = split(data)
    names = [name for name in header if name != "__metadata__"]
    change = rng.choice(HEADER_CHANGES)
    if change is None:
        what, header = edited(rng, header)
        odd, text = dumped(rng, header)
        return f"header: {what} {odd}", join(text, tensors)
    tensors = change(rng, header, names, tensors) or tensors
    return change.__name__.strip("_"), join(json.dumps(header), tensors)


def faulty_length(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Announce another length of the header."""
    header, tensors = split(data)
    text = json.dumps(header)
    length = rng.choice(
        (0, 1, 2, len(text) - 1, len(text) + 1, len(text) + len(tensors), 10**8, 2**32, 2**63, 2**64 - 1)
    )
    return f"length {length}", join(text, tensors, length)


def _dtype(rng: Random, header: Any, names: list[str], tensors: bytes) -> None:
    kinds = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I32", "U8", "BOOL", "C64", "f32", "", "F4", "U64")
    header[rng.choice(names)]["dtype"] = rng.choice(kinds)


def _all_dtypes(rng: Random, header: Any, names: list[str], tensors: bytes) -> bytes:
    """Give all tensors another type, with data of the right size."""
    kind, size = rng.choice((("I32", 4), ("F16", 2), ("BF16", 2), ("F8_E4M3", 1), ("I8", 1), ("F64", 8), ("BOOL", 1)))
    end = 0
    for name in names:
        start, end = end, end + size * math.prod(header[name]["shape"])
        header[name] |= {"dtype": kind, "data_offsets": [start, end]}
    return b"\0" * end


def _shape(rng: Random, header: Any, names: list[str], tensors: bytes) -> None:
    shape = header[rng.choice(names)]["shape"]
    rng.choice(
        (
            lambda: shape.reverse(),
            lambda: shape.append(1),
            lambda: shape.insert(0, rng.choice(SIZES)),
            lambda: shape.clear(),
            lambda: shape.__setitem__(slice(0, 1), [rng.choice(SIZES)]),
            lambda: shape.extend([1] * 70),
            lambda: shape.__setitem__(slice(None), [2**32, 2**32, 0]),
        )
    )()


def _offsets(rng: Random, header: Any, names: list[str], tensors: bytes) -> None:
    entry, other = header[rng.choice(names)], header[rng.choice(names)]
    start, end = entry["data_offsets"]
    values = (
        [0, 0],
        [end, start],
        [start + 1, end + 1],
        [start, end + 8],
        [-1, end],
        [2**62, 2**63],
        [start],
        [0, 2**64],
    )
    entry["data_offsets"] = rng.choice((*values, other["data_offsets"]))


def _rename(rng: Random, header: Any, names: list[str], tensors: bytes) -> None:
    name = rng.choice(names)
    number = rng.choice(("1000000000", "-1", "00", "1e3", "٣", "9" * 5000))
    others = (
        HOSTILE, "", "__metadata", name + ".lora_A.weight", name + "_scale", name.upper(), "a" * 60_000, "\ud800",
        f"blocks.{number}.norm1.weight", f"blocks.{number}.self_attn.q.weight", "scaled_fp8", name + " ",
        "model.diffusion_model." + name,
    )  # fmt: skip
    new = rng.choice(others)
    header[new] = header[name] if rng.random() < 0.3 else header.pop(name)


def _prefix(rng: Random, header: Any, names: list[str], tensors: bytes) -> None:
    """Rename every tensor as another program would."""
    before = rng.choice(("model.diffusion_model.", "diffusion_model.", "module.", "pipe.dit.", "_orig_mod.", "model."))
    for name in names:
        header[before + name] = header.pop(name)


def _drop(rng: Random, header: Any, names: list[str], tensors: bytes) -> None:
    for name in rng.sample(names, min(len(names), rng.choice((1, 2, len(names))))):
        del header[name]


def _metadata(rng: Random, header: Any, names: list[str], tensors: bytes) -> None:
    header["__metadata__"] = rng.choice(
        (None, [], 5, {"a": 1}, {"a": HOSTILE}, {"format": "tf"}, {"a": "b" * 10**6}, {})
    )


def _more(rng: Random, header: Any, names: list[str], tensors: bytes) -> bytes:
    """Add a tensor that is sound by itself."""
    name = rng.choice(("blocks.1000000000.norm1.weight", "x.lora_down.weight", HOSTILE, "blocks.2.norm3.bias", "y"))
    header[name] = {"dtype": "F32", "shape": [2], "data_offsets": [len(tensors), len(tensors) + 8]}
    return tensors + b"\0" * 8


def _alike(rng: Random, header: Any, names: list[str], tensors: bytes) -> None:
    """Add ten thousand empty entries."""
    header.update({f"x.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10_000)})


def _values(rng: Random, header: Any, names: list[str], tensors: bytes) -> bytes:
    """Put numbers that no training gives into one tensor or all."""
    value = struct.pack("<f", rng.choice((math.nan, math.inf, -3e38, 1e30, 0.0)))
    start, end = header[rng.choice(names)]["data_offsets"] if rng.random() < 0.7 else (0, len(tensors))
    count = 4 * rng.choice((1, (end - start) // 4))
    return tensors[:start] + value * (count // 4) + tensors[start + count :]


HEADER_CHANGES: tuple[Callable[..., bytes | None] | None, ...] = (
    None, None, None, _dtype, _all_dtypes, _shape, _shape, _offsets, _offsets, _rename, _rename, _prefix, _drop,
    _metadata, _more, _alike, _values,
)  # fmt: skip


# ---------------------------------------------------------------- torch.save


class Calls:
    """Object that a pickle stores as a call."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def payload(rng: Random, canary: Path) -> Calls:
    """Make an object whose unpickling leaves a trace beside the canary, or takes all memory."""
    trace = f"{canary}.ran"
    return rng.choice(
        (
            Calls(open, trace, "w"),
            Calls(os.system, f"touch {trace}"),
            Calls(eval, f"open({trace!r}, 'w')"),
            Calls(exec, f"open({trace!r}, 'w')"),
            Calls(subprocess.Popen, ["touch", trace]),
            Calls(os.mkdir, trace),
            Calls(__import__, "this"),
            Calls(bytearray, 10**11),
            Calls(torch.zeros, 10**10),
            Calls(torch.load, trace),
            Calls(getattr, Calls(__import__, "os"), "system"),
        )
    )


def faulty_state(rng: Random, state: State, canary: Path) -> tuple[str, Any]:
    """Put objects into a .pth that it should not hold, instead of its tensors or among them."""
    name = rng.choice(sorted(STATES))
    return name, STATES[name](rng, dict(state), canary)


def _with(**more: Callable[[Random], Any]) -> Callable[..., Any]:
    return lambda rng, state, canary: state | {name: make(rng) for name, make in more.items()}


def _changed(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """Replace one tensor by `change` of it."""

    def make(rng: Random, state: State, canary: Path) -> State:
        name = rng.choice(list(state))
        return state | {name: change(state[name])}

    return make


def _renamed(change: Callable[[str], Any]) -> Callable[..., Any]:
    return lambda rng, state, canary: {change(name): tensor for name, tensor in state.items()}


def _cycle(rng: Random, state: State, canary: Path) -> Any:
    state["state_dict"] = state
    return state if rng.random() < 0.5 else {"state_dict": state}


def _deep(rng: Random, state: State, canary: Path) -> Any:
    value: Any = state
    for _ in range(rng.choice((1, 2, 3, 400))):
        value = {"state_dict": value}
    return value


def _one_missing(rng: Random, state: State, canary: Path) -> State:
    state.pop(rng.choice(list(state)))
    return state


STATES: dict[str, Callable[[Random, State, Path], Any]] = {
    "payload": lambda rng, state, canary: state | {"x": payload(rng, canary)},
    "payload in front": lambda rng, state, canary: {"x": payload(rng, canary), **state},
    "payload alone": lambda rng, state, canary: payload(rng, canary),
    "payload as key": lambda rng, state, canary: {(payload(rng, canary),): 1, **state},
    "text": _with(x=lambda rng: HOSTILE),
    "none": _with(x=lambda rng: None),
    "numbers": lambda rng, state, canary: dict(enumerate(state.values())),
    "list": lambda rng, state, canary: list(state.items()),
    "one tensor": lambda rng, state, canary: next(iter(state.values())),
    "nothing": lambda rng, state, canary: rng.choice((None, {}, 5, "x", OrderedDict(), {"state_dict": {}})),
    "cycle": _cycle,
    "deep": _deep,
    "optimizer": lambda rng, state, canary: {"model": state, "optimizer": {"lr": 1e-4}, "step": 5},
    "block number": _with(**{"blocks.1000000000.norm1.weight": lambda rng: torch.zeros(1)}),
    "hostile name": _with(**{HOSTILE: lambda rng: torch.zeros(1)}),
    "long name": _with(**{"a" * 10**6: lambda rng: torch.zeros(1)}),
    "prefix": _renamed(lambda name: f"module.{name}"),
    "model prefix": _renamed(lambda name: f"model.{name}"),
    "surrogates": _renamed(lambda name: name + "\ud800"),
    "one missing": _one_missing,
    "expanded": _changed(lambda tensor: torch.zeros(1).expand(10**9, 96)),
    "expanded alike": _changed(lambda tensor: torch.zeros(1).expand(tensor.shape)),
    "meta": _changed(lambda tensor: torch.empty(tensor.shape, device="meta")),
    "sparse": _changed(lambda tensor: tensor.reshape(tensor.shape[0], -1).to_sparse()),
    "complex": _changed(lambda tensor: tensor.to(torch.complex64)),
    "conjugate": _changed(lambda tensor: tensor.to(torch.complex64).conj()),
    "integers": _changed(lambda tensor: tensor.int()),
    "booleans": _changed(lambda tensor: tensor.bool()),
    "float8": _changed(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "double": _changed(lambda tensor: tensor.double()),
    "half": _changed(lambda tensor: tensor.half()),
    "quantized": _changed(lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)),
    "parameter": _changed(lambda tensor: torch.nn.Parameter(tensor)),
    "transposed": _changed(lambda tensor: tensor.T.contiguous() if tensor.ndim == 2 else tensor[None]),
    "strided": _changed(lambda tensor: tensor.transpose(0, -1).contiguous().transpose(0, -1)),
    "scalar": _changed(lambda tensor: torch.tensor(1.0)),
    "empty": _changed(lambda tensor: tensor[:0]),
    "huge": _changed(lambda tensor: torch.empty(0).as_strided((0, 10**9), (1, 1))),
    "not a number": _changed(lambda tensor: torch.full_like(tensor, math.nan)),
    "zeros": _changed(torch.zeros_like),
}


def saved(rng: Random, value: Any) -> tuple[str, bytes]:
    """Save with torch.save, in its current or its old format and any protocol of pickle; return the bytes."""
    is_old, protocol = rng.random() < 0.3, rng.choice((2, 2, 2, 3, 4, 5))
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=not is_old, pickle_protocol=protocol)
    return f"{'old format' if is_old else 'archive'}, protocol {protocol}", out.getvalue()


def faulty_archive(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Change records of an archive of torch.save, with new checksums."""
    out = io.BytesIO()
    done = []
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        records = [(record.filename, old.read(record)) for record in old.infolist()]
    what = rng.choice(
        ("pickle", "pickle", "pickle", "record", "drop", "rename", "twice", "deflate", "order", "comment", "old")
    )
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if what == "deflate" else zipfile.ZIP_STORED) as new:
        victim = rng.randrange(len(records))
        if what == "pickle":
            victim = next(i for i, (name, _) in enumerate(records) if name.endswith("data.pkl"))
            change, content = faulty_pickle(rng, records[victim][1])
            records[victim] = records[victim][0], content
            done.append(change)
        elif what == "record":
            content = records[victim][1]
            records[victim] = (
                records[victim][0],
                rng.choice((content[:-4], content + b"\0\0\0\0", b"", b"big", b"99999\n")),
            )
        elif what == "drop":
            del records[victim]
        elif what == "rename":
            new_name = rng.choice(
                ("../../x", "/etc/x", HOSTILE, "archive/data.pkl", "x/data.pkl", "archive/data/-1", " ")
            )
            records[victim] = new_name, records[victim][1]
        elif what == "twice":
            records.append(rng.choice(records))
        elif what == "order":
            rng.shuffle(records)
        elif what == "comment":
            new.comment = b"PK\x05\x06" + b"\0" * rng.choice((18, 200))
        elif what == "old":
            records = [(name.replace("data.pkl", "constants.pkl"), content) for name, content in records]
        for name, content in records:
            new.writestr(name, content)
    return " ".join(["archive", what, *done]), out.getvalue()


OPCODES = (
    b"c__builtin__\neval\n", b"cbuiltins\ngetattr\n", b"cposix\nsystem\n", b"ctorch.hub\nload\n", b"\x93", b"\x82\x01",
    b"\x83\x01\x01", b"\x84\x01\0\0\0", b"R", b"b", b"\x81", b"o", b"i__main__\nx\n", b"h\xff", b"j\xff\xff\xff\xff",
    b"r\xff\xff\xff\xff", b"0", b"1", b"2", b"(", b"t", b"e", b"u", b"s", b".", b"N", b"K\xff", b"Q", b"Pnowhere\n",
    b"\x8a\xff" + b"\xff" * 255, b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 8,
    b"B\xff\xff\xff\x7f", b"\x96" + b"\xff" * 8, b"I" + b"9" * 5000 + b"\n", b"L1L\n", b"F1e400\n", b"V\\ud800\n",
    b"]" * 2000, b"(" * 100_000, b"}" * 10, b"\x80\x05", b"\x80\xff", b"\x95" + b"\xff" * 8, b"\x97", b"\x98", b"\x94",
    b"\x85", b"\x87", b"J\xff\xff\xff\x7f", b"X\x05\0\0\0torchR", b"ctorch.serialization\nload\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
)  # fmt: skip


def faulty_pickle(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Add an opcode to a pickle, change a number or a name, or cut it off."""
    at = rng.randrange(2, len(data))
    what = rng.choice(("opcode", "opcode", "in front", "number", "name", "cut", "byte", "alone"))
    opcode = rng.choice(OPCODES)
    if what == "opcode":
        return f"{opcode[:12]!r} at {at}", data[:at] + opcode + data[at:]
    if what == "in front":
        return f"{opcode[:12]!r} in front", data[:2] + opcode + data[2:]
    if what == "alone":
        return f"{opcode[:12]!r} alone", b"\x80\x02" + opcode + b"."
    if what == "number":  # K is one byte, M two, J four: sizes, strides, offsets
        places = [i for i, byte in enumerate(data[:-4]) if byte in b"KMJ"] or [at]
        place = rng.choice(places)
        return f"number at {place}", data[: place + 1] + rng.randbytes(1) + data[place + 2 :]
    if what == "name":
        old = rng.choice(
            (b"FloatStorage", b"_rebuild_tensor_v2", b"OrderedDict", b"torch", b"collections", b"weight", b"cpu")
        )
        new = rng.choice(
            (b"system", b"IntStorage", b"HalfStorage", b"os", b"_rebuild_parameter", b"bias", b"meta", b"cuda")
        )
        return f"{old!r} is {new!r}", data.replace(old, new, rng.choice((1, -1)))
    if what == "cut":
        return f"cut at {at}", data[:at]
    return f"byte at {at}", data[:at] + rng.randbytes(1) + data[at + 1 :]
