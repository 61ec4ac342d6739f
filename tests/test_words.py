"""Docstrings of the package begin with a verb or the name of the thing, never with a word that asks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASKING = {"what", "whether", "where", "how", "who", "whom", "whose", "which", "why", "when", "if"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def asking(source: str) -> Iterator[str]:
    """Yield `line: first line` of each docstring whose first word asks."""
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if text and text.split()[0].strip(",.:;").lower() in ASKING:
            yield f"{node.body[0].lineno}: {text.splitlines()[0]}"


@pytest.mark.parametrize("folder", ["wan", "benchmarks", "tests"])
def test_docstrings_begin_with_a_verb_or_a_name(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in asking(path.read_text("utf-8"))]
    assert not found, "begin with a verb or the name of the thing:\n" + "\n".join(found)


@pytest.mark.parametrize("word", sorted(ASKING))
def test_a_word_that_asks_is_found(word):
    assert list(asking(f'"""Module."""\ndef f():\n    """{word.title()} it is.\n\n    More."""\n'))
    assert not list(asking(f'"""Tell {word} it is."""\nclass C:\n    pass\n'))
