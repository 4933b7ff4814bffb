"""Answers through transformers' own ``generate``, for models whose state is not keys and values alone."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from transformers import LogitsProcessorList

from .request import Request
from .sequence import Row

__all__ = ["PlainDecoder"]


class PlainDecoder:
    """Left-padded batches, each generated to its end before the next begins."""

    def __init__(self, model: Any, stop_ids: Set[int], pad_id: int) -> None:
        self._model, self._stop_ids, self._pad_id = model, stop_ids, pad_id
        self.rows: list[Row] = []

    def join(self, request: Request) -> None:
        self.rows.append(Row(request, self._stop_ids))

    def step(self) -> None:
        """Generate the answers of all rows."""
        width = max(len(row.request.prompt) for row in self.rows)
        padding = [width - len(row.request.prompt) for row in self.rows]
        ids = [[self._pad_id] * n + [*row.request.prompt] for n, row in zip(padding, self.rows, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        self._model.generate(
            input_ids=torch.tensor(ids, device=self._model.device),
            attention_mask=torch.tensor(mask, device=self._model.device),
            logits_processor=LogitsProcessorList([self._choose]),
            max_new_tokens=max(row.request.max_new_tokens for row in self.rows),
            do_sample=False,
            eos_token_id=sorted(self._stop_ids),
            pad_token_id=self._pad_id,
        )
        self.rows = []

    def clear(self) -> None:
        self.rows = []

    def _choose(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores in which each row's own choice is the only one; of a row that has ended, a stop token."""
        chosen = [
            min(self._stop_ids) if row.ended else row.choose(scores[n], int(scores[n].argmax()))
            for n, row in enumerate(self.rows)
        ]
        for row, token in zip(self.rows, chosen, strict=True):
            if not row.ended:
                row.take(token)
        only = torch.full_like(scores, float("-inf"))
        only[torch.arange(len(chosen)), chosen] = 0
        return only
