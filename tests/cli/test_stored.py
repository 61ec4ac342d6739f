"""Wrong requests in videos and latents: each is refused in one line before anything is loaded or sampled."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from wan import cli, media, output, planning
from wan.configs import get_config
from wan.images import read_image
from wan.nano.random import write_random_checkpoint
from wan.request import Request


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("nano"))


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, checkpoint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: checkpoint)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(cli, "run", lambda job: pytest.fail("nothing may run"))


VALUES = Request.create(get_config("t2v-A14B", "nano"), prompt="a red circle", seed=1).to_dict()
STORED = {
    "frame_num": {"frame_num": "17"},
    "frames": {"frame_num": 16},
    "negative": {"negative_prompt": 5},
    "prompt": {"prompt": ["x"]},
    "steps": {"steps": 2.5},
    "fps": {"fps": 10**12},
    "task": {"task": ["t2v-A14B"]},
    "unknown": {"task": "\x1b[2J\x1b]0;pwned\x07" * 1000},
    "path": {"task": "i2v-A14B", "image": {"path": ["x"], "size": "64*64", "sha256": "0"}},
    "image": {"task": "i2v-A14B", "image": "a.png"},
    "dtype": {"dtype": ["bf16"]},
    "dtype name": {"dtype": "int4"},
    "long dtype": {"dtype": "bf16" * 5000},
    "hostile dtype": {"dtype": "\x1b[31m"},
    "checkpoint": {"checkpoint": {}},
    "saved": {"saved": "999999*999999"},
    "seed": {"seed": 2**64},
    "guidance": {"guidance": [True, 1]},
}
TEXTS = {name: json.dumps(VALUES | change) for name, change in STORED.items()} | {
    "nested": "[" * 100_000,
    "nested value": json.dumps(VALUES)[:-1] + ', "later": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nan": json.dumps(VALUES | {"shift": float("nan")}),
    "infinite": json.dumps(VALUES).replace('"shift": 3.0', '"shift": 1e999'),
    "digits": json.dumps(VALUES).replace('"steps": 20', '"steps": ' + "9" * 5000),
    "list": "[]",
    "number": "5",
    "nothing": "",
}


@pytest.mark.parametrize("kept", ["a.clips/00000.safetensors", "a.latent.safetensors"])
def test_what_is_kept_of_a_missing_video_is_named(kept, capsys):
    Path(kept).parent.mkdir(exist_ok=True)
    Path(kept).touch()
    Path("b.mp4").touch()
    assert cli.main(["--resume", "a.mp4"]) == cli.WRONG
    place = kept.partition("/")[0]
    assert f"no file a.mp4; what was sampled of it is kept in {place}: --resume {place}" in capsys.readouterr().err


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("flag", ["--from_video", "--resume"])
def test_a_bad_stored_request_is_one_line(flag, name, capsys):
    if flag == "--resume":
        save_file({"latent": torch.zeros(16, 5, 8, 8)}, "a.latent.safetensors", {output.REQUEST_KEY: TEXTS[name]})
    else:
        media.write_video(np.zeros((1, 16, 16, 3), np.uint8), "a.mp4", 8, {output.REQUEST_KEY: TEXTS[name]})
    file = "a.latent.safetensors" if flag == "--resume" else "a.mp4"
    before = sorted(path.name for path in planning.Path().iterdir())
    assert cli.main([flag, file, "--device", "cpu"]) == cli.WRONG
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("generate.py: error: ") or "error: " in error
    assert len(error) < 1000 and error.isprintable()
    assert sorted(path.name for path in planning.Path().iterdir()) == before


@pytest.mark.parametrize("fps", ["0", "-1", "1000000", "1000000000000", "nan", ""])
def test_rates_that_no_file_plays_are_refused(fps, capsys):
    assert cli.main(["--prompt", "a red circle", "--device", "cpu", "--fps", fps]) == cli.WRONG
    assert "--fps" in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- one frame as a picture


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.undo()


ONE = ["--prompt", "ein Bär, 熊", "--device", "cpu", "--frame_num", "1", "--sample_steps", "1", "--base_seed", "5"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_one_frame_is_written_as_a_picture_and_repeated(name, checkpoint, tmp_path, monkeypatch, runs, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: checkpoint)
    assert cli.main([*ONE, "--save_file", name]) == cli.DONE
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    assert Image.open(name).size == (64, 64) and media.written(name) == (1, (64, 64))
    assert cli.main(["--from_video", name, "--device", "cpu", "--save_file", "b.png"]) == cli.DONE
    assert cli.main([*ONE, "--save_file", "c.mp4"]) == cli.DONE
    picture, again = (np.asarray(read_image(file), int) for file in (name, "b.png"))
    assert np.abs(picture - again).mean() < (5 if name.lower().endswith(("jpg", "jpeg")) else 1e-9)
    assert np.abs(again - media.read_video("c.mp4")[0][0].numpy()).mean() < 16
    assert media.read_metadata(name)[output.REQUEST_KEY] == media.read_metadata("b.png")[output.REQUEST_KEY]
    assert cli.main([*ONE, "--save_file", "d.png", "--no_metadata"]) == cli.DONE
    assert output.REQUEST_KEY not in media.read_metadata("d.png")


def test_more_frames_are_no_picture(capsys):
    assert cli.main(["--prompt", "x", "--device", "cpu", "--save_file", "a.png"]) == cli.WRONG
    error = capsys.readouterr().err
    assert "a.png is the name of a picture, and the video has 17 frames; try a.mp4, or --frame_num 1" in error


def test_pictures_of_others_hold_no_request(capsys):
    for name in ("a.png", "a.jpg", "a.webp"):
        Image.new("RGB", (8, 8)).save(name)
        assert cli.main(["--from_video", name, "--device", "cpu"]) == cli.WRONG
        assert f"{name} has no stored request" in capsys.readouterr().err


def test_a_request_too_long_for_a_jpeg_is_left_out(tmp_path, caplog):
    frame = np.zeros((1, 8, 8, 3), np.uint8)
    media.write(frame, "a.jpg", 8, {output.REQUEST_KEY: "x" * 70_000})
    assert "this request is too long for a JPEG" in caplog.text and media.read_metadata("a.jpg") == {}
    media.write(frame, "a.webp", 8, {output.REQUEST_KEY: "x" * 70_000})
    assert len(media.read_metadata("a.webp")[output.REQUEST_KEY]) == 70_000


# ---------------------------------------------------------------- containers that open other files


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile 'other.mp4'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">'
    "<BaseURL>http://127.0.0.1:9/</BaseURL></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "redirect": "RTSPtext rtsp://127.0.0.1:9/x\n",
    "vobsub": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n",
    "avs": 'FFmpegSource2("other.mp4")\n',
    "srt": "1\n00:00:00,000 --> 00:00:01,000\ntext\n",
}


@pytest.mark.parametrize("name", ["v.mp4", "v.m3u8", "v%03d.png", "concat:v|w", "v.sdp", "http:v"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_and_the_like_are_no_videos(monkeypatch, tmp_path, kind, name, capsys):
    media.write_video(np.zeros((1, 16, 16, 3), np.uint8), tmp_path / "other.mp4", 8)
    (tmp_path / name).write_text(PLAYLISTS[kind])
    opened = []
    monkeypatch.setattr("av.open", lambda *args, **more: opened.append(args))
    assert cli.main(["--from_video", name, "--device", "cpu"]) == cli.WRONG
    assert "is not a video that can be read" in capsys.readouterr().err and not opened


def test_a_video_is_found_under_a_name_that_reads_like_a_protocol(tmp_path):
    for name in ("concat:a|b", "http:a", "a%03d.mp4", "lavfi:testsrc", "file:a.mp4", "-"):
        media.write_video(np.zeros((1, 16, 16, 3), np.uint8), tmp_path / name, 8, {"title": "x"})
        assert media.read_metadata(name)["title"] == "x"


def test_a_foreign_header_of_a_latent_is_not_quoted_in_full(capsys):
    header = json.dumps({"latent": {"dtype": "\x1b[31m" * 10_000, "shape": [1], "data_offsets": [0, 4]}}).encode()
    planning.Path("a.latent.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu"]) == cli.WRONG
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is not a saved latent" in error and len(error) < 1000 and error.isprintable()
