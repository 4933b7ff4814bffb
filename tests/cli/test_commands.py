"""``check``, ``train``, ``eval``, ``report``: errors are clear, and only JSON is on stdout with --json."""

from __future__ import annotations

import json
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file
from typer.testing import CliRunner

from llama_index_finetune_structured import FinetuneDataset, Scorecard, compare
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.cli.command import Result, command
from llama_index_finetune_structured.dataset.schema.load import load_schema
from llama_index_finetune_structured.example import Example, Usage
from llama_index_finetune_structured.files import creating
from llama_index_finetune_structured.locks import locked_folder
from tests.cli.conftest import Call

COMMANDS = ["demo", "build", "tune", "check", "train", "eval", "report", "export"]
JOBS = ["list", "show", "wait", "cancel"]


@pytest.mark.parametrize("name", [*COMMANDS, *(f"jobs {job}" for job in JOBS)])
def test_every_command_has_help_with_an_example_and_json(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: finetune-structured {name}" in result.stdout
    assert "--json" in result.stdout


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout.split()) == (
        0, ["finetune-structured", version("llama-index-finetune-structured")]
    )  # fmt: skip


def _made(function: object) -> typer.Typer:
    made = typer.Typer()
    command(made, example="made")(function)  # type: ignore[arg-type]
    return made


def test_what_libraries_print_never_mixes_with_the_result() -> None:
    def noisy(name: str) -> Result:
        print(f"library says {name}")
        return Result({"name": name}, ("shown",))

    result = CliRunner().invoke(_made(noisy), ["é", "--json"])
    assert json.loads(result.stdout) == {"name": "é"}
    assert "library says é" in result.stderr
    assert CliRunner().invoke(_made(noisy), ["é"]).stdout == "shown\n"


def test_ctrl_c_is_130_and_says_how_to_go_on() -> None:
    def stopped() -> Result:
        raise KeyboardInterrupt

    result = CliRunner().invoke(_made(stopped), ["--json"])
    assert (result.exit_code, result.stdout) == (130, "")
    assert "run the same command again" in result.stderr


def test_a_bug_of_ours_is_not_passed_off_as_the_users_mistake() -> None:
    def broken() -> Result:
        raise AssertionError("a bug")

    assert isinstance(CliRunner().invoke(_made(broken), []).exception, AssertionError)


def test_a_validation_error_that_no_option_explains_is_a_bug() -> None:
    class Internal(BaseModel):
        number: int

    def broken() -> Result:
        Internal.model_validate({"number": "none"})
        raise AssertionError("not reached")

    assert isinstance(CliRunner().invoke(_made(broken), []).exception, ValidationError)


@pytest.mark.parametrize("command", ["train rows.jsonl --output run", "demo --output run"])
def test_a_value_that_the_settings_refuse_is_an_error_of_its_option(
    command: str, data: Path, call: Call
) -> None:
    error = call(*command.split(), "--seed", str(2**63), code=1)["error"]
    assert error.startswith("--seed: Input should be less than ")
    assert error.endswith(f", found {2**63}; give another value")
    assert not Path("run").exists()


def test_json_escapes_what_a_terminal_would_obey_and_keeps_the_words() -> None:
    text = 'é 颜 😀 \x1b[2J \x7f \x9b \u202e \ud800 \\ "quoted"\tone\ntwo'

    def named() -> Result:
        return Result({text: [text]}, ())

    printed = CliRunner().invoke(_made(named), ["--json"]).stdout
    assert json.loads(printed) == {text: [text]}
    assert all(word in printed for word in ("é", "颜", "😀", r"\u001b[2J", r"\u007f", r"\u009b", r"\u202e"))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed)


@pytest.fixture
def data(work: Path) -> Path:
    """Eleven good rows, the same one again, and a line that is none."""
    finding = load_schema("schema.yaml")
    pairs = [(f"Who showed {n}?", {"author": f"A{n}", "year": 1990 + n}) for n in range(11)]
    lines = FinetuneDataset.from_pairs(pairs, output_cls=finding).save("rows.jsonl").read_text()
    path = work / "mixed.jsonl"
    path.write_text(f"{lines}{lines.splitlines()[0]}\nnot JSON\n")
    return path


def test_check_lists_every_problem_and_leaves_the_file_alone(data: Path, call: Call) -> None:
    before = data.read_bytes()
    found = call("check", str(data), "--target", "openai", "--price", "25", code=1)
    problems = [(p["line"], p["code"], p["is_warning"]) for p in found["problems"]]
    assert problems == [(12, "duplicate", True), (13, "not_json", False), (0, "field_untaught", True)]
    assert all(problem["fix"] for problem in found["problems"])
    assert (found["good"], found["lines"]) == (12, 13)
    assert found["cost"] == pytest.approx(found["tokens"] * 25 / 1e6)
    assert data.read_bytes() == before


def test_check_fix_leaves_a_file_without_errors(data: Path, call: Call) -> None:
    assert call("check", str(data), "--target", "openai", "--fix", "good.jsonl")["fixed"] == "good.jsonl"
    assert call("check", "good.jsonl", "--target", "openai")["ok"] is True
    assert (
        "not overwritten"
        in call("check", str(data), "--target", "openai", "--fix", "good.jsonl", code=1)["error"]
    )
    assert (
        "not overwritten"
        in call("check", str(data), "--target", "openai", "--fix", str(data), code=1)["error"]
    )


def test_check_shows_people_the_line(data: Path) -> None:
    shown = CliRunner().invoke(app, ["check", str(data), "--target", "openai"])
    assert shown.exit_code == 1
    assert f"{data}:13: error [not_json]" in shown.stdout
    assert "12 of 13 lines are good" in shown.stdout


def test_check_says_how_long_training_would_be(data: Path, tiny_llama: Path) -> None:
    shown = CliRunner().invoke(app, ["check", "rows.jsonl", "--base-model", str(tiny_llama)])
    assert "x 5 epochs" in shown.stdout


def test_eval_does_not_replace_another_evaluation(data: Path, call: Call, tiny_llama: Path) -> None:
    ask = ["eval", str(tiny_llama), "rows.jsonl"]
    first = call(*ask, "--output", "scores")
    kept = Path("scores/scorecard.json").read_bytes()
    refused = call(*ask, "--output", "scores", "--no-grammar", code=1)["error"]
    assert "scores/scorecard.json: holds an evaluation with another grammar and is not overwritten" in refused
    assert "with another limit" in call(*ask, "--output", "scores", "--limit", "3", code=1)["error"]
    assert Path("scores/scorecard.json").read_bytes() == kept
    assert call(*ask, "--output", "scores")["systems"] == first["systems"]
    call(*ask, "--output", "few", "--limit", "3")
    assert len(Scorecard.from_json("few/scorecard.json").rows) == 3


def _scorecard(path: Path) -> Scorecard:
    examples = FinetuneDataset.load("rows.jsonl")
    systems = {"base": lambda e: {"author": "", "year": 0}, "tuned": lambda e: e.answer_object()}
    card = compare(systems, examples, show_progress=False)
    card.to_json(path)
    return card


def test_report_writes_the_page_of_a_saved_scorecard_again(data: Path, call: Call) -> None:
    card = _scorecard(Path("scores") / "scorecard.json")
    found = call("report", "scores/scorecard.json", "--title", "Findings & more")
    assert found["verdict"] == card.verdict()
    assert found["systems"]["tuned"]["exact_match"] == 1
    assert found["systems"]["base"]["fields"]["author"] == 0
    assert "Findings &amp; more" in Path("scores/report.html").read_text()
    call("report", "scores/scorecard.json", "--html", "elsewhere/page.html")
    assert Path("elsewhere/page.html").exists()
    shown = CliRunner().invoke(app, ["report", "scores"], env={"COLUMNS": "120"})
    assert card.verdict() in shown.stdout


def _with_usage(card: Scorecard, path: str, **settings: str) -> str:
    usage = Usage(prompt_tokens=1000, completion_tokens=100)
    rows = tuple(row.model_copy(update={"usage": usage}) for row in card.rows)
    return str(card.model_copy(update={"rows": rows, "settings": card.settings | settings}).to_json(path))


def test_report_shows_after_how_many_queries_the_student_is_cheaper(data: Path, call: Call) -> None:
    path = _with_usage(_scorecard(Path("scores") / "scorecard.json"), "scores/scorecard.json")
    found = call("report", path, "--input-price", "2", "--output-price", "8", "--training-cost", "2.8")[
        "break_even"
    ]
    assert found["teacher_per_query"] == pytest.approx(0.0028)
    assert found["student_per_query"] == 0
    assert found["queries"] in (1000, 1001)
    assert (
        "if its answers are good enough (100% of the fields right)" in Path("scores/report.html").read_text()
    )


def test_report_counts_the_hours_and_examples_of_the_run(data: Path, call: Call, tiny_llama: Path) -> None:
    train = ["train", "rows.jsonl", "--base-model", str(tiny_llama), "--output", "run", "--batch-size", "4"]
    job = call(*train, "--upper-layers", "1")
    path = _with_usage(_scorecard(Path("scores") / "scorecard.json"), "scores/scorecard.json", run="run")
    prices = ["--input-price", "2", "--output-price", "8", "--machine-price", "3600"]
    found = call("report", path, *prices)["break_even"]
    logged = json.loads(Path("run/training_log.json").read_text())["steps"]
    assert len(logged) == job["steps"]
    assert found["upfront"] == pytest.approx(sum(step["seconds"] for step in logged) + 2 * 11 * 0.0028)
    Path("run").rename("moved")
    assert "give it with --training-cost" in call("report", path, *prices, code=1)["error"]


def test_upper_layers_trains_only_those(data: Path, call: Call, tiny_llama: Path) -> None:
    call("train", "rows.jsonl", "--base-model", str(tiny_llama), "--output", "run", "--upper-layers", "1")
    adapted = load_file("run/adapter/adapter_model.safetensors")
    layers = json.loads((tiny_llama / "config.json").read_text())["num_hidden_layers"]
    assert layers > 1
    assert all(f".layers.{layers - 1}." in name for name in adapted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--input-price 2 --output-price 8", "give it with --training-cost"),
        ("--input-price 2", "give both --input-price and --output-price"),
        ("--input-price 2 --output-price 8 --training-cost 1", "no example has its teacher's token counts"),
    ],
)
def test_incomplete_prices_are_an_error(arguments: str, message: str, data: Path, call: Call) -> None:
    _scorecard(Path("scores") / "scorecard.json")
    assert message in call("report", "scores/scorecard.json", *arguments.split(), code=1)["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("check nowhere.jsonl --target openai", None),
        ("check rows.jsonl --base-model nowhere", "base model 'nowhere': no such folder"),
        ("train nowhere.jsonl", "nowhere.jsonl: error [cannot_read] No such file"),
        ("train mixed.jsonl", "mixed.jsonl:13: error [not_json] not valid JSON"),
        ("train rows.jsonl --base-model nowhere", "base model 'nowhere': no such folder"),
        ("eval nowhere rows.jsonl", "base model 'nowhere': no such folder"),
        ("eval halfway rows.jsonl", "halfway: its training is not finished"),
        ("export halfway tuned.gguf --format gguf", "halfway: its training is not finished"),
        ("eval modle rows.jsonl", "modle: not a training run or adapter; base model 'modle'"),
        ("build schema.yaml --schema schema.yaml --teacher t", "schema.yaml: is a file; give the folder"),
        ("eval nowhere nowhere.jsonl", "nowhere.jsonl: cannot be read"),
        ("report nowhere.json", "nowhere.json: cannot be read"),
        ("report rows.jsonl", "rows.jsonl: not a scorecard"),
    ],
)
def test_a_users_mistake_is_one_clear_error(
    arguments: str, message: str | None, data: Path, call: Call
) -> None:
    Path("halfway/checkpoints").mkdir(parents=True)
    before = sorted(os.listdir())
    found = call(*arguments.split(), code=1)
    assert "Traceback" not in found["stderr"]
    if message is None:
        assert found["problems"][0]["code"] == "cannot_read"
    else:
        assert message in found["error"]
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "line",
    [
        "",
        "jobs",
        "nothing",
        "jobs nothing",
        "train rows.jsonl --lerning-rate 1",
        "train rows.jsonl another.jsonl",
        "train",
        "build papers --teacher t",
        "train rows.jsonl --output",
        "train rows.jsonl --rank 0",
        "train rows.jsonl --rank many",
        "build papers --schema schema.yaml --pairs pairs.jsonl --validation 1",
    ],
)
def test_a_command_line_that_is_not_understood_is_2(line: str, data: Path) -> None:
    before = sorted(os.listdir())
    result = CliRunner().invoke(app, line.split())
    assert (result.exit_code, result.stdout == "") == (2, line not in ("", "jobs"))  # these two show the help
    assert sorted(os.listdir()) == before


def test_a_system_that_gave_no_answer_is_1_in_eval_and_report(
    data: Path, call: Call, tiny_llama: Path
) -> None:
    long = [(f"{'Who showed it? ' * 2000}{n}", {"author": "A", "year": n}) for n in range(2)]
    FinetuneDataset.from_pairs(long, output_cls=load_schema("schema.yaml")).save("long.jsonl")
    for ask in (["eval", str(tiny_llama), "long.jsonl", "--output", "scores"], ["report", "scores"]):
        found = call(*ask, code=1)
        assert found["error"] == "base gave no answer; the causes are under 'problems'"
        assert "base: all 2 calls failed: " in found["problems"][0]
        assert found["systems"]["base"]["schema_valid"] == 0
        assert Path("scores/report.html").is_file()


def test_a_report_is_1_and_names_only_the_systems_without_an_answer(data: Path, call: Call) -> None:
    def broken(example: object) -> object:
        raise RuntimeError("no route")

    systems = {"one": broken, "two": lambda example: example.answer_object(), "three": broken}
    compare(systems, FinetuneDataset.load("rows.jsonl"), show_progress=False).to_json("scores.json")
    assert call("report", "scores.json", code=1)["error"].startswith("one, three gave no answer; ")
    shown = CliRunner().invoke(app, ["report", "scores.json"], env={"COLUMNS": "120"})
    assert (shown.exit_code, shown.stdout.count("three: all 11 calls failed: RuntimeError: no route")) == (
        1,
        1,
    )


def test_an_evaluation_in_which_some_answers_fail_is_0(data: Path, call: Call) -> None:
    def sometimes(example: Example) -> object:
        if example.query == "Who showed 3?":
            raise RuntimeError("no route")
        return example.answer_object()

    card = compare({"it": sometimes}, FinetuneDataset.load("rows.jsonl"), show_progress=False)
    card.to_json("scores.json")
    found = call("report", "scores.json")
    assert "error" not in found
    assert "it: 1 of 11 calls failed: RuntimeError: no route" in found["problems"]


@pytest.mark.parametrize("command", ["eval", "demo", "export"])
def test_the_second_command_in_one_output_is_told_who_works_there(
    command: str, tiny_llama: Path, data: Path, call: Call
) -> None:
    """Nothing is written or removed, and the first one's output is what it would have been."""
    if command == "export":
        call("train", "rows.jsonl", "--base-model", str(tiny_llama), "--output", "model", "--epochs", "1")
    arguments = {
        "eval": [str(tiny_llama), "rows.jsonl", "--output", "out"],
        "demo": ["--output", "out"],
        "export": ["model", "out"],
    }
    writer = creating if command == "export" else locked_folder
    with writer(Path("out")):
        before = sorted(path.name for path in Path().rglob("*"))
        error = call(command, *arguments[command], code=1)["error"]
        assert sorted(path.name for path in Path().rglob("*")) == before
        if command == "export":
            Path(".unfinished-out/new/out").write_text("whole")
    assert f"out: process {os.getpid()} is at work there: wait until it has ended" in error
