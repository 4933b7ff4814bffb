"""Bad input raises an error of the classes under ``Raises:`` of the function that it was given to, and no other."""

# mypy: disable-error-code="misc, var-annotated"

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from pydantic import BaseModel

import llama_index_finetune_structured as package
from llama_index_finetune_structured import capture, dataset, errors
from llama_index_finetune_structured.capture import (
    GradientAIFineTuningHandler,
    OpenAIFineTuningHandler,
    read_examples,
)
from llama_index_finetune_structured.dataset import (
    FinetuneDataset,
    QuestionGenerator,
    RetrievalAugmentedDatasetBuilder,
    ServingRecipe,
    answer_questions,
    check,
    load_schema,
    read_nodes,
)
from llama_index_finetune_structured.engines.gradient import GradientFinetuneEngine
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.tuning.run import tune
from tests.capture.fakes import EchoLLM

NO_SERVER = "http://127.0.0.1:1/v1"


def _later(call: Callable[[Any], Any], values: Iterable[Any]) -> list[Callable[[], Any]]:
    return [partial(call, value) for value in values]


class Song(BaseModel):
    title: str


def _pairs(**settings: Any) -> FinetuneDataset:
    return FinetuneDataset.from_pairs([("q", {"title": "a"})], **settings)


def _openai(**settings: Any) -> OpenAIFinetuneEngine:
    return OpenAIFinetuneEngine(
        "m", **{"data": "rows.jsonl", "api_key": "k", "api_base": NO_SERVER, **settings}
    )


def _gradient(**settings: Any) -> GradientFinetuneEngine:
    given = {"base_model_slug": "b", "name": "n", "data": "rows.jsonl", "host": NO_SERVER}
    return GradientFinetuneEngine(**{**given, "access_token": "t", "workspace_id": "w", **settings})


def _asked(path: str) -> Any:
    return answer_questions(Any, ["q"], path, show_progress=False)  # type: ignore[arg-type]


def _generated(path: Any) -> Any:
    return QuestionGenerator(EchoLLM()).generate([TextNode(text="t")], path, show_progress=False)


def _entered(path: str) -> None:
    with capture(path):
        pass


def _document(name: Any) -> None:
    with capture.document(name):
        pass


def _built(pairs: Any) -> Any:
    return RetrievalAugmentedDatasetBuilder(None, share_without_context=1.0).build(pairs, show_progress=False)


async def _abuilt(pairs: Any) -> Any:
    builder = RetrievalAugmentedDatasetBuilder(None, share_without_context=1.0)
    return await builder.abuild(pairs, show_progress=False)


def _written(pairs: Any, path: str, format: str | None) -> Any:
    return RetrievalAugmentedDatasetBuilder(None, share_without_context=1.0).write(
        pairs, path, format, show_progress=False
    )


# The working folder of a test has: rows.jsonl (valid), bytes.jsonl (no UTF-8), text.jsonl (no JSON), folder/, empty/.
# Unreadable is a path whose parent is a file.
UNREADABLE = "rows.jsonl/below"
BAD_PAIRS: list[Any] = [
    [],
    [("only",)],
    [("", "a")],
    [{"query": 3, "response": "a"}],
    "missing.jsonl",
    "text.jsonl",
]
BAD_FILES = ["missing.jsonl", "bytes.jsonl", "text.jsonl", "folder", UNREADABLE, ""]
INPUTS: dict[str, tuple[Any, list[Callable[[], Any]]]] = {
    "load": (FinetuneDataset.load, _later(lambda f: FinetuneDataset.load(f), BAD_FILES)),
    "from_pairs": (
        FinetuneDataset.from_pairs,
        [
            lambda: FinetuneDataset.from_pairs([]),
            lambda: FinetuneDataset.from_pairs([("q",)]),  # type: ignore[list-item]
            lambda: FinetuneDataset.from_pairs([(3, "a")]),  # type: ignore[list-item]
            lambda: FinetuneDataset.from_pairs([("q", object())]),
            lambda: FinetuneDataset.from_pairs([("q", "\ud800")]),
            lambda: _pairs(schema={"type": 3}),
            lambda: _pairs(schema={"type": "array"}),
            lambda: _pairs(schema={}, output_cls=Song),
            lambda: _pairs(document_ids=[]),
            lambda: _pairs(document_ids=[3]),
        ],
    ),
    "save": (
        FinetuneDataset.save,
        [
            lambda: _pairs().save("out.jsonl", "nosuch"),
            lambda: _pairs().save(UNREADABLE),
            lambda: _pairs().save("folder"),
            lambda: _pairs().save("out.jsonl", "gradient "),
        ],
    ),
    "save_preferences": (
        FinetuneDataset.save_preferences,
        [
            *_later(lambda f: _pairs().save_preferences("out.jsonl", f), ("missing.jsonl", "text.jsonl", [])),
            lambda: _pairs().save_preferences(UNREADABLE, _pairs()),
        ],
    ),
    "split": (
        FinetuneDataset.split,
        [
            lambda: _pairs().split(2),
            lambda: _pairs().split(float("nan")),
            lambda: _pairs().split(group_by="no"),  # type: ignore[arg-type]
            lambda: _pairs().split(group_by=lambda _: 3),  # type: ignore[arg-type,return-value]
            lambda: _pairs().split(),
            lambda: FinetuneDataset([]).split(),
        ],
    ),
    "check": (
        check,
        [
            lambda: check(3),  # type: ignore[arg-type]
            lambda: check("rows.jsonl", target="nosuch"),
            lambda: check("rows.jsonl", base_model="nosuch-folder"),
        ],
    ),
    "read_examples": (read_examples, _later(lambda f: list(read_examples(Path(f))), filter(None, BAD_FILES))),
    "read_nodes": (
        read_nodes,
        _later(lambda f: read_nodes(f), ("missing", "rows.jsonl", "empty", "odd", "nul\0", UNREADABLE))
        + _later(lambda n: read_nodes("folder", chunk_size=n), (1, "x", 200.5, None))
        + [lambda: read_nodes("folder", chunk_overlap=-1)],
    ),
    "load_schema": (
        load_schema,
        _later(
            lambda s: load_schema(s),
            (
                "missing.yaml",
                "folder",
                "",
                ":",
                "\0:A",
                "ends.py:A",
                "json:dumps",
                "bytes.yaml",
                "half.yaml",
            ),
        ),
    ),
    "capture": (
        capture,
        _later(lambda f: _entered(f), ("text.jsonl", "bytes.jsonl", "folder", UNREADABLE)),
    ),
    "capture.document": (capture.document, _later(lambda n: _document(n), ("", None, 3))),
    "OpenAIFineTuningHandler": (
        OpenAIFineTuningHandler,
        _later(lambda f: OpenAIFineTuningHandler(f), ("text.jsonl", "folder", UNREADABLE)),
    ),
    "GradientAIFineTuningHandler": (
        GradientAIFineTuningHandler,
        _later(lambda f: GradientAIFineTuningHandler(f), ("text.jsonl", "folder", UNREADABLE)),
    ),
    "answer_questions": (
        answer_questions,
        _later(lambda f: _asked(f), ("text.jsonl", "folder", UNREADABLE)),
    ),
    "generate": (
        QuestionGenerator.generate,
        _later(lambda f: _generated(f), ("text.jsonl", "rows.jsonl", "folder", UNREADABLE)),
    ),
    "QuestionGenerator": (
        QuestionGenerator,
        _later(lambda n: QuestionGenerator(EchoLLM(), num_questions_per_chunk=n), (0, -1, -9)),
    ),
    "builder": (
        RetrievalAugmentedDatasetBuilder,
        _later(
            lambda s: RetrievalAugmentedDatasetBuilder(None, **s),
            (
                {},
                {"share_without_context": 2},
                {"share_without_context": 1.0, "distractors": -1},
                {"share_without_context": 1.0, "retrieval_misses": "no"},
                {"share_without_context": 0.5, "qa_template": "none"},
            ),
        ),
    ),
    "build": (RetrievalAugmentedDatasetBuilder.build, _later(lambda p: _built(p), BAD_PAIRS)),
    "abuild": (
        RetrievalAugmentedDatasetBuilder.abuild,
        _later(lambda p: asyncio.run(_abuilt(p)), BAD_PAIRS),
    ),
    "write": (
        RetrievalAugmentedDatasetBuilder.write,
        [
            *_later(lambda p: _written(p, "out.jsonl", None), BAD_PAIRS),
            lambda: _written([("q", "a")], "out.jsonl", "nosuch"),
            lambda: _written([("q", "a")], UNREADABLE, None),
        ],
    ),
    "ServingRecipe.of": (
        ServingRecipe.of,
        _later(lambda r: ServingRecipe.of(r), ((), _pairs(), _pairs()[:1])),
    ),
    "tune": (
        tune,
        [
            *_later(lambda f: tune(f), [*filter(None, BAD_FILES), 3, [], _pairs()]),
            lambda: tune("rows.jsonl", "nosuch-folder"),
            lambda: tune("rows.jsonl", seed=-1),
            lambda: tune("rows.jsonl", minutes=float("nan")),
            lambda: tune("rows.jsonl", validation="missing.jsonl"),
            lambda: tune("rows.jsonl", validation="rows.jsonl", output_dir=UNREADABLE),
            lambda: tune("rows.jsonl", validation="rows.jsonl", output_dir="\0"),
        ],
    ),
    "OpenAIFinetuneEngine": (
        OpenAIFinetuneEngine,
        _later(
            lambda s: _openai(**s),
            (
                {"data": None},
                {"provider": 3},
                {"api_key": "k\n"},
                {"api_key": "schlüssel"},
                {"api_base": "http://[::1"},
                {"api_base": "http://h:ab"},
                {"api_base": "http://user:pw@h"},
                {"api_base": "\0"},
                {"hyperparameters": [1]},
                {"hyperparameters": {"n": object()}},
                {"extra_body": {"n": float("nan")}},
                {"transport": "morse"},
            ),
        ),
    ),
    "finetune": (
        OpenAIFinetuneEngine.finetune,
        _later(
            lambda s: _openai(**s).finetune(),
            (
                {"data": "missing.jsonl"},
                {"data": "folder"},
                {"data": "text.jsonl"},
                {"output_dir": UNREADABLE},
            ),
        ),
    ),
    "from_run": (
        OpenAIFinetuneEngine.from_run,
        _later(OpenAIFinetuneEngine.from_run, ("missing", "broken", "taken", UNREADABLE)),
    ),
    "GradientFinetuneEngine": (
        GradientFinetuneEngine,
        _later(
            lambda s: _gradient(**s),
            (
                {"data": None},
                {"name": None},
                {"batch_size": 0},
                {"batch_size": "2"},
                {"batch_size": 1.5},
                {"max_steps": "2"},
                {"host": "http://[::1"},
                {"host": "http://user:pw@h"},
                {"access_token": "t\n"},
                {"output_dir": UNREADABLE},
            ),
        ),
    ),
}


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "empty", "odd", "broken", "taken", "taken/run.json"):
        Path(name).mkdir()
    Path("folder/a.txt").write_text("text")
    Path("odd/zeros.txt").write_bytes(b"\0\1" * 100)
    Path(os.fsdecode(b"odd/\xff.txt")).write_text("text")
    Path("broken/run.json").write_bytes(b"\xff\xfe")
    Path("rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}) + "\n")
    for name, content in {"bytes.jsonl": b"\xff\xfe\n", "text.jsonl": b"no JSON\n", "bytes.yaml": b"\xff",
                          "half.yaml": b"name: A\nfields: {a: {type: integer, min: 1.5}}",
                          "ends.py": b"raise SystemExit(3)"}.items():  # fmt: skip
        Path(name).write_bytes(content)


def _documented(function: Any) -> tuple[type[BaseException], ...]:
    section = (inspect.getdoc(function) or "").partition("Raises:")[2]
    return tuple(getattr(errors, name) for name in re.findall(r"^ {4}(\w+):", section, re.MULTILINE))


@pytest.mark.parametrize("name", INPUTS)
def test_every_bad_input_raises_a_documented_error(name: str) -> None:
    function, inputs = INPUTS[name]
    assert len(inputs) >= 3
    foreign = []
    for number, call in enumerate(inputs):
        try:
            call()
        except _documented(function) as error:
            foreign += [] if len(str(error)) > 10 else [f"input {number}: says nothing"]
        except Exception as error:
            foreign.append(f"input {number}: {error!r}")
        else:
            foreign.append(f"input {number}: no error")
    assert foreign == []


# Not in the table: what needs a server (tests/engines/test_strange_replies.py), an earlier result, or shares its code
# with a row of the table.
ELSEWHERE = {
    "AnswerReport.load", "CheckReport.fix", "ServingRecipe.query_engine_kwargs", "render",
    "RetrievalAugmentedDatasetBuilder.stream", "RetrievalAugmentedDatasetBuilder.astream",
    "QuestionGenerator.agenerate", "aanswer_questions", "FinetuneDataset.to_pandas",
    "label_documents", "alabel_documents", "read_documents",
    *(f"GradientFinetuneEngine.{name}" for name in ("finetune", "get_current_job", "get_finetuned_model")),
    *(f"OpenAIFinetuneEngine.{name}" for name in (
        "output_dir", "get_current_job", "wait", "await_job", "cancel", "metrics", "get_finetuned_model",
        "aget_finetuned_model")),
}  # fmt: skip


def test_the_table_has_every_public_function_that_documents_errors() -> None:
    values = {name: getattr(module, name) for module in (package, dataset) for name in module.__all__}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not re.search(
            r"structured\.(capture|dataset|formats|engines\.(hosted|gradient))", str(value.__module__)
        ):
            continue
        members = vars(value) if inspect.isclass(value) else {}
        plain = {
            f"{name}.{key}": getattr(value, key) if key in members else item for key, item in members.items()
        }
        found |= {key: item for key, item in plain.items() if not key.split(".")[1].startswith("_")}
        found[name] = value
    documented = {key for key, item in found.items() if _documented(item)}
    in_table = {function.__qualname__ for function, _ in INPUTS.values()} | {"answer_questions"}
    assert documented - in_table == ELSEWHERE
