"""Results in a notebook: tensors in memory, short texts, HTML in which no name is markup, DataFrames, CSV and Parquet."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff import Mask
from ckptdiff.analysis.notebook import MAX_HTML_ROWS
from ckptdiff.errors import CheckpointError, UnsupportedError
from ckptdiff.pages.csv_tables import csv_of, overlap_table, report_table
from tests.support.checkpoints import tensor, write
from tests.support.commands import run

torch = pytest.importorskip("torch")
STACK = "model.layers.1.mlp.experts.gate_up_proj"


def states() -> tuple[dict, dict]:
    """A base and an update of a small model with experts, of which three are stacked in one tensor and two are apart."""
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (16, 16),
        "model.layers.1.self_attn.q_proj.weight": (16, 16),
        "model.layers.0.mlp.experts.0.w1.weight": (8, 16),
        "model.layers.0.mlp.experts.7.w1.weight": (8, 16),
        STACK: (3, 8, 16),
        "model.norm.weight": (16,),
        "<b>odd & name</b>": (4, 4),
    }
    old = {name: torch.randn(shape, generator=rng).to(torch.bfloat16) for name, shape in shapes.items()}
    new = {name: torch.where(torch.rand(x.shape, generator=rng) < 0.2, x * 1.5, x) for name, x in old.items()}
    new["model.norm.weight"] = old["model.norm.weight"].clone()
    return old, new


def changed(old: dict, new: dict, name: str) -> torch.Tensor:
    return old[name].view(torch.int16) != new[name].view(torch.int16)


def by_name(report: ckptdiff.Report) -> dict:
    """Tensors without their scopes: that of tensors in memory is another than that of a file."""
    return {t.name: replace(t, scope="") for t in report.tensors}


def test_state_dicts_modules_and_patches_stand_for_files(tmp_path: Path) -> None:
    """The same report and overlap, whatever of the sides is in memory."""
    from safetensors.torch import save_file

    old, new = states()
    paths = [tmp_path / "base.safetensors", tmp_path / "target.safetensors"]
    for path, state in zip(paths, (old, new), strict=True):
        save_file(state, path)
    expected, patch = ckptdiff.report(*paths, rank="all"), ckptdiff.diff(old, new)
    for base in (old, paths[0]):
        for target in (new, paths[1], patch):
            found = ckptdiff.report(base, target, rank="all")
            assert by_name(found) == by_name(expected)
            assert (found.ulps, found.moves) == (expected.ulps, expected.moves)
    both = ckptdiff.overlap([new, patch, paths[1]], old)
    assert both.names == ("update 1", "update 2", "target.safetensors") and [pair.jaccard for pair in both.pairs] == [1.0] * 3
    mask = Mask.from_patch(patch, old)
    assert mask == Mask.from_patch(*reversed(paths)) and mask.flags(STACK).tolist() == changed(old, new, STACK).tolist()
    assert mask.random(3, old) == mask.random(3, paths[0])
    model = torch.nn.Linear(8, 8)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad():
        model.weight[0] += 1
    found = ckptdiff.report(before, model)
    assert (found.base, found.target) == ("the base", "the target") and found.totals.changed == 8


def test_what_is_no_side_is_refused_in_plain_text() -> None:
    """With errors of the package, and not a TypeError from within."""
    old, new = states()
    patch = ckptdiff.diff(old, new)
    kinds = r"expected a path, an id on the Hub, a state dict, a module or a ckptdiff\.Patch, found"
    for call, text in (
        (lambda: ckptdiff.report(old, 3), f"target: {kinds} int"),
        (lambda: ckptdiff.report([old], new), f"base: {kinds} list"),
        (lambda: ckptdiff.report(None, new), f"base: {kinds} NoneType"),
        (lambda: ckptdiff.report(patch, new), "base: is a patch: give the checkpoint that it was made from"),
        (lambda: ckptdiff.report({"w": 1}, {"w": 2}), "the base: w: expected a tensor with content, found int"),
        (lambda: ckptdiff.overlap([old, 3], old), rf"updates\[1\]: {kinds} int"),
        (lambda: ckptdiff.overlap(new, old), "updates: expected several, found dict: put it in a list"),
        (lambda: ckptdiff.overlap(torch.nn.Sequential(torch.nn.Linear(2, 2)), old), "updates: expected several, found Sequential"),
        (lambda: ckptdiff.overlap(patch, old), "updates: expected several, found Patch: put it in a list"),
        (lambda: ckptdiff.overlap([patch]), "tensors and patches in memory do not name their base: give it with --base"),
        (lambda: Mask.from_patch(3, old), f"patch: {kinds} int"),
    ):
        with pytest.raises(CheckpointError, match=text):
            call()
    with pytest.raises(UnsupportedError, match="tensors and patches in memory are read by this process alone"):
        ckptdiff.report(old, new, ray="local")


def test_texts_are_short_and_html_is_safe() -> None:
    old, new = states()
    found, both = ckptdiff.report(old, new, rank="all"), ckptdiff.overlap({"<i>a": new, "b": new, "c": new, "d": new}, old)
    assert repr(found).startswith("<ckptdiff.Report the base -> the target: 1,184 elements in 7 tensors, ") and len(repr(found)) < 200
    assert repr(found.tensors[0]).startswith("<TensorReport ") and len(repr(found.tensors)) < 1000
    assert repr(both).startswith("<ckptdiff.OverlapResult of the base: 1,184 elements in 7 tensors, <i>a changes ") and "1 more" in repr(
        both
    )
    html = found._repr_html_()
    share = 100 * (1 - found.totals.sparsity)
    assert html.startswith("<table><caption>ckptdiff.Report the base -&gt; the target") and f"<td>{share:.3g} %</td>" in html
    assert "<i>a" not in both._repr_html_() and "&lt;i&gt;a" in both._repr_html_()
    many = ckptdiff.overlap({f"step {k}": new for k in range(9)}, old)._repr_html_()
    assert many.count("<tr>") == MAX_HTML_ROWS + 1 and f"… and {36 - MAX_HTML_ROWS + 1} more: see to_frame()" in many


def test_frames(tmp_path: Path) -> None:
    """Their numbers are plain torch's; layers are whole numbers, though some are not known."""
    pandas = pytest.importorskip("pandas")
    old, new = states()
    found = ckptdiff.report(old, new, rank="all")
    counts = {name: int(changed(old, new, name).sum()) for name in old}
    tensors = found.to_frame()
    assert dict(zip(tensors["name"], tensors["changed"], strict=True)) == counts
    assert (tensors["sparsity"] == 1 - tensors["changed"] / tensors["elements"]).all()
    assert tensors["layer"].dtype == tensors["part"].dtype == pandas.Int64Dtype() and tensors["layer"].isna().sum() == 2
    assert tensors["one_ulp"].dtype == pandas.Int64Dtype() and tensors["rank_share"].dtype == np.float64
    layers = found.to_frame("layers").set_index(["layer", "module"])
    assert layers.loc[(1, "q"), "changed"] == counts["model.layers.1.self_attn.q_proj.weight"] and layers["tensors"].sum() == 7
    assert layers["changed"].sum() == found.totals.changed and layers.loc[(0, "experts"), "tensors"] == 2
    matrices = found.to_frame("matrices")
    assert len(matrices) == sum(len(t.ranks or ()) for t in found.tensors) == 8 and matrices["index"].max() == 2
    for row in matrices.itertuples():
        update = (new[row.name] - old[row.name]).float().reshape(-1, row.height, row.width)[row.index]
        assert row.rank == int(torch.linalg.matrix_rank(update))
    experts = found.to_frame("experts")
    stack = changed(old, new, STACK).flatten(1).sum(1).tolist()
    assert experts[experts["name"] == STACK][["expert", "elements", "changed"]].values.tolist() == [
        [k, 128, n] for k, n in enumerate(stack)
    ]
    assert sorted(experts["expert"]) == [0, 0, 1, 2, 7] and (experts["sparsity"] == 1 - experts["changed"] / experts["elements"]).all()
    alone = ckptdiff.report_patch(_saved(ckptdiff.diff(old, new), tmp_path)).to_frame()
    assert dict(zip(alone["name"], alone["changed"], strict=True)) == counts and alone["up"].isna().all()
    with pytest.raises(CheckpointError, match="table: expected one of tensors, matrices, layers, experts, exponents, found 'rows'"):
        found.to_frame("rows")


def _saved(patch: ckptdiff.Patch, folder: Path) -> Path:
    (folder / "patch.safetensors").write_bytes(patch.to_bytes())
    return folder / "patch.safetensors"


def test_frames_of_overlaps_and_series() -> None:
    pytest.importorskip("pandas")
    old, new = states()
    middle = {
        name: torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5, x, new[name]) for name, x in old.items()
    }
    found = ckptdiff.overlap({"middle": middle, "last": new}, old)
    (pair,) = found.to_frame().to_dict("records")
    assert (pair["first_name"], pair["o1"], pair["both"]) == ("middle", found.pairs[0].o1, sum(int(t.both[0, 1]) for t in found.tensors))
    by_tensor = found.to_frame("tensors").set_index("name")
    assert by_tensor.loc[STACK, "changed_second"] == int(changed(old, new, STACK).sum()) and by_tensor["both"].sum() == pair["both"]
    steps = found.to_frame("steps")
    assert steps["sparsity"].tolist() == [step.sparsity for step in found.steps] and steps["name"].tolist() == ["middle", "last"]
    series = found.to_frame("series")
    row = series[(series["name"] == STACK) & (series["step"] == 1)].iloc[0]
    assert row["changed"] == int(changed(old, new, STACK).sum()) and row["sparsity"] == 1 - row["changed"] / row["elements"]
    assert row["since_last"] == int(changed(middle, new, STACK).sum())
    with pytest.raises(CheckpointError, match="table: expected one of pairs, tensors, steps, series, found 'rows'"):
        found.to_frame("rows")


def test_csv_and_parquet_have_the_same_cells(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    units = rng.integers(0x3C00, 0x3E00, (3, 8, 16)).astype("<u2")
    steps = [units + np.where(rng.random(units.shape) < 0.1 * k, 1, 0).astype("<u2") for k in range(3)]
    paths = [
        write(tmp_path / f"{k}.safetensors", {STACK: tensor("BF16", units.shape, x), "v,w": tensor("BF16", (16,), x[0, 0])})
        for k, x in enumerate(steps)
    ]
    for command, names in (("report", "tensors matrices layers experts"), ("overlap", "pairs tensors steps series")):
        for name in names.split():
            given = paths[:2] if command == "report" else [*paths[1:], "--base", paths[0]]
            files = [tmp_path / f"{command}-{name}.{kind}" for kind in ("csv", "parquet")]
            done = run(command, *given, "--table", name, "--csv", files[0], "--parquet", files[1])
            assert done.exit_code == 0, done.output
            cells = list(csv.DictReader(io.StringIO(files[0].read_text(), newline="")))
            columns = parquet.read_table(files[1]).to_pylist()
            assert len(cells) == len(columns) > 0 and list(cells[0]) == list(columns[0])
            for texts, values in zip(cells, columns, strict=True):
                for key, value in values.items():
                    same = texts[key] == "" if value is None or value != value else texts[key] in (str(value), str(value).replace("'", '"'))
                    assert same, (name, key, texts[key], value)
    result = ckptdiff.report(*paths[:2])
    assert (tmp_path / "report-experts.csv").read_text() == csv_of(report_table(result, "experts"))
    overlap = ckptdiff.overlap(paths[1:], paths[0])
    assert (tmp_path / "overlap-pairs.csv").read_text() == csv_of(overlap_table(overlap))


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    path = write(tmp_path / "a.safetensors", {"w": tensor("U8", (1,), b"x")})
    done = run("report", path, path, "--parquet", tmp_path / "out.parquet")
    assert (
        done.exit_code == 3 and "Parquet files need pyarrow; in a clone of the ckptdiff repository: pip install '.[parquet]'" in done.output
    )
    assert not (tmp_path / "out.parquet").exists()
