"""Text-to-video needs the core dependencies alone: every optional package is hidden here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wan import media
from wan.nano.random import write_random_checkpoint

ROOT = Path(__file__).parents[1]

OPTIONAL = """
    accelerate cv2 dashscope decord diffusers easydict fastapi flash_attn flash_attn_interface gradio imageio kernels
    librosa mediapipe moviepy onnx onnxruntime openai peft pytest ray sageattention sam2 scipy sentencepiece soundfile
    tenacity tomli torchaudio torchvision transformers uvicorn xformers xfuser
""".split()

# Names these as not installed: an import fails, and a search for the package finds nothing.
HIDE = f"""
from importlib.machinery import PathFinder

search = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in {OPTIONAL!r} else search(name, *rest)
"""


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter that knows this checkout and starts in `folder`."""
    preamble = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run([sys.executable, "-c", preamble + code], cwd=folder, capture_output=True, text=True)


def test_importing_wan_loads_nothing_heavy(tmp_path):
    done = python("import json, wan; print(json.dumps(sorted(sys.modules)))", tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "numpy", "av", "PIL", "tokenizers", "ftfy", "einops", "safetensors", *OPTIONAL}


def test_the_public_class_loads_no_optional_package_even_when_installed(tmp_path):
    done = python("import json; from wan import WanT2V; print(json.dumps(sorted(sys.modules)))", tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"av", "PIL", *OPTIONAL}


def test_hidden_packages_are_hidden(tmp_path):
    """The negative control, on a package that is there: without it the next test could pass for a wrong reason."""
    assert python("import pytest", tmp_path).returncode == 0
    assert "No module named 'pytest'" in python(HIDE + "import pytest", tmp_path).stderr


def test_text_to_video_runs_on_the_core_alone(tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint")
    arguments = ["--ckpt_dir", str(checkpoint), "--prompt", "a red circle", "--sample_steps", "2", "--frame_num", "5"]
    arguments += ["--device", "cpu", "--save_file", "video.mp4"]
    run = f"from wan.cli import main\ncode = main({arguments!r})\nprint('torch._dynamo' in sys.modules)\nsys.exit(code)"
    done = python(HIDE + run, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False"], "something imports torch's compiler, seconds at every start"
    frames, fps = media.read_video(tmp_path / "video.mp4")
    assert tuple(frames.shape) == (5, 64, 64, 3)
    assert fps == pytest.approx(8)
