"""Query engines with structured answers on a small context window: no piece of the document is lost."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import (
    Document,
    PromptHelper,
    SummaryIndex,
    get_response_synthesizer,
    set_global_tokenizer,
)
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.response_synthesizers import ResponseMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, Field, create_model

from llama_index_finetune_structured import FinetuneDataset, LoraFinetuneEngine, LoraLLM, LoraSettings
from llama_index_finetune_structured.errors import ConfigurationError, PromptTooLongError
from llama_index_finetune_structured.local.model.prompts import PromptForm, schema_room
from tests import tiny

WINDOW, WORDS = 3072, 700
MODES = ["compact", "refine", "tree_summarize", "accumulate", "compact_accumulate"]


class Song(BaseModel):
    """Its schema takes about 500 tokens of the byte-level tokenizer."""

    seconds: int = Field(description="As printed on the sleeve " * 8)


_FIELDS: Any = {f"field_{n}": (int, Field(description="A long description. " * 4)) for n in range(40)}
Large: Any = create_model("Large", **_FIELDS)


class _Prompts(BaseEventHandler):
    """The text of every prompt that was sent."""

    sent: list[str] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, LLMChatStartEvent):
            self.sent.append("\n".join(str(message.content) for message in event.messages))


@pytest.fixture
def prompts() -> Iterator[_Prompts]:
    handler = _Prompts()
    get_dispatcher().add_event_handler(handler)
    yield handler
    get_dispatcher().event_handlers.remove(handler)


@pytest.fixture(scope="module", autouse=True)
def counted_in_bytes() -> Iterator[None]:
    from llama_index.core import global_tokenizer

    tokenizer = tiny.tokenizer()
    set_global_tokenizer(lambda text: tokenizer(text)["input_ids"])
    yield
    set_global_tokenizer(global_tokenizer)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a small context window."""
    folder = tiny.save("llama", tmp_path_factory.mktemp("small"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": WINDOW}))
    return folder


@pytest.fixture(scope="module")
def index() -> SummaryIndex:
    return SummaryIndex.from_documents([Document(text=" ".join(f"w{n:04d}" for n in range(WORDS)))])


def _lost(prompts: _Prompts) -> list[str]:
    text = "\n".join(prompts.sent)
    return [word for word in (f"w{n:04d}" for n in range(WORDS)) if word not in text]


@pytest.mark.parametrize("mode", MODES)
def test_every_piece_of_a_long_document_is_read_in_every_response_mode(
    small: Path, index: SummaryIndex, prompts: _Prompts, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    llm = LoraLLM(base_model=str(small), max_new_tokens=80)
    answer = index.as_query_engine(llm=llm, output_cls=Song, response_mode=mode).query("?")
    assert len(prompts.sent) > 1
    assert _lost(prompts) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "seconds" in str(answer)


# LlamaIndex reads a structured LLM's answer as one JSON text, which the answers of accumulate are not.
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
def test_a_structured_llm_leaves_room_for_exactly_its_schema(
    small: Path, index: SummaryIndex, prompts: _Prompts, mode: str
) -> None:
    llm = LoraLLM(base_model=str(small), max_new_tokens=80, schema_tokens=0).as_structured_llm(Song)
    answer = index.as_query_engine(llm=llm, response_mode=mode).query("?")
    assert "seconds" in str(answer)
    if mode != "simple_summarize":  # which cuts the document to one prompt
        assert _lost(prompts) == []
    asyncio.run(index.as_query_engine(llm=llm, response_mode=mode).aquery("?"))


@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "compact_accumulate"])
def test_a_schema_larger_than_the_room_is_an_error_that_names_the_room_it_takes(
    small: Path, index: SummaryIndex, mode: str
) -> None:
    llm = LoraLLM(base_model=str(small), max_new_tokens=80, schema_tokens=0, schema_prompt="json")
    room = schema_room(llm._loaded.tokenizer, Song.model_json_schema(), PromptForm("json"))
    with pytest.raises(PromptTooLongError, match=f"set schema_tokens={room}"):
        index.as_query_engine(llm=llm, output_cls=Song, response_mode=mode).query("?")
    roomy = llm.model_copy(update={"schema_tokens": room})
    assert index.as_query_engine(llm=roomy, output_cls=Song, response_mode=mode).query("?")


def test_a_schema_that_alone_leaves_no_room_is_a_clear_error(small: Path, index: SummaryIndex) -> None:
    llm = LoraLLM(base_model=str(small), max_new_tokens=80)
    with pytest.raises(ConfigurationError, match=r"Large: its schema takes \d+ tokens.*nothing is left"):
        index.as_query_engine(llm=llm.as_structured_llm(Large))
    with pytest.raises(PromptTooLongError, match="are the schema"):
        index.as_query_engine(llm=llm, output_cls=Large).query("?")


def test_a_prompt_helper_for_a_class_packs_for_its_schema(
    small: Path, index: SummaryIndex, prompts: _Prompts
) -> None:
    llm = LoraLLM(base_model=str(small), max_new_tokens=80, schema_tokens=0)
    helper = PromptHelper.from_llm_metadata(llm.metadata_for(Song))
    synthesizer = get_response_synthesizer(
        llm=llm, output_cls=Song, response_mode=ResponseMode.TREE_SUMMARIZE, prompt_helper=helper
    )
    index.as_query_engine(llm=llm, response_synthesizer=synthesizer).query("?")
    assert _lost(prompts) == []


def test_the_room_never_takes_more_than_half_of_what_answers_leave(small: Path) -> None:
    llm = LoraLLM(base_model=str(small), max_new_tokens=72, schema_tokens=100_000)
    assert llm.metadata.context_window == WINDOW - (WINDOW - 72) // 2
    assert LoraLLM(base_model=str(small), max_new_tokens=WINDOW).metadata.context_window == WINDOW


@pytest.fixture(scope="module")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = FinetuneDataset.from_pairs([("a song", Song(seconds=3)), ("another", Song(seconds=4))])
    engine = LoraFinetuneEngine(
        data,
        base_model=str(small),
        output_dir=tmp_path_factory.mktemp("run") / "song",
        config=LoraSettings(rank=2),
    )
    engine.finetune()
    return engine.adapter


def test_an_adapter_keeps_room_for_the_schemas_of_its_training(trained: Path) -> None:
    llm = LoraLLM.from_adapter(trained)
    room = schema_room(llm._loaded.tokenizer, Song.model_json_schema(), PromptForm())
    assert llm.schema_tokens == room
    assert llm.metadata.context_window == llm.metadata_for(Song).context_window == WINDOW - room


class Longer(BaseModel):
    """Another version of Song's schema."""

    seconds: int = Field(description="As printed on the sleeve " * 8)
    title: str
    tags: list[str] = []


class Renamed(BaseModel):
    length: int


def test_a_schema_that_was_not_trained_is_logged_once_with_what_differs(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llm = LoraLLM.from_adapter(trained, max_new_tokens=300)
    asked = [{"response_format": _response_format(cls)} for cls in (Song, Longer, Longer, Renamed)]
    with caplog.at_level(logging.WARNING):
        for keywords in asked:
            llm.complete("a song", **keywords)
    longer, renamed = (record.getMessage() for record in caplog.records)
    assert longer.startswith("Longer was not a schema of the training")
    assert "new: title, tags, tags[]" in longer
    assert "missing" not in longer
    assert "new: length; missing: seconds" in renamed


def test_a_base_without_training_logs_nothing(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    LoraLLM(base_model=str(small)).complete("a song", response_format=_response_format(Song))
    assert not caplog.records


def _response_format(cls: type[BaseModel]) -> dict[str, Any]:
    schema = {"name": cls.__name__, "schema": cls.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}
