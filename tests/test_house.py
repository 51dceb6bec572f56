"""Where tests stand: a folder for each package, files that can be read at once, helpers in ``tests/support`` alone; how all texts say
how to get ckptdiff."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.obtaining import HOW_TO_GET_IT, how_to_get

TESTS = Path(__file__).parent
ROOT = TESTS.parent
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


FROM_AN_INDEX = re.compile(
    r"""(?:pip|pipx|uv|uvx)\s+(?:\w+\s+)*(?:-\S+\s+)*['"`]?ckptdiff\b(?![/.])|ckptdiff\[|pypi\.org/project/ckptdiff"""
)


def written_texts() -> list[Path]:
    """The package, and all documents."""
    documents = [
        *ROOT.glob("*.md"),
        *(path for folder in ("docs", "benchmarks", "examples", "spec") for path in (ROOT / folder).rglob("*.md")),
    ]
    return [path for path in [*(ROOT / "ckptdiff").rglob("*"), *documents] if path.is_file() and "__pycache__" not in path.parts]


def test_no_text_tells_anyone_to_install_from_an_index_that_does_not_have_it() -> None:
    """Until a release (docs/release.md), ``ckptdiff/obtaining.py`` and the documents name the clone."""
    texts = {path: path.read_text() for path in written_texts()}
    assert len(texts) > 150 and ROOT / "README.md" in texts and ROOT / "docs" / "api.md" in texts
    assert not [(str(path), found[0]) for path, text in texts.items() if (found := FROM_AN_INDEX.search(text))]
    assert [path.name for path in (ROOT / "ckptdiff").rglob("*.py") if "pip install" in texts[path]] == ["obtaining.py"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pip install ckptdiff", True),
        ("pip install -U 'ckptdiff'", True),
        ("uv tool install ckptdiff", True),
        ("needs `ckptdiff[report]`", True),
        ("https://pypi.org/project/ckptdiff/", True),
        ("pip install . && ckptdiff demo", False),
        ("pip install '.[report]'", False),
        ("pip install ckptdiff/", False),
    ],
)
def test_what_would_install_from_an_index(text: str, found: bool) -> None:
    assert bool(FROM_AN_INDEX.search(text)) is found


def test_how_to_get_it() -> None:
    assert HOW_TO_GET_IT.startswith("in a clone") and HOW_TO_GET_IT.endswith("pip install .")
    assert how_to_get("report") == "in a clone of the ckptdiff repository: pip install '.[report]'"
