"""``compare_texts``: plain-text answers of several systems, scored by LlamaIndex's own evaluators."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.evaluation import BaseEvaluator, CorrectnessEvaluator, SemanticSimilarityEvaluator
from llama_index.core.llms.llm import LLM
from pydantic import BaseModel, ConfigDict

from ..background import run_in_background
from ..capture.error_text import error_text
from ..errors import ConfigurationError, DatasetError, StructuredAnswerError
from ..example import Example, Source
from ..files import write_text
from ..printable import one_line
from .report.terminal import FittedTable, print_result
from .report.text import json_text
from .run.answer_log import RawAnswer
from .run.ask import AskSettings, ask_systems, gather_all
from .run.systems import System, question_of
from .run.target import ERROR_CHARACTERS, AnswerTarget
from .score.failures import INVALID, Failure, failure_sentence, failure_sentences, group_failures

__all__ = ["TextScorecard", "compare_texts"]

WORST = {"correctness": 1.0, "semantic_similarity": 0.0}
"""Score of a missing answer; correctness is judged from 1 to 5, similarity from 0 to 1."""


JUDGE_FAILED = "the judge failed: "
"""Beginning of the feedback where a judge's call raised."""
_REPEAT_JUDGING = (
    "These answers are in no mean: check the model, address and key of judge or embed_model and compare again; with "
    "cache_dir only the judging is repeated."
)
_PASS_A_BETTER_JUDGE = (
    "These answers are in no mean: a reply needs a number from 1 to 5; pass an LLM as judge that gives one."
)


class TextAnswer(BaseModel):
    """One text answer, judged.

    Attributes:
        text: The answer.
        error: Why there is no answer; None where there is one.
        error_kind: Class name of the call's error; "invalid" for an empty answer.
        call_failed: Whether the call itself failed.
        scores: Metric -> score; None where the judge gave none (``feedback`` has the reason).
        feedback: Metric -> the judge's reasoning; "" where it gave none.
        sources: The retrieved nodes; None where the system is not a query engine.
        seconds: Latency of the call.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    error: str | None = None
    error_kind: str | None = None
    call_failed: bool = False
    scores: dict[str, float | None]
    feedback: dict[str, str]
    sources: tuple[Source, ...] | None = None
    seconds: float = 0.0


class TextRow(BaseModel):
    """One example with the systems' answers.

    Attributes:
        example_id: ``Example.id``.
        question: The user's question before retrieval, else the last user message.
        reference: The example's own answer.
        answers: System -> its answer.
    """

    model_config = ConfigDict(frozen=True)

    example_id: str
    question: str
    reference: str
    answers: dict[str, TextAnswer]


class TextScore(BaseModel):
    """One system's means over its judged answers.

    A missing answer has the worst score; an unjudged one is left out of the means and counted in ``unjudged``.

    Attributes:
        n: Number of examples.
        answered: Share of examples with an answer.
        means: Metric -> mean score: "correctness" from 1 to 5, "semantic_similarity" up to 1; None if all
            unjudged.
        unjudged: Metric -> number of answers that the judge gave no score.
        failures: The causes of the missing answers, most frequent first.
        judge_failures: The causes of the missing scores.
        seconds_per_answer: Wall seconds of the run / n.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    answered: float
    means: dict[str, float | None]
    unjudged: dict[str, int]
    failures: tuple[Failure, ...] = ()
    judge_failures: tuple[Failure, ...] = ()
    seconds_per_answer: float


class TextScorecard(BaseModel):
    """Systems side by side on the same questions, answered in text.

    Attributes:
        systems: Name -> the system's mean scores.
        rows: Every example with every system's answer.
    """

    model_config = ConfigDict(frozen=True)

    systems: dict[str, TextScore]
    rows: tuple[TextRow, ...]

    def table(self) -> FittedTable:
        """A table for rich in the form of LlamaIndex's ``get_results_df``: names, then one mean per metric."""
        metrics = list(next(iter(self.systems.values())).means)
        rows = []
        for name, score in self.systems.items():
            means = [_figure(score.means[metric]) for metric in metrics]
            unjudged = str(sum(score.unjudged.values()))
            seconds = f"{score.seconds_per_answer:.2f}"
            rows.append((name, *means, f"{score.answered:.0%}", unjudged, seconds))
        headings = ("names", *metrics, "answered", "unjudged", "s/answer")
        return FittedTable(f"{len(self.rows)} questions", headings, tuple(rows))

    def problems(self) -> list[str]:
        """One sentence for each kind of failure of a system or of the judge, with its causes."""
        found = []
        for name, score in self.systems.items():
            name = one_line(name)
            found += [f"{name}: {text}" for text in failure_sentences(score.failures, score.n)]
            found += [f"{name}: {text}" for text in _judge_sentences(score)]
        return found

    def print(self) -> None:
        """Print the table and what failed to the terminal."""
        print_result(self.table(), *self.problems())

    def __repr__(self) -> str:
        return one_line(
            f"<TextScorecard of {len(self.rows)} questions: {', '.join(self.systems)}; print() shows it>"
        )

    __str__ = __repr__

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as JSON, atomically.

        Args:
            path: The file; one that exists is replaced.

        Returns:
            ``path``.
        """
        return write_text(Path(path), json_text(self.model_dump(mode="json")))


def compare_texts(
    systems: Mapping[str, System],
    dataset: Iterable[Example],
    *,
    judge: LLM | None = None,
    embed_model: BaseEmbedding | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> TextScorecard:
    """Ask every system every example and judge its text against the example's answer.

    Pass ``judge`` or ``embed_model``, or both.

    Args:
        systems: Name -> system, as in ``compare``: query engines are asked ``example.query``, LLMs the
            messages.
        dataset: The examples; their answers are the references.
        judge: LLM for LlamaIndex's CorrectnessEvaluator, which scores from 1 to 5.
        embed_model: Embedding model for LlamaIndex's SemanticSimilarityEvaluator.
        concurrency: Most answers at once, then most judgements at once.
        timeout_s: Seconds that one answer may take.
        cache_dir: Folder where answers, but not judgements, are stored as they arrive, as in ``compare``.
        show_progress: Whether to show a progress bar for each system.

    Raises:
        ConfigurationError: Before the first call: no judge and no embedding model, a system cannot be asked
            these examples, a number is not positive, or ``cache_dir`` cannot be written. Later: an answer cannot
            be written to ``cache_dir`` (a full disk).
        DatasetError: Before the first call: there are no examples or no systems.
        MissingDependencyError: A system's package is not installed.
    """
    asking = AskSettings(concurrency, timeout_s, cache_dir, show_progress)
    evaluators: dict[str, BaseEvaluator] = {}
    if judge is not None:
        evaluators["correctness"] = CorrectnessEvaluator(llm=judge, parser_function=read_judgement)
    if embed_model is not None:
        evaluators["semantic_similarity"] = SemanticSimilarityEvaluator(embed_model=embed_model)
    if not evaluators:
        raise ConfigurationError("nothing to judge with: pass judge=llm, embed_model=..., or both")
    examples = list(dataset)
    if not examples or not systems:
        raise DatasetError("nothing to compare: the data set or the systems are empty")
    targets = [AnswerTarget(example, None, None, example.answer_text(), is_text=True) for example in examples]
    return run_in_background(_compare(systems, targets, evaluators, asking))


async def _compare(
    systems: Mapping[str, System],
    targets: Sequence[AnswerTarget],
    evaluators: Mapping[str, BaseEvaluator],
    asking: AskSettings,
) -> TextScorecard:
    answers = await ask_systems(systems, targets, asking)
    judged = {
        name: await _judge_all(system.answers, targets, evaluators, asking.concurrency)
        for name, system in answers.items()
    }
    rows = [
        TextRow(
            example_id=target.example.id,
            question=question_of(target.example),
            reference=target.gold,
            answers={name: texts[at] for name, texts in judged.items()},
        )
        for at, target in enumerate(targets)
    ]
    scores = {name: _score(texts, evaluators, answers[name].wall_seconds) for name, texts in judged.items()}
    return TextScorecard(systems=scores, rows=tuple(rows))


async def _judge_all(
    answers: Sequence[RawAnswer],
    targets: Sequence[AnswerTarget],
    evaluators: Mapping[str, BaseEvaluator],
    concurrency: int,
) -> list[TextAnswer]:
    """The answers in their order with their scores."""
    free = asyncio.Semaphore(concurrency)
    judged: dict[int, TextAnswer] = {}

    async def one(at: int) -> None:
        async with free:
            judged[at] = await _judge(answers[at], targets[at], evaluators)

    await gather_all([one(at) for at in range(len(targets))])
    return [judged[at] for at in range(len(targets))]


async def _judge(
    answer: RawAnswer, target: AnswerTarget, evaluators: Mapping[str, BaseEvaluator]
) -> TextAnswer:
    """One answer's scores; a missing one gets the worst without asking the judge."""
    error, kind, text = answer.error, answer.error_kind, answer.text
    if error is None:
        try:
            text = target.read(answer.text)
        except StructuredAnswerError as unfit:
            error, kind = str(unfit), INVALID
    scores: dict[str, float | None] = {}
    feedback: dict[str, str] = {}
    for metric, evaluator in evaluators.items():
        scores[metric], feedback[metric] = (
            (WORST[metric], "no answer")
            if error is not None
            else await _evaluate(evaluator, question_of(target.example), text, target.gold)
        )
    return TextAnswer(
        text=text,
        error=error,
        error_kind=kind,
        call_failed=answer.failed,
        scores=scores,
        feedback=feedback,
        sources=answer.sources,
        seconds=answer.seconds,
    )


async def _evaluate(
    evaluator: BaseEvaluator, question: str, text: str, reference: str
) -> tuple[float | None, str]:
    """(score, feedback); a judge that fails gives no score."""
    try:
        result = await evaluator.aevaluate(query=question, response=text, reference=reference)
    except Exception as error:
        reason = f"{type(error).__name__}: {error_text(error, evaluator)}"
        return None, f"{JUDGE_FAILED}{reason}"[:ERROR_CHARACTERS]
    return result.score, result.feedback or ""


def read_judgement(reply: str) -> tuple[float | None, str | None]:
    """(score, reasoning) of a judge's reply: the first number from 1 to 5 in it, None where there is none.

    Used in place of LlamaIndex's own parser, which raises where the reply is a single line.
    """
    match = re.search(r"(?<![\d.])([1-5](?:\.\d+)?)(?![\d.]*\d)", reply)
    score = None if match is None else float(match[1])
    return (score if score is None or score <= 5 else None), reply.strip()


def _score(answers: Sequence[TextAnswer], evaluators: Iterable[str], wall_seconds: float) -> TextScore:
    means: dict[str, float | None] = {}
    unjudged: dict[str, int] = {}
    for metric in evaluators:
        scores = [score for answer in answers if (score := answer.scores[metric]) is not None]
        means[metric] = sum(scores) / len(scores) if scores else None
        unjudged[metric] = len(answers) - len(scores)
    return TextScore(
        n=len(answers),
        answered=sum(answer.error is None for answer in answers) / len(answers),
        means=means,
        unjudged=unjudged,
        failures=group_failures(
            [(a.call_failed, a.error_kind or INVALID, a.error) for a in answers if a.error is not None]
        ),
        judge_failures=_judge_failures(answers, means),
        seconds_per_answer=wall_seconds / len(answers),
    )


def _judge_failures(answers: Sequence[TextAnswer], metrics: Iterable[str]) -> tuple[Failure, ...]:
    unjudged = [(m, a.feedback[m]) for a in answers for m in metrics if a.scores[m] is None]
    return group_failures(
        [
            (text.startswith(JUDGE_FAILED), metric, text.removeprefix(JUDGE_FAILED) or "(an empty reply)")
            for metric, text in unjudged
        ]
    )


def _judge_sentences(score: TextScore) -> list[str]:
    """Why answers have no score and what to do next; the answers that are missing were not judged."""
    judged = round(score.answered * score.n) * len(score.means)
    calls = failure_sentence(score.judge_failures, judged, "calls of the judge failed", call_failed=True)
    replies = failure_sentence(
        score.judge_failures, judged, "replies of the judge have no score", call_failed=False
    )
    mends = ((calls, _REPEAT_JUDGING), (replies, _PASS_A_BETTER_JUDGE))
    return [f"{sentence.rstrip('.')}. {mend}" for sentence, mend in mends if sentence]


def _figure(mean: float | None) -> str:
    return "–" if mean is None else f"{mean:.3f}"
