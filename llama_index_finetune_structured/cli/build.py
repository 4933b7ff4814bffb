"""``finetune-structured build``: documents, a schema and a teacher (or labels) -> training files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..dataset import CallPolicy, FinetuneDataset
from ..dataset.generate.documents import read_nodes
from ..dataset.generate.llm_calls import FailedCall
from ..dataset.schema.load import load_schema
from ..dataset.splits import document_of
from ..errors import ConfigurationError, DatasetError
from ..example import Example
from .asking import UNFIT, Asking, listed_questions
from .building import OPENAI, BuildSettings, bm25_retriever, claim, held_out_path, hosted_teacher, labelled
from .command import FEW_ROWS, Result, command, counted, say

__all__ = ["register"]

_SHOWN = 5
_FAR_OFF = 0.1


def build(
    folder: Annotated[Path, typer.Argument(help="The documents: .pdf, .txt, .md.")],
    schema: Annotated[str, typer.Option(help="Of an answer: schema.yaml, schema.py:Class or module:Class.")],
    output: Annotated[Path, typer.Option(help="The training file; held-out rows go beside it.")] = Path(
        "data.jsonl"
    ),
    teacher: Annotated[
        str | None, typer.Option(help="The model to learn from, by OpenAI's protocol ($OPENAI_API_KEY).")
    ] = None,
    api_base: Annotated[str | None, typer.Option(help="Where the teacher is served (else OpenAI).")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Your questions, one a line, instead of generated ones.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="JSONL of query and response: your own labels, no teacher.")
    ] = None,
    ask_for: Annotated[
        str | None,
        typer.Option(help="What to generate questions for, in words (else what the schema holds)."),
    ] = None,
    questions_per_chunk: Annotated[int, typer.Option(min=1, help="Questions made about each chunk.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="Generated questions at most (else all).")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Chunks retrieved for a question, by BM25.")] = 2,
    chunk_size: Annotated[int, typer.Option(min=128, help="Tokens of a chunk.")] = 512,
    validation: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share held out, by document; 0: none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides what is held out, and the sample of --limit.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls under way at a time.")] = 8,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what failed before.")
    ] = False,
) -> Result:
    """Make a data set: cut documents into chunks, ask a teacher through a query engine, keep valid answers.

    What was paid for is kept beside the output: the same command goes on
    where it was and pays for nothing twice. Failed calls are listed, and asked
    again with --retry-failed.
    """
    source = _source(teacher, questions, pairs)
    output_cls = load_schema(schema)
    nodes = read_nodes(folder, chunk_size=chunk_size)
    retriever = bm25_retriever(nodes, top_k)
    say(f"{len({node.ref_doc_id for node in nodes})} documents, {len(nodes)} chunks")
    settings = BuildSettings(
        answer_schema=output_cls.model_json_schema(), teacher=teacher, top_k=top_k, chunk_size=chunk_size
    )
    if isinstance(source, Path):
        rows = list(labelled(retriever, source, output_cls))
        claim(output, settings)
        return _written(rows, output, validation, seed)
    llm = hosted_teacher(source, api_base, top_k * chunk_size)
    listed = None if questions is None else listed_questions(questions)
    work = claim(output, settings)
    asking = Asking(llm, output_cls, work, CallPolicy(concurrency=concurrency), retry_failed)
    asked = listed or asking.questions(
        nodes, per_chunk=questions_per_chunk, limit=limit, ask_for=ask_for, seed=seed
    )
    examples = asking.examples(retriever, asked)
    told = _told(asking, api_base or OPENAI)
    return _written(examples, output, validation, seed, asking.failures, asking.rejected, told)


def _source(teacher: str | None, questions: Path | None, pairs: Path | None) -> Path | str:
    """Where answers come from: a file of labels, or a teacher's name."""
    if pairs is not None and (teacher or questions):
        raise ConfigurationError("--pairs are labelled already: leave --teacher and --questions out")
    if pairs is not None:
        return pairs
    if teacher is None:
        raise ConfigurationError("who answers? Give --teacher MODEL, or your own labels: --pairs FILE.jsonl")
    return teacher


def _written(
    examples: Sequence[Example],
    output: Path,
    validation: float,
    seed: int,
    failures: Sequence[FailedCall] = (),
    rejected: int = 0,
    told: Sequence[str] = (),
) -> Result:
    """Both files, and what became of everything that was asked."""
    if not examples:
        raise DatasetError("\n".join(["no valid answer, so no data set", *told]))
    train, held_out = _split(examples, validation, seed)
    path = held_out_path(output)
    if held_out is None:
        path.unlink(missing_ok=True)  # of a build before: its rows are trained on now
    else:
        held_out.save(path)
    train.save(output)
    data = {
        "data": str(output),
        "examples": len(train),
        "validation": None if held_out is None else str(path),
        "validation_examples": len(held_out or ()),
        "documents": _documents(train),
        "validation_documents": _documents(held_out or ()),
        "mixed": _mixed(train, held_out or ()),
        "empty": sum(map(_is_empty, [*train, *(held_out or ())])),
        "rejected": rejected,
        "failures": [{"asked": f.subject, "error": f.error, "message": f.message} for f in failures],
    }
    return Result(data, ("\n".join([*_summary(data, validation), *told]),))


def _split(
    examples: Sequence[Example], validation: float, seed: int
) -> tuple[FinetuneDataset, FinetuneDataset | None]:
    """By document; the questions of a single document by question."""
    whole = FinetuneDataset(examples)
    if validation == 0:
        return whole, None
    by_document = len({document_of(example) for example in examples}) > 1
    if not by_document:
        say("all questions belong to one document: held out by question, so the score will flatter")
    parts: tuple[FinetuneDataset, FinetuneDataset] = whole.split(
        1 - validation, group_by="document" if by_document else None, seed=seed
    )
    return parts


def _documents(examples: Sequence[Example] | FinetuneDataset) -> int:
    return len({document_of(example) for example in examples} - {None})


def _mixed(train: FinetuneDataset, held_out: Sequence[Example] | FinetuneDataset) -> int:
    """Training prompts in which a chunk of a held-out document stands."""
    documents = {document_of(example) for example in held_out} - {None}
    return sum(any(source.document_id in documents for source in example.sources) for example in train)


def _is_empty(example: Example) -> bool:
    answer = example.answer_object()  # a list where the class is a RootModel
    values = answer.values() if isinstance(answer, dict) else [answer]
    return all(value in (None, "", [], {}) for value in values)


def _summary(data: dict[str, Any], wanted: float) -> list[str]:
    train, held_out = data["examples"], data["validation_examples"]
    lines = [f"{counted(train, 'example')} of {counted(data['documents'], 'document')} -> {data['data']}"]
    if data["validation"]:
        documents = counted(data["validation_documents"], "document")
        lines.append(f"{held_out} held out, of {documents} -> {data['validation']}")
        share = held_out / (held_out + train)
        if abs(share - wanted) > _FAR_OFF:
            lines.append(
                f"that is {share:.0%}, not {wanted:.0%}: whole documents are held out; more of them, or another "
                "--seed, comes nearer"
            )
    if train < FEW_ROWS:
        lines.append(
            f"{train} examples are few: some dozens teach the form of an answer, some hundreds the task"
        )
    if data["mixed"]:
        lines.append(
            f"{data['mixed']} training prompts also show a chunk of a held-out document, so the score may flatter; "
            "more documents or a smaller --top-k make that rarer"
        )
    if data["empty"]:
        lines.append(
            f"{data['empty']} of {train + held_out} answers are empty: the teacher found nothing to say"
        )
    return lines


def _told(asking: Asking, address: str) -> list[str]:
    """What gave no example: answers that do not fit the schema, with the reason, and calls that failed."""
    unfit = [f"{f.subject[:80]!r}: {f.message[:200]}" for f in asking.failures if f.error == UNFIT]
    failed = [
        f"{f.subject[:80]!r}: {f.error}: {f.message[:200]}" for f in asking.failures if f.error != UNFIT
    ]
    lines = []
    if unfit or asking.rejected:
        count = counted(len(unfit) + asking.rejected, "answer")
        lines.append(
            f"{count} did not fit the schema and were left out (--retry-failed asks again): {asking.rejects}"
        )
        lines += _shown(unfit)
    if failed:
        calls = counted(len(failed), "call")
        lines.append(f"{calls} to {address} failed; mend the cause and add --retry-failed:")
        lines += _shown(failed)
    return lines


def _shown(items: Sequence[str]) -> list[str]:
    more = [f"  and {len(items) - _SHOWN} more; --json lists all"] if len(items) > _SHOWN else []
    return [f"  {item}" for item in items[:_SHOWN]] + more


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        example="finetune-structured build papers --schema schema.yaml --teacher gpt-4.1 --output data.jsonl",
    )(build)
