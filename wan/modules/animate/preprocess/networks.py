"""Networks in ONNX files, run by onnxruntime. Tensors are addressed by position: names differ between exports."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from wan.files import no_file, shown
from wan.program import install_command

log = logging.getLogger(__name__)

FOLDER_FILE = "end2end.onnx"  # in a folder, which stands for a file of more than 2 GB; its weights lie beside it
SOURCE = "it is in the folder process_checkpoint of Wan2.2-Animate-14B"
GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
Shape = tuple[int | None, ...]  # None: any number


class Network:
    """Network with one input and one output that are used. `provider` is the one that really runs it.

    inputs, outputs: the shapes that it must have, which tell a wrong file; `title` is for messages. `device`: "auto"
    takes a GPU when onnxruntime has it, "cpu" and "cuda" that one alone. Raises ValueError and FileNotFoundError.
    """

    def __init__(self, path: str | Path, title: str, inputs: Shape, outputs: Shape, device: str = "auto"):
        self.path = network_file(Path(path), title)
        self.session = _session(self.path, title, device)
        given, made = self.session.get_inputs()[0], self.session.get_outputs()[0]
        for kind, tensor, shape in (("input", given, inputs), ("output", made, outputs)):
            if not fits(tensor.shape, shape) or tensor.type not in TYPES:
                wanted = " x ".join(str(side or "any") for side in shape)
                raise ValueError(
                    f"{shown(self.path)} is no {title}: its {kind} is {tensor.type} {shown(tensor.shape, 80)}, "
                    f"and must be tensor(float) {wanted}"
                )
        self.input, self.dtype = given.name, TYPES[given.type]
        self.batches = not isinstance(given.shape[0], int)  # it takes any number of pictures at once
        self.provider = self.session.get_providers()[0]

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """[n, ...] -> float32 [n, ...], in one call where the graph allows it."""
        pictures = pictures.astype(self.dtype, copy=False)
        parts = [pictures] if self.batches else [pictures[n : n + 1] for n in range(len(pictures))]
        made = [self.session.run(None, {self.input: part})[0] for part in parts]
        return np.concatenate(made).astype(np.float32, copy=False)


def network_file(path: Path, title: str) -> Path:
    """Find the file to open: the path itself, or `FOLDER_FILE` in it."""
    if path.is_dir():
        if not (path / FOLDER_FILE).is_file():
            raise FileNotFoundError(f"{shown(path)} is a folder without {FOLDER_FILE}, the {title}; {SOURCE}")
        return path / FOLDER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{no_file(path, title)}; {SOURCE}")
    return path


def fits(shape: list[Any], wanted: Shape) -> bool:
    """Tell whether a shape of a graph, whose free sides have names, can be the wanted one."""
    return len(shape) == len(wanted) and all(
        one is None or not isinstance(side, int) or side == one for side, one in zip(shape, wanted, strict=True)
    )


def _session(path: Path, title: str, device: str) -> Any:
    runtime = _onnxruntime()
    has_gpu = GPU in runtime.get_available_providers()
    if device == "cuda" and not has_gpu:
        raise ValueError(f"the {title} cannot run on a GPU: this onnxruntime has no CUDA; install onnxruntime-gpu")
    on_gpu = has_gpu and device != "cpu"
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors are raised; below them are hints to developers
    try:
        session = runtime.InferenceSession(str(path), options, providers=[GPU, CPU] if on_gpu else [CPU])
    except Exception as error:  # onnxruntime has no common class of errors
        raise ValueError(f"{shown(path)}, the {title}, cannot be read: {shown(error)}; download it again") from None
    if on_gpu and GPU not in session.get_providers():
        problem = f"the {title} does not run on the GPU: onnxruntime could not start CUDA (see its message above)"
        if device == "cuda":
            raise ValueError(problem)
        log.warning("%s; it runs on the CPU, which is slower", problem)
    return session


def _onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else an import makes a number for this machine, and sends it
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"preprocessing needs the package onnxruntime ({error}): {install_command('animate')}"
        ) from None
    return onnxruntime
