"""Which answers of a cascade's student are sure: the threshold for each schema, from the student's held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..forks import ForkSafeLock
from ..local.schema.bounds import schema_key
from ..printable import package_logger
from ..trust.calibration import Calibration
from ..trust.selection import (
    HandOverShare,
    accuracy_threshold,
    budget_threshold,
    expected_share,
    rows_needed,
)
from .cascade_counts import WINDOW

__all__ = ["AcceptanceRule", "SchemaRule", "SchemaRules"]

_logger = package_logger(__name__)
_HOW = (
    "tune() calibrates the adapter that it trains, calibrate(llm, data) any LoraLLM, on answered examples that it "
    "was not trained on; or pass threshold= instead"
)


@dataclass(frozen=True)
class SchemaRule:
    """The rule for the answers to one schema.

    ``threshold``: the least probability of a sure answer; infinite where none is. ``expected``: the share of calls
    that is handed over, by the held-out rows; None where there are none.
    """

    key: str
    threshold: float
    expected: HandOverShare | None

    def is_sure(self, probability: float | None) -> bool:
        """Whether an answer of this probability is accepted."""
        return probability is not None and probability >= self.threshold


@dataclass(frozen=True)
class AcceptanceRule:
    """How thresholds are chosen: by exactly one of ``accuracy``, ``budget`` and ``threshold``."""

    accuracy: float | None = None
    budget: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ConfigurationError(
                f"found {' and '.join(f'{name}=' for name in given) or 'none of them'}: pass exactly one of accuracy=, "
                "budget= and threshold="
            )
        [(name, value)] = given.items()
        if not 0 < value < 1:
            raise ConfigurationError(f"{name}={value!r}: expected a number between 0 and 1, such as 0.95")

    def of(self, calibration: Calibration, key: str) -> SchemaRule:
        """The rule for one schema by its calibration.

        Raises ConfigurationError where that has no held-out rows and the threshold is not given.
        """
        held_out = calibration.held_out
        if self.threshold is not None:
            expected = expected_share(held_out, self.threshold, WINDOW) if held_out else None
            return SchemaRule(key, self.threshold, expected)
        if not held_out:
            name = "accuracy" if self.accuracy is not None else "budget"
            raise ConfigurationError(
                f"{name}= needs a calibrated student, and its answers to this schema ({key[:12]}) are not: {_HOW}"
            )
        if self.budget is not None:
            threshold = budget_threshold(held_out, self.budget)
        else:
            threshold = self._of_accuracy(calibration, key)
        return SchemaRule(key, threshold, expected_share(held_out, threshold, WINDOW))

    def _of_accuracy(self, calibration: Calibration, key: str) -> float:
        assert self.accuracy is not None
        threshold = accuracy_threshold(calibration.held_out, self.accuracy)
        if threshold is not None:
            return threshold
        right = sum(is_right for _, is_right in calibration.held_out)
        _logger.warning(
            "accuracy=%s: the %d held-out rows for one schema (%s), of which the student answered %d rightly, show it "
            "for no part of its answers, so that all are handed over. At least %d answers must be accepted to show "
            "it, all of them right, and more where some are wrong: calibrate on more rows, or ask for less",
            self.accuracy,
            len(calibration.held_out),
            key[:12],
            right,
            rows_needed(self.accuracy),
        )
        return math.inf


class SchemaRules:
    """The rules of one student by schema; made once for each calibration."""

    def __init__(self, rule: AcceptanceRule) -> None:
        self._rule, self._lock = rule, ForkSafeLock()
        self._known: dict[str, tuple[Calibration, SchemaRule]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._rule,)

    def require(self, calibrations: Mapping[str, Calibration]) -> None:
        """Make the rules of the calibrated schemas. Raises ConfigurationError where there is none and must be."""
        for key, calibration in calibrations.items():
            if calibration.held_out:
                self._of(calibration, key)
        if not self._known and self._rule.threshold is None:
            name = "accuracy" if self._rule.accuracy is not None else "budget"
            raise ConfigurationError(f"{name}= needs a calibrated student, and this one is not: {_HOW}")

    def of(self, calibrations: Mapping[str, Calibration], schema: Mapping[str, Any]) -> SchemaRule:
        """The rule for a schema. Raises ConfigurationError where it is not calibrated and must be."""
        key = schema_key(schema)
        return self._of(calibrations.get(key, Calibration()), key)

    def thresholds(self) -> dict[str, float | None]:
        """The thresholds by the keys of the schemas; None where no answer is sure."""
        with self._lock:
            return {
                key: rule.threshold if math.isfinite(rule.threshold) else None
                for key, (_, rule) in self._known.items()
            }

    def _of(self, calibration: Calibration, key: str) -> SchemaRule:
        with self._lock:
            known = self._known.get(key)
            if known is None or (known[0] is not calibration and known[0] != calibration):
                known = self._known[key] = calibration, self._rule.of(calibration, key)
            return known[1]
