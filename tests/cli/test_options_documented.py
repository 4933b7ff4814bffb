"""docs/cli.md lists every option of every command, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer.main
from typer.testing import CliRunner

from llama_index_finetune_structured.cli import app

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
OF_ALL = {"--json", "--help"}


def _commands() -> dict[str, click.Command]:
    """Name -> command; those of a group as ``jobs list``."""
    found: dict[str, click.Command] = {}
    for name, made in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        below = getattr(made, "commands", None)
        found |= {f"{name} {inner}": sub for inner, sub in below.items()} if below else {name: made}
    return found


def _options(command: click.Command) -> set[str]:
    options = (name for param in command.params for name in (*param.opts, *param.secondary_opts))
    return {name for name in options if name.startswith("--")} - OF_ALL


def _documented(command: str) -> set[str]:
    """The options in the command's row of the table of options."""
    table = PAGE.partition("| command | options |")[2].partition("\n\n")[0]
    (row,) = re.findall(rf"^\| `{command}` \|(.*)\|$", table, re.MULTILINE)
    return set(re.findall(r"`(--[\w-]+)", row))


def _floats() -> list[tuple[str, str]]:
    """Command and option for every option whose value is a number with a fraction, by the help."""
    runner = CliRunner()
    return [
        (name, option)
        for name in _commands()
        for option in re.findall(
            r"(--[\w-]+) +<?float",
            runner.invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"}).stdout,
            re.IGNORECASE,
        )
    ]


def test_the_options_with_a_fraction_are_found() -> None:
    assert {"--learning-rate", "--price", "--input-price", "--validation", "--every", "--timeout"} <= {
        option for _, option in _floats()
    }


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize(("name", "option"), _floats())
def test_a_number_that_is_not_finite_is_out_of_range(name: str, option: str, value: str) -> None:
    needed = {
        "build": "papers --schema schema.yaml",
        "report": "card.json",
        "jobs list": "",
        "jobs wait": "x",
    }
    line = f"{name} {needed.get(name, 'rows.jsonl')} {option} {value}"
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}'" in result.stderr


@pytest.mark.parametrize("name", _commands())
def test_the_example_in_the_help_is_a_command_line_that_is_understood(name: str) -> None:
    made = _commands()[name]
    words = str(made.epilog).removeprefix(f"Example: finetune-structured {name} ").split()
    assert words
    made.make_context(name, words)


@pytest.mark.parametrize("name", _commands())
def test_the_table_has_the_options_of_a_command_and_no_other(name: str) -> None:
    assert _documented(name) == _options(_commands()[name])


def test_the_page_names_no_option_that_no_command_has() -> None:
    known = set().union(*map(_options, _commands().values())) | OF_ALL | {"--no-deps", "--version", "--lora"}
    assert set(re.findall(r"--[a-z][\w-]+", PAGE)) <= known
