"""The trained span that the check shows equals the trainer's own label mask, token for token."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured.dataset import FinetuneDataset, check, render
from llama_index_finetune_structured.dataset.checks.report import TrainedSpan
from llama_index_finetune_structured.dataset.checks.targets import TrainingTarget, target_named
from llama_index_finetune_structured.errors import MissingDependencyError
from llama_index_finetune_structured.example import Example, Message
from tests.dataset.test_preflight import any_line, never_raises

tiny_base = pytest.importorskip("tests.dataset.tiny_base", reason="needs the extra 'local'")
pytest.importorskip("transformers")

from llama_index_finetune_structured.local.generate.loaded_models import load_local_model  # noqa: E402
from llama_index_finetune_structured.local.model.base_models import load_tokenizer, resolve  # noqa: E402
from llama_index_finetune_structured.local.model.prompts import PromptForm, token_row  # noqa: E402
from llama_index_finetune_structured.local.model.stop_token import stop_token_id  # noqa: E402
from llama_index_finetune_structured.local.schema.bounds import learn_bounds, schema_key  # noqa: E402
from llama_index_finetune_structured.local.train.packing import pack  # noqa: E402


class Song(BaseModel):
    """A song."""

    title: str


DATA = FinetuneDataset.from_pairs(
    [("Which song?", Song(title="One")), ("And?", Song(title="Two"))], system_prompt="S"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny_base.tiny_base(tmp_path_factory.mktemp("base"))
    return folder


def learned(span: TrainedSpan | None) -> list[int]:
    assert span is not None
    return [token for token, trained in zip(span.ids, span.trained, strict=True) if trained]


def test_the_local_span_is_the_packed_batchs_labels(base: Path) -> None:
    report = check(DATA, target="local", base_model=base)
    tokenizer = load_tokenizer(resolve(base))
    row = token_row(tokenizer, DATA[0], stop_id=stop_token_id(tokenizer), form=PromptForm(reads_twice=True))
    assert report.span is not None
    assert learned(report.span) == pack([row]).labels
    assert report.span.ids == row.prompt + row.answer
    assert report.span.trained_text == '{"title":"One"}<|im_end|>'
    assert report.ok
    assert report.trained_tokens == sum(
        len(pack([token_row(tokenizer, e, stop_id=row.answer[-1])]).labels) for e in DATA
    )


def test_the_local_target_refuses_what_does_not_fit_the_length(base: Path) -> None:
    report = check(DATA, target="local", base_model=base, max_length=20)
    assert [p.code for p in report.problems] == ["answer_cut", "answer_cut"]
    assert "the limit is 20" in report.problems[0].message
    long = FinetuneDataset.from_pairs([("word " * 600, "a")])
    assert [p.code for p in check(long, target="local", base_model=base).problems] == ["answer_cut"]


def test_what_the_local_engine_cannot_render_is_named(base: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    row = Example(
        messages=(Message(role="user", content=[image]),), answer=Message(role="assistant", content="a")
    )
    report = check([row], target="local", base_model=base)
    assert [(p.code, p.line) for p in report.problems] == [("cannot_render", 1)]


def test_a_template_without_end_of_turn_leaves_the_stop_token_untrained(tmp_path: Path) -> None:
    base = tiny_base.tiny_base(tmp_path, tiny_base.ENDLESS)
    report = check(DATA, target="trl", base_model=base)
    assert {p.code for p in report.problems} == {"stop_token_untrained"}


def test_a_template_that_drops_tools_is_refused_and_one_that_renders_them_is_not(tmp_path: Path) -> None:
    tools = [render(e, "tools") for e in DATA]
    plain = check(tools, target="trl", base_model=tiny_base.tiny_base(tmp_path / "plain"))
    assert {p.code for p in plain.problems} == {"tools_not_rendered"}
    able = check(tools, target="trl", base_model=tiny_base.tiny_base(tmp_path / "able", tiny_base.WITH_TOOLS))
    assert able.ok
    assert able.span is not None
    assert '"title"' in able.span.trained_text


def test_trls_default_length_cuts_the_answer_and_is_reported(base: Path) -> None:
    long = FinetuneDataset.from_pairs([("word " * 1024, "a")])
    assert [p.code for p in check(long, target="trl", base_model=base).problems] == ["answer_cut"]
    assert check(long, target="trl", base_model=base, max_length=10_000).ok


@pytest.mark.filterwarnings("ignore")
def test_sfttrainer_trains_a_step_on_our_file_with_the_labels_we_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    base = tiny_base.tiny_base(tmp_path / "base", tiny_base.WITH_TOOLS)
    rows = [*DATA, *(render(e, "tools") for e in DATA)]
    path = FinetuneDataset(rows).save(tmp_path / "train.jsonl", "trl-prompt-completion")
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "c"))
    tokenizer = load_tokenizer(resolve(base))
    trainer = trl.SFTTrainer(
        model=tiny_base.tiny_model(tokenizer),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, use_cpu=True,
            bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=loaded,
        processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.train().global_step == 1
    for example, row in zip(rows, trainer.train_dataset, strict=True):
        span = check([example], target="trl", base_model=base).span
        assert span is not None
        assert list(span.ids) == row["input_ids"]
        assert labels(row) == [
            token if trained else -100 for token, trained in zip(span.ids, span.trained, strict=True)
        ]


def labels(row: dict[str, Any]) -> list[int]:
    if "labels" in row:
        return list(row["labels"])
    pairs = zip(row["input_ids"], row["completion_mask"], strict=True)
    return [token if trained else -100 for token, trained in pairs]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingTarget]:
    templates = {"plain": tiny_base.PLAIN, "able": tiny_base.WITH_TOOLS}
    folders = {n: tiny_base.tiny_base(tmp_path_factory.mktemp(n), t) for n, t in templates.items()}
    named = [("local", "plain"), ("trl", "plain"), ("trl", "able")]
    return [target_named(target, folders[base], None, PromptForm("json")) for target, base in named]


@given(lines=st.lists(any_line, max_size=4), which=st.integers(0, 2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_no_bytes_make_the_check_for_a_model_raise(
    lines: list[bytes], which: int, targets: list[TrainingTarget], tmp_path: Path
) -> None:
    never_raises(tmp_path, lines, targets[which])


def test_trl_files_are_checked_line_by_line(tmp_path: Path, base: Path) -> None:
    path = DATA.save(tmp_path / "t.jsonl", "trl-prompt-completion")
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "q", "completion": 3}) + "\n")
    report = check(path, target="trl", base_model=base)
    assert [(p.line, p.code) for p in report.problems] == [(3, "bad_message")]
    assert report.span == check(DATA, target="trl", base_model=base).span


@pytest.mark.parametrize("target", ["trl", "gradient", "local"])
def test_parts_that_a_target_would_drop_are_an_error(base: Path, target: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    messages = (Message(role="user", content=[{"type": "text", "text": "q"}, image]),)
    row = Example(messages=messages, answer=Message(role="assistant", content="a"))
    problems = check([row], target=target, base_model=base).problems
    assert [p.code for p in problems] == ["bad_part" if target == "trl" else "cannot_render"]
    assert "a part" in problems[0].message


@pytest.mark.parametrize("target", ["trl", "local"])
def test_a_completion_of_several_messages_is_refused(base: Path, target: str, tmp_path: Path) -> None:
    """TRL trains on all of them; an Example has one answer, and the others would count as prompt."""
    answer, path = {"role": "assistant", "content": "a"}, tmp_path / "t.jsonl"
    for completion in ([answer, {"role": "user", "content": "q"}, answer], []):
        turns = [{"role": "user", "content": "q"}, answer]
        path.write_text(json.dumps({"prompt": turns, "completion": completion}))
        problems = check(path, target=target, base_model=base).problems
        assert [p.code for p in problems] == ["bad_message"]
        assert f"a list of one message, the answer, found {len(completion)}" in problems[0].message


# The walk: an answer that the grammar refuses could be trained and never be said


class Part(BaseModel):
    name: str
    amount: float


class Order(BaseModel):
    parts: list[Part]
    note: str | None = None
    kind: Literal["new", "old"] = "new"


PART = {"type": "object", "properties": {"n": {"type": "integer"}}}
PARTS = {"type": "array", "items": PART}
LONG, ENDING = 10**60, "0" * 21
COUNTED = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "n": {"type": "integer"}, "parts": PARTS},
}


def test_every_answer_of_a_class_can_be_said(base: Path) -> None:
    """Long lists and strings too: their bounds come from the same rows."""
    orders = [
        Order(
            parts=[Part(name="Ä" * length, amount=length / 8) for _ in range(length)],
            note='"\\\n',
            kind="old",
        )
        for length in range(0, 17, 8)
    ]
    data = FinetuneDataset.from_pairs([(f"q{n}", order) for n, order in enumerate(orders)])
    report = check(data, base_model=base, max_length=2048)
    assert report.problems == ()


UNSAYABLE: dict[str, tuple[dict[str, Any], Any, str, str]] = {
    "a number of more than 40 digits": (COUNTED, {"a": "1", "n": LONG}, "#/n", ENDING + "}"),
    "one inside a list": (COUNTED, {"parts": [{"n": 1}, {"n": LONG}]}, "#/parts/1/n", ENDING + "}]}"),
}


@pytest.mark.parametrize("name", UNSAYABLE)
def test_an_answer_that_the_grammar_refuses_is_refused_with_its_place(tiny_llama: Path, name: str) -> None:
    schema, answer, place, rest = UNSAYABLE[name]
    base = tiny_llama  # its tokens are bytes, so that the refused token begins with the refused character
    first = {"a": "1", "n": 1, "parts": [{"n": 1}]}
    rows = FinetuneDataset.from_pairs([("q", first), ("r", answer)], schema=schema)
    report = check(rows, base_model=base)
    assert [(p.code, p.line) for p in report.problems] == [("answer_not_sayable", 2)]
    text = rows[1].answer_text()
    before = text[: text.index(rest)]
    shown = before if len(before) <= 60 else f"...{before[-60:]}"
    assert report.problems[0].message == f"at {place} the grammar refuses {rest[:20]!r} after {shown!r}"
    assert report.good == 1
    assert report.tokens == check(rows[:1], base_model=base).tokens
    assert check(rows, target="trl", base_model=base).ok, "TRL's models are served by other means"


def test_the_walk_is_that_of_serving(base: Path) -> None:
    """The generator, held to the refused answer's schema, cannot be led into the refused text either."""
    rows = FinetuneDataset.from_pairs([("q", {"a": "1", "n": LONG})], schema=COUNTED)
    assert not check(rows, base_model=base).ok
    model = load_local_model(str(base), None, 1)
    grammar = model.grammar(COUNTED, schema_key(COUNTED), learn_bounds(rows))
    ids = model.tokenizer(rows[0].answer_text(), add_special_tokens=False)["input_ids"]
    state = grammar.start(100)
    allowed = []
    for token in ids:
        allowed.append(bool(state.mask()[token]))
        if not allowed[-1]:
            break
        state.append(token)
    assert allowed.count(False) == 1


def test_the_first_good_line_is_one_that_can_be_said(base: Path) -> None:
    rows = FinetuneDataset.from_pairs([("q", {"n": LONG}), ("r", {"a": "1"})], schema=COUNTED)
    report = check(rows, base_model=base)
    assert report.span is not None
    assert report.span.trained_text == '{"a":"1"}<|im_end|>'


def test_keys_that_no_property_names_can_be_said_once_trained(base: Path) -> None:
    pairs = [("q", {"a": "1", "b": 2}), ("r", {"parts": [{"n": 1}, {"n": 1, "x": 2}]}), ("s", {"b": 2})]
    report = check(FinetuneDataset.from_pairs(pairs, schema=COUNTED), base_model=base)
    assert (report.good, report.ok) == (3, True)


def test_what_a_grammar_does_not_enforce_is_a_warning_once_a_schema(base: Path) -> None:
    tags = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    schema = {"type": "object", "properties": {"tags": tags}}
    report = check(FinetuneDataset.from_pairs([("q", {"tags": ["a"]})] * 2, schema=schema), base_model=base)
    loose = [(p.line, p.message) for p in report.problems if p.code == "not_enforced"]
    assert loose == [(1, "the grammar does not enforce #/properties/tags/uniqueItems")]
    assert report.ok


def test_a_schema_without_grammar_is_a_warning(base: Path) -> None:
    keys = [{"patternProperties": {key: {"type": "number", "minimum": 3}}} for key in "ab"]
    schema = {"type": "object", "allOf": keys, "minProperties": 1}
    rows = FinetuneDataset.from_pairs([("q", {"a": 5, "b": 3}), ("r", {"a": 7, "b": 4})], schema=schema)
    report = check(rows, base_model=base)
    assert [(p.code, p.line) for p in report.problems if p.line] == [("no_grammar", 1)]
    assert report.ok


def test_without_the_extra_the_local_check_names_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(sys.modules, "llama_index_finetune_structured.local.generate.grammar", raising=False)
    with pytest.raises(MissingDependencyError, match=r"llguidance.*\[local\]"):
        check(DATA, base_model=base)


# What no answer fills is not learned


def test_a_property_that_no_answer_fills_is_a_warning_with_counts(base: Path) -> None:
    data = FinetuneDataset.from_pairs([(f"q{n}", Order(parts=[], kind="old")) for n in range(3)])
    for target in ("local", "openai", "trl", "gradient"):
        report = check(data, target=target, base_model=base)
        warnings = [p for p in report.problems if p.code == "field_untaught"]
        assert [(p.message, p.line, p.is_warning) for p in warnings] == [
            ("'note' of Order: filled in 0 of 3 rows", 0, True)
        ]
    filled = Order(parts=[Part(name="a", amount=1)], note="x")
    assert check([*data, FinetuneDataset.from_pairs([("r", filled)])[0]], base_model=base).problems == ()


def test_untaught_properties_are_found_inside_lists_unions_and_references(base: Path) -> None:
    class Cat(BaseModel):
        kind: Literal["cat"]
        lives: int | None = None

    class Dog(BaseModel):
        kind: Literal["dog"]
        bark: str | None = None

    class Node(BaseModel):
        name: str
        children: list[Node] = []

    class Zoo(BaseModel):
        pets: list[Cat | Dog]
        tree: Node

    Zoo.model_rebuild(_types_namespace={"Node": Node})
    zoo = Zoo(
        pets=[Cat(kind="cat", lives=9), Dog(kind="dog")], tree=Node(name="a", children=[Node(name="b")])
    )
    report = check(FinetuneDataset.from_pairs([("q", zoo)]), base_model=base)
    assert [p.message for p in report.problems] == ["'pets[].bark' of Zoo: filled in 0 of 1 rows"]


def test_each_schema_of_a_file_has_its_own_untaught_properties(base: Path) -> None:
    orders = FinetuneDataset.from_pairs([("q", Order(parts=[]))])
    report = check([*DATA, *orders], base_model=base)
    assert [p.message for p in report.problems] == ["'note' of Order: filled in 0 of 1 rows"]


def test_several_tool_calls_are_refused_where_one_text_is_trained(base: Path) -> None:
    def call(title: str) -> dict[str, Any]:
        arguments = json.dumps({"title": title}, separators=(",", ":"))
        return {"id": title, "type": "function", "function": {"name": "Song", "arguments": arguments}}

    def example(**answer: Any) -> Example:
        return Example(
            messages=(Message(role="user", content="Two songs?"),),
            answer=Message(role="assistant", **answer),
            transport="tools",
            tools=[{"type": "function", "function": {"name": "Song"}}],
            answer_schema=Song.model_json_schema(),
            schema_name="Song",
        )

    several = check([example(tool_calls=[call("One"), call("Two")])], target="local", base_model=base)
    assert [(p.code, "2 tool calls" in p.message) for p in several.problems] == [("cannot_render", True)]
    one = check([example(content="Here:", tool_calls=[call("One")])], target="local", base_model=base)
    assert one.ok
    assert one.span is not None
    assert one.span.trained_text == '{"title":"One"}<|im_end|>'
