"""Modules import in one direction only, and starting is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.codecs import CODECS
from ckptdiff.format.entry import CODEC_NAMES
from ckptdiff.kernels import cache

PACKAGE = Path(ckptdiff.__file__).parent
ORDER = """
lazy obtaining errors machine units
io: collector leftovers in_place signals durable job unit_log work_folder scratch open_files store store_traffic store_urls store_path \
source range_cache store_file store_upload store_spool places parallel elsewhere ray_pool workers folder
format: json_scan canonical fields dtypes digests tensor_type header_scan xxh3 wrong_file safetensors safetensors_library safe_paths
format: zstd_frame entry columns entry_scan table sealed metadata index payloads patch_file
kernels: bins block_layout compiling cache compiler arrays jit casts leaves classes ulps changes sums moves escapes histogram gram mask_ops
kernels: raw_bits range_coder pace adaptive adaptive_block adaptive_blocks file_reads encode_files decode_files rans
kernels: context_groups context_map tokens static
codecs: planes raw escaped_values sparse context
hub: ids client repo repo_store commit
checkpoint: weight_map secrets selection recognition other_formats scopes contents dcp_metadata dcp_items dcp reader
checkpoint: adapt gather names renames samples keys parts rows evidence pairing
device: resolve ops xxh3_triton leaves
patching: torch_dtypes memory compare_on_host compare_on_device encode_plan encode_group encode_in_memory encode_files encode_options \
encode hash_work spool encode_log pending_tensor encode_pair pair_summary source_folder patch_limits patch chain unfinished other_files \
overwrite output destination write wrong_base recipes file_sink build_files build_together build rebuild_files rebuild tensor_checks \
target_files in_place_plan in_place_journal in_place traffic_plan provenance work_plan rebuild_plan compose_history compose_blocks \
compose_files compose_tensors compose compose_base
live: hashing names updates sparse_updates writing rows switch loaded_rows load changes encode_rows encode_states
live: patch identity target state_copy restored encoder
analysis: modules values sparsity frames notebook matrices rank intervals nulls principal matrix_rank matrix_nulls null_summary sizes
analysis: size_summary report_model stored_ranks report_stored cast_on_read pair_readers sides pairs report_work overlap overlap_work series
subnetwork: mask_rows mask_file mask_sets mask_sources mask_guesses mask_score mask smallest masked_parameter freeze track
pages: csv_tables chart_data labels histograms null_prose report_prose drawing templating report_charts report_captions report_page
pages: overlap_prose overlap_charts overlap_captions overlap_page
chain: names documents history hub_store contents creation writer originals retention following state_writer state_worker \
state_publisher subscriber
verbs: info make plan_make compose apply plan_apply apply_in_place verify verify_hub compare report overlap card push \
chain_parts chain_pull pull chain_restore chain_list chain_verify chain_push chain_add chain_prune chain_squash chain_series
engines: carriers interception destinations served through placed ways updater warming vllm vllm_ways vllm_engine vllm_client
integrations: transformers trainer trl
cli: tables grouped options render render_hub render_plan render_report render_overlap render_chain progress patch_commands \
report_commands mask_command hub_commands compose_command chain_commands demo warmup main
__main__
"""
"""Packages, lowest first, and their modules: each imports only from those above it."""


def _names() -> Iterator[str]:
    seen = set[str]()
    for line in ORDER.strip().splitlines():
        package, _, modules = line.rpartition(":")
        if package and package not in seen:
            seen.add(package)
            yield package
        yield from (f"{package}.{name}".lstrip(".") for name in modules.split())


MODULES = list(_names())
TABLES = {"codecs"}
"""Packages whose ``__init__`` imports their modules; that of any other imports them when they are asked for."""


def module_path(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a piece of code imports, at once or (``from ckptdiff import kernels``) when it first names them."""
    found, packages = set[str](), set[str]()
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Import) or not any(alias.name.startswith("ckptdiff.") for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module == "ckptdiff":
            packages |= {alias.name for alias in node.names if (PACKAGE / alias.name).is_dir()}
            found |= {alias.name for alias in node.names if alias.name in MODULES} - packages
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ckptdiff."):
            module = (node.module or "").removeprefix("ckptdiff.")
            inner = {f"{module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inner or {module}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
            found |= {f"{node.value.id}.{node.attr}"} & set(MODULES)
    return found


def test_every_module_has_its_place() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")}
    assert modules - {"__init__"} == set(MODULES)


def test_the_house_is_small_enough_to_look_round() -> None:
    top = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(top) <= 25 and sum(path.suffix == ".py" for path in top) <= 7


@pytest.mark.parametrize("name", [name for name in MODULES if module_path(name).name != "__init__.py"])
def test_modules_import_only_from_those_above(name: str) -> None:
    below = imports(ast.parse(module_path(name).read_text())) - set(MODULES[: MODULES.index(name)])
    assert not below, f"{name} imports {below}"


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("lazy", "__main__")])
def test_no_imports_inside_functions(name: str) -> None:
    """What must not be imported at once comes by ``ckptdiff.lazy``; ``__main__`` first takes the signals."""
    tree = ast.parse(module_path(name).read_text())
    inside = [node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)]
    assert not [node.lineno for node in inside if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert "import_module" not in ast.dump(tree)


@pytest.mark.parametrize("name", [name for name in MODULES if module_path(name).name == "__init__.py" and name not in TABLES])
def test_a_package_imports_its_modules_when_they_are_asked_for(name: str) -> None:
    loads = [node for node in ast.parse(module_path(name).read_text()).body if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in loads} <= {"__future__", "ckptdiff.lazy", "ckptdiff.errors", "ckptdiff.obtaining"}


def test_numba_is_imported_by_kernels_alone() -> None:
    for name in MODULES:
        tree = ast.parse(module_path(name).read_text())
        named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        named += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert name.startswith("kernels.") or not [found for found in named if found.split(".")[0] in ("numba", "llvmlite")], name


@pytest.mark.parametrize(
    "code", ["import ckptdiff; dir(ckptdiff)", "from ckptdiff.cli.main import main; main(['--help'], standalone_mode=False)"]
)
def test_the_start_is_cheap(code: str) -> None:
    heavy = "torch huggingface_hub fsspec numba numpy rich zstandard transformers altair vl_convert".split()
    check = f"{code}\nimport sys\nprint([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_importing_everything_loads_no_heavy_package() -> None:
    code = "import ckptdiff, sys\nfor name in ckptdiff.__all__: getattr(ckptdiff, name)\n"
    code += "print([m for m in ('torch', 'huggingface_hub', 'fsspec', 'numba', 'rich', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_all_names_exist_and_are_documented() -> None:
    assert sorted(ckptdiff.__all__) == ckptdiff.__all__ == dir(ckptdiff)
    for name in ckptdiff.__all__:
        value = getattr(ckptdiff, name)
        assert value.__doc__ and value.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ckptdiff.nothing  # noqa: B018


def test_every_module_and_public_function_has_a_docstring() -> None:
    for name in MODULES:
        tree = ast.parse(module_path(name).read_text())
        assert ast.get_docstring(tree), name
        if name.startswith("kernels"):
            continue
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and len(node.body) > 3:
                assert ast.get_docstring(node), f"{name}.{node.name}"


def test_every_error_is_public() -> None:
    tree = ast.parse(module_path("errors").read_text())
    assert {node.name for node in tree.body if isinstance(node, ast.ClassDef)} <= set(ckptdiff.__all__)


def test_the_format_names_the_codecs_that_there_are() -> None:
    assert tuple(CODECS) == CODEC_NAMES


KERNELS = [name for name in MODULES if module_path(name).exists() and "@jit\n" in module_path(name).read_text()]


@pytest.mark.parametrize("name", KERNELS)
def test_sources_are_all_that_a_module_imports_when_it_is_loaded(name: str) -> None:
    """As Python's own parser sees it."""
    found, left = {name}, [name]
    while left:
        tree = ast.parse(module_path(left.pop()).read_text())
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        new = {module for module in imports(tree) if module in MODULES and module_path(module).name != "__init__.py"} - found
        found |= new
        left += new
    assert cache.sources(module_path(name)) == sorted(map(module_path, found))
