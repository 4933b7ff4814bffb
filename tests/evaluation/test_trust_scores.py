"""Figures of trust: ranking, calibration, sure answers, in the scorecard, its files, verdict and page."""

from __future__ import annotations

import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.llms import ChatMessage, ChatResponse
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from llama_index_finetune_structured import Example, Scorecard
from llama_index_finetune_structured.evaluation.score.trust_figures import _Resampled, calibration_error
from llama_index_finetune_structured.example import compact_json
from llama_index_finetune_structured.trust.answer_trust import Evidence, Trust, trust_in_tokens
from llama_index_finetune_structured.trust.tokens import AnswerToken

from .systems import card, example, quiet

HOSTILE = "<b>&\"'"


def sure_system(evidence: str | None = None) -> Any:
    """A system that is right as often as its one doubtful token says."""

    def answer(row: Example) -> ChatResponse:
        drawn = random.Random(row.id)
        share = drawn.choice([0.2, 0.6, 0.9, 0.99])
        value = row.answer_object()
        if drawn.random() > share:
            value = {**value, "function": "wrong"}
        text = compact_json(value)
        tokens = [AnswerToken(character.encode(), 0.0, 0.0) for character in text]
        tokens[15] = tokens[15]._replace(allowed=math.log(share), unmasked=math.log(share))
        trust = trust_in_tokens(text, tokens)
        assert trust is not None
        return _response(text, trust, evidence)

    return answer


def _response(text: str, trust: Trust, evidence: str | None) -> ChatResponse:
    if evidence is not None:
        place = Evidence(text=evidence, message=0, start=0, end=1)
        fields = [trust.fields[0].model_copy(update={"evidence": place}), *trust.fields[1:]]
        trust = trust.model_copy(update={"fields": tuple(fields)})
    message = ChatMessage(role="assistant", content=text)
    return ChatResponse(message=message, raw={"trust": trust.model_dump(mode="json")})


def rows(count: int) -> list[Example]:
    return [example(f"call {n}?", card(f"function{n}"), document_id=f"d{n}") for n in range(count)]


@pytest.fixture(scope="module")
def scorecard() -> Scorecard:
    return quiet({"silent": lambda row: row.answer_object(), "sure": sure_system(HOSTILE)}, rows(200))


def test_only_systems_that_give_trust_have_figures_of_it(scorecard: Scorecard) -> None:
    assert list(scorecard.trust) == ["sure"]
    assert all(row.answers["silent"].trust is None for row in scorecard.rows)


def test_the_figures_are_those_of_the_out_of_fold_probabilities(scorecard: Scorecard) -> None:
    score = scorecard.trust["sure"]
    answers = [row.answers["sure"] for row in scorecard.rows]
    probabilities = [answer.trust.probability for answer in answers if answer.trust]
    right = [answer.exact for answer in answers]
    assert score.auroc is not None
    assert score.auroc.rate == pytest.approx(roc_auc_score(right, probabilities))
    assert score.auroc.low < score.auroc.rate < score.auroc.high
    assert score.n == 200
    assert sum(part.n for part in score.bins) == 200
    assert all(part.n >= 20 for part in score.bins)
    assert score.calibration_error < 0.1
    assert score.curve[-1].accuracy.rate == pytest.approx(score.right)


def test_the_answers_of_the_coverage_are_as_accurate_as_it_says(scorecard: Scorecard) -> None:
    answers = [row.answers["sure"] for row in scorecard.rows]
    pairs = sorted(((a.trust.probability or 0, a.exact) for a in answers if a.trust), reverse=True)
    given = pairs[: round(scorecard.trust["sure"].coverage.rate * len(pairs))]
    assert given
    assert sum(exact for _, exact in given) / len(given) >= 0.95


def test_the_resampled_auroc_is_scikit_learns_with_weights() -> None:
    drawn = np.random.default_rng(0)
    probabilities, right = np.round(drawn.random(30), 1), drawn.random(30) < 0.6
    resampled = _Resampled(probabilities, right, list(range(30)))
    resampled._pseudo[:] = 0
    counts = drawn.integers(0, 3, (3, 30)).astype(float)
    levels = np.unique(-probabilities, return_inverse=True)[1]
    every, rights = np.zeros((3, levels.max() + 1)), np.zeros((3, levels.max() + 1))
    for at, level in enumerate(levels):
        every[:, level] += counts[:, at]
        rights[:, level] += counts[:, at] * right[at]
    wrong = every - rights
    pairs = (rights * (wrong[:, ::-1].cumsum(1)[:, ::-1] - wrong / 2)).sum(1)
    expected = [roc_auc_score(right, probabilities, sample_weight=row) for row in counts]
    assert pairs / (rights.sum(1) * wrong.sum(1)) == pytest.approx(np.array(expected))


def test_exact_probabilities_have_the_error_of_chance_alone() -> None:
    assert calibration_error([0.5] * 40, [True, False] * 20) == 0
    assert calibration_error([1.0] * 40, [True, False] * 20) == 0.5


def test_few_answers_have_no_figures() -> None:
    found = quiet({"sure": sure_system()}, rows(12))
    assert found.trust == {}
    assert found.rows[0].answers["sure"].trust is not None
    assert "Sure answers" not in found.verdict()


def test_the_verdict_says_what_it_answers_itself(scorecard: Scorecard) -> None:
    share = f"{scorecard.trust['sure'].coverage.rate:.0%}"
    assert (
        f"Sure answers: at 95% accuracy it answers {share} itself (held-out rows: 200)."
        in scorecard.verdict()
    )


def test_a_saved_scorecard_is_read_as_it_was_and_stays_small(scorecard: Scorecard, tmp_path: Path) -> None:
    path = scorecard.to_json(tmp_path / "scorecard.json")
    assert Scorecard.from_json(path) == scorecard
    trusts = [row["answers"]["sure"]["trust"] for row in json.loads(path.read_text())["rows"]]
    assert max(len(json.dumps(trust)) for trust in trusts) < 1000


def test_answers_of_the_log_keep_their_trust(tmp_path: Path) -> None:
    first = quiet({"sure": sure_system("x")}, rows(30), cache_dir=tmp_path)

    def sure(row: Example) -> Any:
        raise AssertionError("it was asked again")

    sure.__qualname__ = sure_system("x").__qualname__
    again = quiet({"sure": sure}, rows(30), cache_dir=tmp_path)
    assert again.trust == first.trust
    assert again.trust


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_the_page_shows_probability_and_evidence_beside_the_values(
    scorecard: Scorecard, tmp_path: Path
) -> None:
    page = scorecard.to_html(tmp_path / "report.html").read_text()
    parser = _Text()
    parser.feed(page)
    assert "<h2>How sure the answers are</h2>" in page
    assert "Reliability diagram" in page
    assert "Risk-coverage curve" in page
    assert "% sure" in page
    assert "“&lt;b&gt;&amp;&quot;&#x27;”" in page
    assert "b" not in parser.tags


def test_a_value_is_told_to_be_absent_where_the_field_is_usually_in_the_text(tmp_path: Path) -> None:
    system, data = sure_system("here"), rows(5)

    def answer(row: Example) -> Any:
        found: Any = system(row)
        if row.id == data[0].id:
            found.raw["trust"]["fields"][0]["evidence"] = None
        return found

    page = quiet({"sure": answer}, data).to_html(tmp_path / "report.html").read_text()
    assert page.count("“here”") == 4
    assert page.count("not in the text") == 1  # of no field that never is


def test_an_answer_with_a_field_called_trust_is_an_answer() -> None:
    found = quiet({"mapping": lambda row: {**row.answer_object(), "trust": {"fields": 1}}}, rows(3))
    assert all(row.answers["mapping"].trust is None for row in found.rows)
