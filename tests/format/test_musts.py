"""Every MUST of the spec has a vector or a test (tests/support/musts.py)."""

from __future__ import annotations

from tests.support.musts import held, missing, text, uncovered


def test_every_must_is_held() -> None:
    whole = text()
    assert [part for part in held() if whole.count(part) != 1] == []
    assert uncovered() == []


def test_what_holds_a_must_is_there() -> None:
    assert [name for names in held().values() for name in names if missing(name)] == []
