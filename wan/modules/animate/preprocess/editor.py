"""Editor of pictures: FLUX.1-Kontext by diffusers, which brings two figures into one pose.

Its weights are under a non-commercial licence.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from wan.files import shown
from wan.modules.animate.preprocess.editing import INSTRUCTIONS

log = logging.getLogger(__name__)

GUIDANCE, STEPS = 2.5, 28
LICENCE = "FLUX.1-dev Non-Commercial License"


class FluxEditor:
    """Editor with the weights of a folder, loaded at the first picture."""

    packages = ("diffusers",)

    def __init__(self, folder: Path, device: str | None = None, seed: int = 0):
        """Check package and folder. Raises ValueError and FileNotFoundError."""
        diffusers = _diffusers()
        if not hasattr(diffusers, "FluxKontextPipeline"):
            raise ValueError("this version of diffusers has no FluxKontextPipeline; pip install -U diffusers")
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"there is no {shown(folder)}, the editor that --use_flux runs; download "
                f"black-forest-labs/FLUX.1-Kontext-dev ({LICENCE}) into it, or leave --use_flux out"
            )
        self.folder, self.device, self.seed, self._pipeline = folder, device, seed, None

    def edit(self, picture: np.ndarray, kind: str) -> np.ndarray:
        """Change a picture, uint8 [h, w, 3], by a kind of `INSTRUCTIONS`; the result has a size of the editor's own."""
        import torch
        from PIL import Image

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self._pipeline is None:
            log.info("pictures are edited by FLUX.1-Kontext (%s) on %s", LICENCE, device)
            made = _diffusers().FluxKontextPipeline.from_pretrained(self.folder, torch_dtype=torch.bfloat16)
            self._pipeline = made.to(device)
        height, width = picture.shape[:2]
        result = self._pipeline(
            image=Image.fromarray(picture),
            prompt=INSTRUCTIONS[kind],
            height=height,
            width=width,
            guidance_scale=GUIDANCE,
            num_inference_steps=STEPS,
            generator=torch.Generator("cpu").manual_seed(self.seed),
        )
        return np.asarray(result.images[0].convert("RGB"))


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(
            f"--use_flux needs the package diffusers ({error}): pip install diffusers accelerate"
        ) from None
    return diffusers
