"""The demo end to end on a tiny untrained model: all steps are real, only the answers are poor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from pydantic import Field
from typer.testing import CliRunner

from llama_index_finetune_structured import Example, FinetuneDataset, LoraLLM
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.demo.corpus import ApiCard, functions
from llama_index_finetune_structured.demo.run import DemoSettings, _engine, _retriever
from llama_index_finetune_structured.local.model.base_models import load_tokenizer, resolve
from llama_index_finetune_structured.local.model.prompts import token_row
from llama_index_finetune_structured.local.model.stop_token import stop_token_id
from tests.fakes.openai_server import OpenAIServer

SYSTEMS = {"base", "base + grammar", "tuned", "tuned + grammar", "teacher"}


def _arguments(base: Path, output: Path) -> list[str]:
    sizes = ["--train-size", "6", "--test-size", "3", "--base-model", str(base)]
    return ["demo", *sizes, "--output", str(output)]


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "out"
    result = CliRunner().invoke(app, _arguments(tiny_llama, output), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return output


def test_the_scorecard_has_all_five_systems_with_rates_from_0_to_1(finished: Path) -> None:
    systems = json.loads((finished / "scorecard.json").read_text())["systems"]
    assert set(systems) == SYSTEMS
    for figures in systems.values():
        assert figures["n"] == 3
        assert 0 <= figures["schema_valid"] <= 1
        assert 0 <= figures["exact_match"] <= 1
        assert 0 <= figures["fields"]["parameters"]["f1"] <= 1
        assert 0 <= figures["fields"]["function"]["accuracy"] <= 1
        assert figures["seconds_per_answer"] >= 0


def test_the_grammar_makes_every_answer_valid_even_of_an_untrained_model(finished: Path) -> None:
    systems = json.loads((finished / "scorecard.json").read_text())["systems"]
    assert systems["base + grammar"]["schema_valid"] == 1
    assert systems["tuned + grammar"]["schema_valid"] == 1
    assert systems["teacher"]["schema_valid"] == 1
    assert systems["base"]["schema_valid"] == 0


def test_everything_lands_in_the_output_folder(finished: Path) -> None:
    for name in ("captured.jsonl", "train.jsonl", "test.jsonl", "report.html", "before-and-after.svg"):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "model" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_page_says_who_the_teacher_was_and_needs_no_other_file(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "no key was given" in page
    assert not re.search(r"""(?:src|href)=["']https?:""", page)


def test_a_second_run_repeats_nothing(tiny_llama: Path, finished: Path) -> None:
    watched = [finished / "captured.jsonl", finished / "model" / "adapter" / "adapter_model.safetensors"]
    watched += sorted((finished / "answers").rglob("*.jsonl"))
    before = [path.read_bytes() for path in watched]
    systems = json.loads((finished / "scorecard.json").read_text())["systems"]
    result = CliRunner().invoke(app, _arguments(tiny_llama, finished), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert [path.read_bytes() for path in watched] == before
    assert json.loads((finished / "scorecard.json").read_text())["systems"] == systems


def test_no_held_out_sub_package_was_seen_in_training(finished: Path) -> None:
    groups = {function.qualified_name: function.group for function in functions()}
    held_out = {example.metadata["group"] for example in FinetuneDataset.load(finished / "test.jsonl")}
    for example in FinetuneDataset.load(finished / "train.jsonl"):
        assert {groups[source.document_id or ""] for source in example.sources}.isdisjoint(held_out)


class _PromptRecorder(LoraLLM):
    """Records the prompts that a query engine sends."""

    prompts: list[list[ChatMessage]] = Field(default_factory=list)

    def structured_predict(self, output_cls, prompt, llm_kwargs=None, **prompt_args):  # type: ignore[no-untyped-def]
        self.prompts.append(self._messages(prompt, prompt_args))
        return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)


def test_the_prompt_served_is_the_prompt_trained_on_token_for_token(tiny_llama: Path, finished: Path) -> None:
    llm: Any = _PromptRecorder.from_adapter(finished / "model" / "adapter", max_new_tokens=120)
    engine = _engine(_retriever(functions()), llm)
    tokenizer = load_tokenizer(resolve(tiny_llama))
    examples = list(FinetuneDataset.load(finished / "train.jsonl"))
    for example in examples:
        engine.query(example.query or "")
    trained = [list(_row(tokenizer, example)) for example in examples]
    served = [llm.prompt_token_ids(messages, ApiCard) for messages in llm.prompts]
    assert served == trained


def _row(tokenizer: object, example: Example) -> tuple[int, ...]:
    return token_row(tokenizer, example, stop_id=stop_token_id(tokenizer)).prompt


def test_a_folder_of_another_run_is_refused(tiny_llama: Path, finished: Path) -> None:
    result = _cli(*_arguments(tiny_llama, finished), "--seed", "5")
    assert result.returncode == 1
    assert "other options" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_hosted_teacher_without_a_key_is_a_clear_error(tmp_path: Path) -> None:
    result = _cli("demo", "--teacher", "gpt-4.1", "--output", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "OPENAI_API_KEY" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_real_teacher_is_asked_again_after_a_failure_and_paid_once(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: dict[str, Any]) -> str:
        asked = " ".join(str(message["content"]) for message in body["messages"])
        name = re.findall(r"How do I call ([\w.]+)\?", asked)[-1]
        parameter = {"name": "G", "type": "graph"}
        fits = {"function": name, "parameters": [parameter], "returns": None, "raises": []}
        return "{}" if name == refused else json.dumps(fits)

    refused = ""
    output = tmp_path / "out"
    with OpenAIServer(answer_chat=answer) as server:
        command = [*_arguments(tiny_llama, output), "--teacher", "gpt-4.1", "--api-base", server.base]
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        failed = CliRunner().invoke(app, command, catch_exceptions=False)
        assert failed.exit_code == 1
        assert "AuthenticationError" in failed.output
        assert "the teacher gave no valid answer" in failed.output
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        (refused, *_) = re.findall(r"How do I call ([\w.]+)\?: Auth", failed.output)
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "5 answers, 1 failed" in done.output
        paid = len(server.exchanges)
        again = CliRunner().invoke(app, command, catch_exceptions=False)
        assert again.exit_code == 0, again.output
        assert len(server.exchanges) == paid


def test_report_writes_the_demos_page_again(finished: Path) -> None:
    before = (finished / "report.html").read_text()
    result = CliRunner().invoke(app, ["report", str(finished)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (finished / "report.html").read_text() == before
    assert "Training" in before


def _cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    bare = {key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"}
    command = [sys.executable, "-m", "llama_index_finetune_structured.cli", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, capture_output=True, text=True, env={**bare, "PYTHONPATH": str(root)}, check=False
    )


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="train_size"):
        DemoSettings(train_size=0)
