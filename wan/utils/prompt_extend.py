"""Prompt extension: a language model, hosted or on this machine, writes a prompt out; the sizes of images it sees.

Names and arguments of the classes are upstream's. Packages are imported when a model is asked, not before.
"""

from __future__ import annotations

import base64
import gc
import inspect
import io
import json
import logging
import math
import os
import random
import re
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from wan import images
from wan.configs import WAN_CONFIGS, check_available
from wan.files import read_json
from wan.geometry import Size
from wan.program import install_command
from wan.runtime import resolve_device
from wan.utils.language_models import ALIASES, MAX_CONFIG_BYTES, fetch, find_model
from wan.utils.servers import Refused, check_address, found_in, in_words, may_pass, within
from wan.utils.system_prompt import system_prompt
from wan.values import text

log = logging.getLogger(__name__)

MAX_ELONGATION = 200  # the longest side over the shortest that Qwen-VL accepts
PIXEL = 28 * 28  # pixels of an image that become one token of Qwen-VL
IMAGE_LIMITS = (256 * PIXEL, 1280 * PIXEL)  # fewest and most pixels that the local model sees
MAX_IMAGE_BYTES = 2**26
LONGEST_ANSWER = 10_000  # characters; 60 to 200 words were asked for
NEW_TOKENS = 512
SEEDS = 2**31  # services take no larger seeds
TRIES, SECONDS = 4, 120  # of a service; the seconds are those of all tries together
FIRST_WAIT, LONGEST_WAIT = 1.0, 10.0  # seconds between two tries, doubled each time

DASHSCOPE_URL = "https://dashscope.aliyuncs.com/api/v1"
HOSTED = {False: "qwen-plus", True: "qwen-vl-max"}  # by is_vl
LOCAL = {False: "Qwen2.5_14B", True: "QwenVL2.5_7B"}


@dataclass
class PromptOutput:
    """Result of an extension: with `status` False, `prompt` is the one that was given and `message` the reason."""

    status: bool
    prompt: str
    seed: int
    system_prompt: str
    message: str  # the raw answer as JSON, or the reason of a failure

    def add_custom_field(self, key: str, value: Any) -> None:
        """Attach a further value."""
        setattr(self, key, value)


class PromptExpander:
    """Language model that writes prompts of a task out. With `is_vl` it sees the image that a video is made from.

    The constructor asks and loads nothing. It raises ValueError or FileNotFoundError for all that is known to be wrong.
    """

    packages: ClassVar[tuple[str, ...]]

    def __init__(self, model_name: str, task: str | None, is_vl: bool = False, device: Any = 0):
        self.model_name, self.task, self.is_vl, self.device = model_name, task, bool(is_vl), device
        if task in WAN_CONFIGS:
            check_available(task)
        if missing := [name for name in self.packages if find_spec(name) is None]:
            is_one = "package {} is" if len(missing) == 1 else "packages {} are"
            raise ValueError(f"the {is_one.format(' and '.join(missing))} not installed; {install_command('prompt')}")

    def decide_system_prompt(self, tar_lang: str = "zh", prompt: str | None = None) -> str:
        """Choose the instruction of the task. Raises ValueError for a task or language without one."""
        return system_prompt(self.task, tar_lang, prompt, self.is_vl)

    def __call__(
        self,
        prompt: str,
        system_prompt: str | None = None,
        tar_lang: str = "zh",
        image: Any = None,
        seed: int = -1,
        *args: Any,
        **kwargs: Any,
    ) -> PromptOutput:
        """Write a prompt out in the language `tar_lang`, "zh" or "en". A negative seed is drawn.

        The image is a PIL image, a path, or an address (file, http, https, data). Raises ValueError for arguments that
        cannot work; every failure of the model is a result with `status` False.
        """
        if system_prompt is None:
            system_prompt = self.decide_system_prompt(tar_lang, prompt)
        if not self.is_vl:
            return self.extend(prompt, system_prompt, seed)
        if image is None:
            raise ValueError("with is_vl the model reads an image, and none was given; give one, or is_vl=False")
        return self.extend_with_img(prompt, system_prompt, image, seed)

    def extend(self, prompt: str, system_prompt: str, seed: int = -1, *args: Any, **kwargs: Any) -> PromptOutput:
        """Write a prompt out by an instruction of your own."""
        return self._output(prompt, system_prompt, None, seed)

    def extend_with_img(
        self, prompt: str, system_prompt: str, image: Any, seed: int = -1, *args: Any, **kwargs: Any
    ) -> PromptOutput:
        """Write a prompt out by an instruction of your own; the model sees `image`."""
        return self._output(prompt, system_prompt, image, seed)

    def describe(self) -> str:
        """Name the model and its place, for the log."""
        return self.model_name

    def free(self) -> None:
        """Free the memory of a model that was loaded."""

    def _output(self, prompt: str, system: str, image: Any, seed: int) -> PromptOutput:
        seed = random.randint(0, sys.maxsize) if seed < 0 else seed
        try:
            picture = None if image is None else open_image(image)
            answer, message = self._ask(prompt, system, picture, seed)
            if not text("the answer", answer).strip():
                raise ValueError("the answer is empty")
            if len(answer) > LONGEST_ANSWER:
                raise ValueError(f"the answer has {len(answer)} characters; at most {LONGEST_ANSWER} are taken")
        except Exception as error:  # whatever happens in a foreign package: the caller goes on with the prompt it has
            return PromptOutput(False, prompt, seed, system, str(error) or type(error).__name__)
        return PromptOutput(True, answer, seed, system, message)

    def _ask(self, prompt: str, system: str, image: Any, seed: int) -> tuple[str, str]:
        """Return the answer of the model and the raw answer as JSON. Raises any exception."""
        raise NotImplementedError


# ---- hosted models ----


class _Hosted(PromptExpander):
    """Model behind an address. It is asked up to `retry_times` times while a failure may pass, within `seconds`."""

    retry_times, seconds, max_image_size = TRIES, SECONDS, 512 * 512
    api_key: str
    url: str

    def describe(self) -> str:
        return f"{self.model_name or 'the first model'} at {self.url}"

    def _ask(self, prompt: str, system: str, image: Any, seed: int) -> tuple[str, str]:
        for name in self.packages:
            import_module(name)  # it takes seconds, which are not those of the server
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential

        retrying = Retrying(
            retry=retry_if_exception(may_pass),
            stop=stop_after_attempt(self.retry_times) | stop_after_delay(self.seconds),
            wait=wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            reraise=True,
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = None if image is None else Path(folder, "image.png")
                if file is not None:
                    size = cloud_image_size(*image.size, self.max_image_size)
                    (image if size == image.size else image.resize(size)).save(file)
                return within(self.seconds, partial(retrying, self._request, prompt, system, file, seed % SEEDS))
        except Exception as error:
            reason = in_words(error)  # servers repeat keys in it
            raise RuntimeError(reason.replace(self.api_key, "***") if self.api_key else reason) from None

    def _request(self, prompt: str, system: str, image: Path | None, seed: int) -> tuple[str, str]:
        raise NotImplementedError


class DashScopePromptExpander(_Hosted):
    """Model of DashScope. The key is `DASH_API_KEY` by default, the address `DASH_API_URL`."""

    packages = ("dashscope", "tenacity")

    def __init__(
        self,
        api_key: str | None = None,
        model_name: str | None = None,
        task: str | None = None,
        max_image_size: int = 512 * 512,
        retry_times: int = TRIES,
        is_vl: bool = False,
        *,
        seconds: float = SECONDS,
        **kwargs: Any,
    ):
        super().__init__(model_name or HOSTED[bool(is_vl)], task, is_vl)
        self.max_image_size, self.retry_times, self.seconds = max_image_size, retry_times, seconds
        self.api_key = (api_key or os.environ.get("DASH_API_KEY", "")).strip()
        if not self.api_key:
            raise ValueError("DASH_API_KEY is not set; it holds the key of your DashScope account")
        self.url = check_address("DASH_API_URL", os.environ.get("DASH_API_URL") or DASHSCOPE_URL)

    def _request(self, prompt: str, system: str, image: Path | None, seed: int) -> tuple[str, str]:
        import dashscope

        dashscope.base_http_api_url = self.url  # uploads of images have no argument for it
        options = {"model": self.model_name, "api_key": self.api_key, "seed": seed, "request_timeout": self.seconds}
        if image is None:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
            answer = dashscope.Generation.call(messages=messages, result_format="message", **options)
        else:
            parts = [{"text": prompt}] * bool(prompt) + [{"image": f"file://{image}"}]
            messages = [{"role": "system", "content": [{"text": system}]}, {"role": "user", "content": parts}]
            answer = dashscope.MultiModalConversation.call(messages=messages, result_format="message", **options)
        if answer.status_code != 200:
            raise Refused(answer.status_code, f"{answer.code}: {answer.message}")
        content = found_in(answer.output, lambda: _first_text(answer.output["choices"][0]["message"]["content"]))
        raw = json.dumps(answer, ensure_ascii=False, default=str)
        return content if image is None else content.replace("\n", "\\n"), raw


class OpenAIPromptExpander(_Hosted):
    """Model of any server that speaks OpenAI's API: vLLM, Ollama, llama.cpp and others.

    `url` is the address before `/chat/completions`; without a path it gets `/v1`. Without `model_name` the first model
    of the server's list is taken. The key is `OPENAI_API_KEY` by default, where the server wants one.
    """

    packages = ("openai", "tenacity")

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        model_name: str | None = None,
        task: str | None = None,
        is_vl: bool = False,
        *,
        seconds: float = SECONDS,
        **kwargs: Any,
    ):
        super().__init__(model_name or "", task, is_vl)
        self.url = check_address("--prompt_extend_url", url)
        self.url += "/v1" * (not urlsplit(self.url).path)
        self.api_key = (api_key or os.environ.get("OPENAI_API_KEY", "")).strip()
        self.seconds = seconds

    def _request(self, prompt: str, system: str, image: Path | None, seed: int) -> tuple[str, str]:
        from openai import OpenAI

        content: Any = prompt
        if image is not None:
            url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
            content = [{"type": "text", "text": prompt}] * bool(prompt)
            content += [{"type": "image_url", "image_url": {"url": url}}]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        with OpenAI(base_url=self.url, api_key=self.api_key or "none", max_retries=0, timeout=self.seconds) as client:
            if not self.model_name:
                models = client.models.list()
                self.model_name = found_in(models, lambda: models.data[0].id)
            answer = client.chat.completions.create(model=self.model_name, messages=messages, seed=seed)
        found = found_in(answer, lambda: answer.choices[0].message.content)
        return re.sub(r"(?s)^\s*<think>.*?</think>\s*", "", found), answer.model_dump_json()  # models that think aloud


def _first_text(content: Any) -> Any:
    """Return the text of an answer: of a vision model it is in a list."""
    return content[0]["text"] if isinstance(content, list) else content


# ---- models on this machine ----


class QwenPromptExpander(PromptExpander):
    """Qwen2.5 or Qwen2.5-VL on this machine: an alias, a local folder (which comes first) or a name of the hub.

    It is loaded, and downloaded where that is needed, when it is first asked. `device` is a GPU's number or a name.
    """

    packages = ("transformers",)
    model_dict = ALIASES

    def __init__(
        self,
        model_name: str | None = None,
        device: Any = 0,
        task: str | None = None,
        is_vl: bool = False,
        **kwargs: Any,
    ):
        super().__init__(model_name or LOCAL[bool(is_vl)], task, is_vl, device)
        self.place = find_model(self.model_name, self.is_vl)
        self.model: Any = None

    def _ask(self, prompt: str, system: str, image: Any, seed: int) -> tuple[str, str]:
        device = _device(self.device)
        if self.model is None:
            self._load(device)
        content: Any = prompt
        if image is not None:
            content = [{"type": "image"}] + [{"type": "text", "text": prompt}] * bool(prompt)
        chat = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        asked = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = self._inputs(asked, image)
        try:
            self.model.to(device)
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
                torch.manual_seed(seed)
                inputs = {name: value.to(device) for name, value in inputs.items()}
                tokens = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
        finally:
            self.model.to("cpu")
        answer = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return answer, json.dumps({"content": answer}, ensure_ascii=False)

    def free(self) -> None:
        self.model = self.tokenizer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, device: torch.device) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        folder = fetch(self.place)
        log.info("loading the language model in %s, which writes the prompt out", folder)
        has_flash = device.type == "cuda" and transformers.utils.is_flash_attn_2_available()
        dtype: Any = torch.float16 if "awq" in self.model_name.lower() else "auto"
        if self.is_vl and has_flash:
            dtype = torch.bfloat16
        is_vision = "vision_config" in read_json(folder / "config.json", MAX_CONFIG_BYTES)
        kind = transformers.AutoModelForImageTextToText if is_vision else transformers.AutoModelForCausalLM
        how = {"attn_implementation": "flash_attention_2"} if has_flash else {}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **how)
        self.folder, self.model = folder, model.eval()

    def _inputs(self, asked: str, image: Any) -> dict[str, Tensor]:
        """Make the inputs of the model; the mark of the image becomes as many tokens as it has."""
        mark, seen = "<|image_pad|>", {}
        if image is not None:
            file = self.folder / "preprocessor_config.json"
            settings = read_json(file, MAX_CONFIG_BYTES) if file.is_file() else {}
            seen["pixel_values"], seen["image_grid_thw"], count = image_patches(image, settings)
            asked = asked.replace(mark, mark * count)
        tokens = self.tokenizer(asked, return_tensors="pt")
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")} | seen
        if seen and "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:  # transformers 5
            is_image = inputs["input_ids"] == self.tokenizer.convert_tokens_to_ids(mark)
            inputs["mm_token_type_ids"] = is_image.to(torch.int32)
        return inputs


def _device(device: Any) -> torch.device:
    """Find the device of a GPU's number, which is upstream's way, or of a name; without GPUs the best one there is."""
    is_number = isinstance(device, int)
    return resolve_device((f"cuda:{device}" if torch.cuda.is_available() else None) if is_number else device)


# ---- images ----


def open_image(image: Any) -> Any:
    """Read an image, as an upright RGB PIL image: an image, a path, or an address. Raises ValueError or OSError."""
    if isinstance(image, str) and re.match(r"(file|https?)://|data:", image):
        from PIL import Image

        with urlopen(image, timeout=SECONDS) as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            raise ValueError(f"the image has more than {MAX_IMAGE_BYTES >> 20} MiB")
        image = Image.open(io.BytesIO(data), formats=images.FORMATS)
    return images.read_image(image) if isinstance(image, (str, Path)) else images.upright_rgb(image)


def image_patches(image: Any, settings: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Cut an image as Qwen-VL reads it -> patches [N, C*T*P*P], grid [1, 3] of frames, rows, columns, and its tokens.

    `settings` are those of its `preprocessor_config.json`. Patches of P pixels come in squares that become one token,
    and are repeated for T frames.
    """
    patch, merge, frames = (
        settings.get(name, usual) for name, usual in (("patch_size", 14), ("merge_size", 2), ("temporal_patch_size", 2))
    )
    height, width = qwen_vl_size(image.height, image.width, patch * merge, *IMAGE_LIMITS)
    pixels = torch.from_numpy(np.array(image.resize((width, height), 3), np.float32)) / 255  # 3: bicubic
    mean, std = settings.get("image_mean", CLIP_MEAN), settings.get("image_std", CLIP_STD)
    pixels = (pixels - torch.tensor(mean)) / torch.tensor(std)
    rows = rearrange(pixels, "(h mh ph) (w mw pw) c -> (h w mh mw) c 1 ph pw", mh=merge, mw=merge, ph=patch, pw=patch)
    grid = torch.tensor([[1, height // patch, width // patch]])
    return rows.expand(-1, -1, frames, -1, -1).flatten(1), grid, len(rows) // merge**2


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def cloud_image_size(width: int, height: int, max_pixels: int = 512 * 512) -> Size:
    """(width, height) for a hosted model: shrunk to about `max_pixels`, never enlarged."""
    if width * height <= max_pixels:
        return width, height
    return round(math.sqrt(max_pixels * width / height)), round(math.sqrt(max_pixels * height / width))


def qwen_vl_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in multiples of `factor`, near the given ones, within the pixel limits where both fit."""
    if max(height, width) > MAX_ELONGATION * min(height, width):
        raise ValueError(f"the sides of an image may differ by a factor of {MAX_ELONGATION}, got {width}x{height}")
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [math.floor(side / shrink / factor) * factor for side in (height, width)]
    elif math.prod(sides) < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return sides[0], sides[1]
