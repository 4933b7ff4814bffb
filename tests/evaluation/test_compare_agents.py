"""Agents on the questions of gold runs: what is right, wrong, needless and missing, and what happens on failure."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback

from llama_index_finetune_structured import (
    AgentRun,
    AgentScorecard,
    ConfigurationError,
    DatasetError,
    FinetuneDataset,
    acompare_agents,
    capture,
    compare_agents,
    run_agent,
    score_turns,
)
from tests.evaluation.scripted_agents import (
    Call,
    ScriptedCaller,
    Turn,
    add,
    agent,
    gold_of,
    quiet,
    rates,
    search,
)

pytestmark = [  # LlamaIndex's own agents
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]

QUESTION = "What is 1 + 2, and where is it written?"
TURNS: list[Turn] = [
    ["Let me look.", ("add", {"a": 1, "b": 2}), ("search", {"query": "1 + 2"})],
    [("search", {"query": "three"})],
    "It is 3.",
]


@cache
def gold_runs() -> list[AgentRun]:
    return gold_of({QUESTION: TURNS})


def card(*turns: Turn, **options: Any) -> AgentScorecard:
    """The scorecard of an agent that has these turns in place of gold's."""
    return quiet({"tuned": agent({QUESTION: list(turns)})}, gold_runs(), **options)


def test_the_gold_run_again_is_right_in_whole() -> None:
    found = rates(card(*TURNS))
    zero = {"needless_calls", "missing_calls", "failed_calls"}
    assert found == {name: float(name not in zero) for name in found}
    assert len(found) == 12


def test_another_tool_is_one_missing_and_one_needless_call() -> None:
    found = card(TURNS[0], [("add", {"a": 3})], "It is 3.")
    counts = found.rows[0].runs["tuned"].measures["tool_calls"]
    assert (counts.correct, counts.missing, counts.invented) == (2, 1, 1)
    assert rates(found)["run_right"] == 0
    assert rates(found)["answer"] == 1


def test_a_wrong_argument_is_wrong_in_its_field_alone() -> None:
    found = card([("add", {"a": 1, "b": 5}), ("search", {"query": "1 + 2"})], *TURNS[1:])
    assert rates(found)["tool_calls"] == 1
    assert rates(found)["exact_arguments"] == pytest.approx(2 / 3)
    arguments = found.systems["tuned"].tools["add"].arguments
    assert (arguments["a"].headline, arguments["b"].headline) == (1, 0)


def test_a_call_too_many_is_needless_and_one_too_few_is_missing() -> None:
    more = card(TURNS[0], TURNS[1], [("search", {"query": "again"})], "It is 3.")
    fewer = card(TURNS[0], "It is 3.")
    assert rates(more)["needless_calls"] == pytest.approx(1 / 4)
    assert rates(more)["missing_calls"] == 0
    assert rates(fewer)["missing_calls"] == pytest.approx(1 / 3)
    assert rates(fewer)["needless_calls"] == 0
    assert rates(more)["run_right"] == rates(fewer)["run_right"] == 0


def test_parallel_calls_are_right_in_any_order_and_one_after_another() -> None:
    swapped: list[Call | str] = [("search", {"query": "1 + 2"}), ("add", {"a": 1, "b": 2})]
    assert rates(card(swapped, *TURNS[1:]))["run_right"] == 1
    assert rates(card([swapped[0]], [swapped[1]], *TURNS[1:]))["run_right"] == 1


def test_the_order_of_turns_counts() -> None:
    calls: list[Turn] = [[("add", {"a": 1})], [("search", {"query": "2"})]]
    gold = gold_of({QUESTION: [*calls, "2"]})
    found = quiet({"tuned": agent({QUESTION: [*reversed(calls), "2"]})}, gold)
    assert rates(found)["order_kept"] == 0
    assert rates(found)["run_right"] == 0
    assert rates(found)["tool_calls"] == 0.5


def test_an_argument_left_out_has_the_default_of_its_tool() -> None:
    gold = gold_of({"1 + 1?": [[("add", {"a": 1})], "2"]})
    found = quiet({"tuned": agent({"1 + 1?": [[("add", {"a": 1, "b": 1})], "2"]})}, gold)
    assert rates(found)["run_right"] == 1


def test_a_failing_tool_and_an_unknown_one_are_failed_calls() -> None:
    found = card([("add", {"a": 13, "b": 2}), ("nothing", {}), ("add", {"a": "x"})], "It is 3.")
    run = found.rows[0].runs["tuned"]
    assert [call.failed for call in run.run.calls] == [True, True, True]
    assert [call.invalid is None for call in run.calls] == [True, False, False]
    assert run.calls[1].invalid == "no tool 'nothing'"
    assert "thirteen is not supported" in str(run.run.calls[0].result)
    assert rates(found)["valid_calls"] == pytest.approx(1 / 3)


def test_a_run_without_end_is_wrong_and_its_calls_are_scored_as_far_as_it_went() -> None:
    found = card([("search", {"query": "1 + 2"})], max_iterations=4)
    run = found.rows[0].runs["tuned"].run
    assert run.steps == 4
    assert run.answer is None
    assert "Max iterations" in str(run.error)
    assert rates(found)["run_ended"] == 0
    assert rates(found)["answer"] == 0
    assert found.rows[0].runs["tuned"].measures["tool_calls"].correct == 2
    assert "1 of 1 runs did not end by themselves" in found.problems()[0]


def test_a_run_that_raises_is_wrong_and_the_cause_is_told() -> None:
    found = card(TURNS[0], ConnectionError("refused"))
    run = found.rows[0].runs["tuned"].run
    assert (run.steps, run.error, run.error_kind, run.call_failed) == (1, "refused", "ConnectionError", True)
    assert found.problems() == ["tuned: 1 of 1 runs failed: ConnectionError: refused"]


def test_a_run_that_takes_too_long_is_cancelled() -> None:
    slow = agent({QUESTION: TURNS}, wait_s=5.0)
    found = quiet({"tuned": slow}, gold_runs(), timeout_s=0.2)
    assert found.rows[0].runs["tuned"].run.error == "no answer within 0.2 s"
    assert slow.llm._running == 0  # type: ignore[attr-defined]


def test_a_cancelled_comparison_cancels_its_runs() -> None:
    slow = agent({QUESTION: TURNS}, wait_s=30.0)

    async def cancelled() -> None:
        job = asyncio.ensure_future(acompare_agents({"tuned": slow}, gold_runs(), show_progress=False))
        while not slow.llm._running:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    asyncio.run(cancelled())
    assert slow.llm._running == 0  # type: ignore[attr-defined]


def test_runs_are_concurrent_up_to_the_limit_and_share_nothing() -> None:
    script: dict[str, list[Turn]] = {f"{n} + 1?": [[("add", {"a": n})], f"{n + 1}"] for n in range(12)}
    tuned = agent(script, wait_s=0.02)
    found = quiet({"tuned": tuned}, gold_of(script), concurrency=3)
    assert rates(found)["run_right"] == 1
    assert tuned.llm.most_running == 3  # type: ignore[attr-defined]


def test_a_factory_makes_one_agent_for_each_question() -> None:
    script: dict[str, list[Turn]] = {f"{n} + 1?": [[("add", {"a": n})], f"{n + 1}"] for n in range(3)}
    made = []

    def factory() -> FunctionAgent:
        made.append(agent(script))
        return made[-1]

    assert rates(quiet({"tuned": factory}, gold_of(script)))["run_right"] == 1
    assert len(made) == 4  # the first one tells what it is, before any run


def test_a_stopped_comparison_is_resumed_and_failed_runs_are_made_again(tmp_path: Path) -> None:
    script: dict[str, list[Turn]] = {"a": ["A"], "b": [ConnectionError("refused")]}
    gold = gold_of({"a": ["A"], "b": ["B"]})
    broken = agent(script)
    assert rates(quiet({"tuned": broken}, gold, cache_dir=tmp_path))["run_right"] == 0.5
    repaired = agent({"a": ["never asked"], "b": ["B"]})
    found = quiet({"tuned": repaired}, gold, cache_dir=tmp_path)
    assert rates(found)["run_right"] == 1
    assert len(repaired.llm.asked) == 1  # type: ignore[attr-defined]


def test_tokens_steps_and_calls_are_counted() -> None:
    score = card(*TURNS).systems["tuned"]
    assert (score.steps, score.calls, score.prompt_tokens, score.completion_tokens) == (3, 3, 30, 6)
    unknown = quiet({"tuned": agent({QUESTION: TURNS}, usage={})}, gold_runs()).systems["tuned"]
    assert unknown.prompt_tokens is None


def test_fields_and_answers_are_compared_by_the_rules_given() -> None:
    turns: list[Turn] = [
        [("add", {"a": 1, "b": 2}), ("search", {"query": "2 + 1"})],
        TURNS[1],
        "it is, 3",
    ]
    assert rates(card(*turns))["run_right"] == 0
    found = card(*turns, fields={"search.query": "token_f1"}, answer="token_f1")
    assert rates(found)["run_right"] == 1
    assert "answer" not in rates(card(*turns, answer="ignore"))
    with pytest.raises(ConfigurationError, match=r"no argument 'search\.text'; there are: add\.a"):
        card(*turns, fields={"search.text": "token_f1"})


def test_text_of_any_script_stays_what_it_is(tmp_path: Path) -> None:
    script: dict[str, list[Turn]] = {
        "где <b>?": [[("search", {"query": "日本 \U0001f600 <script>"})], "тут\u202e"]
    }
    found = quiet({"tuned": agent(script)}, gold_of(script), cache_dir=tmp_path)
    assert rates(found)["run_right"] == 1
    page = found.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "日本 \U0001f600 &lt;script&gt;" in page
    assert "\u202e" not in page
    assert AgentScorecard.from_json(found.to_json(tmp_path / "card.json")) == found


def test_half_a_surrogate_pair_in_a_text_is_no_failure(tmp_path: Path) -> None:
    script: dict[str, list[Turn]] = {"?": [[("search", {"query": "\ud83d"})], "\ud83d"]}
    found = quiet({"tuned": agent(script)}, gold_of(script), cache_dir=tmp_path)
    assert found.problems() == []
    assert rates(found)["run_right"] == 1
    found.to_html(tmp_path / "page.html")
    AgentScorecard.from_json(found.to_json(tmp_path / "card.json"))


def workflow(turns: dict[str, list[Turn]]) -> AgentWorkflow:
    first = {"name": "reader", "description": "Reads.", "system_prompt": "You read.", "tools": [search]}
    second = {"name": "adder", "description": "Adds.", "system_prompt": "You add.", "tools": [add]}
    llm = ScriptedCaller(script=turns)
    return AgentWorkflow([FunctionAgent(llm=llm, **part) for part in (first, second)], root_agent="reader")


HANDED_OVER: dict[str, list[Turn]] = {
    "1 + 2?": [[("handoff", {"to_agent": "adder", "reason": "sum"})], [("add", {"a": 1, "b": 2})], "3"]
}


def test_a_workflow_of_two_agents_is_one_run_with_its_hand_off(tmp_path: Path) -> None:
    with capture(tmp_path / "rows.jsonl"):
        run = run_agent(workflow(HANDED_OVER), ["1 + 2?"], show_progress=False)[0]
    assert [turn.agent for turn in run.turns] == ["reader", "adder", "adder"]
    assert [call.name for call in run.calls] == ["handoff", "add"]
    rows = FinetuneDataset.load(tmp_path / "rows.jsonl")
    assert len(rows) == 3
    assert rates(quiet({"tuned": workflow(HANDED_OVER)}, rows))["run_right"] == 1


class ScriptedText(CustomLLM):
    """Answers with one text after another."""

    texts: list[str]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="text")

    @llm_completion_callback()
    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=self.texts.pop(0))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, **_: Any) -> Any:
        yield self.complete(prompt)


def test_an_agent_that_calls_tools_in_text_is_scored_the_same() -> None:
    gold = gold_of({"1 + 2?": [[("add", {"a": 1, "b": 2})], "3"]})
    texts = ['Thought: add.\nAction: add\nAction Input: {"a": 1, "b": 2}', "Thought: done.\nAnswer: 3"]

    def react() -> ReActAgent:
        return ReActAgent(tools=[add, search], llm=ScriptedText(texts=["Thought: hm.\nAction: add", *texts]))

    found = quiet({"tuned": react}, gold)
    assert found.problems() == []
    assert rates(found)["run_right"] == 1
    assert found.systems["tuned"].steps == 3  # the first text could not be read


def test_captured_rows_are_joined_to_the_runs_that_they_come_from(tmp_path: Path) -> None:
    scripts: dict[str, list[Turn]] = {QUESTION: TURNS, "Hello?": ["Hello."]}
    with capture(tmp_path / "rows.jsonl"):
        run_agent(agent(scripts, system_prompt="You add."), [*scripts, QUESTION], show_progress=False)
    rows = FinetuneDataset.load(tmp_path / "rows.jsonl")
    found = quiet({"tuned": agent(scripts)}, rows)
    golds = {row.gold.question: row.gold for row in found.rows}
    assert len(found.rows) == 2  # the question that was asked twice had equal runs
    assert golds.keys() == {QUESTION, "Hello?"}
    gold = golds[QUESTION]
    assert gold.turns[0].text == "Let me look."
    assert gold.answer == "It is 3."
    assert [call.result for call in gold.calls] == ["3", "found 1 + 2", "found three"]
    assert gold.usage.prompt_tokens == 30
    assert rates(found)["run_right"] == 1


def test_a_second_question_of_a_conversation_is_a_run_of_its_own(tmp_path: Path) -> None:
    scripts: dict[str, list[Turn]] = {
        "1 + 1?": [[("add", {"a": 1})], "2"],
        "And more?": [[("add", {"a": 2})], "3"],
    }

    async def talk() -> None:
        first: Any = await agent(scripts).run(user_msg="1 + 1?")
        history = [ChatMessage(role="user", content="1 + 1?"), first.response]
        await agent(scripts).run(user_msg="And more?", chat_history=history)

    with capture(tmp_path / "rows.jsonl"):
        asyncio.run(talk())
    tuned = agent(scripts)
    found = quiet({"tuned": tuned}, FinetuneDataset.load(tmp_path / "rows.jsonl"))
    assert {row.gold.question: len(row.gold.history) for row in found.rows} == {"1 + 1?": 0, "And more?": 2}
    assert rates(found)["run_right"] == 1


def test_a_captured_run_without_end_is_left_out_with_the_reason(tmp_path: Path) -> None:
    scripts: dict[str, list[Turn]] = {QUESTION: TURNS, "Loop?": [[("add", {"a": 1})]]}
    with capture(tmp_path / "rows.jsonl"):
        run_agent(agent(scripts), scripts, max_iterations=3, show_progress=False)
    with capture(tmp_path / "rows.jsonl"):
        run_agent(agent(scripts), [QUESTION], show_progress=False)
    found = quiet({"tuned": agent(scripts)}, FinetuneDataset.load(tmp_path / "rows.jsonl"))
    assert [row.gold.question for row in found.rows] == [QUESTION]
    assert "1 gold run was left out" in found.problems()[-1]
    with pytest.raises(DatasetError, match="none of the 1 gold runs ended"):
        compare_agents({"tuned": agent(scripts)}, [AgentRun(question="?", error="refused")])
    with pytest.raises(DatasetError, match="no row is a turn of an agent"):
        compare_agents({"tuned": agent(scripts)}, [])


def test_what_is_no_agent_is_refused_before_the_first_run() -> None:
    with pytest.raises(ConfigurationError, match="system 'tuned' is a str; expected an agent of LlamaIndex"):
        quiet({"tuned": "agent"}, gold_runs())
    with pytest.raises(ConfigurationError, match="system 'tuned' is a int"):
        quiet({"tuned": lambda: 3}, gold_runs())
    with pytest.raises(ConfigurationError, match="nothing to compare: pass systems"):
        quiet({}, gold_runs())


def test_turns_are_scored_one_by_one_with_the_captured_messages_and_tools(tmp_path: Path) -> None:
    with capture(tmp_path / "rows.jsonl"):
        run_agent(agent({QUESTION: TURNS}), [QUESTION], show_progress=False)
    rows = FinetuneDataset.load(tmp_path / "rows.jsonl")
    wrong: list[Turn] = ["I do not know.", TURNS[1], "It is 3."]
    llms = {
        "base": ScriptedCaller(script={QUESTION: wrong}),
        "tuned": ScriptedCaller(script={QUESTION: TURNS}),
    }
    found = score_turns(llms, rows, show_progress=False)
    assert rates(found)["run_right"] == 1
    assert len(found.rows) == 3
    base = rates(found, "base")
    assert base["run_right"] == base["tool_use"] == pytest.approx(2 / 3)
    assert base["exact_arguments"] == 1
    assert base["missing_calls"] == pytest.approx(2 / 3)
    asked = llms["tuned"].asked
    assert [len(call["messages"]) for call in sorted(asked, key=lambda call: len(call["messages"]))] == [
        1,
        4,
        6,
    ]
    assert {tool["function"]["name"] for tool in asked[0]["tools"]} == {"add", "search"}
    assert found.difference("tuned", "base").difference == pytest.approx(1 / 3)


def test_a_turn_whose_call_fails_is_wrong_and_told(tmp_path: Path) -> None:
    with capture(tmp_path / "rows.jsonl"):
        run_agent(agent({QUESTION: TURNS}), [QUESTION], show_progress=False)
    rows = FinetuneDataset.load(tmp_path / "rows.jsonl")
    broken = ScriptedCaller(script={QUESTION: [ConnectionError("refused")]})
    found = score_turns({"tuned": broken}, rows, show_progress=False)
    assert found.problems() == ["tuned: all 3 runs failed: ConnectionError: refused"]
    assert found.verdict() == "There is no result: no run of tuned took place."
    with pytest.raises(DatasetError, match="no row is a turn of an agent"):
        score_turns({"tuned": broken}, [])


def test_two_systems_and_a_teacher_stand_beside_each_other(tmp_path: Path, capsys: Any) -> None:
    agents = {
        "base": agent({QUESTION: [[("search", {"query": "?"})], "No."]}),
        "tuned": agent({QUESTION: TURNS}),
        "teacher": agent({QUESTION: TURNS}),
    }
    found = quiet(agents, gold_runs(), notes={"model": "tiny"})
    assert {(d.system, d.against) for d in found.differences} == {
        ("tuned", "base"), ("teacher", "base"), ("base", "teacher"), ("tuned", "teacher"),
    }  # fmt: skip
    found.print()
    printed = capsys.readouterr().out
    assert "tuned" in printed
    assert "calls F1" in printed
    assert "(gold)" in printed
    page = found.to_html(tmp_path / "page.html", title="Adding").read_text(encoding="utf-8")
    assert all(
        text in page for text in ("Adding", "Tool by tool", "Against the others", "tuned − base", "tiny")
    )
    assert "not in gold" in page or "differs" in page
    with pytest.raises(ConfigurationError, match="no system 'other'"):
        found.difference("other", "base")
    with pytest.raises(ConfigurationError, match="has no rate 'speed'"):
        found.difference("tuned", "base", "speed")


def test_a_damaged_scorecard_is_refused(tmp_path: Path) -> None:
    path = card(*TURNS).to_json(tmp_path / "card.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"calls"', '"other"', 1), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"not a scorecard as AgentScorecard\.to_json writes it"):
        AgentScorecard.from_json(path)
