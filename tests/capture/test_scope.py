"""``with capture(path)``: calls inside the block are stored, others are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llama_index_finetune_structured.capture import capture, read_examples
from tests.capture.fakes import SONG, EchoLLM, OpenAIServer, Song, index_of_songs

IMPORTS = [
    "from llama_index_finetune_structured import capture",
    "import llama_index_finetune_structured.capture; from llama_index_finetune_structured import capture",
    "from llama_index_finetune_structured import OpenAIFineTuningHandler, capture",
    "from llama_index_finetune_structured.jsonl_store import JsonlStore; "
    "from llama_index_finetune_structured import capture",
    "from llama_index_finetune_structured.capture import capture",
    "from llama_index_finetune_structured import capture; "
    "from llama_index_finetune_structured.jsonl_store import JsonlStore; "
    "import llama_index_finetune_structured as fs; assert fs.capture is capture",
]


@pytest.mark.parametrize("line", IMPORTS)
def test_capture_is_callable_in_whatever_order_it_was_imported(line: str, path: Path) -> None:
    code = f"{line}\nwith capture({str(path)!r}) as captured: print(captured.summary()['captured'])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert path.exists()


def test_a_query_engine_with_output_cls_is_recorded_with_all_fields(path: Path, server: OpenAIServer) -> None:
    engine = index_of_songs().as_query_engine(
        llm=server.llm("gpt-4"), output_cls=Song, similarity_top_k=2, response_mode="compact"
    )
    with capture(path, output_cls=Song) as captured:
        engine.query("Which song is it?")
    (example,) = read_examples(path)
    assert captured.summary()["captured"] == 1
    assert [message.wire() for message in example.messages] == server.requests[0]["messages"]
    assert example.tools == server.requests[0]["tools"]
    assert (example.transport, example.schema_name, example.model) == ("tools", "Song", "gpt-4")
    assert example.answer_schema == Song.model_json_schema()
    assert example.answer_text() == SONG
    assert example.query == "Which song is it?"
    assert {source.document_id for source in example.sources} <= {"doc0", "doc1", "doc2"}
    assert len(example.sources) == 2
    assert example.document_id == example.sources[0].document_id
    assert example.usage is not None
    assert (example.usage.prompt_tokens, example.usage.completion_tokens) == (11, 7)


def test_calls_before_and_after_the_block_are_not_saved(path: Path) -> None:
    llm = EchoLLM()
    llm.complete("before")
    with capture(path):
        llm.complete("inside")
    llm.complete("after")
    assert [example.messages[0].content for example in read_examples(path)] == ["inside"]
