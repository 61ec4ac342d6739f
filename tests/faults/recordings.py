"""Faults of pictures, videos and latents, and of the requests that the last two carry."""

import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from tests.faults import damage, texts, weights
from tests.faults.base import SMALL, with_request
from tests.faults.scene import Input, Scene, draw_task, sample_flags
from wan import output


def picture(scene: Scene) -> Input:
    rng = scene.rng
    suffix = rng.choice(sorted(scene.base.pictures))
    name = "image" + (suffix if rng.random() < 0.7 else rng.choice((".png", ".jpg", ".eps", ".mp4", "", ".tif")))
    scene.replace(scene.folder / name, scene.base.pictures[suffix])
    what = scene.spoil(scene.folder / name, faulty_png if suffix.endswith("png") else damage.bytewise, special=0.4)
    task = rng.choice(("i2v-A14B", "i2v-A14B", "ti2v-5B"))
    flags = ("--last_image" if task == "i2v-A14B" and rng.random() < 0.3 else "--image", str(scene.folder / name))
    return Input(f"{suffix}: {what}", (name, "an image of"), sample_flags(task, scene.base.folder / task, *flags))


BOMB = zlib.compress(b"\0" * 50_000_000)


def faulty_png(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Change, leave out or add a chunk of a PNG, with a right checksum."""
    chunks, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    way = rng.choice(("size", "size", "chunk", "drop", "twice", "text", "profile", "exif", "pixels"))
    victim = rng.randrange(len(chunks))
    kind, content = chunks[victim]
    if way == "size":
        sides = rng.choices((0, 1, 64, 65, 5000, 13_000, 30_000, 2**31 - 1, 2**32 - 1), k=2)
        header = struct.pack(">II", *sides) + chunks[0][1][8:]
        chunks[0] = b"IHDR", header
        way = f"size {sides}"
    elif way == "chunk":
        chunks[victim] = kind, damage.bytewise(rng, content)[1]
    elif way == "drop":
        del chunks[victim]
    elif way == "twice":
        chunks.insert(victim, chunks[victim])
    elif way == "pixels":
        chunks = [(k, rng.choice((b"", zlib.compress(b"\0" * 5), BOMB)) if k == b"IDAT" else c) for k, c in chunks]
    else:
        more = {
            "text": (b"zTXt", b"a\0\0" + BOMB),
            "profile": (b"iCCP", b"a\0\0" + BOMB),
            "exif": (b"eXIf", rng.randbytes(40)),
        }
        chunks.insert(1, more[way])
    out = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return way, data[:8] + b"".join(out)


def video(scene: Scene) -> Input:
    """Damage the file of --from_video itself."""
    rng, task = scene.rng, draw_task(scene.rng)
    name = rng.choice(("v.mp4", "v.mp4", "v.mkv", "v.m3u8", "v"))
    scene.replace(scene.folder / name, scene.base.video(task).read_bytes())
    what = scene.spoil(scene.folder / name, faulty_mp4, special=0.5)
    ckpt = str(scene.base.folder / task)
    return Input(what, (name, ckpt), ("--from_video", str(scene.folder / name), "--ckpt_dir", ckpt))


def faulty_mp4(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Change the size or the type of a box, or a few bytes within it."""
    kind = rng.choice([kind for kind in BOXES if kind in data])
    at = data.index(kind)
    way = rng.choice(("size", "kind", "inside"))
    if way == "size":
        size = rng.choice((0, 1, 7, 8, 2**31, 2**32 - 1))
        return f"{kind!r} of size {size}", data[: at - 4] + size.to_bytes(4, "big") + data[at:]
    if way == "kind":
        other = rng.choice((b"free", b"moov", b"trak", b"\0\0\0\0")).ljust(len(kind))
        return f"{kind!r} is {other!r}", data.replace(kind, other, 1)
    place = at + len(kind) + rng.randrange(24)
    number = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", rng.randbytes(4)))
    return f"{kind!r} inside", data[:place] + number + data[place + 4 :]


BOXES = (
    b"ftyp", b"moov", b"mvhd", b"trak", b"mdia", b"stbl", b"stsd", b"stsz", b"stco", b"meta", b"keys", b"ilst", b"mdat",
    b"udta", b"wan_request", b"elst", b"hdlr",
)  # fmt: skip


def sound(scene: Scene) -> Input:
    """Damage a video or a sound, and join them from Python."""
    from wan.audio import add_audio

    rng = scene.rng
    films, tones = scene.folder / "v.mp4", scene.folder / "a.wav"
    scene.replace(films, scene.base.video("t2v-A14B").read_bytes())
    scene.replace(tones, scene.base.tone)
    victim = rng.choice((films, tones, tones))
    what = scene.spoil(victim, damage.bytewise, special=0.4)
    return Input(f"{victim.name}: {what}", (victim.name,), call=lambda: add_audio(films, tones), uses_up=(films.name,))


def request(scene: Scene) -> Input:
    """Edit the request that a video carries."""
    rng, task = scene.rng, draw_task(scene.rng)
    what, text = _faulty_request(rng, scene.base.request(task))
    path = scene.folder / "v.mp4"
    with_request(path, text.encode("utf-8", "backslashreplace").decode())
    more = SMALL if rng.random() < 0.3 else ()
    ckpt = str(scene.base.folder / task)
    argv = ("--from_video", str(path), "--ckpt_dir", ckpt, *more)
    return Input(what, (path.name, "made from the image x.png", ckpt), argv)


def _faulty_request(rng: Random, values: dict[str, Any]) -> tuple[str, str]:
    if rng.random() < 0.1:
        values["image"] = {"path": "x.png", "size": "64*64", "sha256": "0" * 16}
        values["task"] = rng.choice(("i2v-A14B", "ti2v-5B"))
    what, value = texts.edited(rng, values)
    odd, text = texts.dumped(rng, value)
    if rng.random() < 0.05:
        odd, text = "no JSON", rng.choice(("", "null", "[" * 100_000, '"x"', "{", "5", texts.HOSTILE))
    return f"{what} {odd}", text


def latent(scene: Scene) -> Input:
    """Damage the file of --resume: its request, its tensor, or the file itself."""
    from safetensors.torch import save

    rng, task = scene.rng, draw_task(scene.rng)
    value, text = scene.base.latent(task), json.dumps(scene.base.request(task))
    path = scene.folder / "v.latent.safetensors"
    way = rng.choice(("request", "tensor", "file"))
    what = way
    if way == "request":
        what, text = _faulty_request(rng, json.loads(text))
        text = text.encode("utf-8", "backslashreplace").decode()
    elif way == "tensor":
        name = rng.choice(sorted(LATENTS))
        what, value = name, LATENTS[name](value).contiguous()
    content = save({"latent": value}, {output.REQUEST_KEY: text})
    scene.replace(path, content)
    if way == "file":
        what = scene.spoil(path, weights.faulty_safetensors)
    ckpt = str(scene.base.folder / task)
    return Input(what, (path.name, ckpt), ("--resume", str(path), "--ckpt_dir", ckpt), uses_up=(path.name,))


LATENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda z: z.clone().fill_(float("nan")),
    "one inf": lambda z: z.index_fill(1, torch.tensor(0), float("inf")),
    "huge": lambda z: z * 1e30,
    "integers": lambda z: z.int(),
    "half": lambda z: z.half(),
    "double": lambda z: z.double(),
    "complex": lambda z: z.to(torch.complex64),
    "float8": lambda z: z.to(torch.float8_e4m3fn),
    "booleans": lambda z: z > 0,
    "zeros": torch.zeros_like,
    "flat": lambda z: z.reshape(-1),
    "batch": lambda z: z[None],
    "frames": lambda z: z.repeat(1, 3, 1, 1),
    "channels": lambda z: z[:8],
    "nothing": lambda z: z[:0],
    "scalar": lambda z: torch.tensor(1.0),
}
