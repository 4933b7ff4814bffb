"""The demo's corpus: reference cards agree with networkx itself, and the teacher reads only its prompt."""

from __future__ import annotations

import importlib
import inspect

import pytest
from llama_index.core.schema import MetadataMode

from llama_index_finetune_structured.demo.corpus import (
    REFERENCE_KEY,
    ApiCard,
    Function,
    answerable,
    functions,
    node_of,
    parse_card,
)
from llama_index_finetune_structured.demo.teacher import QA_TEMPLATE, DocstringTeacher


@pytest.fixture(scope="module")
def documented() -> list[Function]:
    return functions()


def test_the_corpus_is_large_and_every_function_is_asked_for_unambiguously(
    documented: list[Function],
) -> None:
    assert len(documented) > 800
    assert len({function.question for function in documented}) == len(documented)
    assert len({function.group for function in documented}) > 40


def test_gold_parameters_are_parameters_of_the_function_itself(documented: list[Function]) -> None:
    """The docstring is not the code, so a few differ; the gold must agree with the code nearly always."""
    agreeing = checked = 0
    for function in documented:
        card = parse_card(function.name, function.docstring)
        if not answerable(card):
            continue
        module, _, name = function.qualified_name.rpartition(".")
        signature = inspect.signature(inspect.unwrap(getattr(importlib.import_module(module), name)))
        known = {p.lstrip("*") for p in signature.parameters}
        named = {parameter.name.lstrip("*") for parameter in card.parameters}
        checked += 1
        agreeing += named <= known or any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values())
    assert checked > 600
    assert agreeing / checked > 0.93


def _shown(function: Function) -> str:
    node = node_of(function)
    node.set_content(node.metadata[REFERENCE_KEY])
    return node.get_content(MetadataMode.LLM)


def _ask(teacher: DocstringTeacher, context: str, question: str) -> ApiCard:
    prompt = QA_TEMPLATE.format(context_str=context, query_str=question)
    return ApiCard.model_validate_json(teacher.complete(prompt).text)


def test_the_teacher_reads_the_card_of_the_function_asked_for(documented: list[Function]) -> None:
    teacher = DocstringTeacher()
    for function in documented[::25]:
        card = parse_card(function.name, function.reference.partition("\n\n")[2])
        assert _ask(teacher, _shown(function), function.question) == card


def test_the_teacher_abstains_where_the_function_is_not_in_what_it_is_shown(
    documented: list[Function],
) -> None:
    first, second = documented[0], documented[300]
    card = _ask(DocstringTeacher(), _shown(first), second.question)
    assert card == ApiCard(function=second.name, parameters=[], returns=None, raises=[])


def test_the_teacher_refuses_other_prompts() -> None:
    with pytest.raises(ValueError, match="the demo's prompt"):
        DocstringTeacher().complete("Tell me a joke.")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("int, optional (default=None)", "int"),
        ("string or None (default: 'weight')", "string or None"),
        ("bool, default True", "bool"),
        ("iterable of node pairs, optional (default = None)", "iterable of node pairs"),
        ("{'a', 'b'}, optional", "{'a', 'b'}"),
        ("integer, random_state, or None", "integer, random_state, or None"),
    ],
)
def test_defaults_are_no_part_of_a_type(written: str, kept: str) -> None:
    card = parse_card("f", f"Do.\n\nParameters\n----------\nx : {written}\n    It.\n")
    assert card.parameters[0].type == kept
