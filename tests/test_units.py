"""Numbers as people write them: one rule over the whole range."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptdiff.units import byte_size, count_in_words, percent, percent_of, size_ratio, three_digits


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "\u2013"),
        (math.nan, "\u2013"),
        (math.inf, "\u2013"),
        (0, "0 %"),
        (1, "100 %"),
        (1e-300, "< 0.0001 %"),
        (9.99e-7, "< 0.0001 %"),
        (1.01e-6, "0.000101 %"),
        (1.2345e-4, "0.0123 %"),
        (0.0154, "1.54 %"),
        (0.09996, "10.0 %"),
        (0.12784, "12.8 %"),
        (0.9183, "91.8 %"),
        (0.9994, "99.9 %"),
        (0.99959, "99.96 %"),
        (0.99991, "> 99.99 %"),
        (1 - 1e-16, "> 99.99 %"),
        (1.19, "119 %"),
        (12.345, "1,230 %"),
        (-0.0123, "-1.23 %"),
    ],
)
def test_shares(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_shares_of_counts_are_exact() -> None:
    """Floats cannot tell these from nothing and from all."""
    assert percent_of(2**60 - 1, 2**60) == "> 99.99 %"
    assert percent_of(1, 2**60) == "< 0.0001 %"
    assert percent_of(2**60, 2**60) == "100 %"
    assert percent_of(0, 5) == "0 %"
    assert percent_of(0, 0) == "\u2013"


@given(st.fractions(0, 1))
@example(Fraction(1, 3))
@example(Fraction(99995, 100000))
@example(Fraction(9995, 10000))
def test_a_share_has_three_digits_and_no_exponent(share: Fraction) -> None:
    text = percent_of(share.numerator, share.denominator)
    assert re.fullmatch(r"(< 0\.0001|> 99\.99|0|100|99\.9\d|0\.0*[1-9]\d\d|[1-9]\.\d\d|[1-9]\d\.\d) %", text), text
    assert (text == "0 %") == (share == 0) and (text == "100 %") == (share == 1)
    if text[0] not in "<>":
        assert abs(Fraction(text[:-2]) / 100 - share) <= share / 190


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (70_426, "70.4 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (10_623_513, "10.6 MB"),
        (999_999_999, "1.00 GB"),
        (2 * 10**12, "2.00 TB"),
        (1234 * 10**12, "1.23 PB"),
        (2**63, "9.22 EB"),
        (10**22, "10,000 EB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert byte_size(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (10**6, "1.00 million"),
        (999_999_999, "1.00 billion"),
        (7_620_000_000, "7.62 billion"),
        (10**12, "1.00 trillion"),
        (10**15, "1.00 quadrillion"),
    ],
)
def test_counts(count: int, text: str) -> None:
    assert count_in_words(count) == text


def test_ratios() -> None:
    assert size_ratio(10_623_513, 70_426) == "151 times smaller"
    assert size_ratio(5, 0) == "5.00 times smaller"
    assert size_ratio(10**12, 7) == "143,000,000,000 times smaller"
    assert size_ratio(10, 12) == "1.20 times larger"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-12, max_value=1e15))
@example(9.996)
@example(999.6)
@example(0.9996)
def test_numbers_have_three_digits(value: float) -> None:
    text = three_digits(value).replace(",", "")
    assert float(text) == pytest.approx(float(f"{value:.3g}"), rel=1e-9)
    digits = text.replace(".", "").lstrip("0")
    assert "e" not in text and (len(digits) == 3 if value < 999.5 else set(digits[3:]) <= {"0"})
