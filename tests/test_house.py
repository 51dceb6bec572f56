"""Where tests stand: a folder for each package, files that can be read at once, and helpers shared by ``tests/support`` alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ckptdiff

TESTS = Path(__file__).parent
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py") if path.name != "__init__.py")
SHARED = ("tests.support", "tests.fuzz", "tests.mutants")
"""What test files may import of the tests; nothing may import a test file."""
MOST_LINES = 400


def imported_tests(tree: ast.AST) -> set[str]:
    """Modules of the tests that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "tests"}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports would hide what is shared"
            if (node.module or "").split(".")[0] == "tests":
                found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_tests_can_be_read_at_once_and_says_what_it_is_for(name: str) -> None:
    text = (TESTS / name).read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", FILES)
def test_files_of_tests_share_by_support_alone(name: str) -> None:
    imports = imported_tests(ast.parse((TESTS / name).read_text()))
    assert not [module for module in imports if not module.startswith(SHARED)]
    if name.startswith("support/"):
        assert not [module for module in imports if not module.startswith("tests.support")]


def test_each_package_has_a_folder_of_tests() -> None:
    packages = {path.parent.name for path in Path(ckptdiff.__file__).parent.glob("*/__init__.py")}
    assert packages <= {path.parent.name for path in TESTS.glob("*/test_*.py")}
