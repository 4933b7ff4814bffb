"""No command shows a traceback for what a user may type or name: one clear line on stderr, exit code 1 or 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured import FinetuneDataset, compare
from llama_index_finetune_structured.cli import app
from tests import exporting
from tests.cli import papers

FOREIGN = re.compile(
    r"Traceback|\b(?!ConfigurationError|DatasetError)[A-Z]\w*(?:Error|Exception)\b(?!: Error)|\[Errno|object at 0x"
)
DEEP = b"[" * 5_000  # deeper than the recursion limit; longer ones are slow as YAML


def _text(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _folder(path: Path) -> None:
    path.mkdir()


def _files_within(path: Path) -> None:
    path.mkdir()
    (path / "stray").write_bytes(b"\x00\xff")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("gone")


INPUTS: dict[str, Callable[[Path], None]] = {
    "missing": lambda _: None,
    "a folder": _folder,
    "a folder of something else": _files_within,
    "an empty file": _text(b""),
    "blank lines": _text(b"\n \n\n"),
    "binary": _text(bytes(range(256)) * 40),
    "not UTF-8": _text("Ärger\n".encode("latin-1")),
    "UTF-16": _text('{"a": 1}\n'.encode("utf-16")),
    "cut JSON": _text(b'{"messages": [{"role": "us'),
    "another JSON": _text(b'{"query": "q", "n": [1, null, {}]}\n'),
    "a JSON list": _text(b"[1, 2]\n"),
    "a number": _text(b"7\n"),
    "null": _text(b"null\n"),
    "deep JSON": _text(DEEP),
    "a huge number": _text(b'{"a": 1e999999, "b": ' + b"9" * 5000 + b"}\n"),
    "half a surrogate pair": _text(b'{"messages": "\\ud800", "systems": "\\udfff"}\n'),
    "control characters": _text(b'{"\\u001b[2J": "\\u0007"}\n\x1b[2J\n'),
    "a link to itself": _loop,
    "a link to nothing": _dangling,
}
# Where BAD stands, each input is put; the other names are good.
COMMANDS = {
    "build: documents": "build BAD --schema schema.yaml --pairs pairs.jsonl",
    "build: schema": "build papers --schema BAD.yaml --pairs pairs.jsonl",
    "build: Python schema": "build papers --schema BAD.py:Finding --pairs pairs.jsonl",
    "build: labels": "build papers --schema schema.yaml --pairs BAD",
    "check: openai": "check BAD --target openai",
    "check: gradient": "check BAD --target gradient",
    "check: local": "check BAD --base-model BASE",
    "check: base model": "check rows.jsonl --base-model ./BAD",
    "check: schema": "check rows.jsonl --target openai --schema BAD.json",
    "train: data": "train BAD --base-model BASE --output out",
    "train: held-out data": "train rows.jsonl --validation BAD --base-model BASE --output out",
    "train: base model": "train rows.jsonl --base-model ./BAD --output out",
    "train: GGUF": "train rows.jsonl --base-model ./BAD.gguf --output out",
    "eval: model": "eval ./BAD rows.jsonl --output out",
    "eval: data": "eval RUN BAD --output out",
    "eval: base model": "eval RUN rows.jsonl --base-model ./BAD --output out",
    "select: model": "select ./BAD rows.jsonl --output out",
    "select: data": "select RUN BAD --output out",
    "report": "report BAD",
    "export: model": "export BAD out",
    "export: data": "export RUN out --check BAD",
    "export: base model": "export RUN out --base-model ./BAD",
    "jobs list": "jobs list --runs BAD",
    "jobs show": "jobs show run --runs BAD",
    "jobs wait": "jobs wait BAD --timeout 0.1",
    "jobs cancel": "jobs cancel BAD",
}  # fmt: skip
MAY_SUCCEED = {
    ("jobs list", kind) for kind in INPUTS
} | {("check: openai", "blank lines"), ("report", "a folder")}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a command may need."""
    folder = tmp_path_factory.mktemp("good")
    papers.write_folder(folder)
    answer = {"author": "Ada", "year": 1990}
    (folder / "pairs.jsonl").write_text(
        json.dumps({"query": "What did Ada show?", "response": answer}) + "\n"
    )
    data = exporting.colours()
    FinetuneDataset(data).save(folder / "rows.jsonl")
    exporting.train(exporting.save_base("llama", folder / "base"), folder / "run")
    compare({"ä": lambda row: row.answer_object()}, data, show_progress=False).to_json(
        folder / "scorecard.json"
    )
    return folder


@pytest.fixture
def here(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder with links to the good things."""
    for path in good.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    return tmp_path


def invoke(line: str) -> Any:
    words = line.replace("BASE", "base").replace("RUN", "run").split(" ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return CliRunner().invoke(app, words)


def assert_one_clear_error(result: Any, *, may_succeed: bool = False) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in ((0, 1, 2) if may_succeed else (1, 2)), result.output
    if result.exit_code == 1:
        shown = [
            line for line in result.stderr.splitlines() if "Error: " in line
        ] or result.stdout.splitlines()
        assert shown, result.output
    shown_error = re.sub(
        r"cannot be imported \(\w+", "", result.output
    )  # names what the user's own file raises
    assert not FOREIGN.search(shown_error), result.output
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", result.output), repr(result.output)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_is_one_clear_error(command: str, kind: str, here: Path) -> None:
    name = (
        next(word for word in COMMANDS[command].split() if "BAD" in word).removeprefix("./").partition(":")[0]
    )
    INPUTS[kind](here / name.replace("BAD", "bad"))
    before = sorted(os.listdir())
    result = invoke(COMMANDS[command].replace("BAD", "bad"))
    assert_one_clear_error(result, may_succeed=(command, kind) in MAY_SUCCEED)
    if result.exit_code:
        left = set(os.listdir()) - set(before)
        assert left <= {"report.html"}, left


@pytest.mark.parametrize(
    "line",
    [
        "build papers --schema schema.yaml --pairs pairs.jsonl --top-k 0",
        "build papers --schema schema.yaml --pairs pairs.jsonl --validation 1",
        "build papers --schema schema.yaml --pairs pairs.jsonl --validation nan",
        "build papers --schema schema.yaml --pairs pairs.jsonl --output papers",
        "build papers --schema schema.yaml --pairs pairs.jsonl --output rows.jsonl",
        "build papers --schema schema.yaml --pairs pairs.jsonl --output base/config.json/data.jsonl",
        "build papers --schema schema.yaml --pairs pairs.jsonl --output /proc/nowhere/data.jsonl",
        "build papers --schema schema.yaml --teacher t --pairs pairs.jsonl",
        "build papers --schema schema.yaml",
        "build papers",
        "check rows.jsonl --target nobody",
        "check rows.jsonl --target openai --epochs 0",
        "check rows.jsonl --target openai --price -1",
        "check rows.jsonl --target openai --fix rows.jsonl",
        "check rows.jsonl --target openai --fix papers",
        "check rows.jsonl --target openai --fix base/config.json/new.jsonl",
        "check rows.jsonl --target local --base-model nobody/nothing",
        "train rows.jsonl --base-model base --output scorecard.json",
        "train rows.jsonl --base-model base --output base/config.json/run",
        "train rows.jsonl --base-model base --output out --learning-rate x",
        "train rows.jsonl --base-model base --output out --learning-rate nan",
        "train rows.jsonl --base-model base --output out --rank 0",
        "train rows.jsonl --base-model base --output out --upper-layers 99",
        "train rows.jsonl --base-model base --output out --max-length 3",
        "train rows.jsonl --base-model '' --output out",
        "eval run rows.jsonl --output scorecard.json",
        "eval run rows.jsonl --output base/config.json/out",
        "eval run rows.jsonl --limit 0 --output out",
        "eval run rows.jsonl --batch-size 0 --output out",
        "eval run pairs.jsonl --output out",
        "report scorecard.json --html folder",
        "report scorecard.json --html base/config.json/page.html",
        "report scorecard.json --input-price 1",
        "report scorecard.json --input-price x --output-price 1",
        "export run papers",
        "export run out --format nothing",
        "export run out --dtype f1",
        "export run out --format gguf",
        "export base out",
        "export run base/config.json/out",
        "export run out.gguf --format gguf-base --check rows.jsonl",
        "jobs show nothing",
        "jobs show ../..",
        "jobs wait nothing --timeout -1",
        "jobs cancel ''",
        "jobs list --every 0",
        "jobs nothing",
        "demo --train-size 1",
        "demo --output scorecard.json --base-model base",
        "demo --output out --base-model nowhere",
        "nothing",
        "eval",
        "train --no-such-option",
    ],
)
def test_bad_options_are_one_clear_error(line: str, here: Path) -> None:
    assert_one_clear_error(invoke(line))


RUN_FILES = [
    "run.json",
    "training_log.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
]
DAMAGES = ["an empty file", "binary", "cut JSON", "another JSON", "a JSON list", "null", "deep JSON"]
PIPED = ["report scorecard.json --json", "check rows.jsonl --target openai", "jobs list", "--help"]
RUN = "import sys; from llama_index_finetune_structured.cli import main; sys.argv = ['x', *sys.argv[1:]]; main()"


@pytest.mark.parametrize("file", RUN_FILES)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_run_is_one_clear_error(file: str, kind: str, here: Path, good: Path) -> None:
    copy = here / "damaged"
    subprocess.run(["cp", "-r", str(good / "run"), str(copy)], check=True)
    if not (copy / file).exists():
        pytest.skip(f"a run has no {file}")
    (copy / file).unlink()
    INPUTS[kind](copy / file)
    for line in ("eval damaged rows.jsonl --output out", "export damaged merged"):
        assert_one_clear_error(invoke(line), may_succeed=file in ("run.json", "training_log.json"))


def test_a_damaged_log_is_found_before_answers_are_generated(here: Path, good: Path) -> None:
    subprocess.run(["cp", "-r", str(good / "run"), "damaged"], check=True)
    Path("damaged/training_log.json").write_text("{")
    result = invoke("eval damaged rows.jsonl --output out")
    assert result.exit_code == 1
    assert "damaged/training_log.json: damaged, or not the log of a training run" in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("line", PIPED)
def test_a_closed_pipe_ends_a_command_quietly(line: str, here: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", RUN, *line.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=here, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_terminal_that_cannot_show_a_character_gets_an_escape(here: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", RUN, "report", "scorecard.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=here, check=False)
    assert done.returncode == 0, done.stderr
    assert r"\xe4" in done.stdout
