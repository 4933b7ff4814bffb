"""Properties of the scores of runs: bounds, symmetry of parallel calls, and the best alignment."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured import AgentRun
from llama_index_finetune_structured.evaluation import AgentCall, AgentTurn
from llama_index_finetune_structured.evaluation.score.call_alignment import aligned_calls
from llama_index_finetune_structured.evaluation.score.tool_calls import RunPlan, ScoredAgentRun, grade_run


def tool(name: str, properties: dict[str, Any], **schema: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, **schema}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ITEM = {"type": "object", "properties": {"text": {"type": "string"}, "next": {"$ref": "#/$defs/item"}}}
TOOLS = (
    tool("a", {"x": {"type": "integer"}, "y": {"type": "string", "default": "d"}}, required=["x"]),
    tool("b", {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}}}, **{"$defs": {"item": ITEM}}),
    tool("c", {"u": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/item"}]}}, **{"$defs": {"item": ITEM}}),
    tool("d", {}),
)
texts = st.text(max_size=3)
items = st.fixed_dictionaries({"text": texts})
arguments: st.SearchStrategy[Any] = st.one_of(
    st.fixed_dictionaries({"x": st.integers(0, 2)}, optional={"y": texts, "other": texts}),
    st.fixed_dictionaries({"items": st.lists(items, max_size=2)}),
    st.fixed_dictionaries({"u": st.integers(0, 1) | items}),
    st.just({}),
    texts,
)
calls = st.builds(
    AgentCall,
    name=st.sampled_from("abcde"),
    arguments=arguments,
    failed=st.sampled_from([None, True, False]),
)
turns = st.builds(AgentTurn, text=texts, calls=st.lists(calls, max_size=3).map(tuple))
runs = st.builds(
    AgentRun,
    question=st.just("?"),
    turns=st.lists(turns, max_size=4).map(tuple),
    answer=st.none() | st.text(min_size=1, max_size=3),
    tools=st.just(TOOLS),
    error=st.sampled_from([None, None, "broken"]),
)


def scored(run: AgentRun, gold: AgentRun) -> ScoredAgentRun:
    return grade_run(run, gold, RunPlan([gold], None, "exact"))


@given(runs, runs)
def test_every_score_is_between_nothing_and_all(run: AgentRun, gold: AgentRun) -> None:
    found = scored(run, gold)
    assert len(found.calls) == len(run.calls)
    for counts in found.measures.values():
        assert 0 <= counts.correct <= counts.gold
        assert 0 <= counts.right <= max(counts.answers, counts.gold, 1)
        assert 0 <= counts.f1 <= 1
        assert 0 <= counts.accuracy <= 1
        assert counts.gold == counts.correct + counts.wrong + counts.missing
        assert counts.answered == counts.correct + counts.wrong + counts.invented


@given(runs)
def test_a_run_against_itself_is_perfect(run: AgentRun) -> None:
    run = run.model_copy(update={"error": None})
    found = scored(run, run)
    assert all(call.exact for call in found.calls)
    counts = found.measures["tool_calls"]
    assert counts.gold == counts.answered == counts.correct
    assert found.is_right or (run.answer is not None and not run.answer.strip())


@given(runs, runs, st.randoms(use_true_random=False))
def test_permuting_parallel_calls_changes_no_count(run: AgentRun, gold: AgentRun, random: Any) -> None:
    def permuted(one: AgentRun) -> AgentRun:
        turns = [
            turn.model_copy(update={"calls": tuple(random.sample(turn.calls, len(turn.calls)))})
            for turn in one.turns
        ]
        return one.model_copy(update={"turns": tuple(turns)})

    assert scored(permuted(run), permuted(gold)).measures == scored(run, gold).measures


def one_call_a_turn(names: str) -> AgentRun:
    turns = [AgentTurn(calls=(AgentCall(name=name, arguments={}),)) for name in names]
    return AgentRun(question="?", turns=tuple(turns))


def sets(*names: str) -> AgentRun:
    turns = [AgentTurn(calls=tuple(AgentCall(name=name, arguments={}) for name in turn)) for turn in names]
    return AgentRun(question="?", turns=tuple(turns))


def longest(gold: str, run: str) -> int:
    """Length of the longest common subsequence, by trying all."""
    subsequences = {"".join(part) for n in range(len(run) + 1) for part in combinations(run, n)}
    parts = ("".join(part) for n in range(len(gold), -1, -1) for part in combinations(gold, n))
    return next(len(part) for part in parts if part in subsequences)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_calls_one_after_another_are_aligned_by_their_longest_common_subsequence(gold: str, run: str) -> None:
    pairs = aligned_calls(one_call_a_turn(gold), one_call_a_turn(run), lambda g, r: 0.5)
    assert len(pairs) == longest(gold, run)
    assert pairs == sorted(pairs)
    assert [r for _, r in pairs] == sorted(r for _, r in pairs)


@given(st.lists(st.text("abc", max_size=3), max_size=4), st.lists(st.text("abc", max_size=3), max_size=4))
def test_no_aligned_calls_cross_and_none_is_used_twice(gold: list[str], run: list[str]) -> None:
    golds, calls = sets(*gold), sets(*run)
    pairs = aligned_calls(golds, calls, lambda g, r: 0.5)
    turn_of_gold = [at for at, turn in enumerate(gold) for _ in turn]
    turn_of_run = [at for at, turn in enumerate(run) for _ in turn]
    for (g, r), (h, s) in combinations(pairs, 2):
        assert g != h
        assert r != s
        assert (turn_of_gold[g] - turn_of_gold[h]) * (turn_of_run[r] - turn_of_run[s]) >= 0
    assert all(golds.calls[g].name == calls.calls[r].name for g, r in pairs)


def test_parallel_calls_are_aligned_with_calls_of_several_turns() -> None:
    def found(gold: AgentRun, run: AgentRun) -> int:
        return len(aligned_calls(gold, run, lambda g, r: 0.5))

    assert found(sets("ab"), sets("b", "a")) == 2
    assert found(sets("a", "b"), sets("ba")) == 2
    assert found(sets("ab", "c"), sets("a", "cb")) == 3
    assert found(sets("a", "b", "c"), sets("b", "c", *"aaaa")) == 2
    assert found(sets("cb", "ca"), sets("c", "bc")) == 3
    many = "abcdefghij"
    assert found(sets(many, "a"), sets(*many, "a")) == 11


def test_of_equal_names_the_calls_with_right_arguments_are_aligned() -> None:
    found = scored(
        AgentRun(question="?", turns=_asked(7, 1, 2), tools=TOOLS),
        AgentRun(question="?", turns=_asked(1, 2), tools=TOOLS),
    )
    assert [call.gold for call in found.calls] == [None, 0, 1]
    assert found.measures["exact_arguments"].right == 2


def _asked(*numbers: int) -> tuple[AgentTurn, ...]:
    return tuple(AgentTurn(calls=(AgentCall(name="a", arguments={"x": n}),)) for n in numbers)


def test_an_argument_that_the_tool_does_not_have_is_not_right() -> None:
    def one(**given: Any) -> AgentRun:
        return AgentRun(
            question="?", turns=(AgentTurn(calls=(AgentCall(name="a", arguments=given),)),), tools=TOOLS
        )

    assert not scored(one(x=1, z=2), one(x=1)).calls[0].exact
    assert scored(one(x=1, y="d"), one(x=1)).calls[0].exact


def test_a_run_that_repeats_a_call_many_times_is_scored_in_time() -> None:
    gold = sets("abc", "a", "b", "abc")
    run = sets(*["abcd"] * 40)
    assert scored(run, gold).measures["tool_calls"].correct == 8
    endless = sets(*["a"] * 1_000)
    assert scored(endless, sets("a", "b")).measures["tool_calls"].correct == 1
