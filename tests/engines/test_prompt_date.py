"""A chat template that prints the date prints that of training: when resumed, in serving and in exports."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from llama_index.core.llms import ChatMessage
from pydantic import BaseModel

from llama_index_finetune_structured import (
    ConfigurationError,
    DatasetError,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    export_adapter,
)
from llama_index_finetune_structured.files import read_json, write_json
from llama_index_finetune_structured.local.model.adapter import read_card
from tests import exporting, tiny

DATED = "{{ '<|im_start|>date\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + tiny.TEMPLATE
TRAINED = datetime.datetime(2026, 1, 31)


class Song(BaseModel):
    title: str


DATA = FinetuneDataset.from_pairs([("Which?", Song(title="One"))] * 2)


def _clock(monkeypatch: pytest.MonkeyPatch, now: datetime.datetime) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return now

    class Calendar(datetime.date):
        @classmethod
        def today(cls) -> Any:
            return now.date()

    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    monkeypatch.setattr(datetime, "date", Calendar)


def _base(folder: Path, template: str) -> Path:
    exporting.save_base("llama", folder)
    tokenizer = exporting.tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def _engine(base: Path, output: Path) -> LoraFinetuneEngine:
    return LoraFinetuneEngine(DATA, base_model=base, output_dir=output, config=LoraSettings(rank=2, epochs=1))


def _prompt(llm: LoraLLM) -> str:
    return str(llm._loaded.tokenizer.decode(llm.prompt_token_ids([ChatMessage(content="Which?")], Song)))


def test_the_date_of_training_is_in_the_card_in_serving_and_in_every_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    _clock(monkeypatch, TRAINED)
    engine = _engine(_base(tmp_path / "base", DATED), tmp_path / "run")
    engine.finetune()
    assert read_card(engine.adapter).prompt_date == "2026-01-31"
    _clock(monkeypatch, datetime.datetime(2031, 5, 6))
    tuned = LoraLLM.from_adapter(engine.adapter)
    assert "31 Jan 2026" in _prompt(tuned)
    assert "06 May 2031" in _prompt(LoraLLM(base_model=str(tmp_path / "base"))), "a base alone has today's"
    export_adapter(engine.adapter, tmp_path / "merged")
    assert _prompt(LoraLLM.from_merged(tmp_path / "merged")) == _prompt(tuned)
    for format in ("gguf", "gguf-base"):
        path = export_adapter(engine.adapter, tmp_path / f"{format}.gguf", format=format)
        fields = gguf.GGUFReader(path).fields
        assert '"31 Jan 2026"' in fields[gguf.Keys.Tokenizer.CHAT_TEMPLATE].contents(), format


def test_a_run_that_is_resumed_on_another_day_keeps_the_date_of_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _base(tmp_path / "base", DATED)
    _clock(monkeypatch, TRAINED)
    started = _engine(base, tmp_path / "run")
    started._trainer(started._training_rows()[0])
    _clock(monkeypatch, datetime.datetime(2026, 2, 1))
    engine = _engine(base, tmp_path / "run")
    engine.finetune()
    assert read_card(engine.adapter).prompt_date == "2026-01-31"
    run = read_json(tmp_path / "run" / "run.json")
    write_json(tmp_path / "other" / "run.json", {**run, "data": "another"})
    other = _engine(base, tmp_path / "other")
    other._training_rows()
    assert other._prompt_date == "2026-02-01", "another run's date is not taken over"


def test_a_template_without_a_date_has_none_in_the_card(tmp_path: Path) -> None:
    engine = _engine(_base(tmp_path / "base", tiny.TEMPLATE), tmp_path / "run")
    engine.finetune()
    assert read_card(engine.adapter).prompt_date is None


def test_the_card_has_the_form_of_system_messages_that_the_template_takes(tmp_path: Path) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    engine = _engine(_base(tmp_path / "base", refuses + tiny.TEMPLATE), tmp_path / "run")
    engine.finetune()
    assert read_card(engine.adapter).system_messages == "in_question"


def test_a_message_that_the_template_leaves_out_is_an_error_in_training_and_in_serving(
    tmp_path: Path,
) -> None:
    base = _base(
        tmp_path / "base", tiny.TEMPLATE.replace("messages %}", "messages if message.role == 'tool' %}", 1)
    )
    with pytest.raises(DatasetError, match=r"example [0-9a-f]{12}: message 1 of the prompt"):
        _engine(base, tmp_path / "run").finetune()
    with pytest.raises(DatasetError, match=r"message 1 of the prompt \(user, 'Which\?'\)"):
        LoraLLM(base_model=str(base)).chat([ChatMessage(content="Which?")])


def test_control_tokens_in_a_formatted_completion_are_sent_and_nowhere_else(tmp_path: Path) -> None:
    llm = LoraLLM(base_model=str(_base(tmp_path / "base", tiny.TEMPLATE)))
    text = "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    asked = tuple(llm.prompt_token_ids([ChatMessage(content="Which?")]))
    assert llm._completion_call(text, True, {}).request.prompt == asked
    assert llm._completion_call(text, False, {}).request.prompt.count(0) == 2
    for formatted in (True, False):
        with pytest.raises(ConfigurationError, match="a lone surrogate"):
            llm.complete("smile \ud83c", formatted=formatted)
