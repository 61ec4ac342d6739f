"""Imports follow the layers of docs/architecture.md; the syntax tree of every file is checked."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file may import from its own layer and those below it. The first pattern that fits a module decides.
LAYERS = [
    (7, ["wan", "wan.__main__", "generate"]),
    (
        6,
        [
            "wan.stored",
            "wan.finding",
            "wan.extension",
            "wan.jobs",
            "wan.staging",
            "wan.plan",
            "wan.planning",
            "wan.cli",
        ],
    ),
    (6, ["wan.nano", "wan.nano.*", "wan.serving", "wan.serving.*", "wan.training", "wan.training.*"]),
    (6, ["wan.checkpoint.convert", "wan.modules.animate.preprocess", "wan.modules.animate.preprocess.*"]),
    (6, ["wan.checkpoint.download", "wan.checkpoint.repack", "wan.plan", "wan.remarks", "wan.utils.utils"]),
    (5, ["wan.text2video", "wan.image2video", "wan.textimage2video", "wan.speech2video", "wan.animate"]),
    (4, ["wan.checking", "wan.experts", "wan.forecast", "wan.planner", "wan.request", "wan.pipeline"]),
    (3, ["wan.configs", "wan.configs.*", "wan.distributed", "wan.distributed.*", "wan.memory", "wan.sampling"]),
    (3, ["wan.tts", "wan.arguments", "wan.utils.prompt_extend", "wan.utils.language_models", "wan.utils.servers"]),
    (3, ["wan.streaming"]),
    (2, ["wan.modules", "wan.modules.*"]),
    (1, ["wan.checkpoint", "wan.checkpoint.*"]),
    (0, ["wan.files", "wan.finite", "wan.framing", "wan.geometry", "wan.guidance", "wan.handover", "wan.images"]),
    (0, ["wan.audio", "wan.interrupts"]),
    (0, ["wan.lazy", "wan.media", "wan.output", "wan.parallel", "wan.parser", "wan.program", "wan.runtime"]),
    (0, ["wan.progress", "wan.choices", "wan.clips", "wan.conditioning", "wan.typed", "wan.values", "wan.version"]),
    (0, ["wan.cards", "wan.colours", "wan.containers", "wan.inputs", "wan.letterbox", "wan.performance", "wan.pose"]),
    (0, ["wan.utils", "wan.utils.flow", "wan.utils.fm_solvers*", "wan.utils.solvers", "wan.utils.system_prompt"]),
]

# (importing, imported) pairs that would be sideways within a layer, or a cycle in waiting.
FORBIDDEN = [
    ("wan.checkpoint.source", "wan.checkpoint.loading"),
    ("wan.checkpoint.formats", "wan.checkpoint.loading"),
    ("wan.modules.s2v*", "wan.modules.animate*"),
    ("wan.modules.animate*", "wan.modules.s2v*"),
    ("wan.distributed*", "wan.memory"),
    ("wan.training*", "wan.nano*"),  # the trainer serves every model; nano is one user of it
    ("wan.training*", "wan.*2video"),  # what both need stands below the tasks
    ("wan.training*", "wan.serving*"),
    ("wan.serving*", "wan.training*"),
]

CORE = {"torch", "numpy", "safetensors", "tokenizers", "ftfy", "PIL", "av", "einops", "tqdm"}
# Packages that a file may need only when a function of it is called, each behind one file of ours.
BEHIND_ONE_FILE = {
    *(
        "cosyvoice",
        "cv2",
        "fastapi",
        "flash_attn",
        "flash_attn_interface",
        "gradio",
        "mediapipe",
        "modelscope_hub",
        "onnx",
        "onnxruntime",
        "sageattention",
    ),
    *("sam2", "tomli", "tqdm"),
}
EXTENSION = "wan/utils/prompt_extend.py"
# Besides, only wrappers of pretrained encoders use transformers.
ONLY_IN = {package: {EXTENSION} for package in ("dashscope", "openai", "tenacity")}
ONLY_IN["transformers"] = {EXTENSION, "wan/modules/animate/clip.py", "wan/modules/speech.py"}
ONLY_IN["av"] = {"wan/audio.py", "wan/containers.py", "wan/media.py"}
ONLY_IN["diffusers"] = {"wan/modules/animate/preprocess/editor.py"}
ONLY_IN["transformers"] |= {"wan/modules/animate/preprocess/sam2.py"}
NEVER = {"decord", "librosa", "imageio", "torchvision", "torchaudio", "easydict"}
STANDARD = set(sys.stdlib_module_names) | {"tomllib"}  # tomllib: from Python 3.11 on


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    in_function: bool
    for_types: bool  # under `if TYPE_CHECKING`


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int | None:
    return next((layer for layer, patterns in LAYERS if any(fnmatch(module, p) for p in patterns)), None)


def imports_of(path: Path) -> list[Import]:
    """Yield every import of a file, at module level and inside functions, as absolute module names."""
    found = []

    def visit(node: ast.AST, in_function: bool, for_types: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, in_function, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node)
            for alias in node.names:
                target = f"{base}.{alias.name}"  # `from package import module` names the module
                found.append(Import(target if target in MODULES else base, node.lineno, in_function, for_types))
        in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for_types = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            visit(child, in_function, for_types)

    visit(ast.parse(path.read_text(), filename=str(path)), False, False)
    return found


def absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module
    package = path.relative_to(ROOT).parent.parts
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


FILES = [ROOT / "generate.py", *sorted((ROOT / "wan").rglob("*.py"))]
FILES = [path for path in FILES if path.exists()]
MODULES = {module_name(path) for path in FILES}
IMPORTS = {path: imports_of(path) for path in FILES}


def violations(wrong: Callable[[str, Import], bool]) -> list[str]:
    """List the wrong imports, as `file:line imports module`."""
    return sorted(
        {
            f"{path.relative_to(ROOT)}:{found.line} imports {found.target}"
            for path, imports in IMPORTS.items()
            for found in imports
            if wrong(module_name(path), found)
        }
    )


def is_ours(found: Import) -> bool:
    return outside(found) == "wan"


def outside(found: Import) -> str:
    return found.target.split(".")[0]


def test_every_file_has_a_layer():
    assert [module for module in sorted(MODULES) if layer_of(module) is None] == [], "give it a layer in this file"


def test_imports_point_down():
    assert violations(lambda module, found: is_ours(found) and (layer_of(found.target) or 0) > layer_of(module)) == []


def test_imported_modules_of_ours_exist():
    assert violations(lambda _, found: is_ours(found) and found.target not in MODULES) == []


@pytest.mark.parametrize("source, target", FORBIDDEN)
def test_forbidden_within_a_layer(source, target):
    assert violations(lambda module, found: fnmatch(module, source) and fnmatch(found.target, target)) == []


def test_there_is_no_import_cycle():
    """Function-level imports count: hiding a cycle in a function does not remove it."""
    graph = {
        module_name(path): {found.target for found in imports if is_ours(found)} - {"wan"}
        for path, imports in IMPORTS.items()
    }
    done, trail = set(), []

    def visit(module: str) -> None:
        assert module not in trail, "cycle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        trail.append(module)
        for target in graph.get(module, ()):
            visit(target)
        trail.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_optional_packages_are_imported_inside_functions():
    def wrong(_: str, found: Import) -> bool:
        known = is_ours(found) or outside(found) in CORE | STANDARD
        return not (known or found.in_function or found.for_types)

    assert violations(wrong) == []


@pytest.mark.parametrize("package", sorted(BEHIND_ONE_FILE))
def test_package_is_behind_one_file(package):
    users = {place.split(":")[0] for place in violations(lambda _, found: outside(found) == package)}
    assert len(users) <= 1, users


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_package_is_where_it_belongs(package):
    users = {place.split(":")[0] for place in violations(lambda _, found: outside(found) == package)}
    assert users == ONLY_IN[package]


def test_unmaintained_and_heavy_packages_are_not_used():
    assert violations(lambda _, found: outside(found) in NEVER) == []


def test_layer_0_loads_no_media_library_on_import():
    def wrong(module: str, found: Import) -> bool:
        return layer_of(module) == 0 and outside(found) in {"av", "PIL"} and not (found.in_function or found.for_types)

    assert violations(wrong) == []


def test_models_do_not_name_cuda():
    """Models run on any device; only runtime, memory and distributed files may ask for CUDA."""
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if layer_of(module_name(path)) == 2
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "cuda"
    ]
    assert named == []
