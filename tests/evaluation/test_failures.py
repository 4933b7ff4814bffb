"""Why answers failed is shown wherever their figures are: in the table's text, the page, the JSON and exceptions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from llama_index.core import MockEmbedding, PromptTemplate, SummaryIndex, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel, field_validator, model_serializer

from llama_index_finetune_structured import (
    Example,
    FinetuneDataset,
    LoraLLM,
    Prices,
    Scorecard,
    compare_texts,
    hosted_llm,
    learning_curve,
    parity,
    served_llm,
)
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError, ParityError
from llama_index_finetune_structured.evaluation.score.failures import group_failures
from llama_index_finetune_structured.example import Usage
from tests import exporting
from tests.fakes.openai_server import OpenAIServer

from .systems import ALPHA, DATA, Card, ScriptedLLM, example, quiet

KEY = "sk-live-0123456789abcdef"
WORD_KEY = "plainsecret"  # too short for the pattern of bearer tokens
NOWHERE = "http://127.0.0.1:9/v1"  # the discard port: refused at once
QUIET: dict[str, Any] = {"show_progress": False}


def failing(error: Exception, only: str = "") -> Callable[[Example], Any]:
    """A system that raises on the questions that contain ``only``."""

    def system(row: Example) -> Any:
        if only in str(row.query):
            raise error
        return row.answer_object()

    return system


def shown(card: Scorecard, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each way of reading the scorecard shows."""
    capsys.readouterr()
    card.print()
    return {
        "print": " ".join(capsys.readouterr().out.split()),
        "page": card.to_html(folder / "r.html").read_text(),
        "json": card.to_json(folder / "r.json").read_text(),
        "str": str(card),
    }


def test_a_run_without_a_single_answer_says_why_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = hosted_llm("student", api_base=NOWHERE, api_key=KEY, transport="json_schema", max_retries=0)
    card = quiet({"base": failing(ConnectionError("no route")), "tuned": refused}, DATA)
    assert [card.systems[name].all_calls_failed for name in card.systems] == [True, True]
    assert card.verdict() == (
        "There is no result: tuned gave no answer. All 2 calls failed: APIConnectionError: Connection error."
    )
    for name, text in shown(card, tmp_path, capsys).items():
        assert "Connection error" in text, name
        assert "no route" in text or name == "str", name


def test_a_baseline_that_did_not_answer_is_not_beaten() -> None:
    verdict = quiet(
        {"base": failing(OSError("model.bin is damaged")), "tuned": lambda _: ALPHA}, DATA
    ).verdict()
    assert "beats" not in verdict
    assert "base gave no answer to compare with. All 2 calls failed: OSError: model.bin is damaged" in verdict


def test_the_page_compares_with_no_system_that_gave_no_answer_and_computes_no_cost_of_it(
    tmp_path: Path,
) -> None:
    usage = Usage(prompt_tokens=1000, completion_tokens=100)
    data = [row.model_copy(update={"usage": usage}) for row in DATA]
    prices = Prices(input_per_million=1.0, output_per_million=1.0)
    down = failing(OSError("model.bin is damaged"))
    page = quiet({"base": down, "tuned": lambda _: ALPHA, "other": lambda _: ALPHA}, data).to_html(
        tmp_path / "base.html", prices=prices
    )
    assert "tuned − base" not in page.read_text()
    assert "paid for itself" in page.read_text()
    page = quiet({"base": lambda _: ALPHA, "tuned": down}, data).to_html(tmp_path / "t.html", prices=prices)
    assert "tuned − base" not in page.read_text()
    assert "What it costs" not in page.read_text()
    page = quiet({"base": lambda _: ALPHA, "tuned": lambda _: ALPHA}, data).to_html(tmp_path / "u.html")
    assert "tuned − base" in page.read_text()


def test_some_failed_calls_are_grouped_by_cause_most_frequent_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [example(f"call {n}", ALPHA) for n in range(6)]
    errors = [TimeoutError("busy"), *(ConnectionError(f"reset by peer, request id-{n}") for n in range(3))]

    def system(row: Example) -> Any:
        at = int(str(row.query)[5:])
        if at < len(errors):
            raise errors[at]
        return "prose" if at == 4 else ALPHA

    card = quiet({"it": system}, data)
    assert [(f.kind, f.count, f.call_failed) for f in card.systems["it"].failures] == [
        ("ConnectionError", 3, True),
        ("TimeoutError", 1, True),
        ("invalid", 1, False),
    ]
    assert card.problems()[0] == (
        "it: 4 of 6 calls failed: ConnectionError: reset by peer, request id-0 (3); TimeoutError: busy (1)"
    )
    assert card.problems()[1] == "it: 1 of 6 answers are not valid: not JSON: no complete {...} in the answer"
    texts = shown(card, tmp_path, capsys)
    assert all(problem in texts["print"] and problem in texts["page"] for problem in card.problems())
    saved = json.loads((tmp_path / "r.json").read_text())["systems"]["it"]["failures"]
    assert saved[0] == {
        "kind": "ConnectionError",
        "message": "reset by peer, request id-0",
        "count": 3,
        "call_failed": True,
    }


def test_answers_that_one_validator_refuses_are_one_cause() -> None:
    messages = [
        "items add up to 14, not 84, found {'currency': 'EUR', 'discount': 1, ...} (asked twice)",
        "items add up to -1.84, not 263.36, found {'items': [{'amount': '0.3', ...}]} (asked twice)",
        "items add up to 1,000.5, not +3 (asked twice)",
    ]
    found = group_failures([(False, "StructuredAnswerError", message) for message in messages])
    assert [(f.message, f.count) for f in found] == [(messages[0], 2), (messages[2], 1)]


def test_messages_that_differ_in_numbers_and_quoted_values_are_one_cause() -> None:
    messages = ["12 tokens of 'a'", "7 tokens of 'b'", "id 3f2a-99 is gone", "id 77ab-01 is gone", "other"]
    found = group_failures([(True, "E", message) for message in messages])
    assert [(f.message, f.count) for f in found] == [(messages[0], 2), (messages[2], 2), ("other", 1)]


@pytest.mark.parametrize(
    "message",
    [
        f"401 from https://api.example.com/v1?api_key={KEY}&x=1",
        "GET https://h/v1?key=hunter2hunter2 failed",
        "GET https://user:hunter2hunter2@h/v1 failed",
        "GET https://hunter2hunter2@h/v1 failed",
        "Authorization: Bearer hunter2hunter2hunter2",
        "the environment's hunter2hunter2 is refused",
    ],
)
def test_no_key_of_an_error_is_shown_or_stored(
    message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2hunter2")
    card = quiet({"it": failing(ConnectionError(message))}, DATA, cache_dir=tmp_path / "answers")
    texts = [*shown(card, tmp_path, capsys).values(), *(p.read_text() for p in tmp_path.glob("answers/*"))]
    assert not any(KEY in text or "hunter2" in text for text in texts)


class HostedEmbedding(BaseEmbedding):
    """Keeps its key as LlamaIndex's embedding models of providers do."""

    api_base: str
    api_key: str
    max_retries: int

    def _get_text_embedding(self, text: str) -> list[float]:
        client = openai.OpenAI(base_url=self.api_base, api_key=self.api_key, max_retries=self.max_retries)
        return client.embeddings.create(input=text, model="e").data[0].embedding

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def _keyed(server: OpenAIServer) -> dict[str, Any]:
    """Systems that hold a key which looks like a word: it can be found only where the system keeps it."""
    options: dict[str, Any] = {"api_base": server.base, "api_key": WORD_KEY, "max_retries": 0}
    llm = OpenAI(model="gpt-4o-mini", **options)
    node = TextNode(text="alpha(n)", embedding=[1.0])
    by_llm = SummaryIndex([node])
    by_vector = VectorStoreIndex([node], embed_model=MockEmbedding(1))
    silent = ScriptedLLM(script={"": ALPHA})
    return {
        "hosted_llm": hosted_llm("m", transport="text", **options),
        "LLM": llm,
        "structured LLM": llm.as_structured_llm(Card),
        "program": LLMTextCompletionProgram.from_defaults(
            output_cls=Card, prompt=PromptTemplate("Card for {topic}"), llm=llm
        ),
        "query engine": by_llm.as_query_engine(llm=llm),
        "query engine of a class": by_llm.as_query_engine(llm=llm, output_cls=Card),
        "retriever's embedding model": by_vector.as_query_engine(
            llm=silent, embed_model=HostedEmbedding(**options)
        ),
    }


def test_the_key_of_a_system_is_redacted_where_the_server_repeats_it() -> None:
    with OpenAIServer(key="another key entirely") as server:
        card = quiet(_keyed(server), DATA)
    assert card.unanswered == list(card.systems)
    for problem in card.problems():
        assert "Incorrect API key provided: Bearer [KEY]" in problem
    assert WORD_KEY not in card.model_dump_json()


def test_the_key_of_a_judge_is_redacted_where_the_server_repeats_it() -> None:
    with OpenAIServer(key="another key entirely") as server:
        options: dict[str, Any] = {"api_base": server.base, "api_key": WORD_KEY, "max_retries": 0}
        for judges in (
            {"judge": hosted_llm("m", transport="text", **options)},
            {"embed_model": HostedEmbedding(**options)},
        ):
            found = compare_texts({"it": lambda _: "text"}, DATA, **judges, **QUIET)
            assert "Incorrect API key provided: Bearer [KEY]" in found.problems()[0]
            assert WORD_KEY not in found.model_dump_json()


LOAD_ERRORS = [
    ValueError("Failed to load model from file: x.gguf"),
    TypeError("no such option"),
    KeyError("choices"),
]


@pytest.mark.parametrize("error", LOAD_ERRORS)
def test_an_error_before_any_answer_is_a_failed_call_whatever_its_class(error: Exception) -> None:
    llm = ScriptedLLM(script={"": error})
    for system in (llm, llm.as_structured_llm(Card), failing(error)):
        card = quiet({"it": system}, DATA)
        assert card.unanswered == ["it"], card.problems()
        assert "all 2 calls failed" in card.problems()[0]


def test_an_answer_that_a_parser_refuses_is_an_invalid_answer_not_a_failed_call() -> None:
    llm = ScriptedLLM(script={"": "prose"})
    for system in (llm, llm.as_structured_llm(Card)):
        card = quiet({"it": system}, DATA)
        assert card.unanswered == []
        assert "all 2 answers are not valid" in card.problems()[0]


def test_parity_names_the_cause_where_a_form_gave_no_answer(tmp_path: Path) -> None:
    adapter = exporting.train(exporting.save_base("llama", tmp_path / "base"), tmp_path / "run").adapter
    tuned = LoraLLM.from_adapter(adapter)
    down = served_llm(adapter, model="tuned", api_base=NOWHERE, max_retries=0)
    found = parity(tuned, exporting.colours(), {"served": down}, **QUIET)
    assert not found.passed
    with pytest.raises(
        ParityError, match=r"served: 0% of its answers.*calls failed: APIConnectionError: Conn"
    ):
        found.require()
    assert found.model_dump()["forms"]["served"]["failures"][0]["kind"] == "APIConnectionError"
    with pytest.raises(ConfigurationError, match=r"none of the adapter's own answers.*calls failed: APIConn"):
        parity(down, exporting.colours(), {"tuned": tuned}, **QUIET)
    gone = LoraLLM(base_model=str(exporting.save_base("llama", tmp_path / "gone")))
    (tmp_path / "gone" / "model.safetensors").write_bytes(b"cut")
    unloaded = parity(tuned, exporting.colours(), {"gone": gone}, **QUIET)
    assert re.search(r"gone: 0% of its answers .*all 4 calls failed: \S", unloaded.verdict())


def test_a_server_of_ones_own_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    adapter = exporting.train(exporting.save_base("llama", tmp_path / "base"), tmp_path / "run").adapter
    with OpenAIServer(key="none", answer_chat=lambda _: '{"name":"red","warm":true}') as server:
        for llm in (
            served_llm(adapter, model="tuned", api_base=server.base, max_retries=0),
            hosted_llm("tuned", api_base=server.base, transport="json_schema", max_retries=0),
        ):
            card = quiet({"served": llm}, exporting.colours())
            assert card.systems["served"].schema_valid == 1, card.problems()
    for base in ("https://api.openai.com/v1", "https://eu.api.openai.com/v1"):
        keyless = quiet({"o": hosted_llm("gpt-4.1", api_base=base, max_retries=0)}, DATA)
        assert "api_key" in keyless.problems()[0]


def test_a_learning_curve_of_failed_calls_has_no_verdict_but_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken:
        def __init__(self, rows: FinetuneDataset) -> None:
            assert len(rows)

        def finetune(self) -> None:
            """Nothing to train: the model behind it is what fails."""

        def get_finetuned_model(self) -> Any:
            return failing(ConnectionError("refused"))

    data = [example(f"call {n}", ALPHA) for n in range(4)]
    curve = learning_curve(Broken, data, DATA, sizes=[2, 4], **QUIET)
    assert "There is no result" in curve.verdict()
    curve.print()
    assert "4 rows: all 2 calls failed: ConnectionError: refused" in " ".join(capsys.readouterr().out.split())


def test_texts_name_failed_calls_and_a_failed_judge(capsys: pytest.CaptureFixture[str]) -> None:
    data = [example(question, ALPHA) for question in ("Where?", "When?")]
    judge = ScriptedLLM(script={"Generated Answer": OSError("judge is down")})
    found = compare_texts(
        {"down": failing(OSError("gone")), "up": lambda _: "text"}, data, judge=judge, **QUIET
    )
    found.print()
    printed = " ".join(capsys.readouterr().out.split())
    assert "down: all 2 calls failed: OSError: gone" in printed
    assert (
        "up: all 2 calls of the judge failed: correctness: OSError: judge is down. These answers" in printed
    )
    assert "check the model, address and key of judge or embed_model and compare again" in printed


@pytest.mark.parametrize(
    ("reply", "shown"), [("I would rather not.", "I would rather not"), ("", r"\(an empty reply\)")]
)
def test_a_judge_without_a_score_is_named_with_what_to_do(reply: str, shown: str) -> None:
    judge = ScriptedLLM(script={"Generated Answer": reply})
    systems = {"it": lambda row: "" if "beta" in row.query else "text"}
    found = compare_texts(systems, DATA, judge=judge, **QUIET).problems()
    assert len(found) == 2  # the missing answer was not judged
    assert re.fullmatch(
        rf"it: 1 of 1 replies of the judge have no score: correctness: {shown}\. These .* pass an LLM as judge .*",
        found[1],
    )


class Money(BaseModel):
    amount: Decimal
    currency: str = "EUR"

    @field_validator("currency")
    @classmethod
    def _upper(cls, value: str) -> str:
        return value.upper()

    @field_validator("amount")
    @classmethod
    def _positive(cls, value: Decimal) -> Decimal:
        if value < 0:
            raise ValueError("no debts")
        return value


def money(question: str, gold: dict[str, Any]) -> Example:
    return example(question, gold, answer_schema=Money.model_json_schema(), schema_name="Money")


def test_a_class_decides_what_is_valid_and_both_sides_are_compared_as_it_writes_them() -> None:
    data = [money("a", {"amount": "1.50", "currency": "eur"}), money("b", {"amount": "2", "currency": "EUR"})]
    answers = {"a": {"amount": "1.50", "currency": "EUR"}, "b": {"amount": "-2", "currency": "EUR"}}
    systems = {"it": lambda row: answers[row.query]}
    by_class = quiet(systems, data, output_cls=Money)
    assert (by_class.systems["it"].schema_valid, by_class.systems["it"].exact_match) == (0.5, 0.5)
    assert "no debts" in by_class.problems()[0]
    by_schema = quiet(systems, data)
    assert by_schema.systems["it"].schema_valid == 1


def test_a_gold_answer_that_is_not_valid_leaves_out_its_row_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [money("a", {"amount": "1"}), money("b", {"amount": "-1"}), money("c", {"amount": "3"})]
    card = quiet({"it": lambda row: row.answer_object()}, data, output_cls=Money)
    assert (card.systems["it"].n, card.systems["it"].exact_match) == (2, 1)
    assert [(row.row, "no debts" in row.reason) for row in card.left_out] == [(1, True)]
    for name, text in shown(card, tmp_path, capsys).items():
        assert "no debts" in text or name == "str", name
    assert Scorecard.from_json(tmp_path / "r.json").left_out == card.left_out
    with pytest.raises(DatasetError, match=r"all 1 examples are not valid.*no debts"):
        quiet({"it": lambda _: None}, data[1:2], output_cls=Money)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/No"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://example.invalid/x.json"}}},
        {"type": 7},
    ],
)
def test_a_row_with_a_broken_schema_stops_no_other_row(schema: dict[str, Any]) -> None:
    data = [example("a", {"a": "x"}, answer_schema=schema), *DATA]
    card = quiet({"it": lambda row: row.answer_object()}, data)
    assert (len(card.rows), card.systems["it"].exact_match) == (2, 1)
    assert card.left_out[0].row == 0


@dataclass
class Dated:
    """Holds what JSON has no form of its own for."""

    function: str = "alpha"


class Unwritable(BaseModel):
    function: str = "alpha"

    @model_serializer
    def _broken(self) -> dict[str, Any]:
        raise RuntimeError("cannot be written")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


NODES = [NodeWithScore(node=TextNode(text="alpha(n)"))]
TEXT = json.dumps(ALPHA)
ANSWERS: dict[str, tuple[Any, bool | None]] = {
    "Pydantic object": (Card.model_validate(ALPHA), True),
    "dict": (ALPHA, True),
    "JSON text": (TEXT, True),
    "text around JSON": (f"Here: {TEXT}.", True),
    "Response": (Response(TEXT, source_nodes=NODES), True),
    "PydanticResponse": (PydanticResponse(Card.model_validate(ALPHA), source_nodes=NODES), True),
    "AgentChatResponse": (AgentChatResponse(TEXT), True),
    "ChatResponse": (ChatResponse(message=ChatMessage(role="assistant", content=TEXT)), True),
    "ChatResponse with the provider's object": (
        ChatResponse(message=ChatMessage(role="assistant", content=TEXT), raw=Unwritable()), True,
    ),
    "CompletionResponse": (CompletionResponse(text=TEXT), True),
    "ChatMessage": (ChatMessage(role="assistant", content=TEXT), True),
    "dataclass": (Dated(), True),
    "dict with an object": ({"function": "alpha", "parameters": [Card.model_fields]}, False),
    "None": (None, False),
    "empty text": ("", False),
    "number": (7, False),
    "list": ([ALPHA], False),
    "tuple": ((1, 2), False),
    "set": ({1}, False),
    "bytes": (b"{}", False),
    "date in a dict": ({"function": date(2020, 1, 1)}, True),
    "NaN": ({"function": float("nan")}, False),
    "object": (object(), False),
    "class": (Card, False),
    "function": (print, False),
    "generator": ((n for n in range(3)), False),
    "unwritable": (Unwritable(), False),
    "unprintable": (Unprintable(), False),
    "half a surrogate pair": ({"function": "\ud800"}, None),
    "keys that are no text": ({1: 2}, False),
    "itself": (None, False),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("output_cls", [Card, None])
def test_whatever_a_system_returns_is_a_counted_outcome(
    name: str, output_cls: type[Card] | None, tmp_path: Path
) -> None:
    answer, valid = ANSWERS[name]
    if name == "itself":
        answer = {}
        answer["function"] = answer
    card = quiet({"it": lambda _: answer}, DATA[:1], output_cls=output_cls, cache_dir=tmp_path / "a")
    score = card.systems["it"]
    assert valid is None or score.schema_valid == valid, card.problems()
    assert sum(failure.count for failure in score.failures) == score.n - round(score.schema_valid * score.n)
    assert valid is not False or re.match(r"it: 1 of 1 answers are not valid: \S", card.problems()[0])
    card.to_html(tmp_path / "r.html")


def test_a_validator_that_raises_anything_costs_its_own_answer_alone() -> None:
    class Fragile(BaseModel):
        function: str

        @field_validator("function")
        @classmethod
        def _check(cls, value: str) -> str:
            if value == "beta":
                raise AttributeError("'NoneType' object has no attribute 'strip'")
            return value

    data = [example("a", {"function": "alpha"}), example("b", {"function": "alpha"})]
    card = quiet(
        {"it": lambda row: {"function": {"a": "alpha", "b": "beta"}[row.query]}}, data, output_cls=Fragile
    )
    assert card.systems["it"].schema_valid == 0.5
    assert "AttributeError" in card.problems()[0]
    broken = [data[0], example("c", {"function": "beta"})]
    assert len(quiet({"it": lambda _: {"function": "alpha"}}, broken, output_cls=Fragile).left_out) == 1
