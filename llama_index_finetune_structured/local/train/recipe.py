"""The recipe of a run where its settings leave it open: rows a step, passes over the rows, learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..model.prompts import TrainingRow
from .packing import common_length

__all__ = [
    "GOING_ON_RATE",
    "GOING_ON_START_SHARE",
    "PREFERENCE_RATE",
    "epochs_of",
    "learning_rate_of",
    "rows_a_step",
    "rows_of_length",
]

# Chosen on sets of 250 and 490 rows, whose held-out loss fell until the fourth or fifth pass.
_ENOUGH_ROWS, _MOST_EPOCHS = 2000, 5
# Chosen: below so many tokens a step costs about the same with fewer; the most rows that learned as well as few did.
_STEP_TOKENS, _FEWEST_ROWS, _MOST_ROWS = 1024, 2, 4
# Width to the power of Llama models, https://tinker-docs.thinkingmachines.ai/supervised-learning/sl-hyperparams; the
# rate at width 576 and 4 rows a step was measured here, and grows with the root of the rows (arXiv:2205.10287).
_RATE, _RATE_WIDTH, _RATE_ROWS, _RATE_POWER = 2e-3, 576, 4, 0.781

PREFERENCE_RATE = 0.02
"""Share of the learning rate for preferences, whose loss falls without end where answers already differ.

Measured with 106 pairs: at 0.02 exact answers rose from .520 to .529, at 0.1 they fell to .260.
"""
GOING_ON_RATE = 0.5
"""Share of the learning rate for a run that goes on from an adapter, whose weights are near a minimum already.

Measured with 245 rows and 245 more, without the share below: exact answers .654, for .650 where all were trained on
at once.
"""
GOING_ON_START_SHARE = 0.1
"""Share of the adapter's weights in those of a run that went on from it; they are averaged (arXiv:2109.01903).

Measured on 3 x 80 invoices after a round with a new field: the held-out loss falls from .00031 to .00024, and with 0.2
or more it rises again.
"""


def epochs_of(rows: int, made: int = 0) -> int:
    """Passes over so many rows: fewer rows are seen more often, from 1 to 5 times.

    With ``made`` more, each of which differs from one of them in one field, about as many steps as without these.
    """
    passes = min(_MOST_EPOCHS, max(1, round(_ENOUGH_ROWS / max(1, rows))))
    return math.ceil(passes * rows / max(1, rows + made)) if made else passes


def rows_a_step(rows: Sequence[TrainingRow]) -> int:
    """From 2 to 4 rows: as many as have about 1,024 tokens, what all of them begin with counted once."""
    if not rows:
        return _FEWEST_ROWS
    shared = common_length(min(row.inputs for row in rows), max(row.inputs for row in rows))
    own = max(1.0, sum(map(len, rows)) / len(rows) - shared)
    return rows_of_length(own, shared)


def rows_of_length(own: float, shared: int = 0) -> int:
    """Rows a step of so many tokens each, besides those that all of them share."""
    return max(_FEWEST_ROWS, min(_MOST_ROWS, int((_STEP_TOKENS - shared) / own)))


def learning_rate_of(width: int, batch_size: int) -> float:
    """The highest learning rate: lower for wider models, higher for more rows a step.

    ``width``: the base model's hidden size.
    """
    return float(_RATE * (_RATE_WIDTH / width) ** _RATE_POWER * math.sqrt(batch_size / _RATE_ROWS))
