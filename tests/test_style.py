"""What every function of the program keeps to."""

import ast

import pytest
from sources import ROOT, TREES

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("name", TREES)
def test_functions_are_short(name):
    long = [
        f"{node.name} has {lines(node)} lines"
        for node in ast.walk(TREES[name])
        if isinstance(node, FUNCTION) and lines(node) > 60
    ]
    assert not long


def test_entries_are_thin():
    for name in ("main.py", "sweep.py"):
        assert len((ROOT / name).read_text().splitlines()) < 80


def public(body: list[ast.stmt]) -> list[ast.AST]:
    """Functions, classes and methods whose names do not begin with an underscore."""
    found = []
    for node in body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and node.name[0] != "_":
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += public(node.body)
    return found


def is_annotated(node: ast.AST) -> bool:
    if isinstance(node, ast.ClassDef):
        return True
    own = node.args
    arguments = [*own.posonlyargs, *own.args, *own.kwonlyargs]
    arguments = [each for each in arguments if each.arg not in ("self", "cls")]
    return node.returns is not None and all(each.annotation for each in arguments)


def test_what_is_public_has_docstrings_and_annotations():
    nodes = [node for tree in TREES.values() for node in public(tree.body)]
    bare = [node.name for node in nodes if not ast.get_docstring(node)]
    loose = [node.name for node in nodes if not is_annotated(node)]
    assert len(nodes) > 500
    assert len(bare) <= 0.05 * len(nodes), bare
    assert len(loose) <= 0.05 * len(nodes), loose
