"""Links in a checkpoint's folder: weights may lie anywhere; other links may lead out of the folder only where that is asked for."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import ckptdiff
from ckptdiff.cli.main import main
from ckptdiff.io.folder import list_folder
from ckptdiff.live.target import open_target
from tests.support.checkpoints import bf16, tree, write
from tests.support.layouts import to_hub_cache
from tests.support.small_pair import Pair


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the host, beside the checkpoints."""
    (tmp_path / "host" / "sub").mkdir(parents=True)
    (tmp_path / "host" / "passwd").write_text("root:x:0:0")
    (tmp_path / "host" / "sub" / "more").write_text("more")
    return tmp_path / "host"


def refused(*args: object) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 3, result.output
    return result.output


def made(pair: Pair, out: Path, *options: str) -> str:
    result = CliRunner().invoke(main, ["make", str(pair.base), str(pair.target), "-o", str(out), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("side", ["base", "target"])
@pytest.mark.parametrize(
    ("name", "to", "option"), [("notes.txt", "passwd", "notes.txt"), ("docs", "", "'docs/*'"), ("[a] b.json", "sub/more", "'[[]a] b.json'")]
)
def test_links_out_are_refused_by_name(side: str, name: str, to: str, option: str, folders: Pair, outside: Path, tmp_path: Path) -> None:
    """A file and a folder; the message names the option that leaves them out, and it does."""
    wanted = tree(folders.target)
    folder = getattr(folders, side)
    (folder / name).symlink_to(outside / to)
    text = refused("make", folders.base, folders.target, "-o", tmp_path / "p")
    where = f"{folder / name}: a link out of the checkpoint, to {outside / to}: leave it out with --exclude {option}, "
    assert where + "or take what it leads to with --follow-links\n" in text and not (tmp_path / "p").exists()
    text = made(folders, tmp_path / "p", *shlex.split(f"--exclude {option}"))
    ckptdiff.apply(folders.base, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted and "root:x" not in text


def test_links_out_are_taken_where_that_is_asked_for(folders: Pair, outside: Path, tmp_path: Path) -> None:
    """A folder is named once, and its files come back as files."""
    (folders.target / "docs").symlink_to(outside)
    (folders.target / "notes.txt").symlink_to(outside / "passwd")
    text = made(folders, tmp_path / "p", "--follow-links")
    row = f"links followed  {folders.target}/docs/ to {outside}, {folders.target}/notes.txt to {outside / 'passwd'}\n"
    assert row in text
    ckptdiff.apply(folders.base, tmp_path / "p", tmp_path / "out")
    found = tree(tmp_path / "out")
    assert found["docs/passwd"] == found["notes.txt"] and "docs/sub/more" in found


def test_several_links_are_named_in_one_line(folders: Pair, outside: Path, tmp_path: Path) -> None:
    for k in range(50):
        (folders.target / f"link{k:02}").symlink_to(outside / "passwd")
    text = refused("make", folders.base, folders.target, "-o", tmp_path / "p")
    assert "link00: a link out" in text and "(and 49 more links): leave it out with --exclude link00 --exclude link01" in text
    assert text.count("\n") == 1


def test_weights_and_indexes_may_lie_anywhere_and_are_named(folders: Pair, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    wanted = tree(folders.target)
    for path in [*folders.base.glob("*.safetensors"), *folders.target.glob("*.safetensors*")]:
        os.rename(path, store / f"{path.parent.name}-{path.name}")
        path.symlink_to(store / f"{path.parent.name}-{path.name}")
    result = ckptdiff.make(folders.base, folders.target, tmp_path / "p")
    links = [f"base/{path.name}" for path in folders.base.glob("*.safetensors")]
    links += sorted(f"target/{path.name}" for path in folders.target.glob("*.safetensors*"))
    assert result.followed == {f"{tmp_path}/{name}": store / name.replace("/", "-") for name in links}
    assert f"links followed  {tmp_path}/{links[0]} to {store}/{links[0].replace('/', '-')}, " in made(folders, tmp_path / "q")
    ckptdiff.apply(folders.base, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted
    assert ckptdiff.verify(tmp_path / "p", base=folders.base, target=tmp_path / "out").ok


def test_a_linked_folder_that_may_hold_weights_is_not_passed_over(folders: Pair, tmp_path: Path) -> None:
    write(tmp_path / "store" / "model.safetensors", {"w": bf16([1.0])})
    (folders.target / "unet").symlink_to(tmp_path / "store")
    for verb in (("make", folders.base, folders.target, "-o", tmp_path / "p"), ("compare", folders.base, folders.target)):
        assert f"unet: a link out of the checkpoint, to {tmp_path / 'store'}" in refused(*verb)
    found = ckptdiff.compare(folders.target, folders.target, follow_links=True)
    assert sorted(row.name for row in found.tensors) == ["a.weight", "b.weight", "c", "w"]
    made(folders, tmp_path / "p", "--follow-links")
    ckptdiff.apply(folders.base, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out")["unet/model.safetensors"] == tree(tmp_path / "store")["model.safetensors"]


def test_the_hub_cache_needs_no_option(folders: Pair, outside: Path, tmp_path: Path) -> None:
    """Its links into its blobs are no links out, also where a blob is a link into a store; any other link of a snapshot is one."""
    base, target = (to_hub_cache(folder, tmp_path / f"cache {folder.name}") for folder in (folders.base, folders.target))
    blob = (target / "config.json").resolve()
    os.rename(blob, tmp_path / "stored")
    blob.symlink_to(tmp_path / "stored")
    result = ckptdiff.make(base, target, tmp_path / "p")
    assert result.followed == {} and result.left_out == ()
    ckptdiff.apply(base, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(folders.target)
    (target / "notes.txt").symlink_to(outside / "passwd")
    assert "notes.txt: a link out of the checkpoint" in refused("make", base, target, "-o", tmp_path / "q")


def test_a_folder_of_links_into_the_hub_cache(folders: Pair, tmp_path: Path) -> None:
    """As older clients made one with local_dir."""
    wanted = tree(folders.target)
    snapshot = to_hub_cache(folders.target, tmp_path / "cache")
    for path in folders.target.iterdir():
        path.unlink()
        path.symlink_to((snapshot / path.name).resolve())
    assert ckptdiff.make(folders.base, folders.target, tmp_path / "p").followed == {}
    ckptdiff.apply(folders.base, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted


@pytest.mark.parametrize("depth", [3, 12])
def test_doubled_links_end(depth: int, tmp_path: Path) -> None:
    """Each of a row of folders has two links to the next: there are 2^depth ways, of which those over one link are taken."""
    for k in range(depth):
        (tmp_path / f"l{k}").mkdir()
        (tmp_path / f"l{k}" / "f").write_text(str(k))
        for name in ("a", "b") if k + 1 < depth else ():
            (tmp_path / f"l{k}" / name).symlink_to(f"../l{k + 1}")
    found = list_folder(tmp_path)
    assert len(found.files) == depth + 2 * (depth - 1) and not found.outside
    assert found.files["l0/a/f"].read_text() == "1" and found.again["l0/a/f"] == "l1/f"
    assert len(found.skipped) == 4 * (depth - 2) and "l0/a/b/" in found.skipped


def test_doubled_links_of_a_checkpoint_come_to_an_end(folders: Pair, tmp_path: Path) -> None:
    wanted = tree(folders.target)
    for k in range(48):
        (folders.target / f"l{k:02}").mkdir()
        for name in ("a", "b"):
            (folders.target / f"l{k:02}" / name).symlink_to(f"../l{k + 1:02}" if k < 47 else "../../target")
    result = ckptdiff.make(folders.base, folders.target, tmp_path / "p")
    assert len(result.left_out) == 48 * 4 - 2
    ckptdiff.apply(folders.base, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted


def test_a_link_to_a_folder_that_is_left_out_is_left_out(folders: Pair, tmp_path: Path) -> None:
    write(folders.target / "checkpoint-10" / "model.safetensors", {"w": bf16([1.0])})
    (folders.target / "last").symlink_to("checkpoint-10")
    result = ckptdiff.make(folders.base, folders.target, tmp_path / "p")
    assert result.left_out == ("checkpoint-10/model.safetensors", "last/model.safetensors")
    result = ckptdiff.make(folders.base, folders.target, tmp_path / "q", include=["last/*"])
    assert result.left_out == ("checkpoint-10/model.safetensors",)


def test_verbs_that_need_no_other_files_do_not_mind_them(folders: Pair, outside: Path, tmp_path: Path) -> None:
    for folder in (folders.base, folders.target):
        (folder / "notes.txt").symlink_to(outside / "passwd")
        (folder / "gone").symlink_to("nowhere")
        (folder / "round").symlink_to("round")
    assert not ckptdiff.compare(folders.base, folders.target).same
    assert ckptdiff.report(folders.base, folders.target, rank="none").totals.changed > 0
    (folders.base / "docs").symlink_to(outside)
    ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    assert ckptdiff.verify(folders.patch, base=folders.base, target=tmp_path / "out").ok


@pytest.mark.parametrize("name", ["gone", "round"])
def test_a_link_to_nothing_names_the_way_on(name: str, folders: Pair, tmp_path: Path) -> None:
    (folders.target / name).symlink_to({"gone": "nowhere", "round": "round"}[name])
    text = refused("make", folders.base, folders.target, "-o", tmp_path / "p")
    assert f"{name}: a link to a file that does not exist; restore it or remove it, or leave it out with --exclude {name}\n" in text
    made(folders, tmp_path / "p", "--exclude", name)


def test_a_linked_folder_is_left_out_by_its_name_too(folders: Pair, outside: Path, tmp_path: Path) -> None:
    wanted = tree(folders.target)
    (folders.target / "docs").symlink_to(outside)
    made(folders, tmp_path / "p", "--exclude", "docs")
    ckptdiff.apply(folders.base, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted


def test_a_base_of_links_has_its_configuration_where_nothing_is_stored(folders: Pair, tmp_path: Path) -> None:
    """As for a model that is rebuilt in memory from a patch file, which has no other files of its own."""
    (tmp_path / "linked").mkdir()
    for path in folders.base.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    ckptdiff.make(folders.base / "model.safetensors", folders.base / "model.safetensors", tmp_path / "p")
    with open_target(tmp_path / "linked", tmp_path / "p") as target:
        target.write_files(tmp_path / "files")
    assert tree(tmp_path / "files")["config.json"] == tree(folders.base)["config.json"]


def test_a_patch_inside_a_checkpoint_can_be_left_out(folders: Pair, tmp_path: Path) -> None:
    wanted = tree(folders.target)
    weights = folders.base / "model.safetensors"
    (folders.target / "patch").mkdir()
    ckptdiff.make(weights, weights, folders.target / "patch" / "p.safetensors")
    assert "is a ckptdiff patch" in refused("make", folders.base, folders.target, "-o", tmp_path / "p")
    made(folders, tmp_path / "p", "--exclude", "patch/*")
    ckptdiff.apply(folders.base, tmp_path / "p", tmp_path / "out")
    assert tree(tmp_path / "out") == wanted
