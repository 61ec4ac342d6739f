"""One test per golden file: the recorded numbers of the reference implementation decide.

The files in tests/data/golden always run. WAN_GOLDEN_DIR adds every *.safetensors below the folders it names, separated
by ':', and every *.json whose name begins with that of a table. A *.safetensors that no runner knows fails, unless
PENDING names the task that is still to come.
"""

import fnmatch
import importlib
import json
import os
import pkgutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import parity
from tests.parity import read_case

# kind -> function(case, tensors), from every module here that is not itself a test
RUNNERS = {}
TABLES = {}  # name -> function(rows)
for module in pkgutil.iter_modules(parity.__path__, "tests.parity."):
    if ".test_" not in module.name:
        found = importlib.import_module(module.name)
        RUNNERS.update(found.RUNNERS)
        TABLES.update(getattr(found, "TABLES", {}))

EMBEDDED = Path(__file__).parents[1] / "data" / "golden"

# Recordings of tasks that do not exist yet: reason -> kinds. Delete a row with the issue that builds its task.
PENDING = {
    "animation preprocessing is not implemented yet": ("preprocess",),
}
REASONS = {kind: reason for reason, kinds in PENDING.items() for kind in kinds}

# Recordings of preprocessing carry no `case`; their names identify them.
PREPROCESS = (
    "detector_*",
    "e2e_keypoints",
    "face_boxes",
    "heatmap_decode",
    "keypoint_groups",
    "masks",
    "pose_crop",
    "pose_draw_*",
    "resize_pad",
    "retarget_*",
)


def kind_of(name: str, case: dict | None) -> str | None:
    """Return the kind of a golden file, with the task where two tasks use one word; None when it has none."""
    if case is None:
        return "preprocess" if any(fnmatch.fnmatch(name, pattern) for pattern in PREPROCESS) else None
    kind = case.get("kind")
    if kind == "dit_forward" and "motion_encoder_size" in case.get("config", {}):
        return "animate_dit_forward"
    return kind


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


def golden_files() -> list:
    files = []
    for folder in golden_folders(os.environ.get("WAN_GOLDEN_DIR", "")):
        tables = [path for path in folder.rglob("*.json") if table_of(path)]
        for path in sorted([*folder.rglob("*.safetensors"), *tables]):
            name = f"{folder.parent.name}/{folder.name}/{path.relative_to(folder).with_suffix('').as_posix()}"
            slow = not table_of(path) and (read_case(path) or {}).get("kind") == "procedural_real_size"
            files.append(pytest.param(path, id=name, marks=pytest.mark.slow if slow else ()))
    return files


@pytest.mark.parametrize("path", golden_files())
def test_golden(path):
    if table := table_of(path):
        rows = json.loads(path.read_text())["rows"]
        assert rows
        return TABLES[table](rows)
    case = read_case(path)
    kind = kind_of(path.stem, case)
    if kind in REASONS:
        pytest.skip(REASONS[kind])
    if kind not in RUNNERS:
        pytest.fail(f"{path.name} is of kind {kind!r}, for which no runner exists")
    RUNNERS[kind](case, load_file(path))


def test_embedded_files_are_all_checked():
    kinds = {kind_of(path.stem, read_case(path)) for path in EMBEDDED.rglob("*.safetensors")}
    assert kinds <= set(RUNNERS), "a file of the repository is skipped or unknown"
    assert all(map(table_of, EMBEDDED.rglob("*.json"))), "a table of the repository is unknown"


def test_no_kind_is_both_pending_and_implemented():
    assert not set(REASONS) & set(RUNNERS)


def test_golden_folder_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        golden_folders(str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="holds no"):
        golden_folders(f"{EMBEDDED}:{tmp_path}")
