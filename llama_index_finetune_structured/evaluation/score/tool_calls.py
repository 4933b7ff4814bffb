"""Scores an agent's run against a gold run: its tool calls with their arguments, and its final answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...errors import ConfigurationError
from ...example import canonical_json
from ...json_schema import first_error
from ...printable import one_line
from ..run.agent_run import AgentCall, AgentRun, tool_name
from .answers import FieldScore, score_answer
from .call_alignment import aligned_calls, common_calls
from .fields import Field, fields_of, inferred_schema
from .rules import Comparison, FieldRule, Rules, as_rule

__all__ = ["AnswerRule", "RunPlan", "ScoredCall", "ScoredAgentRun", "grade_run"]

AnswerRule = FieldRule | Comparison | Callable[[Any, Any], float]
"""How final answers are compared: a rule, a comparison's name or a function (gold, answer) -> 0..1."""

_EQUAL = FieldRule()
_KINDS = {
    "run_right": "value",
    "run_ended": "value",
    "answer": "value",
    "tool_use": "value",
    "tool_calls": "list",
    "valid_calls": "value",
    "exact_arguments": "value",
    "arguments": "list",
    "order_kept": "value",
    "needless_calls": "value",
    "missing_calls": "value",
    "failed_calls": "value",
}


class ScoredCall(BaseModel):
    """One call of a run, compared with the gold call that it is aligned with.

    Attributes:
        gold: Index of that call in ``calls`` of the gold run; None: the call is needless.
        invalid: Why the call is not valid: an unknown tool, or arguments that do not fit its schema. None: valid.
        exact: Whether every argument is right; False of a needless call.
        fields: Argument's path -> counts; of an aligned call only.
    """

    model_config = ConfigDict(frozen=True)

    gold: int | None = None
    invalid: str | None = None
    exact: bool
    fields: dict[str, FieldScore]


class ScoredAgentRun(BaseModel):
    """One system's run, compared with the gold run.

    Attributes:
        run: The run.
        calls: One for each of ``run.calls``.
        measures: Measure -> counts; a measure that this run does not tell of has none.
    """

    model_config = ConfigDict(frozen=True)

    run: AgentRun
    calls: tuple[ScoredCall, ...]
    measures: dict[str, FieldScore]

    @property
    def is_right(self) -> bool:
        """Whether the run is right in whole: the same calls, all arguments, the answer."""
        return bool(self.measures["run_right"].right)


class RunPlan:
    """How the runs of a comparison are scored: the fields of every tool's arguments and the answer's rule.

    ``rules``: by "tool.argument", before what the tools' schemas suggest. ``kinds``: measure -> "value", "text" or
    "list"; ``field_kinds``: the same of argument's paths. Raises ConfigurationError for an unknown comparison and a
    rule of an argument that no tool has.
    """

    def __init__(self, golds: Sequence[AgentRun], rules: Rules | None, answer: AnswerRule) -> None:
        self._rules = {path: as_rule(rule) for path, rule in (rules or {}).items()}
        self._fields: dict[str, tuple[Field, ...]] = {}
        self.field_kinds: dict[str, str] = {}
        self.answer = fields_of({}, {"answer": as_rule(answer)})
        self.kinds = {name: kind for name, kind in _KINDS.items() if name != "answer" or self.answer}
        self.kinds |= {field.path: field.kind for field in self.answer}
        for gold in golds:
            for name, schema in _schemas(gold).items():
                self.fields(name, schema)
        unknown = [
            path
            for path, rule in self._rules.items()
            if path not in self.field_kinds and rule.compare != "ignore"
        ]
        if unknown:
            raise ConfigurationError(
                f"fields: no argument {', '.join(map(repr, unknown))}; there are: "
                f"{one_line(', '.join(self.field_kinds)) or 'none'}"
            )

    def fields(self, name: str, schema: Mapping[str, Any]) -> tuple[Field, ...]:
        """The fields of one tool's arguments, with paths relative to them; equal schemas are flattened once."""
        key = f"{name}\n{canonical_json(schema)}"
        if key not in self._fields:
            prefix = f"{name}."
            own = {p.removeprefix(prefix): rule for p, rule in self._rules.items() if p.startswith(prefix)}
            fields = self._fields[key] = fields_of(schema, own)
            for field in fields:
                self.field_kinds[prefix + field.path] = field.kind
                for part in field.items:
                    if part.keys:
                        self.field_kinds[prefix + part.path] = "text" if part.kind == "text" else "list"
        return self._fields[key]


def grade_run(run: AgentRun, gold: AgentRun, plan: RunPlan) -> ScoredAgentRun:
    """The run with its calls aligned with gold's and every measure counted."""
    compared = _Compared(run, gold, plan)
    calls = tuple(compared.calls())
    measures = dict(compared.measures(calls))
    return ScoredAgentRun(run=run, calls=calls, measures=measures)


class _Compared:
    """A run beside its gold run."""

    def __init__(self, run: AgentRun, gold: AgentRun, plan: RunPlan) -> None:
        self._run, self._gold, self._plan = run, gold, plan
        self._known = _schemas(run) or _schemas(gold)
        self._schemas = _schemas(run) | _schemas(gold)
        self._compared: dict[tuple[int, int], tuple[dict[str, FieldScore], float]] = {}

    def calls(self) -> Iterable[ScoredCall]:
        golds, calls = self._gold.calls, self._run.calls

        def likeness(gold: int, call: int) -> float:
            found = self._compared[gold, call] = self._arguments(golds[gold], calls[call])
            return found[1]

        gold_of = {call: gold for gold, call in aligned_calls(self._gold, self._run, likeness)}
        for at, call in enumerate(calls):
            gold = gold_of.get(at)
            fields, alike = ({}, 0.0) if gold is None else self._compared[gold, at]
            yield ScoredCall(gold=gold, invalid=self._why_invalid(call), exact=alike >= 1, fields=fields)

    def _arguments(self, gold: AgentCall, call: AgentCall) -> tuple[dict[str, FieldScore], float]:
        """Scores by path, and the arguments' likeness: 1 where all are right, else less."""
        schema = self._schemas.get(gold.name) or inferred_schema([gold.arguments, call.arguments])
        fields = self._plan.fields(gold.name, schema)
        expected, given = _with_defaults(schema, gold.arguments), _with_defaults(schema, call.arguments)
        is_alike = isinstance(given, dict) == isinstance(expected, dict)
        scores = score_answer(fields, expected, given, valid=is_alike)
        own = [scores[field.path] for field in fields]
        others = _others(schema, expected), _others(schema, given)
        if all(score.right for score in own) and _EQUAL.similarity(*others) == 1:
            return _named(gold.name, scores), 1.0
        total = FieldScore.total(own)
        return _named(gold.name, scores), min(total.soft_f1, 1.0) / 2

    def _why_invalid(self, call: AgentCall) -> str | None:
        schema = self._known.get(call.name)
        if schema is None:
            return f"no tool {call.name!r}"
        if not isinstance(call.arguments, dict):
            return "the arguments are not a JSON object"
        try:
            return first_error(schema, call.arguments)
        except ValueError as error:  # a schema that cannot be used
            return str(error)

    def measures(self, calls: Sequence[ScoredCall]) -> Iterable[tuple[str, FieldScore]]:
        gold, run, plan = self._gold, self._run, self._plan
        made, due = len(calls), len(gold.calls)
        aligned = [call for call in calls if call.gold is not None]
        ended = run.error is None
        exact = sum(call.exact for call in aligned)
        right = ended and exact == made == due
        if plan.answer and gold.answer is not None:
            answer = score_answer(plan.answer, gold.answer, run.answer, ended)["answer"]
            yield "answer", answer
            right = right and bool(answer.right)
        yield "run_right", _share(int(right), 1)
        yield "run_ended", _share(int(ended), 1)
        yield "tool_use", _share(int(ended and bool(made) == bool(due)), 1)
        yield (
            "tool_calls",
            FieldScore(
                gold=due,
                answered=made,
                correct=len(aligned),
                missing=due - len(aligned),
                invented=made - len(aligned),
                credit=len(aligned),
                right=int(ended and len(aligned) == made == due),
            ),
        )
        yield "valid_calls", _share(sum(call.invalid is None for call in calls), made)
        yield "exact_arguments", _share(exact, len(aligned))
        own = (score for call in aligned for path, score in call.fields.items() if "[]" not in path)
        yield "arguments", FieldScore.total(own)
        common = common_calls(gold, run)
        yield "order_kept", _share(int(len(aligned) == common), int(common > 1))
        yield "needless_calls", _share(made - len(aligned), made)
        yield "missing_calls", _share(due - len(aligned), due)
        known = [call.failed for call in run.calls if call.failed is not None]
        yield "failed_calls", _share(sum(known), len(known))


def _share(part: int, whole: int) -> FieldScore:
    """Counts of ``part`` of ``whole``, of which the rate is made; nothing of nothing."""
    part = part if whole else 0
    return FieldScore(
        gold=whole, answered=whole, correct=part, wrong=whole - part, credit=part, right=part, answers=whole
    )


def _schemas(run: AgentRun) -> dict[str, dict[str, Any]]:
    """Tool's name -> JSON schema of its arguments."""
    found = {}
    for tool in run.tools:
        function: Any = tool.get("function")
        if name := tool_name(tool):
            schema = function.get("parameters")
            found[name] = schema if isinstance(schema, dict) else {"type": "object"}
    return found


def _properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _with_defaults(schema: Mapping[str, Any], arguments: Any) -> Any:
    """The arguments with the schema's default for each one that is left out."""
    if not isinstance(arguments, dict):
        return arguments
    properties = _properties(schema).items()
    return {
        name: p["default"] for name, p in properties if isinstance(p, dict) and "default" in p
    } | arguments


def _others(schema: Mapping[str, Any], arguments: Any) -> Any:
    """What the schema does not name, which is right only where gold has the same: text, further arguments."""
    if not isinstance(arguments, dict):
        return arguments
    if not _properties(schema):
        return {}
    return {name: value for name, value in arguments.items() if name not in _properties(schema)}


def _named(tool: str, scores: Mapping[str, FieldScore]) -> dict[str, FieldScore]:
    return {f"{tool}.{path}": score for path, score in scores.items()}
