"""The parity gate: the same model in other forms must give the same answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llama_index.core.llms.llm import LLM
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.table import Table

from ..errors import ConfigurationError, ParityError
from ..example import Example, Message, canonical_json
from .comparison import compare
from .report.table import percent
from .scorecard import Row, Scorecard

__all__ = ["FormParity", "Parity", "parity"]

_REFERENCE = "adapter"


class FormParity(BaseModel):
    """One form against the adapter. ``agreement``: mean field score with the adapter's own answers as gold."""

    model_config = ConfigDict(frozen=True)

    valid: float
    agreement: float
    identical: float
    seconds_per_answer: float


class Parity(BaseModel):
    """What the gate found. ``answers`` scores each form against the adapter's answers, row by row."""

    model_config = ConfigDict(frozen=True)

    adapter_valid: float
    forms: dict[str, FormParity]
    min_agreement: float
    max_valid_loss: float
    answers: Scorecard

    @property
    def failures(self) -> list[str]:
        """One sentence for each form that falls short; empty where all are at parity."""
        found = []
        for name, form in self.forms.items():
            if self.adapter_valid - form.valid > self.max_valid_loss:
                found.append(
                    f"{name}: {percent(form.valid)} of its answers are valid, "
                    f"the adapter's {percent(self.adapter_valid)}"
                )
            if form.agreement < self.min_agreement:
                found.append(
                    f"{name}: its fields agree with the adapter's in {percent(form.agreement)}, "
                    f"expected {percent(self.min_agreement)}"
                )
        return found

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def verdict(self) -> str:
        """The failures as one text, or that there are none."""
        return "; ".join(self.failures) or "At parity with the adapter."

    def require(self) -> None:
        """Raise ParityError where a form falls short."""
        if self.failures:
            raise ParityError(self.verdict)

    def table(self) -> Table:
        """One line per form."""
        table = Table(box=box.SIMPLE_HEAD, title="Parity with the adapter", title_justify="left")
        for heading in ("form", "valid", "fields agree", "identical", "s/answer", ""):
            table.add_column(heading, justify="left" if heading in ("form", "") else "right")
        table.add_row(_REFERENCE, percent(self.adapter_valid), "", "", "", "")
        for name, form in self.forms.items():
            short = any(failure.startswith(f"{name}: ") for failure in self.failures)
            cells = [percent(rate) for rate in (form.valid, form.agreement, form.identical)]
            table.add_row(name, *cells, f"{form.seconds_per_answer:.1f}", "short" if short else "same")
        return table

    def print(self) -> None:
        """Print the table and the verdict to the terminal."""
        from rich.console import Console

        console = Console()
        console.print(self.table())
        console.print(self.verdict, markup=False, highlight=False)


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

    The adapter's valid answers are the gold that the forms' fields are compared with; what the examples say is
    right does not matter here. ``max_valid_loss``: how much lower a form's rate of valid answers may be.
    Raises ConfigurationError and DatasetError as :func:`compare` does, and ConfigurationError where none of the
    adapter's answers is valid: then there is nothing to be the same as.
    """
    if _REFERENCE in forms or not forms:
        raise ConfigurationError(
            f"pass forms by name, such as {{'merged': llm}}; {_REFERENCE!r} is the adapter itself"
        )
    examples = list(dataset)
    asking: dict[str, Any] = {"concurrency": concurrency, "timeout_s": timeout_s, "output_cls": output_cls}
    given = compare({_REFERENCE: adapter, **forms}, examples, show_progress=show_progress, **asking)
    gold = [
        (_relabelled(example, row.answers[_REFERENCE].value), row)
        for example, row in zip(examples, given.rows, strict=True)
        if row.answers[_REFERENCE].valid
    ]
    if not gold:
        raise ConfigurationError("none of the adapter's own answers is valid: score it with compare() first")
    kept = {name: _Kept(name, gold) for name in forms}
    agreed = compare(kept, [example for example, _ in gold], show_progress=False, **asking)
    return Parity(
        adapter_valid=given.systems[_REFERENCE].schema_valid,
        forms={
            name: FormParity(
                valid=given.systems[name].schema_valid,
                agreement=score.field_score,
                identical=score.exact_match,
                seconds_per_answer=given.systems[name].seconds_per_answer,
            )
            for name, score in agreed.systems.items()
        },
        min_agreement=min_agreement,
        max_valid_loss=max_valid_loss,
        answers=agreed,
    )


class _Kept:
    """A form's answers once more, as a system that :func:`compare` can ask."""

    def __init__(self, name: str, gold: list[tuple[Example, Row]]) -> None:
        self._answers = {example.id: row.answers[name] for example, row in gold}

    def __call__(self, example: Example) -> Any:
        answer = self._answers[example.id]
        return answer.value if answer.valid else answer.text


def _relabelled(example: Example, value: Any) -> Example:
    """The example with the adapter's answer for its own; tool calls become the text that a local model gives."""
    answer = Message(role="assistant", content=canonical_json(value))
    return example.model_copy(update={"answer": answer})
