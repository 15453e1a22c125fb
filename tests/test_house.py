"""The house rules on size and docstrings hold in the whole package."""

import ast
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).parents[1] / "adabm_basicsr"
FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_FILE, MAX_FUNCTION, MAX_MEDIAN = 400, 50, 10


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def length(function):
    return function.end_lineno - function.lineno + 1


def parsed(path):
    return ast.parse(path.read_text())


def test_most_functions_are_short():
    assert (
        median(length(function) for path in FILES for function in functions(parsed(path)))
        <= MAX_MEDIAN
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_fit(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE
    lengths = {function.name: length(function) for function in functions(parsed(path))}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION} == {}


def undocumented(node, prefix=""):
    """Names of public classes, functions and methods in ``node`` without a docstring."""
    missing = []
    for child in node.body:
        if isinstance(child, (ast.ClassDef, *FUNCTIONS)) and not child.name.startswith("_"):
            name = f"{prefix}{child.name}"
            if ast.get_docstring(child) is None:
                missing.append(name)
            if isinstance(child, ast.ClassDef):
                missing += undocumented(child, f"{name}.")
    return missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_public_has_a_docstring(path):
    tree = parsed(path)
    assert ast.get_docstring(tree) is not None and undocumented(tree) == []
