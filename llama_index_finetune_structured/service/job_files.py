"""A job's files by its method: their check, which is the same before a job and in it, and their held-out rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..dataset import FinetuneDataset
from ..dataset.checks.problems import Problem
from ..dataset.checks.report import CheckReport, check
from ..example import Example
from ..formats.preferences import preference_rows, read_preferences
from ..formats.reading import row_form
from ..jsonl import READ_ERRORS, parse_line, read_lines
from ..local.train.settings import LoraSettings

__all__ = ["Method", "check_job_file", "held_out_rows"]

Method = Literal["supervised", "dpo"]
"""How a job trains: on answers, or on preferences."""
_SAYS: dict[Method, str] = {
    "dpo": "the lines are answers, without preferences: the method must be 'supervised'",
    "supervised": "the lines are preferences (input, preferred_output, non_preferred_output): the method must be 'dpo'",
}


def check_job_file(path: Path, method: Method, base: str, settings: LoraSettings) -> CheckReport:
    """Check every line of a file as a job does. The counts of preferences are those of the preferred answers.

    Args:
        path: The file. Its content never makes this raise: problems are in the report.
        method: The job's method; a file of lines for the other one is one problem, ``wrong_method``.
        base: Base model, as ``base_model`` of ``check``.
        settings: Those of all jobs.
    """

    def checked(source: Path | list[Example]) -> CheckReport:
        return check(
            source,
            base_model=base,
            max_length=settings.max_length,
            schema_prompt=settings.schema_prompt,
            thinking=settings.thinking,
        )

    try:
        if lines := _lines_of_other(path, method):
            problem = Problem("wrong_method", _SAYS[method], str(path))
            return replace(checked([]), source=path, lines=lines, problems=(problem,))
        if method == "supervised":
            return checked(path)
        numbers, examples, wrong = [], [], []
        for line, found in preference_rows(path):
            if isinstance(found, str):
                wrong.append(Problem("not_a_preference", found, str(path), line.number))
            else:
                numbers.append(line.number)
                examples.append(found[0])
    except OSError:
        return checked(path)  # which reports it
    report = checked(examples)
    problems = wrong
    for problem in report.problems:
        # One preferred answer may stand beside several others; with wrong lines, a file is not too small or empty.
        if problem.code != "duplicate" and (problem.line or not wrong):
            number = numbers[problem.line - 1] if problem.line else 0
            problems.append(replace(problem, file=str(path), line=number))
    problems.sort(key=lambda problem: problem.line or float("inf"))
    # The estimate of memory is that of answers alone, not of pairs.
    return replace(
        report, source=path, lines=len(numbers) + len(wrong), problems=tuple(problems), memory=None
    )


def _lines_of_other(path: Path, method: Method) -> int:
    """How many lines are for the other method, where none is for this one; else 0."""
    others = 0
    for line in read_lines(path, torn_from=None):
        try:
            row = parse_line(line.raw)
        except READ_ERRORS:
            continue
        form = row_form(row) if isinstance(row, dict) else None
        if form is not None:
            if (form == "preference") == (method == "dpo"):
                return 0
            others += 1
    return others


def held_out_rows(path: Path, method: Method) -> FinetuneDataset:
    """The rows of a held-out file, of preferences those with the preferred answers. Raises DatasetError."""
    return FinetuneDataset(read_preferences(path)[0]) if method == "dpo" else FinetuneDataset.load(path)
