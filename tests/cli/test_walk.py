"""The commands of docs/cli.md, run word for word: documents, teacher, tuned model, report."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from pydantic import Field

from llama_index_finetune_structured import (
    Example,
    FinetuneDataset,
    LoraLLM,
    Message,
    Scorecard,
    capture,
    check,
    load_schema,
    read_nodes,
)
from llama_index_finetune_structured.dataset.generate.retrieval import bm25_retriever
from llama_index_finetune_structured.jsonl_store import JsonlStore
from llama_index_finetune_structured.local.model.base_models import load_tokenizer, resolve
from llama_index_finetune_structured.local.model.prompts import token_row
from llama_index_finetune_structured.local.model.stop_token import stop_token_id
from tests.capture.fakes import EchoLLM, Song
from tests.cli import papers
from tests.cli.conftest import Call
from tests.dataset.loopback_teacher import Teacher

ROOT = Path(__file__).parents[2]


def _blocks(page: str) -> list[str]:
    """The code blocks of a page, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _block(page: str, pattern: str) -> str:
    """The one code block of a page with a line that begins with ``pattern``, wherever it stands."""
    (found,) = [block for block in _blocks(page) if re.search(f"^{pattern}", block, re.MULTILINE)]
    return found


SCHEMA = _block("docs/cli.md", "name: Finding")
SHELL = _block("docs/cli.md", "finetune-structured build")
ASK = _block("docs/cli.md", "# ask.py")
COMMANDS = {
    words[1]: words[1:]
    for words in map(shlex.split, SHELL.splitlines())
    if words and words[0] == "finetune-structured"
}


class Walk:
    """A folder in which the walk was run; ``arguments`` adds the test's own base model and teacher."""

    def __init__(self, folder: Path, base: Path, teacher: Teacher) -> None:
        self.folder, self.base, self.teacher = folder, base, teacher

    def arguments(self, command: list[str]) -> list[str]:
        own = {
            "build": ["--api-base", self.teacher.api_base],
            "check": ["--base-model", str(self.base)],
            "train": ["--base-model", str(self.base)],
        }
        return [*command, *own.get(command[0], [])]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llama_index_finetune_structured.cli", *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test", "COLUMNS": "120"}
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Any:
    folder = tmp_path_factory.mktemp("walk")
    papers.write_folder(folder)
    (folder / "schema.yaml").write_text(SCHEMA)
    with Teacher(papers.reply).running() as teacher:
        done = Walk(folder, tiny_llama, teacher)
        for command in COMMANDS.values():
            result = done.run(*done.arguments(command))
            assert result.returncode == 0, (command, result.stdout, result.stderr)
            assert "Traceback" not in result.stderr
        yield done


def test_the_walk_is_short_and_names_every_step(walk: Walk) -> None:
    assert list(COMMANDS) == ["build", "check", "train", "eval", "report"]
    assert len(SHELL.splitlines()) <= 15


def test_the_report_compares_base_and_tuned_on_the_held_out_rows(walk: Walk) -> None:
    card = json.loads((walk.folder / "eval-output" / "scorecard.json").read_text())
    held_out = FinetuneDataset.load(walk.folder / "data.validation.jsonl")
    assert set(card["systems"]) == {"base", "tuned"}
    assert len(card["rows"]) == len(held_out)
    assert all(score["schema_valid"] == 1 for score in card["systems"].values())  # under the grammar
    page = (walk.folder / "eval-output" / "report.html").read_text()
    assert "Findings, before and after" in page


def _rows_of_files() -> dict[str, str]:
    """The patterns of the table in docs/files.md, each with who may read such a file."""
    rows = re.findall(r"^\| (`.*`) \|.*\| (\w+).* \|$", (ROOT / "docs/files.md").read_text(), re.MULTILINE)
    return {pattern: who for patterns, who in rows for pattern in re.findall("`(.+?)`", patterns)}


def _is_open(path: Path, root: Path) -> bool:
    """Whether other users may read the file: neither it nor a folder above it is closed to them."""
    above = [folder for folder in path.parents if folder.is_relative_to(root) and folder != root]
    return path.stat().st_mode & 0o004 > 0 and all(folder.stat().st_mode & 0o005 for folder in above)


def test_every_file_is_readable_by_whom_the_documentation_says(walk: Walk) -> None:
    folder = walk.folder
    inputs = {"schema.yaml", *(path.relative_to(folder).as_posix() for path in folder.glob("papers/**/*"))}
    for output, form in (("merged", "merged"), ("tuned.gguf", "gguf"), ("lora.gguf", "gguf-adapter")):
        assert walk.run("export", "model", output, "--format", form).returncode == 0
    with capture(folder / "calls.jsonl", output_cls=Song):
        EchoLLM().complete("a question")
        EchoLLM(reply="no song").complete("a question")
        store = JsonlStore(folder / "calls.jsonl")
        store.append(b"{}")  # of a second process: a shard
        store.close()
    rows = FinetuneDataset.load(folder / "data.jsonl")
    rejected = [row.model_copy(update={"answer": Message(role="assistant", content="?")}) for row in rows]
    rows.save_preferences(
        folder / "preferences.jsonl", [Example.model_validate(row.model_dump()) for row in rejected]
    )
    check(rows, target="openai").fix(folder / "good.jsonl")
    Scorecard.from_json(folder / "eval-output/scorecard.json").to_svg(folder / "before-and-after.svg")
    table, met = _rows_of_files(), set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in inputs:
            continue
        matching = [pattern for pattern in table if fnmatch(name, pattern)]
        assert matching, f"{name} is missing in docs/files.md"
        assert {table[pattern] for pattern in matching} == {
            "everyone" if _is_open(path, folder) else "owner"
        }, name
        met.update(matching)
    assert set(table) - met == {"finetune-runs/*", "texts.json", "tune-output/*"}, (
        "documented, but not written here"
    )


def test_a_second_walk_repeats_nothing(walk: Walk, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walk.folder)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    made = ["data.jsonl", "data.validation.jsonl", "model/adapter/adapter_model.safetensors"]
    made += [str(path) for path in Path("eval-output/answers").rglob("*.jsonl")]
    before = {name: Path(name).read_bytes() for name in made}
    asked = len(walk.teacher.requests)
    found = {name: call(*walk.arguments(command)) for name, command in COMMANDS.items()}
    assert {name: Path(name).read_bytes() for name in made} == before
    assert len(walk.teacher.requests) == asked
    assert found["train"]["status"] == "succeeded"
    assert found["eval"]["systems"] == found["report"]["systems"]


def test_the_python_at_the_end_asks_the_tuned_model(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walk.folder)
    names: dict[str, Any] = {}
    exec(ASK, names)
    assert isinstance(names["student"], LoraLLM)
    answer = names["query_engine"].query("What did Beta1 show?").response
    load_schema("schema.yaml").model_validate(answer.model_dump())


class _PromptRecorder(LoraLLM):
    """Records the prompts that a query engine sends, and returns an empty answer."""

    prompts: list[list[ChatMessage]] = Field(default_factory=list)

    def structured_predict(self, output_cls, prompt, llm_kwargs=None, **prompt_args):  # type: ignore[no-untyped-def]
        self.prompts.append(self._messages(prompt, prompt_args))
        return output_cls(author="", year=0)


def test_the_query_engine_serves_the_prompts_that_were_trained_token_for_token(walk: Walk) -> None:
    finding = load_schema(walk.folder / "schema.yaml")
    llm: Any = _PromptRecorder.from_adapter(walk.folder / "model" / "adapter")
    retriever = bm25_retriever(read_nodes(walk.folder / "papers"), 2, "build", "build")
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm, output_cls=finding)
    tokenizer = load_tokenizer(resolve(walk.base))
    examples = list(FinetuneDataset.load(walk.folder / "data.jsonl"))
    for example in examples:
        engine.query(example.query or "")
    stop = stop_token_id(tokenizer)
    trained = [list(token_row(tokenizer, example, stop_id=stop).prompt) for example in examples]
    assert [llm.prompt_token_ids(messages, finding) for messages in llm.prompts] == trained


def test_a_run_of_other_settings_in_the_same_folder_is_refused(
    walk: Walk, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(walk.folder)
    again = walk.arguments(COMMANDS["train"])
    error = call(*again, "--seed", "5", code=1)["error"]
    assert "holds the adapter of another run (differs in seed (0 there, 5 here)): choose another" in error


def test_the_longer_schema_of_the_page_is_valid(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(_block("docs/cli.md", "types:"))
    fields = load_schema(tmp_path / "schema.yaml").model_json_schema()["properties"]
    assert fields["citations"]["items"] == {"$ref": "#/$defs/Citation"}
