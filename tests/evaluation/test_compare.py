"""compare(): systems of every kind, called concurrently; one failed call does not fail the others."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_index.core import Document, PromptTemplate, SummaryIndex
from llama_index.core.instrumentation import root_dispatcher
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.program import LLMTextCompletionProgram
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel, computed_field

from llama_index_finetune_structured import Example, FinetuneDataset, Message, Scorecard, acompare
from llama_index_finetune_structured.background import run_in_background
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.evaluation.run.target import target_of
from llama_index_finetune_structured.local.model.prompts import messages_with_schema
from llama_index_finetune_structured.local.schema.bounds import schema_key
from tests.fakes.openai_server import OpenAIServer

from .systems import ALPHA, BETA, DATA, Card, ScriptedLLM, card, example, quiet


def test_bare_llm_is_asked_the_messages_and_scored_by_field() -> None:
    half = card("beta", parameters=[{"name": "G", "type": "Graph"}])
    llm = ScriptedLLM(script={"call alpha": ALPHA, "call beta": half})
    found = quiet({"tuned": llm}, DATA, output_cls=Card).systems["tuned"]
    assert (found.n, found.schema_valid, found.exact_match) == (2, 1.0, 0.5)
    assert found.fields["function"].accuracy == 1.0
    assert found.fields["parameters"].f1 == pytest.approx(2 * 2 / (3 + 2))
    assert found.fields["parameters"].missing == pytest.approx(1 / 3)
    assert found.fields["parameters"].invented == 0


def test_schema_of_the_examples_serves_where_no_class_is_given() -> None:
    llm = ScriptedLLM(script={"call alpha": ALPHA, "call beta": {"function": 7}})
    found = quiet({"llm": llm}, DATA)
    assert found.systems["llm"].schema_valid == 0.5
    assert "$.function" in str(found.rows[1].answers["llm"].error)


def test_llm_without_class_or_schema_is_refused_with_the_fix() -> None:
    data = [example("How do I call alpha?", ALPHA, answer_schema=None)]
    with pytest.raises(ConfigurationError, match="pass output_cls"):
        quiet({"llm": ScriptedLLM(script={})}, data)


def test_braces_in_messages_are_not_template_variables() -> None:
    question = 'What does {function} {prompt} {0} {{x}} {"a": 1} mean?'
    llm = ScriptedLLM(script={question: ALPHA})
    assert quiet({"llm": llm}, [example(question, ALPHA)], output_cls=Card).systems["llm"].exact_match == 1


def test_schema_text_is_asked_once_not_twice() -> None:
    from llama_index.core.output_parsers import PydanticOutputParser

    parser = PydanticOutputParser(output_cls=Card)
    schema_text = parser.get_format_string(escape_json=True)
    captured = (
        Message(role="system", content=parser.format("Cards. ")),
        Message(role="user", content="How do I call alpha?"),
    )
    llm = ScriptedLLM(script={"call alpha": ALPHA})
    data = [example("How do I call alpha?", ALPHA, messages=captured, schema_text=schema_text)]
    assert quiet({"llm": llm}, data, output_cls=Card).systems["llm"].exact_match == 1
    sent = "\n".join(str(message.content) for message in captured)
    assert llm.prompts == [sent]


def _engine(llm: ScriptedLLM, **kwargs: Any) -> Any:
    index = SummaryIndex.from_documents([Document(text="alpha(n)", doc_id="doc-alpha")])
    return index.as_query_engine(llm=llm, output_cls=Card, **kwargs)


def test_query_engine_is_asked_the_original_question() -> None:
    augmented = (Message(role="user", content="Context: lots. Question: How do I call alpha?"),)
    data = [
        example("How do I call alpha?", ALPHA, messages=augmented, document_id="doc-alpha"),
        example("How do I call beta?", BETA, document_id="doc-beta"),
    ]
    llm = ScriptedLLM(script={"call alpha": ALPHA, "call beta": ALPHA})
    scorecard = quiet({"rag": _engine(llm)}, data)
    assert all("Context: lots." not in prompt for prompt in llm.prompts)
    system = scorecard.systems["rag"]
    assert system.retrieval_hit_rate == 0.5
    assert system.retrieval_hit is not None
    assert system.retrieval_miss is not None
    assert (system.retrieval_hit.n, system.retrieval_hit.exact_match) == (1, 1.0)
    assert (system.retrieval_miss.n, system.retrieval_miss.exact_match) == (1, 0.0)
    sources = scorecard.rows[0].answers["rag"].sources
    assert sources is not None
    assert sources[0].document_id == "doc-alpha"


def test_a_chunk_is_found_by_its_node_id_where_examples_are_split_by_chunk() -> None:
    llm = ScriptedLLM(script={"call alpha": ALPHA})
    engine = _engine(llm)
    node = engine.retrieve("How do I call alpha?")[0].node_id
    data = [example("How do I call alpha?", ALPHA, document_id=node)]
    assert quiet({"rag": engine}, data).systems["rag"].retrieval_hit_rate == 1


def test_empty_response_of_a_query_engine_is_invalid_and_keeps_what_the_model_wrote() -> None:
    llm = ScriptedLLM(script={"call alpha": 'Sure: {"parameters": []}', "call beta": "no json"})
    scorecard = quiet({"rag": _engine(llm)}, DATA)
    found = scorecard.systems["rag"]
    assert (found.schema_valid, found.exact_match, found.field_score) == (0, 0, 0)
    answer = scorecard.rows[0].answers["rag"]
    assert answer.text == "Empty Response"
    assert answer.raw_text == 'Sure: {"parameters": []}'
    assert found.fields["parameters"].f1 == 0
    assert found.fields["parameters"].missing == 1


def test_query_engine_needs_questions() -> None:
    data = [*DATA, example("How do I call alpha?", ALPHA, query=None)]
    with pytest.raises(ConfigurationError, match=r"1 of 3 examples have none"):
        quiet({"rag": _engine(ScriptedLLM(script={}))}, data)


def test_pydantic_program_gets_the_question_in_its_only_variable() -> None:
    llm = ScriptedLLM(script={"Card for How do I call alpha?": ALPHA, "Card for How do I call beta?": BETA})
    program = LLMTextCompletionProgram.from_defaults(
        output_cls=Card, prompt=PromptTemplate("Card for {topic}"), llm=llm
    )
    assert quiet({"program": program}, DATA).systems["program"].exact_match == 1


def test_structured_llm_and_functions_are_systems_too() -> None:
    async def later(row: Example) -> str:
        return f"Here: {row.answer_text()}"

    llm = ScriptedLLM(script={"call alpha": ALPHA, "call beta": BETA}).as_structured_llm(Card)
    systems = {"structured": llm, "gold": lambda row: row.answer_object(), "later": later}
    scorecard = quiet(systems, DATA)
    assert [system.exact_match for system in scorecard.systems.values()] == [1, 1, 1]


def test_one_failing_answer_is_recorded_and_counts_as_invalid() -> None:
    llm = ScriptedLLM(script={"call alpha": ALPHA, "call beta": OSError("server on fire")})
    scorecard = quiet({"llm": llm}, DATA)
    assert scorecard.systems["llm"].schema_valid == 0.5
    assert scorecard.systems["llm"].errors == {"OSError": 1}
    assert scorecard.rows[1].answers["llm"].error == "server on fire"


def test_answer_that_takes_too_long_is_invalid() -> None:
    llm = ScriptedLLM(script={"call": ALPHA}, wait_s=30)
    found = quiet({"llm": llm}, DATA, timeout_s=0.02)
    assert found.systems["llm"].errors == {"TimeoutError": 2}
    assert found.rows[0].answers["llm"].error == "no answer within 0.02 s"


def test_keyboard_interrupt_passes() -> None:
    llm = ScriptedLLM(script={"call": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        quiet({"llm": llm}, DATA)


def test_concurrency_is_bounded_and_used() -> None:
    data = [example(f"call {n}", card(f"f{n}")) for n in range(20)]
    llm = ScriptedLLM(script={"call": card("f0")}, wait_s=0.005)
    quiet({"llm": llm}, data, concurrency=3)
    assert llm.most_running == 3


def test_bound_hits_are_attributed_to_the_call_that_hit_them() -> None:
    names = [f"item{n:02}" for n in range(24)]
    data = [example(f"call {name}!", card(name)) for name in names]
    script = {f"call {name}!": card(name) for name in names}
    hits = {f"call {name}!": [f"$.{name}"] for name in names[::3]}
    llm = ScriptedLLM(script=script, bound_hits=hits, wait_s=0.002)
    before = list(root_dispatcher.event_handlers)
    scorecard = quiet({"a": llm, "b": ScriptedLLM(script=script)}, data)
    for row, name in zip(scorecard.rows, names, strict=True):
        assert row.answers["a"].bound_hits == tuple(hits.get(f"call {name}!", ()))
        assert row.answers["b"].bound_hits == ()
    assert scorecard.systems["a"].bound_hits == 8
    assert root_dispatcher.event_handlers == before


def test_answers_that_were_asked_for_again_are_counted() -> None:
    data = [example(f"call {name}!", card(name)) for name in "abc"]
    script = {f"call {name}!": card(name) for name in "abc"}
    llm = ScriptedLLM(script=script, retries={"call b!": 1})
    scorecard = quiet({"a": llm, "b": ScriptedLLM(script=script)}, data)
    assert [row.answers["a"].retries for row in scorecard.rows] == [0, 1, 0]
    assert [scorecard.systems[name].retries for name in "ab"] == [1, 0]


async def test_compare_works_inside_a_running_event_loop() -> None:
    llm = ScriptedLLM(script={"call alpha": ALPHA, "call beta": BETA})
    assert quiet({"llm": llm}, DATA).systems["llm"].exact_match == 1
    again = await acompare({"llm": llm}, DATA, show_progress=False)
    assert again.systems["llm"].exact_match == 1


def test_tags_of_the_caller_stay_on_the_events_of_a_comparison() -> None:
    class Seen(BaseEventHandler):
        tags: list[str] = Field(default_factory=list)

        def handle(self, event: Any, **_: Any) -> None:
            self.tags.append(str(event.tags.get("mine")))

    seen = Seen()
    root_dispatcher.add_event_handler(seen)
    try:
        with instrument_tags({"mine": "yes"}):
            quiet({"llm": ScriptedLLM(script={"call": ALPHA})}, DATA)
    finally:
        root_dispatcher.event_handlers.remove(seen)
    assert set(seen.tags) == {"yes"}


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(DatasetError, match="the data set is empty"):
        quiet({"llm": ScriptedLLM(script={})}, [])
    with pytest.raises(ConfigurationError, match="pass systems"):
        quiet({}, DATA)
    with pytest.raises(ConfigurationError, match="is a str"):
        quiet({"llm": "gpt-4"}, DATA)


def test_a_verdict_from_a_handful_of_documents_warns_of_its_intervals() -> None:
    rows = [example(f"call {n}", card("f"), document_id=f"doc{n % 2}") for n in range(12)]
    llm = ScriptedLLM(script={"call": card("f")})
    assert "are from 2 documents: too few for reliable intervals" in quiet({"llm": llm}, rows).verdict()
    one_each = [row.model_copy(update={"document_id": row.query}) for row in rows]
    assert "reliable intervals" not in quiet({"llm": llm}, one_each).verdict()


def test_gold_that_does_not_fit_is_refused_with_its_example() -> None:
    wrong = example("How?", ALPHA, answer=Message(role="assistant", content="plain text"))
    with pytest.raises(DatasetError, match=rf"example {wrong.id[:12]}"):
        quiet({"llm": ScriptedLLM(script={})}, [wrong], output_cls=Card)


def test_value_that_json_cannot_hold_is_an_invalid_answer() -> None:
    class Measure(BaseModel):
        value: float

    data = [example("How far?", {"value": 1.5}, answer_schema=Measure.model_json_schema())]
    systems = {
        "object": lambda _: Measure(value=float("nan")),
        "text": lambda _: '{"value": NaN}',
        "nested": lambda _: "[" * 100_000,
    }
    found = quiet(systems, data, output_cls=Measure)
    assert [system.schema_valid for system in found.systems.values()] == [0, 0, 0]
    free = [item.model_copy(update={"answer_schema": None}) for item in data]
    assert quiet({"text": systems["text"]}, free).systems["text"].schema_valid == 0


def test_scorecard_survives_its_json(tmp_path: Path) -> None:
    llm = ScriptedLLM(script={"call alpha": ALPHA})
    scorecard = quiet({"llm": llm}, DATA)
    path = scorecard.to_json(tmp_path / "new" / "scorecard.json")
    assert Scorecard.from_json(path) == scorecard
    system = json.loads(path.read_text())["systems"]["llm"]
    assert system["n"] == 2
    assert system["fields"]["function"]["accuracy"] == 0.5
    assert system["fields"]["parameters"]["f1"] == pytest.approx(2 / 4)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"other\.json: not a scorecard"):
        Scorecard.from_json(tmp_path / "other.json")


@pytest.mark.parametrize("output_cls", [None, Card])
def test_hosted_llm_is_asked_twice_in_its_own_mode(output_cls: type[Card] | None) -> None:
    """gpt-4 is sent tools, gpt-4o-mini a JSON schema; the second comparison finds the connections open."""
    openai = pytest.importorskip("llama_index.llms.openai")
    client = httpx.AsyncClient()
    data = [example(f"How do I call alpha? {n}", ALPHA) for n in range(5)]
    with OpenAIServer(answer_chat=lambda _: json.dumps(ALPHA)) as server:
        settings = {"api_key": server.key, "api_base": server.base, "max_retries": 0}
        systems = {
            model: openai.OpenAI(model=model, async_http_client=client, **settings)
            for model in ("gpt-4", "gpt-4o-mini")
        }
        try:
            for _ in range(2):
                scorecard = quiet(systems, data, output_cls=output_cls)
                assert [system.exact_match for system in scorecard.systems.values()] == [1, 1], scorecard.rows
        finally:
            run_in_background(client.aclose())


def test_compare_inside_a_compared_system_is_refused_not_hung() -> None:
    nested = quiet({"outer": lambda _: quiet({"inner": lambda _: ALPHA}, DATA)}, DATA)
    assert "await its asynchronous form (acompare" in str(nested.rows[0].answers["outer"].error)


def test_without_a_class_the_prompt_and_the_bounds_are_those_of_training() -> None:
    schema = {
        "type": "object",
        "properties": {"year": {"type": "integer"}, "author": {"type": "string"}},
        "required": ["year"],
    }
    paper = example("q", {"year": 1, "author": "a"}, answer_schema=schema, schema_name="Paper")
    target = target_of(paper, None)
    assert target.schema is not None
    assert list(target.schema["properties"]) == ["year", "author"]
    assert messages_with_schema(paper.messages, target.schema) == messages_with_schema(paper.messages, schema)
    assert schema_key(target.schema) == schema_key(schema)


class Track(BaseModel):
    """Validation aliases differ from serialization aliases, here and in nested objects."""

    seconds: int | None = Field(None, serialization_alias="length")
    title: str = Field("", validation_alias=AliasChoices("name", "heading"))
    parts: list[Track] = Field([], alias="sections")

    @computed_field
    def minutes(self) -> float:
        return (self.seconds or 0) / 60


def test_a_class_that_reads_and_writes_other_names_is_scored_by_those_it_reads() -> None:
    one = {"seconds": 3, "name": "One", "sections": [{"name": "Part"}]}
    two = {"seconds": 4, "name": "Two"}
    pairs = [("a", Track.model_validate(one)), ("b", two)]
    data = list(FinetuneDataset.from_pairs(pairs, output_cls=Track))
    assert json.loads(data[1].answer_text()) == two
    assert json.loads(data[0].answer_text())["sections"][0]["name"] == "Part"
    found = quiet({"it": lambda _: Track.model_validate(one)}, data, output_cls=Track).systems["it"]
    assert (found.schema_valid, found.exact_match) == (1, 0.5)
    assert set(found.fields) == {"seconds", "name", "sections"}


class Money(BaseModel):
    amount: float = Field(multiple_of=0.01)
    name: str = Field("Ä", pattern=r"^\p{Lu}$")


def test_a_row_that_its_class_takes_is_compared_by_its_schema() -> None:
    data = FinetuneDataset.from_pairs([("q", Money(amount=0.29))])
    found = quiet({"x": lambda _: Money(amount=0.29), "y": lambda _: '{"amount":0.295}'}, data).systems
    assert (found["x"].exact_match, found["y"].schema_valid) == (1, 0)


@pytest.mark.parametrize("schema", [{"type": "object", "required": ["other"]}, {"$ref": "#/$defs/No"}])
def test_a_row_whose_schema_refuses_its_own_answer_stops_no_comparison(schema: dict[str, Any]) -> None:
    odd = example("call odd", {"b": 1}, answer_schema=schema, schema_name="Odd")
    found = quiet({"x": lambda _: ALPHA}, [*DATA, odd])
    assert [(row.row, row.example_id) for row in found.left_out] == [(2, odd.id)]
    assert found.rows[0].answers["x"].exact


def test_answers_whose_root_is_a_text_or_number_are_compared() -> None:
    for kind, value in ((RootModel[str], "hello"), (RootModel[int], 5), (RootModel[list[int]], [1])):
        data = FinetuneDataset.from_pairs([("q", kind(value))])
        systems = {"object": lambda _, k=kind, v=value: k(v), "text": lambda _, v=value: json.dumps(v)}
        for output_cls in (None, kind):
            found = quiet(systems, data, output_cls=output_cls)
            assert [system.exact_match for system in found.systems.values()] == [1, 1]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: datetime.date


def test_a_strict_class_reads_answers_as_json() -> None:
    data = FinetuneDataset.from_pairs([("q", Strict(day=datetime.date(2020, 1, 2)))])
    found = quiet({"x": lambda _: '{"day":"2020-01-02"}'}, data, output_cls=Strict)
    assert found.systems["x"].exact_match == 1
