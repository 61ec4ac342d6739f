"""Extension of a prompt by a language model: planned from the flags, and done once, before the video models load."""

import argparse
import logging
from dataclasses import replace
from typing import NamedTuple

import torch

from wan.files import shown
from wan.request import Request
from wan.utils.prompt_extend import (
    DashScopePromptExpander,
    OpenAIPromptExpander,
    PromptExpander,
    QwenPromptExpander,
)

log = logging.getLogger(__name__)

LONGEST_TIMEOUT = 24 * 3600


class Extension(NamedTuple):
    """Model that writes the prompt of a job out, not loaded yet, and the language that it writes."""

    expander: PromptExpander
    language: str


def plan_extension(args: argparse.Namespace, request: Request, device: torch.device) -> Extension | None:
    """Fold the flags; None when nothing is to be extended, also because that is done: the stored prompt stays.

    Asks and loads nothing. Raises ValueError or FileNotFoundError for what cannot work: a package, key, address or
    local model that is missing.
    """
    if not args.use_prompt_extend or args.resume or request.original_prompt is not None:
        return None
    if not 1 <= args.prompt_extend_timeout <= LONGEST_TIMEOUT:
        raise ValueError(f"--prompt_extend_timeout must lie in 1..{LONGEST_TIMEOUT}, got {args.prompt_extend_timeout}")
    asked = {
        "model_name": args.prompt_extend_model,
        "task": request.task,
        "is_vl": request.shape_image is not None,
        "seconds": args.prompt_extend_timeout,
    }
    if args.prompt_extend_method == "dashscope":
        expander: PromptExpander = DashScopePromptExpander(**asked)
    elif args.prompt_extend_method == "openai":
        if args.prompt_extend_url is None:
            raise ValueError(
                "--prompt_extend_method openai needs the address of a server: --prompt_extend_url "
                "http://localhost:8000/v1 (vLLM), http://localhost:11434/v1 (Ollama)"
            )
        expander = OpenAIPromptExpander(args.prompt_extend_url, **asked)
    else:
        expander = QwenPromptExpander(device=device, **asked)
    expander.decide_system_prompt(args.prompt_extend_target_lang, request.prompt)
    return Extension(expander, args.prompt_extend_target_lang)


def extended(request: Request, extension: Extension) -> Request:
    """Let the model write the prompt out, and free it. After any failure the request stays as it is, with a warning."""
    expander, picture = extension.expander, request.shape_image
    log.info("%s writes the prompt out", expander.describe())
    try:
        image = None if picture is None else picture.pixels
        output = expander(request.prompt, tar_lang=extension.language, image=image, seed=request.seed)
    finally:
        expander.free()
    if not output.status:
        log.warning("the prompt was not written out (%s); it is used as it is", shown(output.message, 500))
        return request
    prompt = " ".join(output.prompt.replace("\\n", " ").split())
    return replace(request, prompt=prompt, original_prompt=request.prompt)
