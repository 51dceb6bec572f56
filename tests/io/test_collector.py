"""Python's garbage collector is paused and looks again, whatever happens meanwhile."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import ckptdiff
from ckptdiff.io.collector import paused_collector


def test_it_looks_again_after_an_error() -> None:
    with pytest.raises(KeyError), paused_collector():
        assert not gc.isenabled()
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_caller_who_wants_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        ckptdiff.diff({"w": np.zeros(9)}, {"w": np.ones(9)})
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_diff_and_encoder_leave_it_on() -> None:
    old, new = {"w": np.zeros(9)}, {"w": np.ones(9)}
    ckptdiff.diff(old, new)
    encoder = ckptdiff.Encoder(old)
    encoder.add_all(new)
    encoder.finish()
    assert gc.isenabled()
