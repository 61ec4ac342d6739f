"""Names that are imported when they are first used."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGES = ("wan", "wan.modules", "wan.utils")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_promised_name_is_there(package):
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None and name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Wrong'"):
        module.Wrong  # noqa: B018
    assert not hasattr(module, "_private")


def test_modules_are_found_without_an_import_of_their_own():
    code = "import wan; print(wan.modules.model.WanModel.__name__, wan.configs.WAN_CONFIGS['ti2v-5B'].dim)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.stdout.split() == ["WanModel", "3072"], done.stderr


@pytest.mark.parametrize("package, name, text", [("wan.modules", "T5Model", "alone")])
def test_absent_names_say_why(package, name, text):
    with pytest.raises(ImportError, match=f"{package}.{name} .*{text}"):
        getattr(import_module(package), name)


def test_the_packages_load_nothing_heavy():
    code = f"import json, sys, {', '.join(PACKAGES)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "numpy", "av", "PIL", "einops", "safetensors"}
