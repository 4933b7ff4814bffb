"""The pattern of a range of decimals matches exactly the decimals in it."""

from __future__ import annotations

import re
from decimal import Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from llama_index_finetune_structured.local.schema.decimal_patterns import (
    DecimalLimit,
    decimal_range_pattern,
    digits_pattern,
)

decimals = st.builds(
    lambda digits, places: Decimal(digits).scaleb(-places), st.integers(-1500, 1500), st.integers(0, 3)
)
limits = st.none() | st.builds(DecimalLimit, decimals, st.booleans())


@given(limits, limits, st.integers(0, 4), st.integers(0, 3), st.lists(decimals, max_size=60))
@example(DecimalLimit(Decimal(0), included=False), None, 4, 2, [])
@example(DecimalLimit(Decimal("0.5")), DecimalLimit(Decimal("0.50")), 1, 2, [])
def test_a_decimal_matches_if_it_is_in_the_range(
    low: DecimalLimit | None, high: DecimalLimit | None, whole: int, places: int, values: list[Decimal]
) -> None:
    pattern = decimal_range_pattern(low, high, whole=whole, places=places)
    near = [limit.value + Decimal(step).scaleb(-3) for limit in (low, high) if limit for step in (-1, 0, 1)]
    for value in [*values, *near, Decimal("0"), Decimal("0.00"), Decimal("-0.001")]:
        text = f"{value:f}"
        before, _, after = text.removeprefix("-").partition(".")
        fits = len(after) <= places and (before == "0" or len(before) <= whole)
        fits &= low is None or value > low.value or (low.included and value == low.value)
        fits &= high is None or value < high.value or (high.included and value == high.value)
        if text.startswith("-") and not value:
            continue
        assert (pattern is not None and re.search(pattern, text) is not None) is fits, (text, pattern)


@given(decimals, st.integers(1, 6))
def test_a_decimal_matches_if_it_has_few_enough_digits(value: Decimal, digits: int) -> None:
    before, _, after = f"{abs(value):f}".partition(".")
    count = len(after) + (0 if before == "0" else len(before))
    assert (re.search(digits_pattern(digits), f"{value:f}") is not None) is (count <= digits)
