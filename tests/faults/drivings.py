"""Faults of what preprocessing reads: the driving video, the picture, masks, and a folder that an earlier run left."""

import io
import json
import shutil
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults import damage
from tests.faults.recordings import faulty_mp4, faulty_png
from tests.faults.scene import Input, Scene
from wan import media, nano_checkpoint
from wan.modules.animate.preprocess import preprocess_data
from wan.nano import puppets
from wan.nano.puppet_videos import Drawn, render
from wan.performance import Performance

NETWORKS = nano_checkpoint("animate-14B") / "process_checkpoint"
SIDE, COUNT, RATE = 192, 6, 25
# Suffix of a film -> the container, the codec, and the form of its pixels
FILMS = {
    ".mp4": ("mp4", "libx264", "yuv420p"), ".mkv": ("matroska", "libx264", "yuv420p"),
    ".mov": ("mov", "mjpeg", "yuvj420p"),
    ".webm": ("webm", "libvpx-vp9", "yuv420p"), ".ffv1.mkv": ("matroska", "ffv1", "yuv444p"),
    ".avi": ("avi", "mpeg4", "yuv420p"), ".10.mp4": ("mp4", "libx265", "yuv420p10le"),
}  # fmt: skip
OPTIONS = {
    "libx264": {"bf": "0", "preset": "superfast"},
    "libx265": {"bf": "0", "preset": "superfast", "x265-params": "log-level=none"},
}
SOURCES = ("d.mp4", "p.png", "m.mp4", "frames that were tried", "no joint of the person", "out")


def driving(scene: Scene) -> Input:
    """Spoil one of the files of preprocessing, in animation or in replacement."""
    rng = scene.rng
    replaces = rng.random() < 0.3
    film, picture, masks, out = (scene.folder / name for name in ("d.mp4", "p.png", "m.mp4", "out"))
    suffix = rng.choice(sorted(films()))
    for path, content in ((film, films()[suffix]), (picture, figure()), (masks, white())):
        scene.replace(path, content)
    way = rng.choice(sorted(WAYS))
    what = WAYS[way](scene, film, picture, masks, out)
    flags = ["--replace_flag", "--masks", str(masks)] if replaces or way == "masks" else []
    argv = [
        "--ckpt_path",
        str(NETWORKS),
        "--video_path",
        str(film),
        "--refer_path",
        str(picture),
        "--save_path",
        str(out),
    ]
    argv += ["--resolution_area", "64", "64", "--fps", "-1", *flags]
    return Input(
        f"{way} {suffix}: {what}",
        SOURCES,
        call=lambda: prepared(argv, out, bool(flags)),
        uses_up=("out",),
        keeps=("out/keypoints",),
    )


def prepared(argv: list[str], out: Path, replaces: bool) -> None:
    """Run the command of preprocessing, and look at all that it wrote. Raises ValueError and OSError as it does."""
    preprocess_data.main(argv)
    try:
        made = Performance.of(out)
        made.check(replaces, False)
        assert json.loads((out / "meta.json").read_text())["versions"].keys() >= {"wan", "onnxruntime"}
        for path in out.glob("*.mp4"):
            assert len(media.read_video(path)[0]) == made.frames, path.name
        assert not list(out.glob(".*"))
    except (ValueError, OSError) as error:
        raise AssertionError(f"what was written is not sound: {error}") from error


# ---------------------------------------------------------------- sound files


@cache
def drawn() -> Drawn:
    """Draw a grey puppet with coloured joints that moves."""
    rng = np.random.default_rng(4)
    return render(puppets.sample_puppet(rng, True), puppets.sample_motion(rng, COUNT), size=SIDE, markers=0.022)


@cache
def films() -> dict[str, bytes]:
    """Write its video in each format that this FFmpeg writes; one has a sound."""
    found = {}
    for suffix, kind in FILMS.items():
        try:
            found[suffix] = recorded(*kind, drawn().video)
        except (ValueError, OSError):  # a codec that is not built in
            continue
    return found


@cache
def white() -> bytes:
    """Write a video of its masks."""
    frames = np.repeat(drawn().mask[..., None], 3, axis=-1).astype(np.uint8) * 255
    return recorded("mp4", "libx264", "yuv420p", frames)


@cache
def figure() -> bytes:
    rng, out = np.random.default_rng(5), io.BytesIO()
    Image.fromarray(render(puppets.sample_puppet(rng), puppets.rest(rng), size=128).video[0]).save(out, "PNG")
    return out.getvalue()


def recorded(container: str, codec: str, form: str, frames: Iterable[np.ndarray]) -> bytes:
    """Encode frames, uint8 [H, W, 3]; each change of their size begins a new encoder in the same track."""
    import av

    out, track, encoder, size, number = io.BytesIO(), None, None, None, 0
    with av.open(out, "w", format=container) as file:

        def mux(packets: Iterable) -> None:
            for packet in packets:
                packet.stream = track
                file.mux(packet)

        for frame in frames:
            if frame.shape[1::-1] != size:
                if encoder is not None:
                    mux(encoder.encode(None))
                size = frame.shape[1::-1]
                if track is None:
                    track = encoder = file.add_stream(codec, rate=RATE)
                else:
                    encoder = av.CodecContext.create(codec, "w")
                    encoder.time_base, encoder.framerate = Fraction(1, RATE), RATE
                encoder.width, encoder.height, encoder.pix_fmt = *size, form
                encoder.options = OPTIONS.get(codec, {})
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, RATE)
            mux(encoder.encode(picture))
            number += 1
        if encoder is None:
            stream = file.add_stream(codec, rate=RATE)
            stream.width, stream.height, stream.pix_fmt, stream.options = 64, 64, form, OPTIONS.get(codec, {})
            file.start_encoding()
        else:
            mux(encoder.encode(None))
    return out.getvalue()


# ---------------------------------------------------------------- faults


def spoilt_film(scene: Scene, film: Path, picture: Path, masks: Path, out: Path) -> str:
    return scene.spoil(film, faulty_mp4 if b"ftyp" in film.read_bytes()[:12] else damage.bytewise, special=0.5)


def cut_film(scene: Scene, film: Path, picture: Path, masks: Path, out: Path) -> str:
    data = film.read_bytes()
    at = scene.rng.randrange(len(data))
    scene.replace(film, data[:at])
    return f"at {at}"


def other_sizes(scene: Scene, film: Path, picture: Path, masks: Path, out: Path) -> str:
    """Change the size, or a codec that cannot, in the middle of the video."""
    kind = scene.rng.choice(sorted(films()))
    other = scene.rng.choice(((64, 96), (16, 16), (SIDE * 2, SIDE), (SIDE, SIDE)))
    at = scene.rng.randrange(1, COUNT)
    frames = [np.resize(frame, (*other, 3)) if number >= at else frame for number, frame in enumerate(drawn().video)]
    try:
        scene.replace(film, recorded(*FILMS[kind], frames))
    except (ValueError, OSError):
        return f"{kind} cannot"
    return f"{kind} {other} from {at}"


def no_frames(scene: Scene, film: Path, picture: Path, masks: Path, out: Path) -> str:
    kind = scene.rng.choice(sorted(films()))
    try:
        scene.replace(film, recorded(*FILMS[kind], []))
    except (ValueError, OSError):
        scene.replace(film, b"")
    return kind


def huge(scene: Scene, film: Path, picture: Path, masks: Path, out: Path) -> str:
    """Show one frame that decodes to hundreds of megabytes; its file is small."""
    size = scene.rng.choice(((16_000, 16_000), (6_000, 6_000), (6_000, 4_000), (1, 30_000), (30_000, 2)))
    told = size if scene.rng.random() < 0.5 else (64, 64)
    scene.replace(film, stored(size, told))
    return f"{size}, told {told}"


@cache
def stored(size: tuple[int, int], told: tuple[int, int]) -> bytes:
    """Store a black PNG as each of two frames of a film whose header tells a size."""
    import av

    packet, out = io.BytesIO(), io.BytesIO()
    Image.new("L", size).save(packet, "PNG")
    with av.open(out, "w", format="mov") as file:
        stream = file.add_stream("png", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *told, "gray"
        file.start_encoding()
        for number in range(2):
            data = av.Packet(packet.getvalue())
            data.stream, data.pts, data.dts, data.time_base, data.is_keyframe = (
                stream,
                number,
                number,
                Fraction(1, RATE),
                True,
            )
            file.mux(data)
    return out.getvalue()


def spoilt_picture(scene: Scene, film: Path, picture: Path, masks: Path, out: Path) -> str:
    return scene.spoil(picture, faulty_png, special=0.4)


def spoilt_masks(scene: Scene, film: Path, picture: Path, masks: Path, out: Path) -> str:
    return scene.spoil(masks, faulty_mp4, special=0.5)


def leftovers(scene: Scene, film: Path, picture: Path, masks: Path, out: Path) -> str:
    """Spoil or remove a file of the folder that an earlier run with the same inputs wrote."""
    out.mkdir()
    for path in finished().iterdir():
        shutil.copy(path, out)
    for path, name in ((film, "d.mp4"), (picture, "p.png")):
        scene.replace(path, (finished().parent / name).read_bytes())
    victim = scene.rng.choice(sorted(out.iterdir()))
    return f"{victim.name} {scene.spoil(victim, damage.bytewise, special=0.3)}"


@cache
def finished() -> Path:
    """Write a folder, once in a process; it is removed at the end."""
    import tempfile

    _KEPT.append(folder := tempfile.TemporaryDirectory(prefix="faults-"))
    root = Path(folder.name)
    (root / "d.mp4").write_bytes(films()[".mp4"])
    (root / "p.png").write_bytes(figure())
    inputs = [
        "--video_path",
        str(root / "d.mp4"),
        "--refer_path",
        str(root / "p.png"),
        "--save_path",
        str(root / "out"),
    ]
    preprocess_data.main(["--ckpt_path", str(NETWORKS), *inputs, "--resolution_area", "64", "64", "--fps", "-1"])
    return root / "out"


_KEPT: list = []
WAYS: dict[str, Callable[[Scene, Path, Path, Path, Path], str]] = {
    "film": spoilt_film,
    "cut": cut_film,
    "sizes": other_sizes,
    "no frames": no_frames,
    "huge": huge,
    "picture": spoilt_picture,
    "masks": spoilt_masks,
    "leftovers": leftovers,
}
