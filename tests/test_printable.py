"""Text from outside reaches terminals and logs through one boundary, and no control character passes it."""

from __future__ import annotations

import ast
import copy
import io
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from rich.console import Console

import llama_index_finetune_structured as package
from llama_index_finetune_structured import FinetuneDataset, Revalidation, errors
from llama_index_finetune_structured.dataset.checks.problems import Problem
from llama_index_finetune_structured.dataset.checks.report import CheckReport
from llama_index_finetune_structured.dataset.leakage import Leak, LeakageReport
from llama_index_finetune_structured.evaluation.report.markup import escape
from llama_index_finetune_structured.evaluation.report.terminal import print_plain
from llama_index_finetune_structured.printable import escaped_json, one_line, package_logger, printable

ROOT = Path(package.__file__).parent
HOSTILE = "[/x]\x1b[2J\x1b]8;;http://x\x1b\\\r\x07\u202e\u2028\x9b31m\ud800\ufffe:100:"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from([*HOSTILE, *"<>&'\""]), max_size=60)


@given(ANY_TEXT)
def test_printable_text_has_no_control_character_and_any_other_character_stays(text: str) -> None:
    shown = printable(text)
    assert not CONTROLS.search(shown)
    assert printable(shown) == shown
    assert [c for c in shown if c.isalnum() and not c.isascii()] == [
        c for c in text if c.isalnum() and not c.isascii()
    ]
    assert "\n" not in one_line(text)
    assert len(one_line(text).splitlines()) <= 1


@given(ANY_TEXT)
def test_printed_json_is_the_same_value_without_control_characters(text: str) -> None:
    value = {text: [text]}
    shown = escaped_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(shown) == value
    assert not CONTROLS.search(shown)
    assert "\t" not in shown


@given(ANY_TEXT)
def test_escaped_text_is_one_text_of_an_xml_element_and_of_its_attributes(text: str) -> None:
    shown = escape(text)
    element = ElementTree.fromstring(f"<a b='{shown}' c=\"{shown}\">{shown}</a>")
    assert (element.text or "") == printable(text)
    assert len(element) == 0
    assert set(element.attrib) == {"b", "c"}


def _squeezed(text: str) -> str:
    """The text with one space for each run of them: a tab takes up to eight, by the width of what stands before it."""
    return re.sub(r"[ \t]+", " ", text.rstrip("\n"))


@given(ANY_TEXT, st.booleans())
def test_what_is_printed_is_the_text_itself(text: str, terminal: bool) -> None:
    out = io.StringIO()
    print_plain(Console(file=out, force_terminal=terminal, color_system="truecolor", width=20), text)
    shown = out.getvalue()
    assert not CONTROLS.search(shown)
    assert _squeezed(shown) == _squeezed(printable(text))


def test_a_line_number_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    print_plain(Console(), "data.jsonl:100: bad:b:x")
    assert capsys.readouterr().out == "data.jsonl:100: bad:b:x\n"


def test_a_log_record_is_printable_with_its_traceback() -> None:
    logger, out = package_logger("tests.printable"), io.StringIO()
    handler = logging.StreamHandler(out)
    logger.addHandler(handler)
    try:
        logger.warning("%s of %d", HOSTILE, 3)
        try:
            raise KeyError(HOSTILE) from ValueError(HOSTILE)
        except KeyError:
            logger.exception("no %s", HOSTILE)
    finally:
        logger.removeHandler(handler)
    assert not CONTROLS.search(out.getvalue())
    assert r"[/x]\x1b[2J" in out.getvalue()
    assert "of 3" in out.getvalue()
    assert "ValueError" in out.getvalue()


def _error(name: str) -> BaseException:
    if name == "MissingDependencyError":
        return errors.MissingDependencyError(HOSTILE, "local", HOSTILE)
    if name == "ServiceError":
        return errors.ServiceError(HOSTILE, refused=False)
    made: BaseException = getattr(errors, name)(HOSTILE)
    return made


@pytest.mark.parametrize("name", errors.__all__)
def test_the_text_of_an_error_is_printable(name: str) -> None:
    assert not CONTROLS.search(str(_error(name)))
    assert "[/x]" in str(_error(name))


@pytest.mark.parametrize("name", errors.__all__)
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_an_error_that_a_worker_process_sends_or_that_is_copied_stays_the_same(
    name: str, copied: Callable[[BaseException], BaseException]
) -> None:
    error = _error(name)
    error.__dict__["__notes__"] = ["of a worker"]
    again = copied(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.args, again.__dict__) == (error.args, error.__dict__)


def _problem() -> Problem:
    return Problem("not_json", HOSTILE, HOSTILE, 100)


def _check_report() -> CheckReport:
    counts = {
        "lines": 1,
        "good": 0,
        "tokens": 1,
        "trained_tokens": 1,
        "longest_tokens": 1,
        "window_rows": 0,
        "counterfactual_rows": 0,
        "epochs": 1,
        "schema_tokens": 1,
        "reasoning_tokens": 0,
    }
    return CheckReport(
        HOSTILE, HOSTILE, problems=(_problem(),), estimated=False, cost=None, span=None, memory=None, **counts
    )


def _revalidation() -> Revalidation:
    class Other(BaseModel):
        n: int

    row = FinetuneDataset.from_pairs([("q", HOSTILE.replace("\ud800", ""))])

    def migrate(_: Any) -> Any:
        raise ValueError(HOSTILE)

    return row.revalidate(Other, migrate=migrate)


SHOWN: dict[str, Callable[[], Any]] = {
    "Problem": _problem,
    "CheckReport": _check_report,
    "Revalidation": _revalidation,
    "LeakageReport": lambda: LeakageReport(
        rows=1, leaks=(Leak(train_row=0, validation_row=0, similarity=1.0, text=HOSTILE),)
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_print_shows_of_an_object_is_printable(name: str) -> None:
    for shown in (str(SHOWN[name]()), repr(SHOWN[name]())):
        assert not CONTROLS.search(shown)


# The sites: whatever in the package prints, logs, warns or names a progress bar


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, name of the called function, and call of every call in the package."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


def _is_safe(node: ast.expr) -> bool:
    """Whether a text is written in the source, or made printable."""
    if isinstance(node, ast.Constant | ast.Name):
        return isinstance(node, ast.Constant) or node.id.isupper()
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("printable", "one_line", "escaped_json")


def test_loggers_are_made_by_the_boundary_alone() -> None:
    assert {file for file, name, _ in _calls() if name.endswith("getLogger")} == {"printable.py"}


def test_nothing_is_printed_past_the_boundary() -> None:
    printed = [(file, call) for file, name, call in _calls() if name in ("print", "typer.echo", "click.echo")]
    assert [file for file, call in printed if not all(map(_is_safe, call.args))] == [
        "cli/main.py"
    ]  # --version
    consoles = {file for file, name, _ in _calls() if name == "Console"}
    assert consoles == {"cli/command.py", "cli/jobs.py", "evaluation/report/terminal.py"}
    streams = {file for file, name, _ in _calls() if re.search(r"\bstd(out|err)\.write$", name)}
    assert streams == {"cli/command.py", "progress_bar.py"}  # the bars' texts are looked at below


def test_descriptions_of_progress_bars_are_printable() -> None:
    bars = [call for _, name, call in _calls() if name == "progress_bar"]
    assert len(bars) >= 5
    texts = [word.value for call in bars for word in call.keywords if word.arg in ("desc", "unit", "postfix")]
    named = [ast.unparse(text) for text in texts if not _is_safe(text)]
    assert named == ["description"]  # of generated rows: "questions" or "answers"


def test_every_class_with_its_own_text_makes_it_printable() -> None:
    """Texts of ``__str__`` and ``__repr__`` that name something pass the boundary, or ``repr``, which escapes too."""
    bare = set()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name in ("__str__", "__repr__"):
                        source = ast.unparse(method)
                        if "printable(" not in source and "one_line(" not in source:
                            bare.add(f"{node.name}.{method.name}")
    assert bare == {
        "CheckReport.__repr__", "DatasetSummary.__str__", "FinetuneDataset.__repr__", "GeneratedQuestions.__str__",
        "GradientFinetuneEngine.__repr__", "LeakageReport.__str__", "Revalidation.__repr__", "TrainedSpan.__repr__",
        "NewRows.__str__", "ServingCommand.__str__", "AsWritten.__repr__", "capture.__repr__",
    }  # fmt: skip
