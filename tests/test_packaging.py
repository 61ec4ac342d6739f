"""An installed copy holds every sub-package, the nano checkpoints, the licence, and nothing else.

The source archive holds all that is needed to test, read and change it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import wan

ROOT = Path(__file__).parents[1]
CORE = {"torch", "numpy", "safetensors", "tokenizers", "ftfy", "pillow", "av", "einops", "tqdm"}


FOLDERS = ("wan", "tests", "docs", "examples", "benchmarks")
FILES = """
    .flake8 CHANGELOG.md CONTRIBUTING.md LICENSE MANIFEST.in Makefile NOTICE README.md generate.py pyproject.toml
    requirements.txt requirements-dev.txt requirements_s2v.txt requirements_animate.txt
    requirements_animate_mediapipe.txt
""".split()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Build the wheel and the source archive offline, from a copy: the checkout stays unchanged."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools >= 77")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name)
    build = f"from setuptools.build_meta import *; build_wheel({str(target)!r}); build_sdist({str(target)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


def test_the_source_archive_holds_all_that_is_needed_to_work_on_it(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in (entry.name for entry in archive if entry.isfile())}
    made = {name for name in packed if name.startswith("wan.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert packed - made == {*FILES, *(str(path.relative_to(ROOT)) for folder in FOLDERS for path in kept(folder))}


def kept(folder: str) -> Iterator[Path]:
    return (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def test_wheel_holds_every_file_of_the_package(wheel):
    expected = {str(path.relative_to(ROOT)) for path in kept("wan")}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_wheel_holds_the_nano_checkpoint(wheel):
    folder = "wan/nano/checkpoints/t2v-A14B/"
    packed = {info.filename: info.file_size for info in wheel.infolist() if info.filename.startswith(folder)}
    for name in (
        "high_noise_model/config.json",
        "high_noise_model/diffusion_pytorch_model.safetensors",
        "low_noise_model/config.json",
        "low_noise_model/diffusion_pytorch_model.safetensors",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "Wan2.1_VAE.pth",
        "google/umt5-xxl/tokenizer.json",
    ):
        assert packed.get(folder + name, 0) > 0, name
    assert sum(packed.values()) <= 12e6


def test_wheel_carries_licence_and_notice(wheel):
    licences = {name.rsplit("/", 1)[1] for name in wheel.namelist() if ".dist-info/licenses/" in name}
    assert {"LICENSE", "NOTICE"} <= licences


def test_version_is_the_one_the_package_names(wheel):
    assert metadata(wheel)["Version"] == wan.__version__


def test_core_install_needs_only_the_core(wheel):
    requires = metadata(wheel).get_all("Requires-Dist")
    assert {distribution(line) for line in requires if "extra ==" not in line} == CORE


def test_the_dev_extra_brings_the_tools_that_the_original_names(wheel):
    requires = metadata(wheel).get_all("Requires-Dist")
    dev = {distribution(line) for line in requires if 'extra == "dev"' in line}
    assert {"pytest", "black", "flake8", "isort", "mypy", "huggingface-hub", "ruff"} <= dev


EXTRAS = ("dev", "prompt", "s2v", "animate")


def test_no_extra_names_the_package_itself(wheel):
    """Poetry refuses that; `dev` repeats what it needs of `prompt`."""
    requires = metadata(wheel).get_all("Requires-Dist")
    of = {extra: {distribution(line) for line in requires if f'extra == "{extra}"' in line} for extra in EXTRAS}
    assert not [line for line in requires if distribution(line) == "wan"]
    assert all(of[extra] for extra in EXTRAS) and set().union(*of.values()) == of["dev"]


def test_the_prompt_extra_brings_what_prompt_extension_needs(wheel):
    requires = metadata(wheel).get_all("Requires-Dist")
    prompt = {distribution(line) for line in requires if 'extra == "prompt"' in line}
    assert prompt == {"dashscope", "openai", "tenacity", "transformers"}
    pinned = "".join((ROOT / name).read_text() for name in ("requirements-dev.txt", "requirements_s2v.txt"))
    assert all(f"\n{name}==" in pinned for name in prompt), "else make test skips the tests"


@pytest.mark.parametrize("name, packages", [("s2v", {"transformers"}), ("animate", {"onnxruntime", "transformers"})])
def test_the_extra_of_a_task_is_small_and_make_test_installs_it(wheel, name, packages):
    requires = metadata(wheel).get_all("Requires-Dist")
    assert {distribution(line) for line in requires if f'extra == "{name}"' in line} == packages
    pinned = (ROOT / f"requirements_{name}.txt").read_text()
    lines = [line for line in pinned.splitlines() if not line.startswith("#")]
    assert {distribution(line) for line in lines} == packages and len(lines) == 2 * len(packages)
    assert f"\n-r requirements_{name}.txt\n" in (ROOT / "requirements-dev.txt").read_text()


def test_mediapipe_has_an_extra_and_an_environment_of_its_own(wheel):
    """It brings an OpenCV, which another one would overwrite, and wants an older numpy than the core is tested with."""
    requires = metadata(wheel).get_all("Requires-Dist")
    extra = [line for line in requires if 'extra == "animate-mediapipe"' in line]
    assert {distribution(line) for line in extra} == {"mediapipe", "onnxruntime", "transformers"}
    assert any(line.startswith("mediapipe==0.10.21;") for line in extra)
    pinned = (ROOT / "requirements_animate_mediapipe.txt").read_text()
    assert "\nmediapipe==0.10.21\n" in pinned and "\nnumpy==1." in pinned
    others = {line.split(";")[0] for line in (ROOT / "requirements_animate.txt").read_text().splitlines()}
    shared = {line.split(";")[0] for line in pinned.splitlines()}
    assert {line for line in others if line.startswith(("onnxruntime", "transformers"))} <= shared
    assert "mediapipe" not in (ROOT / "requirements-dev.txt").read_text()


def test_requirements_pin_every_core_package_for_every_python():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.match(r"[A-Za-z0-9_.-]+==[0-9][0-9.]*(; python_version [<>]=? \"3\.\d+\")?$", line) for line in lines)
    assert {distribution(line) for line in lines} == CORE
    for package in CORE:
        markers = sorted(line.partition(";")[2].strip() for line in lines if distribution(line) == package)
        assert markers in ([""], ['python_version < "3.11"', 'python_version >= "3.11"']), package


def metadata(wheel: zipfile.ZipFile) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def distribution(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower()
