"""The command with --use_prompt_extend: what is refused, shown, stored and repeated, and that no failure ends a run."""

import gc
import json
import logging
import os
import signal
import weakref

import pytest
from PIL import Image

from tests.language_server import ANSWER, LanguageServer
from tests.tiny_qwen import write_tiny_qwen
from wan import cli, jobs, media, output, planning
from wan.nano.random import write_random_checkpoint
from wan.program import install_command
from wan.text2video import WanT2V
from wan.utils import prompt_extend, system_prompt

PROMPT = "a red circle moves left"
RUN = ["--device", "cpu", "--progress", "none", "--sample_steps", "1", "--frame_num", "1", "--base_seed", "7"]
EXTEND = ["--use_prompt_extend", "--prompt_extend_target_lang", "en", "--prompt_extend_method"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("nano")
    return {task: write_random_checkpoint(root / task, task) for task in ("t2v-A14B", "i2v-A14B", "ti2v-5B")}


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, checkpoints, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", checkpoints.__getitem__)
    monkeypatch.setattr(prompt_extend, "FIRST_WAIT", 0.001)
    for name in ("WORLD_SIZE", "DASH_API_KEY", "DASH_API_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.INFO)


@pytest.fixture
def server():
    pytest.importorskip("openai")
    pytest.importorskip("tenacity")
    with LanguageServer() as server:
        yield server


def make(*flags, prompt=PROMPT):
    return cli.main([*RUN, *(["--prompt", prompt] if prompt is not None else []), *flags])


def by(server):
    return [*EXTEND, "openai", "--prompt_extend_url", server.address]


def stored(video):
    return json.loads(media.read_metadata(video)[output.REQUEST_KEY])


def prompts(video):
    return [stored(video)[name] for name in ("prompt", "original_prompt")]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---------------------------------------------------------------- what is made


def test_the_written_out_prompt_is_shown_used_and_stored_beside_the_original(server, caplog):
    assert make(*by(server)) == cli.DONE
    (video,) = media.Path().glob("*.mp4")
    assert video.name.startswith("t2v-A14B_64x64_a_red_circle_moves_left_7_"), "named after the prompt of the user"
    assert prompts(video) == [ANSWER, PROMPT] and ANSWER in media.read_metadata(video)["comment"]
    assert f"the first model at {server.address}/v1 writes the prompt out" in caplog.text
    assert f"prompt: {ANSWER}\n" in caplog.text and f"from: {PROMPT}\n" in caplog.text
    assert server.asked[0]["seed"] == 7 and len(server.asked) == 1


def test_without_the_flag_nobody_is_asked(server):
    assert make("--prompt_extend_method", "openai", "--prompt_extend_url", server.address, "--save_file", "a") == 0
    assert server.asked == [] and prompts("a.mp4") == [PROMPT, None]


def test_a_video_repeats_its_prompt_and_a_new_one_is_extended_anew(server, caplog):
    assert make(*by(server), "--save_file", "a.mp4") == cli.DONE
    again = ["--from_video", "a.mp4", "--save_file"]
    assert make(*again, "b.mp4", prompt=None) == cli.DONE
    assert make(*again, "c.mp4", *by(server), prompt=None) == cli.DONE
    assert "--use_prompt_extend has no effect: the stored prompt is written out already" in caplog.text
    assert len(server.asked) == 1 and prompts("b.mp4") == prompts("c.mp4") == [ANSWER, PROMPT]
    assert media.Path("b.mp4").read_bytes() == media.Path("a.mp4").read_bytes()

    server.behave = ["", "A blue square."]
    assert make(*again, "d.mp4", *by(server), prompt="a blue square") == cli.DONE
    assert len(server.asked) == 2 and server.asked[1]["messages"][1]["content"] == "a blue square"
    assert prompts("d.mp4") == ["A blue square.", "a blue square"]

    assert make(*again, "e.mp4", prompt="a blue square") == cli.DONE, "a file alone starts no connection"
    assert len(server.asked) == 2 and prompts("e.mp4") == ["a blue square", None]
    assert "--use_prompt_extend does so with this" in caplog.text
    assert make("--from_video", "e.mp4", "--save_file", "f.mp4", *by(server), prompt=None) == cli.DONE
    assert len(server.asked) == 3 and prompts("f.mp4") == ["A blue square.", "a blue square"]


def test_resume_keeps_the_prompt(server, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(media, "write", full)
        assert make(*by(server), "--save_file", "a.mp4") == cli.FAILED
    caplog.clear()
    code = cli.main(["--resume", "a.latent.safetensors", "--device", "cpu", "--progress", "none", *by(server)])
    assert code == cli.DONE and len(server.asked) == 1 and prompts("a.mp4") == [ANSWER, PROMPT]
    assert "--use_prompt_extend has no effect: with --resume the prompt is the one that was sampled" in caplog.text


def test_several_videos_have_one_prompt(server):
    assert make(*by(server), "--num_videos", "2", "--save_file", "a.mp4") == cli.DONE
    assert len(server.asked) == 1 and prompts("a-1.mp4") == prompts("a-2.mp4") == [ANSWER, PROMPT]


@pytest.mark.parametrize("method", ["openai", "dashscope"])
@pytest.mark.parametrize("prompt", [PROMPT, None])
@pytest.mark.parametrize(("task", "flag"), [("i2v-A14B", "image"), ("i2v-A14B", "last_image"), ("ti2v-5B", "image")])
def test_an_image_is_shown_to_the_model(server, monkeypatch, method, prompt, task, flag):
    pytest.importorskip(method)
    Image.new("RGB", (96, 96), "navy").save("a.png")
    monkeypatch.setenv("DASH_API_KEY", "sk-1")
    monkeypatch.setenv("DASH_API_URL", f"{server.address}/api/v1")
    flags = ["--prompt_extend_url", server.address] if method == "openai" else []
    asked = ["--task", task, f"--{flag}", "a.png", *EXTEND, method, *flags, "--save_file", "a.mp4"]
    assert make(*asked, prompt=prompt) == cli.DONE
    assert prompts("a.mp4") == [ANSWER, prompt or ""]
    (request,) = server.asked
    text = json.dumps(request, ensure_ascii=False)
    wanted = "I2V_A14B_EN_SYS_PROMPT" if prompt else "I2V_A14B_EMPTY_EN_SYS_PROMPT"
    assert json.dumps(getattr(system_prompt, wanted), ensure_ascii=False) in text
    assert ("data:image/png;base64," if method == "openai" else "oss://dir/image.png") in text


def test_lines_become_one(server):
    server.behave = ["A red\ncircle.\\nIt moves."]
    assert make(*by(server), "--save_file", "a.mp4") == cli.DONE
    assert prompts("a.mp4")[0] == "A red circle. It moves."


def test_the_written_out_prompt_is_the_one_that_is_warned_about(server, caplog):
    server.behave = ["a red circle " * 30 + "on navy"]
    assert make(*by(server), prompt="an elephant") == cli.DONE
    assert "the text encoder reads 64 tokens and the prompt has 93" in caplog.text
    assert "does not know 'elephant'" not in caplog.text


# ---------------------------------------------------------------- failures

S = LanguageServer


@pytest.mark.parametrize("way", [401, 429, 500, S.CUT, S.GARBAGE, S.OTHER, "", "x" * 20_000, S.HANG, S.TRICKLE])
def test_any_failure_leaves_the_prompt_and_one_warning(server, way, caplog, capfd):
    server.behave = [way]
    seconds = ["--prompt_extend_timeout", "1"] if way in (S.HANG, S.TRICKLE) else []
    assert make(*by(server), *seconds, "--save_file", "a.mp4") == cli.DONE
    assert prompts("a.mp4") == [PROMPT, None]
    warning, *others = [text for text in warnings(caplog) if "nano model" not in text]
    assert warning.startswith("the prompt was not written out (") and warning.endswith("); it is used as it is")
    assert others == [] and "Traceback" not in capfd.readouterr().err


def test_a_failure_is_asked_about_again(server):
    server.behave = [401, ANSWER]
    assert make(*by(server), "--save_file", "a.mp4") == cli.DONE
    assert make("--from_video", "a.mp4", *by(server), "--save_file", "b.mp4", prompt=None) == cli.DONE
    assert prompts("b.mp4") == [ANSWER, PROMPT]


def test_ctrl_c_while_the_model_writes(server, capsys):
    server.behave = [lambda: os.kill(os.getpid(), signal.SIGINT)]
    assert make(*by(server), "--save_file", "a.mp4") == 130
    assert capsys.readouterr().err.endswith("interrupted; nothing was written\n")
    assert list(media.Path().iterdir()) == []


# ---------------------------------------------------------------- a model on this machine


def test_a_local_model_is_freed_before_the_models_of_the_video(monkeypatch, tmp_path, caplog):
    pytest.importorskip("transformers")
    folder = write_tiny_qwen(tmp_path / "qwen")
    monkeypatch.setattr(prompt_extend, "NEW_TOKENS", 16)
    load, models = prompt_extend.QwenPromptExpander._load, []

    def loaded(self, device):
        load(self, device)
        models.append(weakref.ref(self.model))

    class Pipeline(WanT2V):
        def __init__(self, *args, **kwargs):
            assert len(models) == 1 and models[0]() is None, "the language model is still in memory"
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(prompt_extend.QwenPromptExpander, "_load", loaded)
    monkeypatch.setitem(jobs.PIPELINES, "t2v-A14B", Pipeline)
    local = [*EXTEND, "local_qwen", "--prompt_extend_model", str(folder)]
    assert make(*local, "--save_file", "a.mp4") == cli.DONE
    written, original = prompts("a.mp4")
    assert written.isalpha() and original == PROMPT and f"loading the language model in {folder}" in caplog.text
    models.clear()
    assert make(*local, "--save_file", "b.mp4") == cli.DONE and prompts("b.mp4")[0] == written, "by the seed"
    gc.collect()


def test_a_local_model_that_fails_leaves_the_prompt(monkeypatch, tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    folder = write_tiny_qwen(tmp_path / "qwen")

    def no_memory(*_, **__):
        raise MemoryError("no memory is left")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", no_memory)
    assert make(*EXTEND, "local_qwen", "--prompt_extend_model", str(folder), "--save_file", "a.mp4") == cli.DONE
    assert prompts("a.mp4") == [PROMPT, None]
    assert "the prompt was not written out (no memory is left); it is used as it is" in caplog.text


# ---------------------------------------------------------------- refusals, before the start


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["dashscope"], "DASH_API_KEY is not set"),
        (["openai"], "--prompt_extend_method openai needs the address of a server: --prompt_extend_url http"),
        (["openai", "--prompt_extend_url", "localhost:8000"], "got 'localhost:8000'; try http://localhost:8000"),
        (
            ["openai", "--prompt_extend_url", "http://a:1", "--prompt_extend_timeout", "0"],
            "must lie in 1..86400, got 0",
        ),
        (["openai", "--prompt_extend_timeout", "99999999"], "must lie in 1..86400, got 99999999"),
        (["local_qwen", "--prompt_extend_model", "./missing"], "there is no language model ./missing"),
        (["local_qwen", "--prompt_extend_model", "Qwen2.5_15B"], "there is no language model Qwen2.5_15B"),
        (["local_gwen"], "invalid choice: 'local_gwen'; did you mean local_qwen?"),
    ],
)
def test_refused_before_the_start(flags, text, monkeypatch, capsys):
    monkeypatch.setattr(prompt_extend, "find_spec", lambda name: True)
    monkeypatch.setattr(cli, "run", lambda job: pytest.fail("nothing may run"))
    assert make(*EXTEND, *flags, "--save_file", "a.mp4") == cli.WRONG
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in error and text in error
    assert list(media.Path().iterdir()) == []


@pytest.mark.parametrize(
    ("method", "package"), [("dashscope", "dashscope"), ("openai", "openai"), ("local_qwen", "tr")]
)
def test_a_missing_package_is_refused_before_the_start(method, package, monkeypatch, capsys):
    monkeypatch.setattr(prompt_extend, "find_spec", lambda name: None)
    assert make(*EXTEND, method, "--prompt_extend_url", "http://a") == cli.WRONG
    error = capsys.readouterr().err
    assert f" {package}" in error and error.endswith(f"not installed; {install_command('prompt')}\n")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["openai", "--prompt_extend_url", "http://a"], None),
        (["local_qwen", "--prompt_extend_url", "http://a"], "--prompt_extend_url has no effect without --prompt_ex"),
        (["local_qwen", "--prompt_extend_timeout", "5"], "--prompt_extend_timeout has no effect: a model on this"),
    ],
)
def test_flags_without_effect(flags, text, monkeypatch, caplog):
    monkeypatch.setattr(prompt_extend, "find_spec", lambda name: True)
    monkeypatch.setattr(prompt_extend, "find_model", lambda name, is_vl: name)
    monkeypatch.setattr(cli, "run", lambda job: cli.DONE)
    monkeypatch.setattr(cli, "extended", lambda request, extension: request)
    assert make(*EXTEND, *flags) == cli.DONE
    found = [warning for warning in warnings(caplog) if "no effect" in warning]
    assert (text is None and not found) or text in found[0]
