"""``--schema``: one class decides which answers are valid, in check, train, eval, export and the data set's record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured import (
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraSettings,
    Scorecard,
    check,
    load_schema,
)
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.cli.schema_option import answer_class
from llama_index_finetune_structured.cli.train import _rows
from llama_index_finetune_structured.evaluation.export_parity import Parity, parity
from llama_index_finetune_structured.local.model.adapter import read_card
from tests.cli.conftest import Call

MODELS = '''
from decimal import Decimal
from pydantic import BaseModel, field_validator

with open("code-was-run", "a") as file:
    file.write("once ")

class Invoice(BaseModel):
    """An invoice."""
    number: str
    total: Decimal

    @field_validator("number")
    @classmethod
    def _upper(cls, value: str) -> str:
        return value.strip().upper()

    @field_validator("total")
    @classmethod
    def _whole_cents(cls, value: Decimal) -> Decimal:
        if value != round(value, 2):
            raise ValueError("more than two decimals")
        return value
'''


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve rows that fit the JSON schema; the class refuses the last one, and writes the first one otherwise."""
    monkeypatch.chdir(tmp_path)
    Path("models.py").write_text(MODELS)
    schema = load_schema("models.py:Invoice").model_json_schema()
    answers = [{"number": f" a{n} ", "total": f"{n}.50"} for n in range(11)] + [
        {"number": "A", "total": "1.834"}
    ]
    pairs = [(f"Invoice {n}?", answer) for n, answer in enumerate(answers)]
    path = FinetuneDataset.from_pairs(pairs, schema=schema).save("rows.jsonl")
    Path("code-was-run").unlink()
    return path


def test_check_names_the_lines_that_the_class_refuses_and_fix_leaves_them_out(rows: Path, call: Call) -> None:
    ask = ["check", "rows.jsonl", "--target", "openai"]
    assert call(*ask)["good"] == 12
    found = call(*ask, "--schema", "models.py:Invoice", code=1)
    (problem,) = [problem for problem in found["problems"] if not problem["is_warning"]]
    assert (problem["line"], problem["code"], found["good"]) == (12, "answer_not_in_schema", 11)
    assert "more than two decimals" in problem["message"]
    kept = FinetuneDataset(list(FinetuneDataset.load("rows.jsonl"))[:11])
    assert found["tokens"] == check(kept, target="openai").tokens
    assert check("rows.jsonl", target="openai", output_cls=load_schema("models.py:Invoice")).good == 11
    call(*ask, "--schema", "models.py:Invoice", "--fix", "good.jsonl")
    assert len(FinetuneDataset.load("good.jsonl")) == 11


def test_train_refuses_what_the_class_refuses_and_trains_on_what_it_writes(
    rows: Path, call: Call, tiny_llama: Path
) -> None:
    ask = ["train", "--base-model", str(tiny_llama), "--rank", "2", "--epochs", "1", "--output", "run"]
    refused = call(*ask, "rows.jsonl", "--schema", "models.py:Invoice", code=1)["error"]
    assert "refuses the answers of 1 row of 12; the first, row 12: " in refused
    assert "more than two decimals" in refused
    assert not Path("run").exists()
    call("check", "rows.jsonl", "--target", "openai", "--schema", "models.py:Invoice", "--fix", "good.jsonl")
    Path("code-was-run").unlink()
    job = call(*ask, "good.jsonl", "--schema", "models.py:Invoice", "--validation", "good.jsonl")
    assert Path("code-was-run").read_text() == "once "
    invoice = load_schema("models.py:Invoice")
    rows_trained = _rows(Path("good.jsonl"), invoice, "models.py:Invoice")
    assert isinstance(rows_trained, FinetuneDataset)
    assert [example.answer_object()["number"] for example in rows_trained] == [f"A{n}" for n in range(11)]
    assert _rows(Path("good.jsonl"), None, None) == Path("good.jsonl")
    written, read = (
        LoraFinetuneEngine(data, base_model=tiny_llama, config=LoraSettings(rank=2, epochs=1)).fingerprint
        for data in (rows_trained, "good.jsonl")
    )
    assert read_card(Path(job["adapter"])).fingerprint == written != read


def test_eval_is_by_the_class_for_gold_and_answers_alike(rows: Path, call: Call, tiny_llama: Path) -> None:
    ask = ["eval", str(tiny_llama), "rows.jsonl", "--output"]
    by_schema = call(*ask, "by-schema")
    assert (by_schema["examples"], by_schema["left_out"]) == (12, 0)
    assert "--schema FILE.py:Class validates by the class" in " ".join(by_schema["stderr"].split())
    by_class = call(*ask, "by-class", "--schema", "models.py:Invoice")
    assert (by_class["examples"], by_class["left_out"]) == (11, 1)
    assert "--schema" not in by_class["stderr"]
    card = Scorecard.from_json("by-class/scorecard.json")
    assert card.rows[0].gold == {"number": "A0", "total": "0.50"}
    assert card.settings["schema"] == "models.py:Invoice"
    assert "another schema" in call(*ask, "by-class", code=1)["error"]


def test_a_data_set_names_its_class_but_never_runs_it(rows: Path, call: Call, tiny_llama: Path) -> None:
    Path("rows.build").mkdir()
    Path("rows.build/schema.json").write_text(json.dumps({"source": "models.py:Invoice"}))
    found = call("eval", str(tiny_llama), "rows.jsonl", "--limit", "1")
    assert found["stderr"].count("--schema") == 1
    assert "--schema models.py:Invoice validates by the class" in " ".join(found["stderr"].split())
    assert not Path("code-was-run").exists()
    FinetuneDataset.load("rows.jsonl").save("rows.validation.jsonl")
    held_out = call("check", "rows.validation.jsonl", "--target", "openai")
    assert "--schema models.py:Invoice" in " ".join(held_out["stderr"].split())
    for damaged in ('{"source": 3}', "[]", "not JSON", '{"source": "a\\nb"}'):
        Path("rows.build/schema.json").write_text(damaged)
        assert "--schema" not in call("check", "rows.jsonl", "--target", "openai")["stderr"]


def test_a_yaml_schema_is_found_again_since_it_runs_no_code(work: Path, call: Call) -> None:
    pairs = Path("pairs.jsonl")
    rows = [
        {"query": f"What did Miller {n}?", "response": {"author": f"A{n}", "year": 1990 + n}}
        for n in range(20)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    call("build", "papers", "--schema", "schema.yaml", "--pairs", "pairs.jsonl", "--output", "data.jsonl")
    base = ["check", "data.jsonl", "--target", "openai"]
    assert "--schema" not in call(*base)["stderr"]
    strict = Path("schema.yaml").read_text().replace("year: integer", "year: {type: integer, max: 1980}")
    Path("schema.yaml").write_text(strict)
    assert "--schema schema.yaml validates by the class" in " ".join(call(*base)["stderr"].split())
    assert call(*base, "--schema", "schema.yaml", code=1)["good"] == 0


@pytest.mark.parametrize("name", ["schema.yaml", "schema.YML", "schema.json"])
def test_every_suffix_of_a_yaml_schema_is_found_again(name: str, work: Path, call: Call) -> None:
    text = '{"name": "Finding", "fields": {"author": "string", "year": "integer"}}'
    Path(name).write_text(text)
    pairs = [{"query": f"Who {n}?", "response": {"author": "A", "year": n}} for n in range(20)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    call("build", "papers", "--schema", name, "--pairs", "pairs.jsonl")
    found = answer_class(None, Path("data.jsonl"))
    assert found is not None
    assert found.__name__ == "Finding"
    Path(name).write_text(text.replace("integer", "number"))
    assert answer_class(None, Path("data.jsonl")) is None


def test_export_checks_by_the_class(
    rows: Path, call: Call, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes: list[str] = []

    def recorded(*arguments: Any, output_cls: Any, **options: Any) -> Parity:
        classes.append(output_cls.__name__)
        return parity(*arguments, output_cls=output_cls, **options)

    monkeypatch.setattr("llama_index_finetune_structured.cli.export.parity", recorded)
    call("check", "rows.jsonl", "--target", "openai", "--schema", "models.py:Invoice", "--fix", "good.jsonl")
    call(
        "train",
        "good.jsonl",
        "--base-model",
        str(tiny_llama),
        "--rank",
        "2",
        "--epochs",
        "1",
        "--output",
        "run",
    )
    export = ["export", "run", "merged", "--check", "good.jsonl", "--schema", "models.py:Invoice", "--json"]
    done = CliRunner().invoke(app, export)
    assert classes == ["Invoice"]
    assert json.loads(done.stdout)["parity"]["forms"]["merged"]["n"] == 11


@pytest.mark.parametrize("command", ["eval nowhere", "check", "train", "export run merged --check"])
@pytest.mark.parametrize(
    "schema", ["nowhere.py:Invoice", "models.py:Nobody", "models.py", "nowhere.yaml", "a:b:c", ""]
)
def test_a_schema_that_cannot_be_loaded_is_one_clear_error(
    command: str, schema: str, rows: Path, call: Call, tiny_llama: Path
) -> None:
    Path("run").mkdir(exist_ok=True)
    base = ["--base-model", str(tiny_llama)] if command in ("check", "train") else []
    found = call(*command.split(), "rows.jsonl", "--schema", schema, *base, code=1)
    assert found["error"]
    assert "Traceback" not in found["stderr"]
