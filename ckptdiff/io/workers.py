"""Who does the jobs of a verb: threads of this process, or the workers of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ckptdiff.errors import UnsupportedError
from ckptdiff.io import ray_pool
from ckptdiff.io.elsewhere import ProcessWorkers
from ckptdiff.io.parallel import ThreadWorkers, Workers, default_threads
from ckptdiff.io.places import is_in_store, place_of


def check_no_ray(ray: str | None, what: str) -> None:
    """Raise UnsupportedError where a Ray cluster is given together with what only threads of this process can use."""
    if ray is not None:
        raise UnsupportedError(f"{what} is used by this process alone, not by workers of Ray: leave one of the two out")


def check_no_ray_with_stores(ray: str | None, *paths: str | os.PathLike[str]) -> None:
    """Raise UnsupportedError where a Ray cluster is given together with the URL of a store, of which workers read and write nothing."""
    stored = [path for path in paths if is_in_store(path)] if ray is not None else []
    if stored:
        raise UnsupportedError(
            f"{place_of(stored[0])}: is in a store, which workers of Ray neither read nor write: leave --ray out, or give a path that all "
            "machines see"
        )


@contextmanager
def open_workers(threads: int | None, ray: str | None) -> Iterator[Workers]:
    """Workers for the block.

    Args:
        threads: how many threads, or with ``ray`` how many tasks at a time; None for one a core.
        ray: None for threads of this process, else the address of a Ray cluster, as :func:`ckptdiff.io.ray_pool.open_pool` takes it.

    Raises:
        UnsupportedError: Ray is not installed. ResourceError: the cluster cannot be reached or started.
    """
    if ray is None:
        yield ThreadWorkers(threads or default_threads())
        return
    with ray_pool.open_pool(ray, threads) as pool:
        yield ProcessWorkers(pool)
