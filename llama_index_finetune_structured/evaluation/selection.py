"""``select``: of rows without an answer, those whose answers would teach the student most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue

from ..background import blocking
from ..dataset.finetune_dataset import FinetuneDataset
from ..dataset.labels import Conversation, labelled_examples
from ..errors import ConfigurationError, DatasetError
from ..example import Example, Message
from ..printable import package_logger
from .run.answer_log import RawAnswer
from .run.ask import AskSettings, ask_systems
from .run.systems import System, check_askable, question_of
from .run.target import AnswerTarget, open_target
from .spread import least_sure

__all__ = ["aselect", "select"]

_log = package_logger(__name__)
_UNANSWERED = Message(role="assistant", content="")


async def aselect(
    data: Iterable[Example | Conversation],
    n: int,
    *,
    llm: System,
    output_cls: type[BaseModel] | None = None,
    schema: Mapping[str, Any] | None = None,
    seed: int = 0,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> FinetuneDataset:
    """Ask the student every row, and return the ``n`` rows to label that would teach it most.

    Those are the rows whose answers are least likely to be right (answers that do not fit the schema first), of
    texts that are not alike: twice ``n`` least sure rows are clustered by their words, and each cluster gives its
    least sure row. Of nearly equal texts one is taken. The same data, student and seed give the same rows.

    Args:
        data: Examples, whose own answers are not looked at, or inputs: texts, or lists of messages.
        n: Rows to return. Fewer where the data has no more that are different.
        llm: The student, whose answers have a ``Trust``: a ``LoraLLM``, ``served_llm`` or ``hosted_llm`` with
            ``confidence=True``, a query engine or program on one, or a function of an Example that returns its object.
        output_cls: Class of the answers. None: each Example's ``answer_schema``, and for inputs ``schema``.
        schema: JSON schema of the answers to inputs and to Examples without one.
        seed: Of the clusters.
        concurrency: Most calls at once.
        timeout_s: Seconds that one call may take.
        cache_dir: Folder where answers are stored as they arrive; a later run asks only for the missing ones. Use
            another one for another training of the student.
        show_progress: Whether to show a progress bar.

    Returns:
        The rows, the least sure first, with an empty answer to be filled in. Their metadata has ``student_answer``
            (None: it did not fit), ``student_probability`` and, of an answer that did not fit, ``student_error``.

    Raises:
        ConfigurationError: Before the first call: no schema, a number is not positive, the student cannot be asked
            these rows, or ``cache_dir`` cannot be written. Later: no answer has a probability, or every call failed.
        DatasetError: There are no rows, or one is neither an Example nor an input.
        MissingDependencyError: The extra ``local``, for scikit-learn, or a package of the student is not installed.
    """
    if n < 1:
        raise ConfigurationError(f"n={n}: expected 1 or more rows to select")
    asking = AskSettings(concurrency, timeout_s, cache_dir, show_progress)
    targets = _targets(data, output_cls, schema)
    check_askable("llm", llm, targets)

    answers = (await ask_systems({"student": llm}, targets, asking))["student"].answers
    sureness = [_sureness(answer) for answer in answers]
    _check_known(answers, sureness)
    known = [(at, sure) for at, sure in enumerate(sureness) if sure is not None]
    texts = [question_of(targets[at].example) for at, _ in known]
    chosen = [known[at][0] for at in least_sure(texts, [sure for _, sure in known], n, seed)]
    _log.info("%d of %d rows selected", len(chosen), len(targets))
    return FinetuneDataset(_labelled(targets[at].example, answers[at], sureness[at]) for at in chosen)


select = blocking(aselect)


def _targets(
    data: Iterable[Example | Conversation],
    output_cls: type[BaseModel] | None,
    schema: Mapping[str, Any] | None,
) -> list[AnswerTarget]:
    """The rows, with an empty answer, as what a system is asked."""
    if isinstance(data, str):
        raise DatasetError("select: data is a text; pass a list of inputs or Examples")
    examples = [_example(row, data) for row, data in enumerate(data)]
    if schema is not None:
        fallback = {"answer_schema": dict(schema), "transport": "json_schema"}
        examples = [
            example if example.answer_schema is not None else example.model_copy(update=fallback)
            for example in examples
        ]
    if not examples:
        raise DatasetError("select: there are no rows; pass Examples or inputs")
    targets = [open_target(example, output_cls) for example in examples]
    if (row := next((n for n, target in enumerate(targets) if target.schema is None), None)) is not None:
        raise ConfigurationError(
            f"select: row {row} has no schema for its answer: pass output_cls= or schema="
        )
    return targets


def _example(row: int, data: Example | Conversation) -> Example:
    if isinstance(data, Example):
        return data.model_copy(update={"answer": _UNANSWERED})
    try:
        return labelled_examples([(data, "")], None, None, None, None)[0]
    except DatasetError as error:
        raise DatasetError(f"select: row {row}: {str(error).removeprefix('pairs[0]: ')}") from error


def _sureness(answer: RawAnswer) -> float | None:
    """Probability of an answer, 0 of one that does not fit its schema; None where there is none."""
    if answer.error is not None:
        return None if answer.failed else 0.0
    return None if answer.trust is None else answer.trust.given


def _check_known(answers: Iterable[RawAnswer], sureness: Iterable[float | None]) -> None:
    """Say how many rows are left out; raise ConfigurationError where none is left."""
    lost = [answer for answer, sure in zip(answers, sureness, strict=True) if sure is None]
    failed = [answer for answer in lost if answer.failed]
    reason = f"; the first failure: {failed[0].error}" if failed else ""
    if not any(sure is not None for sure in sureness):
        raise ConfigurationError(
            f"select: of {len(lost)} answers none has a probability, and {len(failed)} calls failed{reason}. The "
            "student must be a LoraLLM, served_llm or hosted_llm with confidence=True, or return its objects"
        )
    if lost:
        _log.warning(
            "%d rows are left out: %d calls failed, %d answers have no probability%s",
            len(lost),
            len(failed),
            len(lost) - len(failed),
            reason,
        )


def _labelled(example: Example, answer: RawAnswer, sureness: float | None) -> Example:
    """The row with what the student said."""
    said = answer.text if answer.value is None else answer.value
    facts: dict[str, JsonValue] = {
        "student_answer": said if answer.error is None else None,
        "student_probability": sureness,
    }
    if answer.error is not None:
        facts["student_error"] = answer.error
    return example.model_copy(update={"metadata": {**example.metadata, **facts}})
