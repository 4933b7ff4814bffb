"""The ``select`` command: the rows without an answer whose labels would teach a tuned model most."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..dataset.labels import Conversation
from ..errors import ConfigurationError, DatasetError
from ..evaluation.selection import select
from ..example import Example, content_hash
from ..formats.reading import example_from_row
from ..jsonl import READ_ERRORS, one_line_reason, parse_line, read_lines
from ..llms.lora import LoraLLM
from ..printable import one_line
from .command import Result, command, counted, say
from .schema_option import SchemaOption, answer_class
from .trained import Trained, find_trained

__all__ = ["register"]

_SHOWN_ROWS = 10  # chosen: a screen
_SHOWN_CHARACTERS = 80


def select_rows(
    model: Annotated[str, typer.Argument(help="Folder of a training run or an adapter.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="Rows without answers: a .txt file, one input a line, or JSON Lines of messages."
        ),
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Rows to select.")] = 50,
    output: Annotated[Path, typer.Option(help="File of the selected rows, to be labelled.")] = Path(
        "to-label.jsonl"
    ),
    base_model: Annotated[
        str | None, typer.Option(help="Location of the base model, if it moved after training.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated in one batch.")] = 8,
    seed: Annotated[int, typer.Option(help="Random seed of the clusters.")] = 0,
    schema: SchemaOption = None,
) -> Result:
    """Ask the model every row and write those that it is least sure of and that are not alike.

    The rows' own answers, if any, are not looked at. Rows have their own
    schema, that of --schema, or the one that the model was trained on. Answers
    are stored beside the output as they arrive, so the same command generates
    only the missing ones.
    """
    trained = find_trained(model)
    if trained is None:
        raise ConfigurationError(f"{model}: no training run or adapter; train one, or give its folder")
    rows = list(_rows_of(data))
    output_cls = answer_class(schema, data)
    moved = {} if base_model is None else {"base_model": base_model}
    llm = LoraLLM.from_adapter(trained.adapter, batch_size=batch_size, **moved)
    say(counted(len(rows), "row"))
    selected = select(
        rows,
        number,
        llm=llm,
        output_cls=output_cls,
        schema=None if output_cls else _trained_schema(trained),
        seed=seed,
        concurrency=batch_size,
        cache_dir=output.with_suffix(".answers") / content_hash(trained.card.fingerprint)[:12],
    )
    path = selected.save(output)
    shown = [_shown(example) for example in list(selected)[:_SHOWN_ROWS]]
    done = f"{counted(len(selected), 'row')} of {len(rows)} to label, the least sure first: {path}"
    facts = {"selected": len(selected), "rows": len(rows), "output": str(path)}
    return Result(facts, (*shown, done))


def _trained_schema(trained: Trained) -> dict[str, Any] | None:
    """The schema that the model was trained on, if it is one."""
    schemas = trained.card.schemas
    return dict(schemas[0]) if len(schemas) == 1 else None


def _rows_of(path: Path) -> Iterator[Example | Conversation]:
    """The inputs of a text file, or Examples and messages of JSON Lines."""
    is_text = path.suffix.lower() == ".txt"
    for line in read_lines(path):
        try:
            yield line.raw.decode().strip() if is_text else _row(parse_line(line.raw))
        except (DatasetError, *READ_ERRORS) as error:
            raise DatasetError(f"{line.where}: {one_line_reason(error)}") from error


def _row(row: Any) -> Example | Conversation:
    if isinstance(row, dict) and "answer" not in row and isinstance(messages := row.get("messages"), list):
        last = messages[-1] if messages else None
        if not (isinstance(last, dict) and last.get("role") == "assistant"):
            return messages
    return example_from_row(row)


def _shown(example: Example) -> str:
    question = one_line(example.query or str(example.messages[-1].content))[:_SHOWN_CHARACTERS]
    return f"{example.metadata['student_probability']:>7.3f}  {question}"


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        name="select",
        example="finetune-structured select model questions.txt -n 50 --output to-label.jsonl",
    )(select_rows)
