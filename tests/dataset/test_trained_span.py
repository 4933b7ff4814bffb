"""The trained span that the check shows equals the trainer's own label mask, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured.dataset import FinetuneDataset, check, render
from llama_index_finetune_structured.dataset.checks.report import TrainedSpan
from llama_index_finetune_structured.dataset.checks.targets import TrainingTarget, target_named
from llama_index_finetune_structured.example import Example, Message
from tests.dataset.test_preflight import any_line, never_raises

tiny_base = pytest.importorskip("tests.dataset.tiny_base", reason="needs the extra 'local'")
pytest.importorskip("transformers")

from llama_index_finetune_structured.local.model.base_models import load_tokenizer, resolve  # noqa: E402
from llama_index_finetune_structured.local.model.prompts import stop_token_id, token_row  # noqa: E402
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
    row = token_row(tokenizer, DATA[0], stop_id=stop_token_id(tokenizer))
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
    return [target_named(target, folders[base], None) for target, base in named]


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
