"""Prompt extension by real servers on loopback and by tiny models: what is asked, and that any failure is a result."""

import base64
import io
import json
import logging
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.language_server import ANSWER, LanguageServer
from tests.tiny_qwen import write_tiny_qwen
from wan.utils import language_models, prompt_extend, system_prompt
from wan.utils.language_models import find_model
from wan.utils.prompt_extend import DashScopePromptExpander, OpenAIPromptExpander, QwenPromptExpander, image_patches
from wan.utils.servers import check_address

KEY, PROMPT = "sk-0123456789abcdef", "a red circle"
KINDS = [("dashscope", False), ("dashscope", True), ("openai", False), ("openai", True)]
each_kind = pytest.mark.parametrize(("method", "is_vl"), KINDS, ids=lambda value: {True: "image", False: ""}.get(value))
IMAGE = Image.effect_noise((1000, 600), 80).convert("RGB")
SHRUNK = (661, 397)  # about 512 * 512 pixels


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(prompt_extend, "FIRST_WAIT", 0.001)


@pytest.fixture
def ask(monkeypatch):
    """Ask a server by one of the APIs, as a program of the user does."""

    def ask(server, method, is_vl, seconds=30.0, prompt=PROMPT, **call):
        for package in (method, "tenacity"):
            pytest.importorskip(package)
        monkeypatch.setenv("DASH_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("DASH_API_URL", f"{server.address}/api/v1/")
        how = {"task": "i2v-A14B" if is_vl else "t2v-A14B", "is_vl": is_vl, "seconds": seconds}
        if method == "openai":
            expander = OpenAIPromptExpander(server.address, **how)
        else:
            expander = DashScopePromptExpander(**how)
        return expander(prompt, image=IMAGE if is_vl else None, seed=call.pop("seed", 5), **call)

    return ask


# ---------------------------------------------------------------- servers


@each_kind
def test_the_answer_and_what_was_asked(ask, method, is_vl):
    with LanguageServer() as server:
        result = ask(server, method, is_vl, tar_lang="en")
        (asked,) = server.asked
    system = system_prompt.I2V_A14B_EN_SYS_PROMPT if is_vl else system_prompt.T2V_A14B_EN_SYS_PROMPT
    assert (result.status, result.prompt, result.seed, result.system_prompt) == (True, ANSWER, 5, system)
    assert ANSWER in json.dumps(json.loads(result.message))
    result.add_custom_field("size", "64*64")
    assert result.size == "64*64"

    assert asked["headers"]["authorization"] == f"Bearer {KEY}"
    told, user = (asked if method == "openai" else asked["input"])["messages"]
    assert (told["role"], user["role"]) == ("system", "user")
    assert asked["model"] == {"dashscope": ("qwen-plus", "qwen-vl-max")[is_vl], "openai": "first-model"}[method]
    assert (asked if method == "openai" else asked["parameters"])["seed"] == 5
    if not is_vl:
        assert (told["content"], user["content"]) == (system, PROMPT)
    elif method == "openai":
        words, picture = user["content"]
        assert told["content"] == system and words["text"] == PROMPT
        assert picture_of(base64.b64decode(picture["image_url"]["url"].partition(",")[2])).size == SHRUNK
    else:
        assert told["content"] == [{"text": system}]
        assert user["content"] == [{"text": PROMPT}, {"image": "oss://dir/image.png"}]
        assert [picture_of(data).size for data in server.uploads] == [SHRUNK]
        assert asked["headers"]["x-dashscope-ossresourceresolve"] == "enable"


def picture_of(data):
    return Image.open(io.BytesIO(data))


S = LanguageServer
FAULTS = {
    "401": (401, 1, "401"),
    "404": (404, 1, "404"),
    "429": (429, 4, "429"),
    "500": (500, 4, "500"),
    "cut": (S.CUT, 4, "13 bytes"),
    "garbage": (S.GARBAGE, 1, "the answer is no JSON"),
    "other": (S.OTHER, 1, "the answer is not as the API promises"),
    "nothing": (None, 1, "the answer is not as the API promises"),
    "empty": (" \n", 1, "the answer is empty"),
    "long": ("x" * 10_001, 1, "the answer has 10001 characters"),
    "no text": ("\ud800", 1, "no text"),
    "hangs": (S.HANG, None, "no answer within 0.5 s"),
    "trickles": (S.TRICKLE, None, "no answer within 0.5 s"),
}


@each_kind
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_a_result_with_the_reason(ask, method, is_vl, fault, caplog):
    way, tries, reason = FAULTS[fault]
    with LanguageServer(way) as server:
        result = ask(server, method, is_vl, seconds=0.5 if way in (S.HANG, S.TRICKLE) else 30)
    assert (result.status, result.prompt, result.seed) == (False, PROMPT, 5)
    assert reason in result.message and KEY not in result.message
    assert tries in (None, len(server.asked))
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == [], "the caller says it once"


@each_kind
def test_what_passes_is_tried_again_with_growing_pauses(ask, method, is_vl, monkeypatch):
    nap, waits = pytest.importorskip("tenacity.nap"), []
    monkeypatch.setattr(prompt_extend, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(nap, "time", SimpleNamespace(sleep=waits.append))
    with LanguageServer(429, 500, S.CUT, ANSWER) as server:
        assert ask(server, method, is_vl).prompt == ANSWER
    assert waits == [1, 2, 4] and len(server.asked) == 4


@each_kind
def test_no_server(ask, method, is_vl):
    with LanguageServer() as server:
        pass
    result = ask(server, method, is_vl)
    assert not result.status and "onnect" in result.message and server.asked == []


def test_images_are_uploaded_from_a_file_that_is_removed(ask, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LanguageServer("one\ntwo") as server:
        assert ask(server, "dashscope", True).prompt == "one\\ntwo", "as upstream writes it"
        assert ask(server, "dashscope", False).prompt == "one\ntwo"
    assert len(server.uploads) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["dashscope", "openai"])
def test_an_image_without_a_prompt(ask, method):
    with LanguageServer() as server:
        result = ask(server, method, True, prompt="", tar_lang="en")
    assert result.status and result.system_prompt == system_prompt.I2V_A14B_EMPTY_EN_SYS_PROMPT
    assert '"text": ""' not in json.dumps(server.asked)


def test_thoughts_are_left_out(ask):
    with LanguageServer("\n<think>\nHm.\n</think>\n\nA circle.") as server:
        assert ask(server, "openai", False).prompt == "A circle."


def test_a_seed_is_drawn_and_fits_every_service(ask):
    with LanguageServer() as server:
        results = [ask(server, "openai", False, seed=seed) for seed in (-1, -1, 2**40 + 3)]
    assert results[0].seed != results[1].seed and min(result.seed for result in results) >= 0
    assert all(0 <= asked["seed"] < 2**31 for asked in server.asked) and server.asked[2]["seed"] == 3


def test_an_instruction_of_the_user(ask):
    with LanguageServer() as server:
        assert ask(server, "openai", False, system_prompt="Be brief.").system_prompt == "Be brief."
    assert server.asked[0]["messages"][0]["content"] == "Be brief."


# ---------------------------------------------------------------- refusals


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(prompt_extend, "find_spec", lambda name: True)


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr(prompt_extend, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"dashscope and tenacity are not installed; pip install '.\[prompt\]'"):
        DashScopePromptExpander(api_key=KEY)
    with pytest.raises(ValueError, match=r"the package transformers is not installed; pip install '.\[prompt\]'"):
        QwenPromptExpander()


@pytest.mark.parametrize("key", [None, "", "  "])
def test_a_missing_key(installed, monkeypatch, key):
    monkeypatch.delenv("DASH_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("DASH_API_KEY", key)
    with pytest.raises(ValueError, match="DASH_API_KEY is not set"):
        DashScopePromptExpander()


@pytest.mark.parametrize("address", ["http://localhost:8000/v1", "https://a.b/c", "http://[::1]:80", "http://u:p@h"])
def test_addresses(address):
    assert check_address("x", f" {address}/ ") == address


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("localhost:8000/v1", "http://localhost:8000/v1"),
        ("127.0.0.1", "http://127.0.0.1"),
        *((text, "http://localhost:8000/v1") for text in ("", "http://", "ftp://a.b", "file:///etc", "http://a:x/v1")),
        *(
            (text, "http://localhost:8000/v1")
            for text in ("http://a:99999", "http://a b", "http://a\n.b", "http://[::1")
        ),
        *((text, "http://localhost:8000/v1") for text in ("http://a\\b", "http://\u4f60", "http://a:0", "http://:80")),
    ],
)
def test_no_addresses(installed, monkeypatch, text, near):
    with pytest.raises(ValueError, match="--prompt_extend_url is the address of a server, got ") as error:
        OpenAIPromptExpander(text)
    assert str(error.value).endswith(f"try {near}")
    monkeypatch.setenv("DASH_API_URL", text or " ")
    with pytest.raises(ValueError, match="DASH_API_URL is the address of a server, got "):
        DashScopePromptExpander(api_key=KEY)


def test_tasks_and_arguments(installed):
    with pytest.raises(ValueError, match="no prompt extension for task None; there is one for t2v-A14B"):
        OpenAIPromptExpander("http://a")(PROMPT)
    with pytest.raises(ValueError, match="is zh or en, got 'fr'"):
        OpenAIPromptExpander("http://a", task="t2v-A14B")(PROMPT, tar_lang="fr")
    with pytest.raises(ValueError, match="the model reads an image, and none was given"):
        OpenAIPromptExpander("http://a", task="i2v-A14B", is_vl=True)(PROMPT)


# ---------------------------------------------------------------- models on this machine


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("models")
    return {is_vl: write_tiny_qwen(root / f"qwen{is_vl}", is_vl) for is_vl in (False, True)}


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(prompt_extend, "NEW_TOKENS", 24)


def test_a_local_model_writes_by_the_seed(models, short):
    expander = QwenPromptExpander(str(models[False]), task="t2v-A14B", device="cpu")
    assert expander.model is None, "nothing is loaded yet"
    before = torch.random.get_rng_state()
    first, again, other = (expander(PROMPT, tar_lang="en", seed=seed) for seed in (1, 1, 2))
    assert first.status and first.prompt.isalpha() and json.loads(first.message) == {"content": first.prompt}
    assert again.prompt == first.prompt != other.prompt and first.seed == 1
    assert torch.equal(before, torch.random.get_rng_state()), "draws of the program are not changed"
    assert first.prompt != expander("another prompt", tar_lang="en", seed=1).prompt
    expander.free()
    assert expander.model is None
    assert expander(PROMPT, tar_lang="en", seed=1).prompt == first.prompt, "loaded again"


def test_a_local_model_sees_the_image(models, short):
    expander = QwenPromptExpander(str(models[True]), task="i2v-A14B", is_vl=True, device=0)
    black = Image.new("RGB", IMAGE.size)
    first, again, other = (expander(PROMPT, image=image, seed=1) for image in (IMAGE, IMAGE, black))
    assert first.status and again.prompt == first.prompt != other.prompt
    nothing = expander("", image=IMAGE, seed=1)
    assert nothing.system_prompt == system_prompt.I2V_A14B_EMPTY_ZH_SYS_PROMPT and nothing.status


def test_a_vision_model_writes_from_text_as_well(models, short):
    assert QwenPromptExpander(str(models[True]), task="t2v-A14B", device="cpu")(PROMPT, seed=1).status


@pytest.mark.parametrize("size", [(1000, 600), (40, 40), (333, 777), (1500, 1100)])
def test_patches_are_those_of_transformers(size):
    qwen2_vl = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    shortest, longest = prompt_extend.IMAGE_LIMITS
    processor = qwen2_vl.Qwen2VLImageProcessorPil(size={"shortest_edge": shortest, "longest_edge": longest})
    image = IMAGE.resize(size)
    expected = processor(image, return_tensors="pt")
    pixels, grid, count = image_patches(image, {})
    assert torch.equal(grid, expected["image_grid_thw"]) and count == len(pixels) // 4
    torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-5, rtol=1e-5)


def test_a_local_model_that_fails_is_a_result(models, tmp_path, short):
    folder = copied(models[False], tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{}")
    result = QwenPromptExpander(str(folder), task="t2v-A14B", device="cpu")(PROMPT)
    assert not result.status and result.prompt == PROMPT and result.message


def copied(folder, place):
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def test_folders_that_are_no_model(models, tmp_path, monkeypatch):
    folder = copied(models[False], tmp_path / "Qwen2.5_3B")
    monkeypatch.chdir(tmp_path)
    assert find_model("Qwen2.5_3B", False) == Path("Qwen2.5_3B"), "a folder wins over an alias"

    def refused(name, is_vl=False):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            find_model(str(name), is_vl)
        return str(error.value)

    assert "reads no images, and one is given; name a Qwen2.5-VL model" in refused(folder, True)
    assert refused("./Qwen2.5_3").endswith("did you mean Qwen2.5_3B?")
    assert "; give a folder, owner/name of the hub, or one of QwenVL2.5_3B" in refused("nothing")
    assert "there is no language model" in refused(tmp_path / "missing")
    assert "there is no language model" in refused(f"{tmp_path.name}/../x/y")
    (tmp_path / "a.gguf").touch()
    assert "is no folder; a server for it is used with --prompt_extend_method openai" in refused("a.gguf")
    for name, content, text in (
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS"),
        ("model.safetensors", None, "holds no *.safetensors"),
        ("tokenizer.json", None, "holds no tokenizer"),
        ("config.json", b"[]", "has no model_type"),
        ("config.json", b"{", "is not valid JSON"),
        ("config.json", None, "holds no config.json"),
    ):
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        assert text in refused(folder)


def test_the_hub(models, tmp_path, monkeypatch, caplog):
    """A model of the cache is used as it is; of any other, size and place are told before the download."""
    hub = pytest.importorskip("huggingface_hub")
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="B-Instruct is not in the Hugging Face cache, and HF_HUB_OFF"):
        find_model("Qwen2.5_3B", False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    assert find_model("Qwen2.5_3B", False) == "Qwen/Qwen2.5-3B-Instruct"
    assert find_model("someone/model", False) == "someone/model"

    files = [SimpleNamespace(rfilename="model.safetensors", size=6 * 10**9), SimpleNamespace(rfilename="a.bin", size=9)]
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=files))

    def download(name, allow_patterns, **_):
        assert f"downloading the language model {name}, 6.0 GB, into {tmp_path / 'hub'}" in caplog.text
        assert "*.safetensors" in allow_patterns and not any(pattern.endswith("bin") for pattern in allow_patterns)
        return str(models[False])

    with monkeypatch.context() as patch:
        patch.setattr(hub, "snapshot_download", download)
        assert language_models.fetch("Qwen/Qwen2.5-3B-Instruct") == models[False]

    cached = tmp_path / "hub" / "models--Qwen--Qwen2.5-3B-Instruct"
    (cached / "refs").mkdir(parents=True)
    (cached / "snapshots").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    folder = copied(models[False], cached / "snapshots" / ("0" * 40))
    assert find_model("Qwen2.5_3B", False).resolve() == folder.resolve()
    (folder / "model.safetensors").unlink()
    assert find_model("Qwen2.5_3B", False) == "Qwen/Qwen2.5-3B-Instruct", "half of it is there"


# ---------------------------------------------------------------- images and instructions


def test_sources_of_images(tmp_path):
    path, data = tmp_path / "a b.png", io.BytesIO()
    IMAGE.save(path)
    IMAGE.save(data, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    for source in (IMAGE, path, str(path), path.as_uri(), address):
        opened = prompt_extend.open_image(source)
        assert opened.mode == "RGB" and opened.tobytes() == IMAGE.tobytes()


def test_instructions():
    choose = system_prompt.system_prompt
    assert choose("ti2v-5B", "zh", PROMPT, False) == system_prompt.T2V_A14B_ZH_SYS_PROMPT
    assert choose("ti2v-5B", "zh", PROMPT, True) == system_prompt.I2V_A14B_ZH_SYS_PROMPT
    assert choose("ti2v-5B", "en", " ", True) == system_prompt.I2V_A14B_EMPTY_EN_SYS_PROMPT
    assert choose("t2v-A14B", "en", PROMPT, True) == system_prompt.T2V_A14B_EN_SYS_PROMPT
    assert choose("i2v-A14B", "en", PROMPT, False) == system_prompt.I2V_A14B_EN_SYS_PROMPT
    assert choose("i2v-A14B", "zh", "", False) == system_prompt.I2V_A14B_EMPTY_ZH_SYS_PROMPT
    for task in ("s2v-14B", "animate-14B"):
        assert choose(task, "zh", PROMPT, True) != choose(task, "en", PROMPT, True)
