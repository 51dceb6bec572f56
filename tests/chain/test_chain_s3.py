"""Chains on a real S3 server, and on one that drops connections and fails: exact, or an error, and never half a step."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import ckptdiff
from tests.support.chains import check_steps, training_run, weights
from tests.support.s3_server import faulty_proxy, s3_client, s3_server


def test_a_chain_on_s3(tmp_path: Path) -> None:
    run = training_run(tmp_path / "run", 4)
    before = weights(run[3])
    (tmp_path / "restored").mkdir()
    with s3_server() as port, s3_client(port) as url:
        chain = f"{url}/a run/chain"
        ckptdiff.chain_add(chain, run[:3], keyframe_every=2)
        ckptdiff.chain_add(chain, run[3:], base=run[0], remove_originals=True)
        assert [row.patches for row in ckptdiff.chain_list(chain).steps] == [1, 2, 1]
        assert ckptdiff.chain_verify(chain).ok and not (run[3] / "config.json").exists()
        assert ckptdiff.chain_prune(chain, "200", base=run[0]).kept == (200, 300)
        check_steps(chain, run, tmp_path / "restored", [200])
        ckptdiff.chain_restore(chain, 300, tmp_path / "out", base=run[2])
        assert weights(tmp_path / "out") == before


def test_a_server_that_fails(tmp_path: Path) -> None:
    """The same command is run until it succeeds. After each failure whoever looks finds only whole steps."""
    run, met, faults = training_run(tmp_path / "run", 3), Counter[str](), itertools.cycle(("lost", "500", "drop", "503"))
    at = {6, 14, 30, 50, 80, 120}  # which requests fail

    def fault(method: str, path: str) -> str:
        what = next(faults) if sum(met.values()) in at else "ok"
        met[what] += 1
        return what

    failures = 0
    with s3_server() as port, faulty_proxy(port, fault) as bad:
        for attempt in range(20):
            try:
                with s3_client(bad) as url:
                    ckptdiff.chain_add(f"{url}/chain", run, keyframe_every=1)
                break
            except ckptdiff.StoreError as error:
                failures += 1
                assert str(error).startswith("s3://bucket/chain") and " cannot be " in str(error)
            with s3_client(port) as url:
                steps = _whole_steps(f"{url}/chain", run, tmp_path / f"after-{attempt}")
        else:
            raise AssertionError("it never succeeded")
        with s3_client(port) as url:
            steps = _whole_steps(f"{url}/chain", run, tmp_path / "at-the-end")
            assert ckptdiff.chain_verify(f"{url}/chain").ok
    assert steps == [100, 200] and failures and all(met[what] for what in ("ok", "drop", "lost", "500", "503")), (failures, met)


def _whole_steps(chain: str, run: list[Path], out: Path) -> list[int]:
    """The steps that a chain has, each restored and compared."""
    out.mkdir()
    try:
        steps = [row.step for row in ckptdiff.chain_list(chain).steps]
    except ckptdiff.FormatError as error:
        assert "is not a chain: it has no chain.json" in str(error)
        return []
    check_steps(chain, run, out, steps[-1:])
    return steps
