"""One test per golden file: the recorded numbers of the reference implementation decide.

The files in tests/data/golden always run. WAN_GOLDEN_DIR adds every *.safetensors below the folders it names, separated
by ':', every *.json whose name begins with that of a table, and every file but the README of folders whose files are
known by their names. A file that no runner knows fails.
"""

import filecmp
import fnmatch
import importlib
import json
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import parity
from tests.parity import read_case

# kind -> function(case, tensors), from every module here that is not itself a test
RUNNERS = {}
TABLES = {}  # name -> function(rows)
NAMED = {}  # pattern 'folder/name' -> function(path), for recordings that carry no `case`
for module in pkgutil.iter_modules(parity.__path__, "tests.parity."):
    if ".test_" not in module.name:
        found = importlib.import_module(module.name)
        RUNNERS.update(found.RUNNERS)
        TABLES.update(getattr(found, "TABLES", {}))
        NAMED.update(getattr(found, "NAMED", {}))

EMBEDDED = Path(__file__).parents[1] / "data" / "golden"


def kind_of(case: dict | None) -> str | None:
    """Return the kind of a golden file, with the task where two tasks use one word; None when it has none."""
    kind = (case or {}).get("kind")
    if kind == "dit_forward" and "motion_encoder_size" in case.get("config", {}):
        return "animate_dit_forward"
    return kind


def is_named(path: Path) -> bool:
    """Tell whether a file is known by its name: it lies in a folder of `NAMED`."""
    return path.is_file() and path.suffix != ".md" and path.parent.name in {name.split("/")[0] for name in NAMED}


def runner_of(path: Path) -> Callable[[Path], None] | None:
    """Find the check of a file by its name."""
    fits = (run for name, run in NAMED.items() if fnmatch.fnmatch(f"{path.parent.name}/{path.name}", name))
    return next(fits, None)


def table_of(path: Path) -> str | None:
    """Name the table in a JSON file; None for other files."""
    names = (name for name in TABLES if path.suffix == ".json" and path.stem.startswith(name))
    return next(names, None)


def golden_folders(setting: str) -> list[Path]:
    """List the embedded folder, then those of WAN_GOLDEN_DIR; each must hold recordings."""
    folders = [EMBEDDED, *(Path(part).resolve() for part in setting.split(":") if part)]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"golden folder {folder} does not exist; correct or unset WAN_GOLDEN_DIR")
        if not any(folder.rglob("*.safetensors")):
            raise FileNotFoundError(f"golden folder {folder} holds no *.safetensors; correct or unset WAN_GOLDEN_DIR")
    return folders


def is_copy(one: Path, other: Path) -> bool:
    """Tell whether two files are there and hold the same."""
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def golden_files() -> list:
    files = []
    _, *others = folders = golden_folders(os.environ.get("WAN_GOLDEN_DIR", ""))
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if folder == EMBEDDED and any(is_copy(other / path.relative_to(folder), path) for other in others):
                continue  # it is checked there
            if not (path.suffix == ".safetensors" or table_of(path) or is_named(path)):
                continue
            short = path.relative_to(folder) if is_named(path) else path.relative_to(folder).with_suffix("")
            name = f"{folder.parent.name}/{folder.name}/{short.as_posix()}"
            slow = path.suffix == ".safetensors" and (read_case(path) or {}).get("kind") == "procedural_real_size"
            files.append(pytest.param(path, id=name, marks=pytest.mark.slow if slow else ()))
    return files


@pytest.mark.parametrize("path", golden_files())
def test_golden(path):
    if table := table_of(path):
        rows = json.loads(path.read_text())["rows"]
        assert rows
        return TABLES[table](rows)
    if is_named(path):
        if not runner_of(path):
            pytest.fail(f"{path.name} in the folder {path.parent.name} is known to no runner")
        return runner_of(path)(path)
    case = read_case(path)
    kind = kind_of(case)
    if kind not in RUNNERS:
        pytest.fail(f"{path.name} is of kind {kind!r}, for which no runner exists")
    RUNNERS[kind](case, load_file(path))


def test_embedded_files_are_all_checked():
    named = [path for path in EMBEDDED.rglob("*") if is_named(path)]
    assert all(map(runner_of, named)), "a named file of the repository is unknown"
    kinds = {kind_of(read_case(path)) for path in EMBEDDED.rglob("*.safetensors") if path not in named}
    assert kinds <= set(RUNNERS), "a file of the repository is skipped or unknown"
    tables = [path for path in EMBEDDED.rglob("*.json") if path not in named]
    assert all(map(table_of, tables)), "a table of the repository is unknown"


def test_golden_folder_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        golden_folders(str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="holds no"):
        golden_folders(f"{EMBEDDED}:{tmp_path}")
