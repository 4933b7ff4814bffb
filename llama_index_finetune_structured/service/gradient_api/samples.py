"""Samples of Gradient's protocol as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from ...local.model.control_tokens import encode_parts
from ...local.model.prompts import TokenRow
from ..errors import ApiError
from .requests import Sample

__all__ = ["TrainingSample", "training_samples"]


class TrainingSample(NamedTuple):
    """One sample. ``rows``: one for each run of trainable tokens, after all that is before it in the text."""

    rows: list[TokenRow]
    multiplier: float


def training_samples(
    samples: Sequence[Sample], tokenizer: Any, stop_id: int, most_tokens: int
) -> list[TrainingSample]:
    """The samples as token ids. A text whose end is trainable also ends with ``stop_id``, so that answers end.

    Raises ApiError (422), with the number of the sample, for one that is longer than ``most_tokens`` or has nothing to
    train, and DatasetError for a text that cannot be encoded.
    """
    found = list[TrainingSample]()
    for number, sample in enumerate(samples):
        ids, trainable = _tokens(sample, tokenizer, stop_id)
        if len(ids) > most_tokens:
            raise _unprocessable(
                number, f"has {len(ids)} tokens, expected at most {most_tokens}: shorten it or leave it out"
            )
        rows = list(_rows(ids, trainable))
        if not rows:
            raise _unprocessable(
                number, "has no trainable token after its first one: make a part trainable or leave it out"
            )
        found.append(TrainingSample(rows, sample.multiplier))
    return found


def _tokens(sample: Sample, tokenizer: Any, stop_id: int) -> tuple[list[int], list[bool]]:
    ids, trainable = list[int](), list[bool]()
    for part in sample.parts:  # each by itself, as a prompt is tokenised in serving
        tokens = encode_parts(tokenizer, [(part.value, part.is_content)])
        ids += tokens
        trainable += [part.is_trainable] * len(tokens)
    if sample.parts[-1].is_trainable and ids and ids[-1] not in (stop_id, tokenizer.eos_token_id):
        ids.append(stop_id)
        trainable.append(True)
    return ids, trainable


def _rows(ids: Sequence[int], trainable: Sequence[bool]) -> Iterator[TokenRow]:
    """A row for each run of trainable tokens. Rows of one text share their beginning, which is computed once."""
    for is_trained, run in groupby(
        range(1, len(ids)), key=lambda at: trainable[at]
    ):  # nothing is before the first
        if is_trained:
            places = list(run)
            yield TokenRow(tuple(ids[: places[0]]), tuple(ids[places[0] : places[-1] + 1]))


def _unprocessable(number: int, why: str) -> ApiError:
    return ApiError(422, f"samples[{number}] {why}.", type="unprocessableContent")
