"""Loading, labelling and saving a FinetuneDataset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from pydantic import BaseModel, Field, RootModel

from llama_index_finetune_structured import FinetuneDataset, check
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.example import Example, Message

TOOL = {"type": "function", "function": {"name": "Song", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "Song", "arguments": '{"title":"One"}'}}
ANSWER = {"role": "assistant", "content": None, "tool_calls": [CALL]}


class Song(BaseModel):
    """A song."""

    title: str
    artist: str | None = None
    seconds: int = Field(0, alias="lengthSeconds")


def test_pairs_take_a_model_a_dict_and_a_text_and_keep_the_order_of_fields() -> None:
    answers = [
        Song(title="One", lengthSeconds=3),
        {"lengthSeconds": 3, "title": "One"},
        '{ "artist": "U2", "title": "One" }',
    ]
    data = FinetuneDataset.from_pairs([("q", a) for a in answers], output_cls=Song)
    assert [e.answer_text() for e in data] == [
        '{"title":"One","artist":null,"lengthSeconds":3}',
        '{"title":"One","lengthSeconds":3}',
        '{"title":"One","artist":"U2"}',
    ]
    assert {e.transport for e in data} == {"json_schema"}
    assert data[0].answer_schema == Song.model_json_schema()
    assert (data[0].schema_name, data[0].query) == ("Song", "q")


def test_pairs_take_a_json_schema_and_keep_the_order_of_the_answer() -> None:
    schema = {"title": "T", "type": "object", "properties": {"b": {}, "a": {"type": "integer"}}}
    data = FinetuneDataset.from_pairs([("q", {"b": "ü", "a": 1})], schema=schema)
    assert data[0].answer_text() == '{"b":"ü","a":1}'
    assert (data[0].answer_schema, data[0].schema_name) == (schema, "T")


def test_pairs_without_a_schema_are_text_unless_a_model_brings_its_own() -> None:
    data = FinetuneDataset.from_pairs([("q", "plain"), ("q", {"b": 1}), ("q", Song(title="x"))])
    assert [e.transport for e in data] == ["text", "text", "json_schema"]
    assert [e.answer_text() for e in data][:2] == ["plain", '{"b":1}']
    assert data[2].answer_schema == Song.model_json_schema()


def test_pairs_take_messages_of_every_kind_and_a_system_prompt() -> None:
    turns: list[Any] = [
        {"role": "user", "content": "first"},
        ChatMessage(role="assistant", content="second"),
        Message(role="user", content="third"),
    ]
    example = FinetuneDataset.from_pairs([(turns, "a")], system_prompt="be brief")[0]
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "second"),
        ("user", "third"),
    ]
    assert example.query == "third"


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (("q", {"artist": "U2"}), r"pairs\[1\]: title: Field required"),
        (("q", "no json"), r"pairs\[1\]: .*JSON"),
        (([], {"title": "x"}), r"pairs\[1\]: the input is an empty list"),
        (([{"role": "user", "colour": 1}], {"title": "x"}), r"pairs\[1\]: colour"),
        (([{"role": "system", "content": "s"}], {"title": "x"}), r"pairs\[1\]: .*system message of its own"),
        (("q",), r"pairs\[1\]: expected \(input, answer\), found tuple"),
        (("\ud800", {"title": "x"}), r"pairs\[1\]: a lone surrogate"),
        ((None, {"title": "x"}), r"pairs\[1\]: .*not iterable"),
    ],
)
def test_a_pair_that_does_not_fit_is_named(pair: tuple[object, ...], reason: str) -> None:
    good = ("q", {"title": "x"})
    with pytest.raises(DatasetError, match=reason):
        FinetuneDataset.from_pairs([good, pair], output_cls=Song, system_prompt="s")  # type: ignore[list-item]


def test_an_answer_outside_the_json_schema_is_named_with_its_place() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    with pytest.raises(DatasetError, match=r"pairs\[0\]: \$\.a\[1\]: 'x' is not of type 'integer'"):
        FinetuneDataset.from_pairs([("q", {"a": [1, "x"]})], schema=schema)


def test_contradicting_or_broken_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        FinetuneDataset.from_pairs([("q", "a")], output_cls=Song, schema={})
    with pytest.raises(ConfigurationError, match="schema: Song is a class; pass it as output_cls"):
        FinetuneDataset.from_pairs([("q", "a")], schema=Song)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="not a valid JSON schema"):
        FinetuneDataset.from_pairs([("q", "a")], schema={"type": "no such type"})
    with pytest.raises(DatasetError, match="no pairs"):
        FinetuneDataset.from_pairs([])
    with pytest.raises(DatasetError, match="2 for 1 pairs"):
        FinetuneDataset.from_pairs([("q", "a")], document_ids=["x", "y"])
    with pytest.raises(DatasetError, match=r"document_ids\[0\]: 7, expected text"):
        FinetuneDataset.from_pairs([("q", "a")], document_ids=[7])  # type: ignore[list-item]


def test_an_object_that_its_own_class_would_not_read_back_is_refused() -> None:
    broken = Song.model_construct(title=cast("str", None), seconds=1)
    with pytest.raises(DatasetError, match=r"pairs\[0\]: title"):
        FinetuneDataset.from_pairs([("q", broken)], output_cls=Song)


def test_saved_examples_load_as_the_same_examples(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs(
        [("Grüße\u2028", Song(title="ß")), ("q", Song(title="x"))], document_ids=["d", "e"], system_prompt="s"
    )
    path = data.save(tmp_path / "new" / "data.jsonl")
    again = FinetuneDataset.load(path)
    assert list(again) == list(data)
    assert [e.id for e in again] == [e.id for e in data]


def test_openai_lines_and_canonical_lines_load_from_one_file(tmp_path: Path) -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "q"},
            ANSWER,
        ],
        "tools": [TOOL],
        "parallel_tool_calls": False,
    }
    legacy = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
        ],
        "functions": [TOOL["function"]],
    }
    own = FinetuneDataset.from_pairs([("q", "a")])[0].to_json()
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join([json.dumps(chat), "", own, json.dumps(legacy)]).encode())
    data = FinetuneDataset.load(path)
    assert [e.transport for e in data] == ["tools", "text", "tools"]
    assert data[0].answer_object() == data[2].answer_object() == {"title": "One"}
    assert data[2].tools == [TOOL]
    assert data[0].answer_schema == {"type": "object"}
    assert data[0].parallel_tool_calls is False


def test_openai_training_file_holds_messages_and_tools_only(tmp_path: Path) -> None:
    example = Example(
        messages=(Message(role="user", content="q"),),
        answer=Message(role="assistant", tool_calls=[CALL]),
        transport="tools",
        tools=[TOOL],
        query="q",
        document_id="d",
    )
    path = FinetuneDataset([example]).save(tmp_path / "train.jsonl", format="openai")
    assert json.loads(path.read_text()) == {
        "messages": [
            {"role": "user", "content": "q"},
            ANSWER,
        ],
        "tools": [TOOL],
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [', "not valid JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"query": "q", "response": "r"}', "expected 'messages'.*found query, response"),
        (b'{"messages": [{"role": "user", "content": "q"}]}', "at least one message and the answer"),
        (b'{"messages": [{"role": "user"}, {"role": "user"}]}', "role is 'user', expected 'assistant'"),
        (b'{"messages": [1, 2]}', "expected an object, found int"),
        (b'{"messages": [], "answer": {"role": "assistant", "content": NaN}}', "NaN is not a JSON value"),
        (
            b'{"messages": [{"role": "user"}, {"role": "assistant", "tool_calls": [{}]}]}',
            "tool_calls: expected {'function'",
        ),
        (
            b'{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}], "tools": [1]}',
            "tools.0: expected a function as an object, found int",
        ),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (
            rb'{"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant"}]}',
            "a lone surrogate",
        ),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, reason: str) -> None:
    good = FinetuneDataset.from_pairs([("q", "a")])[0].to_json().encode()
    path = tmp_path / "bad.jsonl"
    path.write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(DatasetError, match=rf"bad\.jsonl:2: .*{reason}"):
        FinetuneDataset.load(path)


def test_shards_of_a_capture_are_merged_and_a_line_cut_by_a_crash_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = FinetuneDataset.from_pairs([(f"q{n}", "a") for n in range(4)])
    path = FinetuneDataset(data[:2]).save(tmp_path / "c.jsonl")
    shard = FinetuneDataset(data[2:]).save(tmp_path / "c.jsonl.shard-1-2")
    with shard.open("ab") as file:
        file.write(data[0].to_json().encode()[:40])
    assert list(FinetuneDataset.load(path)) == list(data)
    assert "c.jsonl.shard-1-2:3: the last line is incomplete" in caplog.text


def test_missing_and_empty_files_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        FinetuneDataset.load(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DatasetError, match="no examples"):
        FinetuneDataset.load(tmp_path / "empty.jsonl")


def test_a_save_that_fails_leaves_the_older_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="no-such-format"):
        FinetuneDataset.from_pairs([("q", "a")]).save(path, format="no-such-format")

    class Breaking(Example):
        def to_json(self) -> str:
            raise OSError("disk full")

    breaking = Breaking.model_validate(FinetuneDataset.from_pairs([("q", "a")])[0].model_dump())
    with pytest.raises(OSError, match="disk full"):  # of the rows' source: the path is not to blame
        FinetuneDataset([breaking]).save(path)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["data.jsonl"]


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([("q", "a")])
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file" / "data.jsonl", tmp_path):
        with pytest.raises(
            ConfigurationError, match=f"{path}: cannot be written .*give the path of a file in a folder"
        ):
            data.save(path)
    reject = data[0].model_copy(update={"answer": data[0].answer.model_copy(update={"content": "b"})})
    with pytest.raises(ConfigurationError, match="cannot be written"):
        data.save_preferences(tmp_path / "file" / "dpo.jsonl", [reject])
    assert (tmp_path / "file").read_text() == "precious"


def test_deduplication_keeps_the_first_in_order_and_counts() -> None:
    data = FinetuneDataset.from_pairs([("b", "1"), ("a", "1"), ("b", "1"), ("b", "2")])
    once = data.deduplicate()
    assert [(e.query, e.answer_text()) for e in once] == [("b", "1"), ("a", "1"), ("b", "2")]
    assert data.summary().duplicates == 1
    assert (once.summary().duplicates, once.summary().duplicates_removed) == (0, 1)
    assert once.deduplicate().duplicates_removed == 1


def test_the_same_tool_answer_asked_again_is_a_duplicate_though_its_call_has_another_id() -> None:
    def conversation(*ids: str) -> Example:
        turns: list[dict[str, Any]] = [{"role": "user", "content": "q"}]
        for id in ids[:-1]:
            turns.append(ANSWER | {"tool_calls": [CALL | {"id": id}]})
            turns.append({"role": "tool", "content": "found", "tool_call_id": id})
        answer = ANSWER | {"tool_calls": [CALL | {"id": ids[-1]}]}
        return Example.model_validate({"messages": turns, "answer": answer, "transport": "tools"})

    data = FinetuneDataset(
        [conversation("call_1", "call_2"), conversation("call_8", "call_9"), conversation("call_1", "call_1")]
    )
    assert len(data.deduplicate()) == 2
    assert data.summary().duplicates == 1


def test_summary_counts_what_there_is() -> None:
    data = FinetuneDataset.from_pairs(
        [("four", Song(title="x")), ("sixsix", "plain")], document_ids=["d", "d"], system_prompt="12"
    )
    summary = data.summary()
    assert (summary.examples, summary.with_schema, summary.schemas, summary.documents) == (2, 1, 1, 1)
    assert summary.transports == {"json_schema": 1, "text": 1}
    assert summary.prompt_chars == (6, 7, 8)
    assert "2 (json_schema 1, text 1)" in str(summary)
    assert "0 / 0 / 0" in str(FinetuneDataset([]).summary())


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_any_text_survives_saving_and_loading(tmp_path_factory: pytest.TempPathFactory, pairs) -> None:  # type: ignore[no-untyped-def]
    data = FinetuneDataset.from_pairs(pairs)
    folder = tmp_path_factory.mktemp("round")
    assert list(FinetuneDataset.load(data.save(folder / "own.jsonl"))) == list(data)
    openai = FinetuneDataset.load(data.save(folder / "openai.jsonl", format="openai"))
    assert [(e.messages, e.answer) for e in openai] == [(e.messages, e.answer) for e in data]


def test_public_names_stay_what_they_are_whatever_was_imported_before() -> None:
    from llama_index_finetune_structured import dataset

    modules = {path.stem for path in Path(dataset.__file__).parent.glob("*.py")}
    assert not modules & set(dataset.__all__)


def test_a_capture_with_shards_is_not_replaced_by_its_own_rows(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([("q", "a")])
    data.save(tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl.shard-1-2").write_text('{"messages": [{"rol')  # a worker killed at its first line
    assert len(FinetuneDataset.load(tmp_path / "c.jsonl")) == 1
    with pytest.raises(ConfigurationError, match=r"several files \(c.jsonl.shard-1-2\); give another path"):
        data.save(tmp_path / "c.jsonl")


def test_chat_messages_keep_their_images_and_tool_calls() -> None:
    call = ToolCallBlock(tool_call_id="1", tool_name="play", tool_kwargs={"title": "One"})
    turns = [
        ChatMessage(role="user", blocks=[TextBlock(text="What?"), ImageBlock(url="https://x.org/a.png")]),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", content="played", additional_kwargs={"tool_call_id": "1"}),
    ]
    (example,) = FinetuneDataset.from_pairs([(turns, "It plays.")])
    user, assistant, tool = example.messages
    assert isinstance(user.content, list)
    assert [part["type"] for part in user.content] == ["text", "image_url"]
    assert assistant.tool_calls is not None
    assert tool.tool_call_id == assistant.tool_calls[0]["id"] == "1"


def schema_with(reference: str) -> dict[str, Any]:
    properties = {"a": {"anyOf": [{"type": "object"}]}, "b": {"$ref": reference}}
    return {"type": "object", "properties": properties}


def test_a_reference_into_a_list_is_followed_in_labels_and_in_the_check() -> None:
    data = FinetuneDataset.from_pairs([("q", {"b": {}})], schema=schema_with("#/properties/a/anyOf/0"))
    assert [p.code for p in check(data, target="openai").problems if not p.is_warning] == ["too_few_examples"]


@pytest.mark.parametrize(
    "reference", ["#/$defs/No", "#/properties/b", "https://example.org/a.json", "#/type"]
)
def test_a_reference_that_leads_to_no_schema_is_told_with_its_row(reference: str) -> None:
    with pytest.raises(DatasetError, match=r"pairs\[0\]: the schema cannot be used"):
        FinetuneDataset.from_pairs([("q", {"b": 1})], schema=schema_with(reference))
    example = Example(
        messages=(Message(role="user", content="q"),),
        answer=Message(role="assistant", content='{"b":1}'),
        answer_schema=schema_with(reference),
    )
    problems = check([example], target="openai").problems
    assert [p.code for p in problems] == ["answer_not_in_schema", "too_few_examples"]
    assert problems[0].message.startswith("the schema cannot be used")


def test_answers_that_are_nested_too_deeply_are_told_with_their_row() -> None:
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    for answer in (deep, "[" * 100_000):
        for kind in ({"schema": {"items": {"$ref": "#"}}}, {"output_cls": RootModel[Any]}):
            with pytest.raises(DatasetError, match=r"pairs\[0\]: "):
                FinetuneDataset.from_pairs([("q", answer)], **kind)


@pytest.mark.parametrize("answer", [RootModel[str]("text"), RootModel[int](5), RootModel[list[int]]([1, 2])])
def test_an_answer_whose_root_is_no_object_is_labelled(answer: RootModel[Any]) -> None:
    (example,) = FinetuneDataset.from_pairs([("q", answer)])
    assert example.answer_object() == answer.root
