"""Runs agents on questions and collects what they do from their event streams, and asks LLMs for single turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from llama_index.core.agent.workflow import AgentOutput, AgentWorkflow, BaseWorkflowAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.tools import BaseTool
from llama_index.core.workflow import WorkflowRuntimeError

from ...capture.calls import reasoning_tokens, token_usage
from ...errors import ConfigurationError, MissingDependencyError
from ...example import Message, Usage, content_hash
from ...formats.wire import json_safe, message_from_wire, response_to_wire
from .agent_run import AgentCall, AgentRun, AgentTurn, answered_turn, sum_of_all, summed_usage
from .answer_log import RawAnswer
from .ask import AskSettings, SystemAnswers, answer_all, error_fields, is_unfit, return_interrupt

__all__ = ["Agent", "AgentSource", "ask_agents", "ask_for_turns", "run_of"]

Agent = BaseWorkflowAgent | AgentWorkflow
AgentSource = Agent | Callable[[], Agent]
"""An agent, or a function that makes one for each question."""


async def ask_agents(
    agents: Mapping[str, AgentSource],
    golds: Sequence[AgentRun],
    max_iterations: int | None,
    asking: AskSettings,
) -> dict[str, SystemAnswers]:
    """Run every agent on every question, one agent after the other; each run starts without memory.

    Raises ConfigurationError, before the first run, where there is no agent or one is of another class.
    """
    _require(agents, '{"base": agent, "tuned": agent}')
    identities = {name: _identity(_made(name, source)) for name, source in agents.items()}
    answers = {}
    for name, source in agents.items():
        keys = [content_hash([identities[name], gold.id, max_iterations]) for gold in golds]
        calls = {
            key: partial(_answer_of_run, key, name, source, gold, max_iterations, asking.timeout_s)
            for key, gold in zip(keys, golds, strict=True)
        }
        answers[name] = await answer_all(name, keys, calls, asking)
    return answers


async def ask_for_turns(
    llms: Mapping[str, LLM], golds: Sequence[AgentRun], options: Sequence[dict[str, Any]], asking: AskSettings
) -> dict[str, SystemAnswers]:
    """Ask every LLM for the turn that follows each gold's history; ``options``: of each call, ``tools`` among them.

    Raises ConfigurationError, before the first call, where there is no LLM or something else in its place.
    """
    _require(llms, '{"base": llm, "tuned": llm}')
    for name, llm in llms.items():
        if not isinstance(llm, LLM):
            raise ConfigurationError(f"system {name!r} is a {type(llm).__name__}; expected a LlamaIndex LLM")
    answers = {}
    for name, llm in llms.items():
        identity = _llm_identity(llm)
        keys = [
            content_hash([identity, gold.id, chosen]) for gold, chosen in zip(golds, options, strict=True)
        ]
        calls = {
            key: partial(_answer_of_turn, key, llm, gold, chosen, asking.timeout_s)
            for key, gold, chosen in zip(keys, golds, options, strict=True)
        }
        answers[name] = await answer_all(name, keys, calls, asking)
    return answers


def run_of(answer: RawAnswer) -> AgentRun:
    """The run that an answer of ``ask_agents`` or ``ask_for_turns`` holds."""
    return AgentRun.model_validate(answer.value)


def _require(systems: Mapping[str, Any], example: str) -> None:
    if not systems:
        raise ConfigurationError(f"nothing to compare: pass systems, such as {example}")


def _made(name: str, source: AgentSource) -> Agent:
    """The agent itself, or a new one; raises ConfigurationError for anything else."""
    made = source if isinstance(source, Agent) or not callable(source) else source()
    if not isinstance(made, Agent):
        raise ConfigurationError(
            f"system {name!r} is a {type(made).__name__}; expected an agent of LlamaIndex (FunctionAgent, ReActAgent, "
            "AgentWorkflow), or a function without arguments that makes one."
        )
    return made


def _agents_in(agent: Agent) -> list[BaseWorkflowAgent]:
    return list(agent.agents.values()) if isinstance(agent, AgentWorkflow) else [agent]


def _identity(agent: Agent) -> Any:
    """What tells agents of one name apart in the answer log: classes, LLMs, prompts and tools."""
    parts = [
        {
            "class": type(part).__name__,
            "name": part.name,
            "llm": _llm_identity(part.llm),
            "system_prompt": part.system_prompt,
            "tools": [_definition(tool) for tool in part.tools or () if isinstance(tool, BaseTool)],
        }
        for part in _agents_in(agent)
    ]
    prompts = {name: str(prompt.get_template()) for name, prompt in agent.get_prompts().items()}
    return [type(agent).__name__, getattr(agent, "root_agent", None), prompts, parts]


def _llm_identity(llm: LLM) -> Any:
    return [llm.class_name(), llm.metadata.model_dump(mode="json")]


def _definition(tool: BaseTool) -> dict[str, Any]:
    definition: dict[str, Any] = json_safe(tool.metadata.to_openai_tool(skip_length_check=True))
    return definition


async def _tools_of(agent: Agent, question: str) -> tuple[dict[str, Any], ...]:
    """The definitions of all tools that the agent, or the agents of a workflow, have for this question."""
    if isinstance(agent, AgentWorkflow):
        found = [tool for name in agent.agents for tool in await agent.get_tools(name, question)]
    else:
        found = list(await agent.get_tools(question))
    return tuple({tool.metadata.get_name(): _definition(tool) for tool in found}.values())


class _Record:
    """What a run has done so far, from its events."""

    def __init__(self) -> None:
        self.turns: list[AgentTurn] = []
        self.tools: tuple[dict[str, Any], ...] = ()
        self.answer: str | None = None
        self.agent: Agent | None = None
        self._usages: list[Usage | None] = []
        self._reasoning: list[int | None] = []
        self._open: list[ToolSelection] = []  # calls of the last turn, with their ids

    def add(self, event: Any) -> None:
        if isinstance(event, AgentOutput):
            # the event's list is shared with the agent, which adds results to it at the end
            self._open = [call for call in event.tool_calls if isinstance(call, ToolSelection)]
            calls = [AgentCall(name=c.tool_name, arguments=json_safe(c.tool_kwargs)) for c in self._open]
            turn = AgentTurn(
                text=event.response.content or "", calls=tuple(calls), agent=event.current_agent_name
            )
            self.turns.append(turn)
            response = ChatResponse(message=event.response, raw=event.raw)
            usage = token_usage(response)
            self._usages.append(None if usage is None else Usage(**usage))
            self._reasoning.append(reasoning_tokens(response))
        elif isinstance(event, ToolCallResult) and self.turns:
            self._add_result(event)

    def _add_result(self, event: ToolCallResult) -> None:
        """Fill in the first call of the last turn that has no result yet and is the event's."""
        calls = list(self.turns[-1].calls)
        for at, sent in enumerate(self._open):
            is_same = (sent.tool_id, sent.tool_name) == (event.tool_id, event.tool_name)
            if is_same and sent.tool_kwargs == event.tool_kwargs and calls[at].failed is None:
                output = event.tool_output
                calls[at] = calls[at].model_copy(update={"result": output.content, "failed": output.is_error})
                self.turns[-1] = self.turns[-1].model_copy(update={"calls": tuple(calls)})
                return

    @property
    def current_agent(self) -> Any:
        """The agent that had the last turn, whose LLM's key an error may name."""
        if isinstance(self.agent, AgentWorkflow):
            last = self.turns[-1].agent if self.turns else None
            return self.agent.agents.get(last or self.agent.root_agent)
        return self.agent

    def run(self, gold: AgentRun, seconds: float) -> AgentRun:
        return AgentRun(
            question=gold.question,
            history=gold.history,
            turns=tuple(self.turns),
            answer=self.answer,
            tools=self.tools,
            document_id=gold.document_id,
            split=gold.split,
            usage=summed_usage(self._usages),
            reasoning_tokens=sum_of_all(self._reasoning),
            seconds=seconds,
        )


async def _answer_of_run(
    key: str, name: str, source: AgentSource, gold: AgentRun, max_iterations: int | None, timeout_s: float
) -> RawAnswer:
    """One run as an answer of the log; one that raises or takes too long is kept as far as it went."""
    record = _Record()
    started = time.perf_counter()
    failure: dict[str, Any] = {}
    interrupt: BaseException | None = None
    try:
        following = _follow(name, source, gold, max_iterations, record)
        interrupt = await asyncio.wait_for(return_interrupt(following), timeout_s)
    except MissingDependencyError:
        raise
    except Exception as error:
        failure = error_fields(error, timeout_s, record.current_agent)
        failure["call_failed"] = not _is_own_fault(error, record)
    if interrupt is not None:
        raise interrupt
    seconds = time.perf_counter() - started
    return _raw_answer(key, record.run(gold, seconds).model_copy(update=failure))


def _raw_answer(key: str, run: AgentRun) -> RawAnswer:
    return RawAnswer(
        key=key,
        example_id=run.id,
        value=run.model_dump(mode="json", exclude_defaults=True),
        error=run.error,
        error_kind=run.error_kind,
        failed=run.call_failed,
        seconds=run.seconds or 0.0,
    )


async def _follow(
    name: str, source: AgentSource, gold: AgentRun, max_iterations: int | None, record: _Record
) -> None:
    """Start a run and add its events to the record until it ends; a run that is left early is cancelled."""
    agent = record.agent = _made(name, source)
    record.tools = await _tools_of(agent, gold.question)
    options: dict[str, Any] = {} if max_iterations is None else {"max_iterations": max_iterations}
    history = [message_from_wire(message.wire()) for message in gold.history]
    handler = agent.run(user_msg=gold.question, chat_history=history or None, **options)
    try:
        async for event in handler.stream_events():
            record.add(event)
        result: Any = await handler
    finally:
        if not handler.is_done():
            await handler.cancel_run()
    record.answer = result.response.content or ""


def _is_own_fault(error: Exception, record: _Record) -> bool:
    """Whether the agent itself failed (no end within ``max_iterations``, unreadable calls), which is final."""
    if isinstance(error, WorkflowRuntimeError) and str(error).startswith("Max iterations"):
        return True
    return is_unfit(error, answered=bool(record.turns))


async def _answer_of_turn(
    key: str, llm: LLM, gold: AgentRun, options: dict[str, Any], timeout_s: float
) -> RawAnswer:
    """One turn as an answer of the log; a call that fails is a run without turns."""
    started = time.perf_counter()
    messages = [message_from_wire(message.wire()) for message in gold.history]
    run = AgentRun(question=gold.question, tools=gold.tools, document_id=gold.document_id, split=gold.split)
    reply: Any = None
    outcome: dict[str, Any] = {}
    try:
        reply = await asyncio.wait_for(return_interrupt(llm.achat(messages, **options)), timeout_s)
        if not isinstance(reply, BaseException):
            outcome = _reply_fields(reply)
    except MissingDependencyError:
        raise
    except Exception as error:
        is_own_fault = is_unfit(error, answered=reply is not None)
        outcome = error_fields(error, timeout_s, llm) | {"call_failed": not is_own_fault}
    if isinstance(reply, BaseException):
        raise reply
    return _raw_answer(key, run.model_copy(update=outcome | {"seconds": time.perf_counter() - started}))


def _reply_fields(reply: ChatResponse) -> dict[str, Any]:
    """The fields of a run that one response fills."""
    turn = answered_turn(Message.model_validate(response_to_wire(reply)))
    answer = None if turn.calls else turn.text
    usage = Usage(**(token_usage(reply) or {}))
    return {"turns": (turn,), "answer": answer, "usage": usage, "reasoning_tokens": reasoning_tokens(reply)}
