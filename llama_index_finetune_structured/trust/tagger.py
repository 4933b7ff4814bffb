"""A second opinion on copied values: a linear model that tells of each word of a text which field it belongs to.

A language model's probabilities say little of what it overlooks, and it is surest where it is wrong by habit. A linear
tagger of words, trained on the same rows, errs elsewhere: where its labels and the answer's differ, the answer is less
often right. Features are those of classical taggers (https://aclanthology.org/W96-0213, Ratnaparkhi).
"""

from __future__ import annotations

import base64
import math
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from ..errors import MissingDependencyError
from .answer_trust import LogProbability, Trust
from .calibration import field_name, log_odds
from .json_spans import JsonPath

__all__ = ["WordTagger", "fitted_tagger"]

# Of scripts that write no spaces each character is a word.
_NO_SPACES = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|[^\w\s]")
_NONE = ""  # label of words that no value covers; no field has this name
_FEWEST_LABELLED = 20
_LEAST_SEEN = 2  # features of one word alone tell of no other
# Chosen: a card of half a megabyte at most, and a fit of seconds.
_MOST_WEIGHTS, _MOST_CHARACTERS, _MOST_WORDS = 2**18, 100_000, 40_000
_STRENGTH = 3.0  # scikit-learn's C; measured on spoken requests
_ROUNDS = 40  # of L-BFGS; more change nothing that the answers show
# Standard deviation of the log-odds of right answers up to which they count in full. Chosen: of spoken requests it is
# 2.3 and of bills 1.1 and 1.4, where they help as they are; of the demo's pages 3.0, where they add hardly more than
# noise.
_SCATTER = 2.4


_Scores = np.ndarray[Any, np.dtype[np.float64]]


class _Word(NamedTuple):
    """``field``: index of the field that covers it. ``label``: its name; None: not known."""

    features: list[int]
    label: str | None
    field: int | None


class WordTagger(BaseModel):
    """A linear tagger of words: of each it tells the field that it belongs to, if any.

    Attributes:
        labels: Names of the fields; an empty one for words of no field.
        features: CRC-32 of the features, as little-endian 32-bit integers in Base64. No word stands in them.
        weights: Of each feature and label, as little-endian 16-bit floats in Base64.
        share: What its log-odds are multiplied by, from 0 to 1: less, the more those of right answers scatter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...]
    features: str
    weights: str
    share: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Raise ValueError for numbers that do not belong together."""
        if len(self._rows) * len(self.labels) != self._matrix.size or not np.isfinite(self._matrix).all():
            raise ValueError("the tagger's weights are damaged")
        return self

    @cached_property
    def _rows(self) -> dict[int, int]:
        found = np.frombuffer(base64.b64decode(self.features, validate=True), "<u4").tolist()
        return {feature: row for row, feature in enumerate(found)}

    @cached_property
    def _matrix(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        weights = np.frombuffer(base64.b64decode(self.weights, validate=True), "<f2").astype(np.float32)
        return weights.reshape(-1, max(1, len(self.labels)))

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {label: column for column, label in enumerate(self.labels)}

    def applied(self, trust: Trust, contents: Sequence[str | None]) -> Trust:
        """The trust in an answer, with what the tagger says of its fields, its ends and the whole.

        Args:
            trust: The trust, with evidence.
            contents: As of ``with_evidence``.
        """
        words = [word for word in _words(trust, contents) if word.label in self._columns]
        if trust.tokens is None or not words:
            return trust
        scores = self._scores([word.features for word in words])
        own = self._own(words, scores)
        fields: dict[int, float] = {}
        for word, score in zip(words, own.tolist(), strict=True):
            if word.field is not None:
                fields[word.field] = min(score, fields.get(word.field, 0.0))
        uncovered = scores[[word.field is None for word in words]]
        return trust.model_copy(
            update={
                "tokens": self._tagged(trust.tokens, float(own.min())),
                "fields": tuple(
                    field.model_copy(
                        update={
                            "presence": self._tagged(field.presence, fields.get(number)),
                            "writing": self._tagged(field.writing, fields.get(number)),
                        }
                    )
                    for number, field in enumerate(trust.fields)
                ),
                "ends": tuple(
                    end.model_copy(
                        update={"ending": self._tagged(end.ending, self._nothing_of(end.path, uncovered))}
                    )
                    for end in trust.ends
                ),
            }
        )

    def least(self, words: Sequence[_Word]) -> float | None:
        """The log-probability of the label that is the least likely; None without words whose labels it knows."""
        known = [word for word in words if word.label in self._columns]
        if not known:
            return None
        return float(self._own(known, self._scores([word.features for word in known])).min())

    def _own(self, words: Sequence[_Word], scores: _Scores) -> _Scores:
        """Of the labels that the words have, whose ``scores`` [words, labels] are given."""
        return scores[np.arange(len(words)), [self._columns[word.label or _NONE] for word in words]]

    def _tagged(self, tokens: LogProbability | None, tagged: float | None) -> LogProbability | None:
        """The tokens' probabilities with the tagger's, by its share of the log-odds."""
        if tokens is None or tagged is None:
            return tokens
        return tokens.model_copy(update={"tagged": -math.log1p(math.exp(-self.share * log_odds(tagged)))})

    def _scores(self, features: Sequence[Sequence[int]]) -> _Scores:
        """Log-probabilities [words, labels]."""
        rows = self._rows
        known = [[rows[one] for one in each if one in rows] for each in features]
        word_of = np.repeat(np.arange(len(known)), [len(each) for each in known])
        logits = np.zeros((len(known), len(self.labels)))
        flat = np.array([row for each in known for row in each], dtype=np.intp)
        np.add.at(logits, word_of, self._matrix[flat])
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def _nothing_of(self, path: JsonPath, scores: _Scores) -> float | None:
        """The least log-probability that a word of no field is none of what is in a list or object."""
        name = field_name(path)
        inside = [column for label, column in self._columns.items() if label and _is_inside(label, name)]
        if not inside or not len(scores):
            return None
        others = np.delete(scores, inside, axis=1)
        return float(np.logaddexp.reduce(others, axis=1).min())


def fitted_tagger(
    contents: Sequence[Sequence[str | None]], placed: Callable[[int], Trust | None], taggers: int = 1
) -> WordTagger | None:
    """The tagger of the words of these messages; None where hardly any value stands in them.

    ``contents``: of each answer, as of ``with_evidence``. ``placed``: the trust in the answer of one of them, by its
    index, with evidence. ``taggers``: how many share the room and the time. Answers are left out evenly where the
    messages have more than 100,000 characters. Raises MissingDependencyError without scikit-learn.
    """
    characters = taggers * sum(len(text) for texts in contents for text in texts if text)
    answers, count = list[list[_Word]](), 0
    for number in range(0, len(contents), max(1, math.ceil(characters / _MOST_CHARACTERS))):
        if taggers * count < _MOST_WORDS and (trust := placed(number)) is not None:
            answers.append([word for word in _words(trust, contents[number]) if word.label is not None])
            count += len(answers[-1])
    if sum(bool(word.label) for words in answers for word in words) < _FEWEST_LABELLED:
        return None
    try:
        found = _fitted(answers, _MOST_WEIGHTS // taggers)
        return found and found.model_copy(update={"share": _share(answers, _MOST_WEIGHTS // taggers)})
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "local", "the tagger of words") from error


def _share(answers: Sequence[Sequence[_Word]], most: int) -> float:
    """The share of the log-odds by their scatter over right answers, each by a tagger of the other half."""
    odds = list[float]()
    for half in (0, 1):
        if (tagger := _fitted(answers[half::2], most)) is not None:
            least = (tagger.least(words) for words in answers[1 - half :: 2])
            odds += [log_odds(one) for one in least if one is not None]
    return min(1.0, (_SCATTER / max(_SCATTER, float(np.std(odds)))) ** 2) if len(odds) > 1 else 0.0


def _fitted(answers: Sequence[Sequence[_Word]], most: int) -> WordTagger | None:
    """The tagger of these answers' words, of at most so many weights; None where nothing can be told apart."""
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    words = [word for each in answers for word in each]
    labels = {word.label for word in words}
    seen = Counter(feature for word in words for feature in word.features)
    kept = [
        feature for feature, count in seen.most_common(most // max(1, len(labels))) if count >= _LEAST_SEEN
    ]
    if len(labels) < 2 or not kept:
        return None
    column = {feature: number for number, feature in enumerate(kept)}
    columns = [[column[feature] for feature in word.features if feature in column] for word in words]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.fromiter((one for each in columns for one in each), dtype=np.int32, count=int(ends[-1]))
    matrix = csr_matrix((np.ones(len(flat), np.float32), flat, ends), shape=(len(words), len(kept)))
    model = LogisticRegression(C=_STRENGTH, max_iter=_ROUNDS, fit_intercept=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(matrix, [word.label for word in words])
    weights = model.coef_ if len(labels) > 2 else np.concatenate([-model.coef_ / 2, model.coef_ / 2])
    return WordTagger(
        labels=tuple(map(str, model.classes_)),
        features=_base64(np.array(kept, dtype="<u4")),
        weights=_base64(weights.T.astype("<f2")),
    )


def _words(trust: Trust, contents: Sequence[str | None]) -> Iterator[_Word]:
    """The words of all texts with their labels.

    A word that no value covers, and that stands in a value elsewhere, has none: which of both is meant is not known.
    """
    spans: dict[int, list[tuple[int, int, int]]] = {}
    for number, field in enumerate(trust.fields):
        if (spot := field.evidence) is not None:
            spans.setdefault(spot.message, []).append((spot.start, spot.end, number))
    found, valued = list[tuple[list[str], list[int | None]]](), set[str]()
    for message, text in enumerate(contents):
        matches = list(_WORD.finditer(text or ""))
        covers = _covering([match.span() for match in matches], sorted(spans.get(message, ())))
        words = [match.group() for match in matches]
        valued |= {word.lower() for word, cover in zip(words, covers, strict=True) if cover is not None}
        found.append((words, covers))
    names = [field_name(field.path) for field in trust.fields]
    for words, covers in found:
        lower = [word.lower() for word in words]
        for at, cover in enumerate(covers):
            label = names[cover] if cover is not None else None if lower[at] in valued else _NONE
            yield _Word(_features(words, lower, at), label, cover)


def _covering(words: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int, int]]) -> list[int | None]:
    """For each word the first of the spans that has a character of it; both are in order."""
    found, first = list[int | None](), 0
    for start, end in words:
        while first < len(spans) and spans[first][1] <= start:
            first += 1
        found.append(spans[first][2] if first < len(spans) and spans[first][0] < end else None)
    return found


def _features(words: Sequence[str], lower: Sequence[str], at: int) -> list[int]:
    """Of a word: itself, its neighbours, pairs of them, its ending, and the shapes of all three."""

    def near(step: int) -> str:
        return lower[at + step] if 0 <= at + step < len(lower) else ""

    def shape(step: int) -> str:
        return _shape(words[at + step]) if 0 <= at + step < len(words) else ""

    texts = [f"{step} {near(step)}" for step in (-2, -1, 0, 1, 2)]
    texts += [f"{step}s {shape(step)}" for step in (-1, 0, 1)]
    texts += [f"-1,0 {near(-1)} {near(0)}", f"0,1 {near(0)} {near(1)}", f"-2,-1 {near(-2)} {near(-1)}"]
    texts += [f"e {near(0)[-3:]}", "every"]
    return [zlib.crc32(text.encode(errors="surrogatepass")) for text in texts]


def _shape(word: str) -> str:
    """Digits, capitals, a capital first, letters, or something else."""
    if word.isdigit():
        return "0"
    if not word.isalpha():
        return "."
    return "A" if word.isupper() else "Aa" if word[0].isupper() else "a"


def _is_inside(name: str, outer: str) -> bool:
    """Whether a field's name is that of something in a list or object."""
    return not outer or name.startswith((f"{outer}.", f"{outer}[]"))


def _base64(numbers: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()
