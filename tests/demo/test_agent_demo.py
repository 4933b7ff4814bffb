"""The demo of an agent end to end on a tiny untrained model: all steps are real, only its answers are poor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured import AgentScorecard
from llama_index_finetune_structured.cli import app

pytestmark = [  # all of LlamaIndex's agents
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]


def _arguments(base: Path, output: Path) -> list[str]:
    sizes = ["--train-size", "10", "--test-size", "10", "--base-model", str(base)]
    return ["demo", "--agent", *sizes, "--output", str(output)]


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("agent-demo") / "out"
    result = CliRunner().invoke(app, _arguments(tiny_llama, output), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return output


def test_base_tuned_and_teacher_run_on_every_held_out_question(finished: Path) -> None:
    card = AgentScorecard.from_json(finished / "scorecard.json")
    assert list(card.systems) == ["base", "tuned", "teacher"]
    assert len(card.rows) == 10
    assert not card.left_out
    assert card.systems["teacher"].rates["run_right"].rate == 1
    for score in card.systems.values():
        assert not any(failure.call_failed for failure in score.failures)
        assert all(0 <= rate.rate <= 1 for rate in score.rates.values())


def test_everything_lands_in_the_output_folder(finished: Path) -> None:
    for name in ("captured.jsonl", "gold.jsonl", "train.jsonl", "test.jsonl", "report.html"):
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


def test_the_result_as_json_has_the_rates_of_every_agent(tiny_llama: Path, finished: Path) -> None:
    result = CliRunner().invoke(app, [*_arguments(tiny_llama, finished), "--json"], catch_exceptions=False)
    data = json.loads(result.stdout)
    assert data["runs"] == 10
    assert data["systems"]["teacher"]["run_right"] == 1
    assert data["report"] == str(finished / "report.html")


def test_a_folder_of_an_agent_is_refused_to_a_query_engine(tiny_llama: Path, finished: Path) -> None:
    arguments = [part for part in _arguments(tiny_llama, finished) if part != "--agent"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    assert "other options" in result.output
