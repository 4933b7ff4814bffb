"""Results to look at: in notebooks, in pandas, in a spreadsheet; what comes from data stays text in all of them."""

from __future__ import annotations

import csv
import io
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index_instrumentation import get_dispatcher

from llama_index_finetune_structured import ConfigurationError, FinetuneDataset, Message, Scorecard
from llama_index_finetune_structured.evaluation.report import answer_rows
from llama_index_finetune_structured.notebook_html import plain_table
from llama_index_finetune_structured.trust.answer_trust import Evidence, FieldTrust, Trust
from tests.cli.conftest import Call, call

from .scripted_agents import Turn, agent, gold_of
from .scripted_agents import quiet as quiet_agents
from .systems import ScriptedLLM, card, example, quiet

__all__ = ["call"]
pytestmark = [  # LlamaIndex's own agents
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]
HOSTILE = "<script>alert(1)</script>\x1b[2J'\"&<img src=x onerror=y>"
FORMULA = '=HYPERLINK("http://x";"y")'


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _is_safe(html: str) -> bool:
    """Whether the HTML is well formed and has neither scripts nor pictures nor control characters."""
    parser = _Tags()
    parser.feed(html)
    return not parser.open and not {"script", "img", "style"} & {*parser.tags} and "\x1b" not in html


@pytest.fixture(scope="module")
def scorecard() -> Scorecard:
    """Four rows: right, wrong in one field, missing, and an answer that does not fit; a text is hostile."""
    gold = [card("alpha", returns="int"), card("beta"), card("gamma", returns="str"), card("delta")]
    script = {
        "call 0": gold[0],
        "call 1": card(FORMULA),
        "call 2": card("gamma"),
        "call 3": {"function": 7},
    }
    data = [
        example(f"How do I call {at}? {HOSTILE}", value, document_id=f"d{at}")
        for at, value in enumerate(gold)
    ]
    return quiet({"base": ScriptedLLM(script=script), "tuned": lambda row: row.answer_object()}, data)


# Notebooks


def test_a_data_set_shows_its_first_rows_and_folds_the_others() -> None:
    data = FinetuneDataset([example(f"{HOSTILE} {at}", card(HOSTILE)) for at in range(100)])
    html = data._repr_html_()
    assert _is_safe(html)
    assert html.count("<tr>") == 32  # 30 rows, and two headings
    assert "<summary>20 more</summary>" in html
    assert "and 70 more; to_pandas() has all" in html
    assert len(html) < 50_000
    assert _is_safe(FinetuneDataset([])._repr_html_())


def test_an_example_shows_its_messages_and_answer() -> None:
    tools = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": HOSTILE}}]
    messages = (Message(role="user", content=HOSTILE * 50), Message(role="assistant", tool_calls=tools))
    shown = example("x", card("f"), messages=messages, document_id=HOSTILE, schema_name=HOSTILE)._repr_html_()
    assert _is_safe(shown)
    assert "…" in shown
    assert "<details>" in shown


def test_a_scorecard_shows_verdict_figures_and_what_failed(scorecard: Scorecard) -> None:
    html = scorecard._repr_html_()
    assert _is_safe(html)
    assert "schema valid" in html
    assert "tuned" in html
    assert "<summary>field by field</summary>" in html


def test_a_scorecard_of_agents_shows_verdict_and_figures() -> None:
    found = quiet_agents({"base": agent({"q": ["a"]})}, gold_of({"q": ["b"]}))
    assert _is_safe(found._repr_html_())
    assert "steps a run" in found._repr_html_()


def test_trust_shows_values_with_probability_and_evidence() -> None:
    evidence = Evidence(text=HOSTILE, message=0, start=0, end=1)
    fields = (
        FieldTrust(path=("a", 0), value=HOSTILE, probability=0.5, evidence=evidence),
        FieldTrust(path=(), value=1),
    )
    html = Trust(probability=0.25, fields=fields)._repr_html_()
    assert _is_safe(html)
    assert "a.0" in html
    assert "50%" in html
    assert "Whole answer: 25% (not calibrated)" in html


@settings(max_examples=30)
@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=6))
def test_tables_of_any_text_are_well_formed(rows: list[list[str]]) -> None:
    assert _is_safe(plain_table(["<b>", "b"], rows, most=2))


# pandas


def test_a_data_set_becomes_a_data_frame() -> None:
    pytest.importorskip("pandas")
    frame = FinetuneDataset([example("q", card("f"), document_id="d")]).to_pandas()
    assert list(frame["question"]) == ["q"]
    assert frame["document_id"][0] == "d"
    assert frame["messages"][0][0]["role"] == "system"
    assert list(FinetuneDataset([]).to_pandas().columns) == list(frame.columns)


def test_a_scorecard_becomes_a_row_for_each_answer(scorecard: Scorecard) -> None:
    pytest.importorskip("pandas")
    frame = scorecard.to_pandas()
    assert len(frame) == 8
    assert list(frame[frame.system == "base"]["right.function"]) == [True, False, True, False]
    assert frame.groupby("system")["exact"].mean().to_dict() == {"base": 0.25, "tuned": 1.0}
    assert frame["gold"][0] == card("alpha", returns="int")


def test_without_pandas_the_error_says_what_to_install(
    scorecard: Scorecard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match="pip install pandas"):
        scorecard.to_pandas()


# Wrong answers as CSV


def _errors(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_wrong_fields_are_lines_of_a_csv_file(scorecard: Scorecard, tmp_path: Path) -> None:
    path = scorecard.save_errors(tmp_path / "errors.csv")
    found = _errors(path.read_text(encoding="utf-8"))
    assert [(e["document_id"], e["system"], e["field"], e["kind"], e["gold"]) for e in found] == [
        ("d1", "base", "function", "wrong", "beta"),
        ("d2", "base", "returns", "missing", "str"),
        ("d3", "base", "", "invalid", found[2]["gold"]),
    ]
    assert found[0]["answer"] == f"'{FORMULA}"
    assert "function" in found[2]["error"]


def test_values_inside_objects_are_found_by_their_path() -> None:
    gold, wrong = {"a": {"b.c": 1, "d": ["x"]}}, {"a": {"b.c": -2, "d": ["y"]}}
    data = [example("q", gold, answer_schema={"type": "object"})]
    schema = {
        "type": "object",
        "properties": {
            "a": {
                "type": "object",
                "properties": {
                    "b.c": {"type": "integer"},
                    "d": {"type": "array", "items": {"type": "string"}},
                },
            }
        },
    }
    data = [example("q", gold, answer_schema=schema)]
    text = answer_rows.errors_csv(quiet({"it": lambda _: wrong}, data))
    assert [(e["field"], e["gold"], e["answer"]) for e in _errors(text)] == [
        ("a.b.c", "1", "-2"),
        ("a.d", '["x"]', '["y"]'),
    ]


@given(st.text())
def test_no_cell_is_a_formula_and_every_text_is_read_back(text: str) -> None:
    cell = answer_rows._cell(text)
    written = text.encode("utf-8", "replace").decode()
    assert cell in (written, f"'{written}")
    assert not cell.startswith(("@", "=", "\t", "\r", "\n"))
    out = io.StringIO()
    csv.writer(out).writerow([cell, "end"])
    if "\0" not in cell:
        assert next(csv.reader(io.StringIO(out.getvalue(), newline=""))) == [cell, "end"]


@pytest.mark.parametrize("number", ["-5", "+1.5", "-1e9"])
def test_negative_numbers_stay_numbers(number: str) -> None:
    assert answer_rows._cell(number) == number
    assert answer_rows._cell(f"{number}+cmd|' /C calc'!A0").startswith("'")


# The command


def test_report_writes_the_wrong_fields_as_csv(scorecard: Scorecard, tmp_path: Path, call: Call) -> None:
    scorecard.to_json(tmp_path / "scorecard.json")
    done = call("report", str(tmp_path), "--errors", str(tmp_path / "e.csv"))
    assert done["errors"] == str(tmp_path / "e.csv")
    assert len(_errors((tmp_path / "e.csv").read_text())) == 3


def test_report_shows_a_scorecard_of_agents(tmp_path: Path, call: Call) -> None:
    runs = gold_of({"q": ["right"]})
    found = quiet_agents({"base": agent({"q": ["wrong"]})}, runs)
    found.to_json(tmp_path / "scorecard.json")
    done = call("report", str(tmp_path), "--title", "My agents")
    assert done["runs"] == 1
    assert done["systems"]["base"]["run_right"] == 0
    assert "My agents" in (tmp_path / "report.html").read_text()
    refused = call("report", str(tmp_path), "--input-price", "1", code=1)
    assert "is a scorecard of agents" in refused["error"]
    (tmp_path / "scorecard.json").write_text("{}")
    assert "not a scorecard as Scorecard.to_json" in call("report", str(tmp_path), code=1)["error"]


# Reasoning


def _emit(reasoning: int | None) -> None:
    """The event of an LLM's answer, as the local LLM emits it."""
    details = {} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    raw = {"usage": {"completion_tokens": 9, **details}}
    message = ChatMessage(role=MessageRole.ASSISTANT, content="{}")
    response = ChatResponse(message=message, raw=raw)
    get_dispatcher(__name__).event(LLMChatEndEvent(messages=[], response=response))


def test_mean_reasoning_tokens_of_a_call_are_in_the_scorecard(tmp_path: Path) -> None:
    # two answers of the model in one call; an answer without reasoning
    thoughts: dict[str, list[int | None]] = {"a": [4, 2], "b": [None]}

    def system(row: Any) -> Any:
        for tokens in thoughts[row.query]:
            _emit(tokens)
        return row.answer_object()

    data = [example(name, card(name)) for name in thoughts]
    found = quiet({"thinks": system, "quiet": lambda row: row.answer_object()}, data)
    assert [row.answers["thinks"].reasoning_tokens for row in found.rows] == [6, 0]
    assert found.systems["thinks"].reasoning_tokens == 3
    assert found.systems["quiet"].reasoning_tokens is None
    assert "reasoning tokens" in found.table().headings
    assert "reasoning tokens a call" in found.to_html(tmp_path / "r.html").read_text()
    assert Scorecard.from_json(found.to_json(tmp_path / "s.json")) == found


def test_without_reasoning_tables_have_no_column_of_it(scorecard: Scorecard) -> None:
    assert "reasoning tokens" not in scorecard.table().headings


def test_mean_reasoning_tokens_of_an_agents_answer_are_in_its_scorecard(tmp_path: Path) -> None:
    usage: Any = {
        "prompt_tokens": 9,
        "completion_tokens": 9,
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    turns: list[Turn] = [[("add", {"a": 1, "b": 2})], "3"]
    found = quiet_agents({"thinks": agent({"q": turns}, usage=usage)}, gold_of({"q": turns}))
    assert found.rows[0].runs["thinks"].run.reasoning_tokens == 10
    assert found.systems["thinks"].reasoning_tokens == 5
    assert "reasoning a call" in found.table().headings
    assert "tokens of reasoning an answer" in found.to_html(tmp_path / "r.html").read_text()
