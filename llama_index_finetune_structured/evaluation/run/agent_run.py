"""``AgentRun``: what an agent did for one question, also as captured rows tell it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from ...dataset.splits import group_names
from ...example import Example, Message, Usage, content_hash, loads
from .systems import content_text, question_of
from .usable_rows import LeftOut

__all__ = [
    "AgentCall",
    "AgentRun",
    "AgentTurn",
    "answered_turn",
    "captured_runs",
    "captured_turn",
    "sum_of_all",
    "summed_usage",
    "tool_name",
]

_INSTRUCTIONS = ("system", "developer")


class AgentCall(BaseModel):
    """One call of a tool.

    Attributes:
        name: Name of the tool.
        arguments: The arguments, an object; the text itself where the model wrote no JSON object.
        result: What the tool returned, as text; None where the run ended before.
        failed: Whether the tool failed or was not found; None where that is unknown, as in captured rows.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    arguments: JsonValue
    result: str | None = None
    failed: bool | None = None


class AgentTurn(BaseModel):
    """One answer of the model: text, calls of tools, or both.

    Attributes:
        text: The text, which may be empty beside calls.
        calls: The calls; several of one turn are parallel, so that their order means nothing.
        agent: Name of the agent that had the turn; None where unknown.
    """

    model_config = ConfigDict(frozen=True)

    text: str = ""
    calls: tuple[AgentCall, ...] = ()
    agent: str | None = None


class AgentRun(BaseModel):
    """What an agent did for one question.

    Attributes:
        question: The user's message.
        history: The conversation before it, without instructions (system messages).
        turns: The model's answers in their order.
        answer: The final answer; None where the run did not end with one.
        tools: Definitions of the tools that the agent had, in OpenAI's chat form.
        document_id: Group of rows that are not independent, as ``Example.document_id``; None: it stands alone.
        split: Side of a split; None where unknown.
        usage: Summed token counts of the model's calls; a count is None where a call reports none.
        reasoning_tokens: Tokens of reasoning in all of the model's calls; None where a call does not count its tokens.
        seconds: Duration of the run; None where unknown.
        error: Why the run failed; None where it ended.
        error_kind: Class name of the error.
        call_failed: Whether the cause was outside the agent (network, timeout), so that a later run repeats it.
    """

    model_config = ConfigDict(frozen=True)

    question: str
    history: tuple[Message, ...] = ()
    turns: tuple[AgentTurn, ...] = ()
    answer: str | None = None
    tools: tuple[dict[str, JsonValue], ...] = ()
    document_id: str | None = None
    split: str | None = None
    usage: Usage = Usage()
    reasoning_tokens: int | None = None
    seconds: float | None = None
    error: str | None = None
    error_kind: str | None = None
    call_failed: bool = False

    @property
    def id(self) -> str:
        """Content hash of the question and the conversation before it."""
        return content_hash([self.question, [_key(message) for message in self.history]])

    @property
    def steps(self) -> int:
        """Number of the model's answers."""
        return len(self.turns)

    @property
    def calls(self) -> list[AgentCall]:
        """All calls of tools in their order."""
        return [call for turn in self.turns for call in turn.calls]


def tool_name(tool: dict[str, JsonValue]) -> str:
    """The name in a tool definition of OpenAI's chat form; empty where it has none."""
    function = tool.get("function")
    return str(function.get("name") or "") if isinstance(function, dict) else ""


def captured_turn(example: Example) -> AgentRun:
    """The answer of one row as a run of one turn; its history is all messages, the question among them.

    The turns of one conversation are not independent: without a document, they have its beginning in common.
    """
    turn = answered_turn(example.answer)
    return AgentRun(
        question=question_of(example),
        history=example.messages,
        turns=(turn,),
        answer=None if turn.calls else turn.text,
        tools=tuple(example.tools or ()),
        document_id=example.document_id or group_names([example], None)[0][:12],
        split=example.split,
        usage=example.usage or Usage(),
    )


def captured_runs(examples: Iterable[Example]) -> tuple[list[AgentRun], tuple[LeftOut, ...]]:
    """The runs that rows of single calls make up, and the rows of runs that have no end.

    The rows of one run are those whose messages, without instructions, which change with the agent, begin with the
    messages and the answer of the row before. A user's message begins a new run; equal runs are one.
    """
    rows = [_Row.of(at, example) for at, example in enumerate(examples) if example.is_agent_turn]
    by_end = {row.end: row for row in rows}
    inner = {place for row in rows for place in row.turn_places()}
    runs: list[AgentRun] = []
    left_out: list[LeftOut] = []
    for row in by_end.values():
        if row.end in inner:
            continue
        if row.first is None or row.example.answer.tool_calls:
            reason = (
                "its messages hold no question of a user"
                if row.first is None
                else "its last captured turn calls tools: the run did not end, or ended with a tool's result"
            )
            left_out.append(LeftOut(row=row.at, example_id=row.example.id, reason=reason))
        else:
            runs.append(row.run([by_end[p] for p in row.turn_places() if p in by_end]))
    return runs, tuple(left_out)


@dataclass(frozen=True)
class _Row:
    """A captured call. ``places``: hash of the messages up to each one; ``end``: with the answer.

    ``messages``: without instructions; ``first``: index of the first one after the last of a user, None without a
    user's message.
    """

    at: int
    example: Example
    messages: tuple[Message, ...]
    places: tuple[str, ...]
    end: str
    first: int | None

    @classmethod
    def of(cls, at: int, example: Example) -> _Row:
        messages = tuple(message for message in example.messages if message.role not in _INSTRUCTIONS)
        *places, end = _places([*messages, example.answer])
        users = [index for index, message in enumerate(messages) if message.role == "user"]
        return cls(at, example, messages, tuple(places), end, users[-1] + 1 if users else None)

    def turn_places(self) -> Iterator[str]:
        """The places of the run's turns before this one."""
        for index in range(self.first or 0, len(self.messages)):
            if self.messages[index].role == "assistant":
                yield self.places[index]

    def run(self, before: Sequence[_Row]) -> AgentRun:
        """The run that ends with this row; ``before``: the run's other rows, as far as they were captured."""
        first = self.first or 0
        turns = tuple(_turns([*self.messages[first:], self.example.answer]))
        examples = [*(row.example for row in before), self.example]
        tools = {tool_name(tool): tool for example in examples for tool in example.tools or ()}
        is_whole = len(examples) == len(turns)
        return AgentRun(
            question=self.example.query or content_text(self.messages[first - 1].content),
            history=self.messages[: first - 1],
            turns=turns,
            answer=turns[-1].text,
            tools=tuple(tools.values()),
            document_id=self.example.document_id,
            split=self.example.split,
            usage=summed_usage([example.usage for example in examples]) if is_whole else Usage(),
        )


def summed_usage(usages: Sequence[Usage | None]) -> Usage:
    """The sum of the counts; None where one is missing."""
    return Usage(
        prompt_tokens=sum_of_all([usage.prompt_tokens if usage else None for usage in usages]),
        completion_tokens=sum_of_all([usage.completion_tokens if usage else None for usage in usages]),
    )


def sum_of_all(counts: Sequence[int | None]) -> int | None:
    """The sum; None where one is missing, or there are none."""
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _places(messages: Sequence[Message]) -> Iterator[str]:
    place = ""
    for message in messages:
        place = content_hash([place, _key(message)])
        yield place


def _key(message: Message) -> Any:
    """What a message says; without the ids of calls, which some providers do not repeat."""
    return [message.role, content_text(message.content), [[c.name, c.arguments] for c in _calls(message)]]


def _turns(messages: Sequence[Message]) -> Iterator[AgentTurn]:
    """The assistant's turns, the tools' messages after each as its calls' results."""
    turn: AgentTurn | None = None
    ids: list[str | None] = []
    for message in messages:
        if message.role == "assistant":
            if turn is not None:
                yield turn
            turn, ids = answered_turn(message), _ids(message)
        elif turn is not None and message.role in ("tool", "function"):
            turn = _with_result(turn, ids, message)
    if turn is not None:
        yield turn


def _with_result(turn: AgentTurn, ids: Sequence[str | None], message: Message) -> AgentTurn:
    """The turn with a tool's message as the result of the call that it names, else of the first one without."""
    open_calls = [at for at, call in enumerate(turn.calls) if call.result is None]
    named = [at for at in open_calls if ids[at] == message.tool_call_id]
    calls = list(turn.calls)
    for at in (named or open_calls)[:1]:
        calls[at] = calls[at].model_copy(update={"result": content_text(message.content)})
    return turn.model_copy(update={"calls": tuple(calls)})


def answered_turn(message: Message) -> AgentTurn:
    """An assistant's message as a turn."""
    return AgentTurn(text=content_text(message.content), calls=tuple(_calls(message)))


def _ids(message: Message) -> list[str | None]:
    return [str(call["id"]) if "id" in call else None for call in message.tool_calls or ()]


def _calls(message: Message) -> list[AgentCall]:
    functions: list[Any] = [call["function"] for call in message.tool_calls or ()]
    return [AgentCall(name=f["name"], arguments=_arguments(f.get("arguments"))) for f in functions]


def _arguments(arguments: Any) -> Any:
    """The arguments as JSON; no arguments are an empty object."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return loads(arguments) if arguments.strip() else {}
    except ValueError:
        return arguments
