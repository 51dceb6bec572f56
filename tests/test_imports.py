"""One direction of imports, and a cheap start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ckptdiff

PACKAGE = Path(ckptdiff.__file__).parent
ORDER = """
errors machine interrupts aside quantities jsonscan canonical weightmap dtypes digests xxh3 openfiles impostors stfile
hubid hubclient hub hubwrite paths scratch parallel recognition private selection folder foreign scopes checkpoint adapt pairing values
codecs.place codecs.planes codecs.raw codecs.sparse
codecs.kernelcache codecs.jit
codecs.leaves codecs.escapes codecs.changes codecs.rangecoder codecs.rans codecs.groups codecs.adaptive codecs.static
codecs.context codecs
table manifest patchfile patches others durable workfolder overwriting output
devices torchtypes memory coding device devicekernels deviceleaves devicecoder coders
patchmaker maker layers applier verifier comparison patchinfo pulling
loaded loading live targets integrations integrations.transformers
analysis analysis.modules analysis.gram analysis.rank analysis.sparsity analysis.counting analysis.matrices analysis.rows
analysis.stored analysis.source analysis.reporting analysis.overlap
analysis.series analysis.words analysis.drawing analysis.markup analysis.charts analysis.page
analysis.overlap_words analysis.overlap_charts analysis.overlap_page
maskrows masks masking freezing tracking subnetwork integrations.trainer
warmup card publishing render render_report render_hub demo cli_common cli_report cli_hub cli __main__
""".split()
LAZY = {"hub", "hubclient", "hubwrite", "publishing", "cli", "cli_hub", "cli_common", "cli_report", "demo"}
LAZY |= {
    "codecs.context",
    "codecs.sparse",
    "torchtypes",
    "memory",
    "loaded",
    "loading",
    "devices",
    "coders",
    "layers",
    "freezing",
    "deviceleaves",
}
LAZY |= {"coding", "durable", "__main__"}
LAZY |= {f"analysis.{name}" for name in ("sparsity", "rows", "rank", "drawing", "markup")}
"""Modules that may import inside functions: to start fast, to run the first, and not to load Numba or torch before they are needed."""


def imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a piece of code imports, without ``ckptdiff.``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "ckptdiff":
            found |= {f"ckptdiff.{alias.name}" for alias in node.names if (PACKAGE / f"{alias.name}.py").exists() or alias.name == "codecs"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "ckptdiff.codecs" and alias.name.islower()}
            found.add(node.module or "")
    return {name.removeprefix("ckptdiff.") for name in found if name.startswith("ckptdiff.")}


def module_path(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_every_module_has_its_place() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")}
    assert modules - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_modules_import_only_from_those_above(name: str) -> None:
    tree = ast.parse(module_path(name).read_text())
    if name in LAZY:
        tree.body = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.If))]
    below = imports(tree) - set(ORDER[: ORDER.index(name)])
    assert not below - {name}, f"{name} imports {below}"


@pytest.mark.parametrize("name", [name for name in ORDER if name not in LAZY])
def test_no_imports_inside_functions(name: str) -> None:
    for node in ast.walk(ast.parse(module_path(name).read_text())):
        if isinstance(node, ast.FunctionDef):
            inside = [n.lineno for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
            assert not inside, f"{name}:{inside}"


@pytest.mark.parametrize(
    "code", ["import ckptdiff; dir(ckptdiff)", "from ckptdiff.cli.main import main; main(['--help'], standalone_mode=False)"]
)
def test_the_start_is_cheap(code: str) -> None:
    heavy = "torch huggingface_hub numba numpy rich zstandard transformers altair vl_convert".split()
    check = f"{code}\nimport sys\nprint([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_importing_everything_loads_no_heavy_package() -> None:
    code = "import ckptdiff, sys\nfor name in ckptdiff.__all__: getattr(ckptdiff, name)\n"
    code += "print([m for m in ('torch', 'huggingface_hub', 'numba', 'rich', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_all_names_exist_and_are_documented() -> None:
    assert sorted(ckptdiff.__all__) == ckptdiff.__all__ == dir(ckptdiff)
    for name in ckptdiff.__all__:
        value = getattr(ckptdiff, name)
        assert value.__doc__ and value.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ckptdiff.nothing  # noqa: B018


def test_every_module_and_public_function_has_a_docstring() -> None:
    for name in ORDER:
        tree = ast.parse(module_path(name).read_text())
        assert ast.get_docstring(tree), name
        if name.startswith("codecs"):
            continue
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and len(node.body) > 3:
                assert ast.get_docstring(node), f"{name}.{node.name}"


def test_every_error_is_public() -> None:
    tree = ast.parse(module_path("errors").read_text())
    assert {node.name for node in tree.body if isinstance(node, ast.ClassDef)} <= set(ckptdiff.__all__)
