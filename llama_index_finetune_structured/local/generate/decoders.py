"""Answering rows together: rows join while others go on, and several tokens of a row are checked in one forward."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch

from .kv_cache import SlotModel
from .prefix_cache import PrefixCache
from .request import Request
from .sequence import Row

__all__ = ["SlotDecoder"]


class SlotDecoder:
    """Greedy answers are those of plain decoding, token by token; guesses only spare forwards."""

    def __init__(self, model: Any, stop_ids: Set[int]) -> None:
        self._model, self._stop_ids = SlotModel(model), stop_ids
        self._prefixes = PrefixCache()
        self.rows: list[Row] = []

    def join(self, request: Request) -> None:
        """Read a prompt, of which what is known is not computed again, and say the first token of its answer."""
        row, slot = Row(request, self._stop_ids), len(self.rows)
        known = self._model.load(slot, self._prefixes.find(request.prompt))
        logits = self._model.read(slot, request.prompt, known)
        self._prefixes.add(request.prompt, lambda start, stop: self._model.save(slot, start, stop))
        row.length = len(request.prompt)
        row.take(row.choose(logits, int(logits.argmax())))
        if not row.ended:
            self.rows.append(row)

    def step(self) -> None:
        """One forward for all rows: at least one more token for each."""
        drafts = [row.draft() for row in self.rows]
        asked = [[row.tokens[-1], *draft] for row, draft in zip(self.rows, drafts, strict=True)]
        logits = self._model.extend(asked, [row.length for row in self.rows])
        for row, draft, scores in zip(self.rows, drafts, logits, strict=True):
            _follow(row, draft, scores)
        self._close_ranks()

    def clear(self) -> None:
        """Give the rows' memory back; what prompts left for later ones is kept."""
        self.rows = []
        self._model.release()

    def _close_ranks(self) -> None:
        """Rows that have ended leave; the last ones move into their slots, so that the rest goes on faster."""
        for slot in reversed(range(len(self.rows))):
            if self.rows[slot].ended:
                last = self.rows.pop()
                if slot < len(self.rows):
                    self._model.move(len(self.rows), slot, last.length)
                    self.rows[slot] = last


def _follow(row: Row, draft: list[int], logits: torch.Tensor) -> None:
    """Take the tokens that the model itself says, for as long as the draft had them right, and one more."""
    likeliest = logits.argmax(-1).tolist()
    for at, guess in enumerate([*draft, None]):
        row.length += 1
        token = row.choose(logits[at], likeliest[at])
        row.take(token)
        if row.ended or token != guess:
            return
