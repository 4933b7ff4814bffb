"""Texts and probabilities -> the rows that are least sure, spread over clusters of texts.

Prefiltering by uncertainty, then one row of each cluster: F. Zhdanov, "Diverse mini-batch Active Learning"
(https://arxiv.org/abs/1901.05954), with the least confident row of a cluster (B. Settles, "Active Learning Literature
Survey", https://minds.wisconsin.edu/handle/1793/60660, section 3.1) in place of the one nearest to its centre.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MissingDependencyError

__all__ = ["least_sure"]

_PREFILTER = 2  # chosen: so many times the wanted rows are clustered, the least sure ones
_SAME = 0.9  # chosen: cosine similarity of rows of which one teaches what the other does
_DIMENSIONS = 100  # of latent semantic analysis, as scikit-learn advises for clustering texts
# Chinese and Japanese have no spaces between words: a character counts as a word.
_WORD = re.compile(r"[\u2e80-\u9fff]|[^\W\u2e80-\u9fff]+")


def least_sure(texts: Sequence[str], probabilities: Sequence[float], n: int, seed: int) -> list[int]:
    """Indices of ``n`` rows, the least sure first, or of all that are different if those are fewer.

    The same rows for the same arguments. Raises MissingDependencyError without scikit-learn.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "local", "select") from error
    order = [int(at) for at in np.argsort(np.asarray(probabilities), kind="stable")]
    vectors = TfidfVectorizer(analyzer=_words, sublinear_tf=True).fit_transform(texts)
    kept = _different(vectors, order, _PREFILTER * n)
    if len(kept) <= n:
        return kept
    labels = _clusters(vectors[kept], n, seed)
    firsts = dict[int, int]()
    for row, label in zip(kept, labels, strict=True):
        firsts.setdefault(int(label), row)
    others = [row for row in kept if row not in set(firsts.values())]
    chosen = {*firsts.values(), *others[: n - len(firsts)]}  # equal vectors may leave clusters empty
    return [row for row in kept if row in chosen]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower()) or [text]


def _different(vectors: Any, order: Sequence[int], most: int) -> list[int]:
    """The first ``most`` rows in ``order`` that are not nearly equal to an earlier one."""
    kept = list[int]()
    for start in range(0, len(order), most):
        block = list(order[start : start + most])
        known = len(kept)
        similar = (vectors[block] @ vectors[[*kept, *block]].T).toarray() >= _SAME
        places = list(range(known))  # of the kept rows among the compared ones
        for at, row in enumerate(block):
            if not similar[at, places].any():
                kept.append(row)
                places.append(known + at)
            if len(kept) == most:
                return kept
    return kept


def _clusters(vectors: Any, n: int, seed: int) -> Any:
    """The cluster of each row, by k-means on what latent semantic analysis leaves of its words."""
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.preprocessing import normalize  # type: ignore[import-untyped]

    size = min(_DIMENSIONS, vectors.shape[0] - 1, vectors.shape[1] - 1)
    points = TruncatedSVD(size, random_state=seed).fit_transform(vectors) if size > 1 else vectors.toarray()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters
        return KMeans(n, n_init=1, random_state=seed).fit_predict(normalize(points))
