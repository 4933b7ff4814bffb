"""``parity``: checks that exported forms of an adapter (merged, GGUF, served) give the same answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llama_index.core.llms.llm import LLM
from pydantic import BaseModel, ConfigDict

from ..errors import ConfigurationError, ParityError
from ..example import Example, Message, canonical_json
from ..llms.lora import LoraLLM
from ..printable import one_line
from .comparison import compare
from .report.terminal import FittedTable, print_result
from .report.text import percent
from .results import ScoredRow
from .score.failures import Failure, failure_sentences
from .score.metrics import SystemScore
from .scorecard import Scorecard

__all__ = ["FormParity", "Parity", "parity"]

_REFERENCE = "adapter"
_RATE_DIGITS = 9  # chosen: far finer than one answer of any data set


class FormParity(BaseModel):
    """One form against the adapter; rates from 0 to 1.

    Attributes:
        valid: Share of valid answers.
        agreement: Mean field score with the adapter's own answers as gold.
        identical: Share of answers with every field as in the adapter's.
        seconds_per_answer: Wall seconds of the form's run / number of examples.
        n: Number of examples.
        failures: The causes of the form's failed calls and invalid answers, most frequent first.
    """

    model_config = ConfigDict(frozen=True)

    valid: float
    agreement: float
    identical: float
    seconds_per_answer: float
    n: int
    failures: tuple[Failure, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """What failed and why; empty where all answers are valid."""
        return failure_sentences(self.failures, self.n)


class Parity(BaseModel):
    """Every form compared with the adapter.

    Attributes:
        adapter_valid: The adapter's share of valid answers, from 0 to 1.
        adapter_failures: The causes of the adapter's own invalid answers.
        forms: Name -> figures: ``valid``, ``agreement``, ``identical``, ``seconds_per_answer`` and ``failures``.
        min_agreement: Limit: the lowest ``agreement`` of a form at parity.
        max_valid_loss: Limit: how far ``valid`` of a form at parity may be below ``adapter_valid``.
        answers: Each form scored against the adapter's valid answers, row by row.
    """

    model_config = ConfigDict(frozen=True)

    adapter_valid: float
    adapter_failures: tuple[Failure, ...] = ()
    forms: dict[str, FormParity]
    min_agreement: float
    max_valid_loss: float
    answers: Scorecard

    @property
    def failures(self) -> list[str]:
        """One sentence for each limit that a form misses; empty where all are at parity."""
        return [
            f"{one_line(name)}: {missed}"
            for name, form in self.forms.items()
            for missed in self._missed(form)
        ]

    def _missed(self, form: FormParity) -> list[str]:
        """What a form misses; one without a valid answer is at parity by no limits, as nothing was compared."""
        missed = []
        # rounded, since 1 - 0.98 is more than 0.02 in floating point
        lost = round(self.adapter_valid - form.valid, _RATE_DIGITS) > self.max_valid_loss
        if lost or not form.valid:
            reasons = "".join(f"; {reason}" for reason in form.reasons)
            missed.append(
                f"{percent(form.valid)} of its answers are valid, "
                f"the adapter's {percent(self.adapter_valid)}{reasons}"
            )
        if form.valid and form.agreement < self.min_agreement:
            missed.append(
                f"its fields agree with the adapter's in {percent(form.agreement)}, "
                f"expected {percent(self.min_agreement)}"
            )
        return missed

    @property
    def passed(self) -> bool:
        """Whether all forms are at parity."""
        return not self.failures

    def verdict(self) -> str:
        """The failures as one text, or a sentence that there are none."""
        return "\n".join(self.failures) or "At parity with the adapter."

    def problems(self) -> list[str]:
        """What failed within the limits: one sentence for each kind of failure that ``failures`` does not name."""
        named = "\n".join(self.failures)
        found = [f"{_REFERENCE}: {text}" for text in failure_sentences(self.adapter_failures, self.examples)]
        found += [
            f"{one_line(name)}: {text}"
            for name, form in self.forms.items()
            for text in form.reasons
            if text not in named
        ]
        return found

    def require(self) -> None:
        """Raise ParityError, with all failures, where a form is not at parity.

        Raises:
            ParityError: At least one form misses a limit.
        """
        if self.failures:
            raise ParityError(self.verdict())

    @property
    def examples(self) -> int:
        """The number of examples that adapter and forms were asked."""
        return next(iter(self.forms.values())).n

    def table(self) -> FittedTable:
        """A table for rich: one line per form."""
        rows = [(_REFERENCE, percent(self.adapter_valid), "", "", "", "")]
        for name, form in self.forms.items():
            valid, agreement, identical = map(percent, (form.valid, form.agreement, form.identical))
            verdict = "differs" if self._missed(form) else "same"
            rows.append((name, valid, agreement, identical, f"{form.seconds_per_answer:.1f}", verdict))
        headings = ("form", "valid", "fields agree", "identical", "s/answer", "verdict")
        return FittedTable("Parity with the adapter", headings, tuple(rows))

    def print(self) -> None:
        """Print the table, the verdict and what failed to the terminal."""
        print_result(self.table(), self.verdict(), *self.problems())

    def __repr__(self) -> str:
        return one_line(f"<Parity of {', '.join(self.forms)} on {self.examples} examples; print() shows it>")

    __str__ = __repr__


def parity(
    adapter: LLM,
    dataset: Iterable[Example],
    forms: Mapping[str, LLM],
    *,
    output_cls: type[BaseModel] | None = None,
    min_agreement: float = 0.98,
    max_valid_loss: float = 0.02,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    show_progress: bool = True,
) -> Parity:
    """Ask the adapter and the ``forms`` it was exported to (merged, GGUF, served, ...) the same prompts.

    A ``LoraLLM`` answers without windows, votes, alternatives and copied values here, which servers do not have.

    The adapter's valid answers are the gold that the forms' fields are compared with; the examples' own answers
    are not used.

    Args:
        adapter: The LLM with the adapter, as it was trained.
        dataset: The examples whose prompts are asked.
        forms: Name -> LLM of an exported form; the name "adapter" is reserved.
        output_cls: Class of a valid answer, as in ``compare``.
        min_agreement: Lowest mean field score of a form, from 0 to 1.
        max_valid_loss: How much lower a form's rate of valid answers may be than the adapter's. A form without
            a valid answer is never at parity.
        concurrency: Most calls at once.
        timeout_s: Seconds that one call may take.
        show_progress: Whether to show a progress bar for the adapter and each form.

    Raises:
        ConfigurationError: As ``compare``; for no forms or one named "adapter"; and where none of the
            adapter's answers is valid, as there is then nothing to compare with.
        DatasetError: As ``compare``.
        MissingDependencyError: As ``compare``.
    """
    if _REFERENCE in forms or not forms:
        raise ConfigurationError(
            f"pass forms by name, such as {{'merged': llm}}; {_REFERENCE!r} is the adapter itself"
        )
    examples = list(dataset)
    asking: dict[str, Any] = {"concurrency": concurrency, "timeout_s": timeout_s, "output_cls": output_cls}
    systems = {name: _plain(llm) for name, llm in {_REFERENCE: adapter, **forms}.items()}
    first = compare(systems, examples, show_progress=show_progress, **asking)
    left_out = {row.row for row in first.left_out}
    asked = [example for at, example in enumerate(examples) if at not in left_out]
    gold = [
        (_relabelled(example, row.answers[_REFERENCE].value), row)
        for example, row in zip(asked, first.rows, strict=True)
        if row.answers[_REFERENCE].valid
    ]
    reference = first.systems[_REFERENCE]
    if not gold:
        reasons = "; ".join(failure_sentences(reference.failures, reference.n))
        raise ConfigurationError(f"none of the adapter's own answers is valid: {reasons}")
    replayed = {name: _Replay(name, gold) for name in forms}
    agreed = compare(replayed, [example for example, _ in gold], show_progress=False, **asking)
    return Parity(
        adapter_valid=reference.schema_valid,
        adapter_failures=reference.failures,
        forms={name: _form(first.systems[name], score) for name, score in agreed.systems.items()},
        min_agreement=min_agreement,
        max_valid_loss=max_valid_loss,
        answers=agreed,
    )


def _plain(llm: LLM) -> LLM:
    """The LLM without what ``LoraLLM`` alone adds to a model, so that the models are compared."""
    if isinstance(llm, LoraLLM):
        return llm.model_copy(update={"windows": 0, "answers": 1, "alternatives": 0, "grounded": False})
    return llm


def _form(asked: SystemScore, agreed: SystemScore) -> FormParity:
    """A form's figures: from the examples' answers, and from those with the adapter's answers as gold."""
    return FormParity(
        valid=asked.schema_valid,
        agreement=agreed.field_score,
        identical=agreed.exact_match,
        seconds_per_answer=asked.seconds_per_answer,
        n=asked.n,
        failures=asked.failures,
    )


class _Replay:
    """A system that gives a form's recorded answers, to compare them with other gold."""

    def __init__(self, name: str, gold: list[tuple[Example, ScoredRow]]) -> None:
        self._answers = {example.id: row.answers[name] for example, row in gold}

    def __call__(self, example: Example) -> Any:
        answer = self._answers[example.id]
        return answer.value if answer.valid else answer.text


def _relabelled(example: Example, value: Any) -> Example:
    """The example with the adapter's answer as text in place of its own, which may be a tool call."""
    answer = Message(role="assistant", content=canonical_json(value))
    return example.model_copy(update={"answer": answer})
