"""Scores one answer against gold: counts per field, from which all figures of the scorecard are summed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

from pydantic import BaseModel, ConfigDict

from .fields import Field
from .matching import best_matching

__all__ = ["FieldScore", "as_list", "matched_items", "score_answer"]

PAIR_FROM = 0.5
"""List items at least this similar are one value answered wrongly, not one missing and one invented (chosen)."""
_CORRECT_WEIGHT = 1000.0
"""Weight of a correct pair in the matching; more than all similarities (at most 1 each) of any real list."""


class FieldScore(BaseModel):
    """Counts of one field of one answer, or their sum over answers.

    Attributes:
        gold: Gold values: correct + wrong + missing.
        answered: Answered values: correct + wrong + invented.
        correct: Answered values that are right.
        wrong: Answered values that differ from their gold value.
        missing: Gold values that were not answered.
        invented: Answered values that gold does not have.
        credit: Summed similarity of the pairs of gold and answered values.
        right: 1 where the whole field is right (summed: how often).
        answers: 1 (summed: number of answers).
    """

    model_config = ConfigDict(frozen=True)

    gold: int = 0
    answered: int = 0
    correct: int = 0
    wrong: int = 0
    missing: int = 0
    invented: int = 0
    credit: float = 0.0
    right: int = 0
    answers: int = 1

    @classmethod
    def total(cls, scores: Iterable[FieldScore]) -> FieldScore:
        """The sum of all counts.

        Args:
            scores: Scores of one field.
        """
        # without validation: the counts are valid, and this runs over each field of each answer
        columns = zip(*map(_counts, scores), strict=True)
        sums: dict[str, Any] = dict(zip(_NAMES, map(sum, columns), strict=False)) or {"answers": 0}
        return cls.model_construct(**sums)

    @property
    def f1(self) -> float:
        """2 correct / (gold + answered), micro-averaged over values; ``accuracy`` where there are no values."""
        return self._f1(self.correct)

    @property
    def soft_f1(self) -> float:
        """F1 that counts each pair by its similarity instead of as right or wrong."""
        return self._f1(self.credit)

    def _f1(self, correct: float) -> float:
        values = self.gold + self.answered
        return 2 * correct / values if values else self.accuracy

    @property
    def accuracy(self) -> float:
        """The share of answers in which the whole field is right."""
        return self.right / self.answers if self.answers else 0.0


_NAMES = tuple(FieldScore.model_fields)
_counts = attrgetter(*_NAMES)


def score_answer(fields: Sequence[Field], gold: Any, answer: Any, valid: bool) -> dict[str, FieldScore]:
    """Field path -> score of one answer.

    An invalid answer (``valid`` False, ``answer`` None) is right in no field, and all gold values are missing.
    """
    scores: dict[str, FieldScore] = {}
    for field in fields:
        scores |= _score_field(field, field.value_in(gold), field.value_in(answer), valid)
    return scores


def _score_field(field: Field, gold: Any, answer: Any, valid: bool) -> dict[str, FieldScore]:
    if field.kind == "list":
        return _score_list(field, as_list(gold), as_list(answer), valid)
    return {field.path: _score_value(field, gold, answer, valid)}


def _score_value(field: Field, gold: Any, answer: Any, valid: bool) -> FieldScore:
    if gold is None or answer is None:
        return _absent_score(gold is not None, answer is not None, valid)
    similarity = field.rule.similarity(gold, answer)
    return _present_score(similarity, field.rule.is_correct(similarity))


# A large scorecard has millions of these scores, nearly all of them one of a few: equal ones are one object.
@lru_cache(maxsize=8)
def _absent_score(gold: bool, answered: bool, valid: bool) -> FieldScore:
    """The score of a value that gold or the answer, or both, do not have."""
    return FieldScore(
        gold=int(gold),
        answered=int(answered),
        missing=int(gold),
        invented=int(answered),
        right=int(valid and not gold and not answered),
    )


@lru_cache(maxsize=256)
def _present_score(similarity: float, correct: bool) -> FieldScore:
    """The score of a value that gold and the answer both have."""
    return FieldScore(
        gold=1,
        answered=1,
        correct=int(correct),
        wrong=int(not correct),
        credit=similarity,
        right=int(correct),
    )


def _score_list(field: Field, gold: list[Any], answer: list[Any], valid: bool) -> dict[str, FieldScore]:
    """The list's own score, after the best one-to-one matching of its items, and its parts' scores."""
    graded = _graded(field, gold, answer)
    pairs = _pairs(graded)
    correct = sum(graded[g][a][1] for g, a in pairs)
    whole = FieldScore(
        gold=len(gold),
        answered=len(answer),
        correct=correct,
        wrong=len(pairs) - correct,
        missing=len(gold) - len(pairs),
        invented=len(answer) - len(pairs),
        credit=sum(graded[g][a][0] for g, a in pairs),
        right=int(valid and correct == len(gold) == len(answer)),
    )
    return {field.path: whole} | _score_parts(field, gold, answer, pairs, valid)


def matched_items(field: Field, gold: list[Any], answer: list[Any]) -> list[tuple[int, int]]:
    """Indices of the items of gold and answer that are one value, right or wrong; all others have no partner."""
    return _pairs(_graded(field, gold, answer))


def _graded(field: Field, gold: list[Any], answer: list[Any]) -> list[list[tuple[float, bool]]]:
    """Similarity of each pair of items, and whether they are equal; [gold, answer]."""
    answers = [_parts_of(field, item) for item in answer]
    return [[_compare(field, g, a) for a in answers] for g in (_parts_of(field, item) for item in gold)]


def _pairs(graded: list[list[tuple[float, bool]]]) -> list[tuple[int, int]]:
    weights = [[_weight(similarity, correct) for similarity, correct in row] for row in graded]
    return [(g, a) for g, a in best_matching(weights) if weights[g][a] >= PAIR_FROM]


def _parts_of(field: Field, item: Any) -> list[Any]:
    """The values of an item, one for each of ``field.items``; read once, not for every pair."""
    return [part.value_in(item) for part in field.items]


def _compare(field: Field, gold: list[Any], answer: list[Any]) -> tuple[float, bool]:
    """An item pair's similarity (mean over its parts) and whether every part is right."""
    parts = [_alike(*triple) for triple in zip(field.items, gold, answer, strict=True)]
    if not parts:
        return 1.0, True
    return sum(similarity for similarity, _ in parts) / len(parts), all(right for _, right in parts)


def _alike(part: Field, gold: Any, answer: Any) -> tuple[float, bool]:
    """A part's similarity and whether it is right.

    Equal to what ``_score_field`` counts, but without its models: this runs for every pair of items.
    """
    if gold is None or answer is None:
        both = gold is None and answer is None
        return float(both), both
    if part.kind == "list":
        score = _score_list(part, as_list(gold), as_list(answer), valid=True)[part.path]
        return score.soft_f1, bool(score.right)
    similarity = part.rule.similarity(gold, answer)
    return similarity, part.rule.is_correct(similarity)


def _weight(similarity: float, correct: bool) -> float:
    """Weight of a pair in the matching: most correct pairs first, then the greatest similarity."""
    if similarity < PAIR_FROM and not correct:
        return 0.0
    return similarity + (_CORRECT_WEIGHT if correct else 0.0)


def _score_parts(
    field: Field, gold: list[Any], answer: list[Any], pairs: list[tuple[int, int]], valid: bool
) -> dict[str, FieldScore]:
    """``list[].part`` -> score over the matched items; parts of unmatched ones are missing or invented."""
    if all(not part.keys for part in field.items):
        return {}
    paired_gold, paired_answer = {g for g, _ in pairs}, {a for _, a in pairs}
    rows = [(gold[g], answer[a]) for g, a in pairs]
    rows += [(item, None) for g, item in enumerate(gold) if g not in paired_gold]
    rows += [(None, item) for a, item in enumerate(answer) if a not in paired_answer]
    out: dict[str, FieldScore] = {}
    for part in field.items:
        scores = [_score_field(part, part.value_in(g), part.value_in(a), True)[part.path] for g, a in rows]
        total = FieldScore.total(scores)
        right = valid and total.correct == total.gold == total.answered
        out[part.path] = total.model_copy(update={"right": int(right), "answers": 1})
    return out


def as_list(value: Any) -> list[Any]:
    """A list's items; none for None, and one for another value."""
    return value if isinstance(value, list) else [] if value is None else [value]
