"""Regular expressions of the decimals between two limits, in plain notation: a Pydantic Decimal is text in JSON."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

__all__ = ["DecimalLimit", "decimal_range_pattern", "digits_pattern"]


@dataclass(frozen=True)
class DecimalLimit:
    """A limit of a decimal; ``included``: whether the limit itself is allowed."""

    value: Decimal
    included: bool = True

    def magnitude(self) -> DecimalLimit:
        """The limit without its sign."""
        return DecimalLimit(abs(self.value), self.included)

    def digits(self) -> tuple[str, str]:
        """The digits before the point and after it, without zeros at the end."""
        whole, _, fraction = f"{self.value:f}".partition(".")
        return str(int(whole)), fraction.rstrip("0")


_ZERO = Decimal(0)


def decimal_range_pattern(
    low: DecimalLimit | None, high: DecimalLimit | None, *, whole: int, places: int
) -> str | None:
    """The pattern of the decimals between two limits, with so many digits at most before and after the point.

    None for no limit. Returns None where no decimal is between them. ``-0`` is left out.
    """
    alternatives = []
    if high is None or high.value >= 0:
        least = low if low is not None and low.value >= 0 else DecimalLimit(_ZERO)
        alternatives += _magnitudes(least, high, whole, places)
    if low is None or low.value < 0:
        least = (
            high.magnitude() if high is not None and high.value < 0 else DecimalLimit(_ZERO, included=False)
        )
        most = None if low is None else low.magnitude()
        alternatives += [f"-{found}" for found in _magnitudes(least, most, whole, places)]
    return f"^(?:{'|'.join(alternatives)})$" if alternatives else None


def digits_pattern(digits: int) -> str:
    """The pattern of decimals with so many digits at most, those before and after the point together."""
    wholes = [_between("1" + "0" * (n - 1), "9" * n) for n in range(1, digits + 1)]
    alternatives = [f"0{_free_fraction(digits)}"]
    alternatives += [f"{found}{_free_fraction(digits - n)}" for n, found in enumerate(wholes, start=1)]
    return f"^-?(?:{'|'.join(alternatives)})$"


def _free_fraction(places: int) -> str:
    return f"(?:\\.{_digits(1, places)})?" if places > 0 else ""


def _magnitudes(low: DecimalLimit, high: DecimalLimit | None, whole: int, places: int) -> list[str]:
    """Alternatives for the decimals of at least 0 between two limits."""
    largest = "9" * whole or "0"
    first, low_fraction = low.digits()
    last, high_fraction = (largest, None) if high is None else high.digits()
    if int(first) > int(largest):
        return []
    if int(last) > int(largest):
        last, high_fraction = largest, None
    lowest = _Edge(low_fraction, low.included)
    highest = None if high_fraction is None or high is None else _Edge(high_fraction, high.included)
    if int(first) > int(last):
        return []
    if first == last:
        return _with_fraction(first, lowest, highest, places)
    # Without a limit on its fraction the last whole number is as free as those before it.
    free = int(last) - (0 if highest is None else 1)
    between = []
    if int(first) + 1 <= free:
        between = [_between(str(int(first) + 1), str(free)) + _free_fraction(places)]
    ends = [] if highest is None else _with_fraction(last, None, highest, places)
    return [*_with_fraction(first, lowest, None, places), *between, *ends]


@dataclass(frozen=True)
class _Edge:
    """The digits of a limit that are still to come; ``included``: whether the limit itself is allowed."""

    digits: str
    included: bool

    def next(self) -> tuple[int, _Edge]:
        """The next digit, 0 after the last, and what follows it."""
        return int(self.digits[:1] or "0"), _Edge(self.digits[1:], self.included)


def _with_fraction(whole: str, low: _Edge | None, high: _Edge | None, places: int) -> list[str]:
    """A number's whole part with the fractions that keep it between the limits; none where there is none."""
    digits = _fraction(low, high, places)
    if _may_end(low, high):
        return [f"{whole}(?:\\.{digits})?" if digits else whole]
    return [f"{whole}\\.{digits}"] if digits else []


def _may_end(low: _Edge | None, high: _Edge | None) -> bool:
    """Whether zeros only may follow."""
    above = low is None or (not low.digits and low.included)
    below = high is None or bool(high.digits) or high.included
    return above and below


def _fraction(low: _Edge | None, high: _Edge | None, places: int) -> str | None:
    """Between 1 and ``places`` further digits; None where none fit."""
    if places == 0:
        return None
    if low is not None and not low.digits and low.included:
        low = None  # no further digit makes the number smaller
    if low is None and high is None:
        return _digits(1, places)
    followers: dict[str, list[int]] = {}
    for digit in range(10):
        least, after_low = (0, None) if low is None else low.next()
        most, after_high = (9, None) if high is None else high.next()
        if not least <= digit <= most:
            continue
        lower, upper = (after_low if digit == least else None), (after_high if digit == most else None)
        rest = _fraction(lower, upper, places - 1)
        if _may_end(lower, upper):
            followers.setdefault(f"(?:{rest})?" if rest else "", []).append(digit)
        elif rest:
            followers.setdefault(rest, []).append(digit)
    return _alternatives(followers)


def _between(low: str, high: str) -> str:
    """The whole numbers between two, both included, without zeros in front."""
    alternatives = []
    free = 0  # lengths so far of which all numbers are allowed
    for length in range(len(low), len(high) + 1):
        first = low if length == len(low) else "1" + "0" * (length - 1)
        last = high if length == len(high) else "9" * length
        if first == "1" + "0" * (length - 1) and last == "9" * length:
            free += 1
            continue
        alternatives += [_of_lengths(length - free, length - 1)] if free else []
        free = 0
        alternatives.append(_same_length(first, last))
    alternatives += [_of_lengths(len(high) - free + 1, len(high))] if free else []
    return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"


def _of_lengths(least: int, most: int) -> str:
    """The whole numbers, from 1, of so many digits."""
    return f"[1-9]{_digits(least - 1, most - 1)}"


def _digits(least: int, most: int) -> str:
    if most == 0:
        return ""
    if least == most:
        return "[0-9]" if most == 1 else f"[0-9]{{{most}}}"
    return f"[0-9]{{{least},{most}}}"


def _same_length(low: str, high: str) -> str:
    if not low:
        return ""
    if set(low) == {"0"} and set(high) == {"9"}:
        return _digits(len(low), len(low))
    followers: dict[str, list[int]] = {}
    for digit in range(int(low[0]), int(high[0]) + 1):
        first = low[1:] if digit == int(low[0]) else "0" * (len(low) - 1)
        last = high[1:] if digit == int(high[0]) else "9" * (len(low) - 1)
        followers.setdefault(_same_length(first, last), []).append(digit)
    return _alternatives(followers) or ""


def _alternatives(followers: dict[str, list[int]]) -> str | None:
    """Digits, each set with what follows them, as one expression."""
    found = [f"{_digit_class(digits)}{follower}" for follower, digits in followers.items()]
    return f"(?:{'|'.join(found)})" if len(found) > 1 else (found[0] if found else None)


def _digit_class(digits: list[int]) -> str:
    if len(digits) == 1:
        return str(digits[0])
    first, last = digits[0], digits[-1]
    in_row = len(digits) == last - first + 1
    return f"[{first}-{last}]" if in_row else f"[{''.join(map(str, digits))}]"
