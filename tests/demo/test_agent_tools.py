"""The tools of the demo's agent: short results, copied from the documentation, and errors that an agent can use."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_index_finetune_structured.demo.agent_tools import AgentTools, documented_functions


def _call(tools: AgentTools, tool_name: str, **arguments: Any) -> str:
    """Call a tool as an agent does: by name, through LlamaIndex."""
    tool = {tool.metadata.get_name(): tool for tool in tools.tools()}[tool_name]
    return str(asyncio.run(tool.acall(**arguments)).content)  # type: ignore[attr-defined]


def test_the_tools_cover_most_functions_and_their_parameters_are_those_of_the_code(
    agent_tools: AgentTools,
) -> None:
    assert len(agent_tools.functions) > 600
    for function in list(agent_tools.functions.values())[::20]:
        module, _, name = function.node.node_id.rpartition(".")
        code = inspect.signature(inspect.unwrap(getattr(importlib.import_module(module), name)))
        assert [p.name.lstrip("*") for p in function.parameters] == list(code.parameters)
        for parameter, actual in zip(function.parameters, code.parameters.values(), strict=True):
            has_none = actual.default is inspect.Parameter.empty
            assert parameter.default == (None if has_none else repr(actual.default))


def test_no_result_is_long(agent_tools: AgentTools) -> None:
    for function in agent_tools.functions.values():
        assert len(function.signature) < 700
        assert len(function.summary) <= 100


def test_search_lists_the_best_functions_with_what_they_do(agent_tools: AgentTools) -> None:
    found = _call(agent_tools, "search_functions", query="PageRank of the nodes", top_k=2)
    assert found.splitlines()[0] == "pagerank: Returns the PageRank of the nodes in the graph."
    assert len(found.splitlines()) == 2
    assert len(_call(agent_tools, "search_functions", query="PageRank of the nodes").splitlines()) == 3


def test_search_works_on_fewer_functions_than_it_may_list() -> None:
    few = AgentTools(documented_functions()[:2])
    assert len(_call(few, "search_functions", query="graph", top_k=5).splitlines()) == 2


@pytest.mark.parametrize("top_k", [0, -1, 6])
def test_search_refuses_other_numbers_of_matches(agent_tools: AgentTools, top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k is {top_k}, expected 1 to 5"):
        _call(agent_tools, "search_functions", query="graph", top_k=top_k)


def test_a_signature_is_the_number_of_parameters_and_a_line_for_each(agent_tools: AgentTools) -> None:
    head, first, second, *_ = _call(agent_tools, "read_signature", name="pagerank").splitlines()
    assert head == "pagerank has 8 parameters"
    assert (first, second) == ("G: graph", "alpha: float = 0.85")


def test_an_unknown_name_is_an_error_with_the_nearest_names(agent_tools: AgentTools) -> None:
    with pytest.raises(ValueError, match="there is no function pagernak; near names: pagerank"):
        _call(agent_tools, "read_signature", name="pagernak")
    with pytest.raises(ValueError, match="there is no function 雪; near names: none"):
        _call(agent_tools, "compare_parameters", first="雪", second="pagerank")


def test_a_comparison_says_which_parameters_are_shared_and_which_are_not(agent_tools: AgentTools) -> None:
    compared = _call(agent_tools, "compare_parameters", first="pagerank", second="hits")
    shared, first, second = compared.splitlines()
    assert shared == "shared: G, max_iter, tol, nstart"
    assert first == "only pagerank: alpha, personalization, weight, dangling"
    assert second == "only hits: normalized"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("8 + 5", "13"),
        (" (70 - 38) * 42", "1344"),
        ("7 / 2", "3.5"),
        ("8 / 2", "4"),
        ("-7 // 2 % 3", "2"),
        ("--3", "3"),
        ("1e308 * 10", "inf"),
    ],
)
def test_arithmetic_is_computed(agent_tools: AgentTools, expression: str, value: str) -> None:
    assert _call(agent_tools, "compute", expression=expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "open('x')",
        "9 ** 9 ** 9",
        "True + 1",
        "'a' * 9",
        "[1] * 9",
        "1 if 2 else 3",
        "(x := 4)",
        "1 / 0",
        "1 +",
        "",
        "1; 2",
        "\0",
        "(" * 150,
        "1" * 201,
        "1j",
    ],
)
def test_anything_else_is_refused_and_never_run(agent_tools: AgentTools, expression: str) -> None:
    with pytest.raises(ValueError, match=r"arithmetic|computed|longer"):
        _call(agent_tools, "compute", expression=expression)


@given(st.text(max_size=210))
@example("-" * 200 + "1")
def test_every_text_gives_a_number_or_an_error_for_the_agent(
    agent_tools: AgentTools, expression: str
) -> None:
    with contextlib.suppress(ValueError):
        float(asyncio.run(agent_tools.compute(expression)))
