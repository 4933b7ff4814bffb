"""The ``build`` command: documents, a schema and a teacher (or labels) -> training files.

Rows of questions and retrieved chunks are made here, rows of whole documents in ``build_documents.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.prompts.chat_prompts import TEXT_QA_PROMPT_TMPL_MSGS
from pydantic import BaseModel

from ..answer_values import class_schema
from ..dataset import CallPolicy, FinetuneDataset, RetrievalAugmentedDatasetBuilder, document_hashes
from ..dataset.generate.documents import read_nodes
from ..dataset.generate.llm_calls import FailedCall
from ..dataset.generate.misses import RetrievalMisses, is_miss, settle_misses
from ..dataset.generate.retrieval import bm25_retriever
from ..dataset.labels import AnswerShape
from ..dataset.schema.load import load_schema
from ..errors import ConfigurationError, DatasetError
from ..example import Example
from .build_documents import DocumentOptions, build_documents
from .build_folder import BuildSettings, DocumentChanges, build_folder
from .build_output import listed, save_rows, summary_lines
from .command import Result, command, counted, finite, say
from .schema_option import remember_schema
from .teacher import INVALID_ANSWER, OPENAI, TeacherCalls, hosted_teacher, read_questions

__all__ = ["register"]


def build(
    folder: Annotated[Path, typer.Argument(help="Folder of the documents: .pdf, .html, .md, .txt.")],
    schema: Annotated[
        str,
        typer.Option(
            help="Schema of an answer: schema.yaml, schema.py:Class or module:Class (Python code is run)."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Training file; held-out rows go into a second file beside it.")
    ] = Path("data.jsonl"),
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Model that answers the questions, or with --extract fills the schema, over OpenAI's protocol "
            "($OPENAI_API_KEY)."
        ),
    ] = None,
    api_base: Annotated[
        str | None, typer.Option(help="Address of the teacher's server (default: OpenAI).")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="File of questions, one a line, instead of generated ones.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="JSONL file of labels with query and response, instead of a teacher."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Answers by document, for one row a document: JSON Lines, a CSV file, or a folder of JSON files."
        ),
    ] = None,
    extract: Annotated[
        bool,
        typer.Option(
            "--extract", help="Let the teacher fill the schema from each whole document, without questions."
        ),
    ] = False,
    instruction: Annotated[
        str | None, typer.Option(help="Text before each document (default: Fill NAME from this document.).")
    ] = None,
    negatives: Annotated[
        Path | None,
        typer.Option(help="Folder of documents of another kind, whose answer is that there is none."),
    ] = None,
    max_characters: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cut documents that are longer, where answers are lists (default: no limit)."
        ),
    ] = None,
    ask_for: Annotated[
        str | None,
        typer.Option(help="Instruction for generating questions (default: ask for the schema's fields)."),
    ] = None,
    questions_per_chunk: Annotated[
        int | None, typer.Option(min=1, help="Questions generated for each chunk (default: 2).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of generated questions (default: no limit).")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Chunks retrieved for a question, by BM25 (default: 2).")
    ] = None,
    chunk_size: Annotated[int | None, typer.Option(min=128, help="Tokens in a chunk (default: 512).")] = None,
    retrieval_misses: Annotated[
        RetrievalMisses | None,
        typer.Option(
            help="Answers without the question's own chunk in the prompt: drop, keep, or abstain (an empty answer); "
            "default: drop."
        ),
    ] = None,
    validation: Annotated[
        float,
        typer.Option(min=0, max=0.9, callback=finite, help="Share of rows held out, by document; 0: none."),
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Random seed of the split and of the sample of --limit.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls to the teacher at the same time.")] = 8,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Repeat the calls that failed before.")
    ] = False,
) -> Result:
    """Make a data set from documents: ask a teacher through a query engine and keep the valid answers.

    With --labels or --extract there is one row a document instead: its text,
    and what the schema reads from it. All answers are kept beside the output, so the same command resumes and
    pays for no answer twice; of a document that has changed, questions are
    asked again. Failed calls are listed, and repeated with --retry-failed.
    """
    generating = {"--ask-for": ask_for, "--questions-per-chunk": questions_per_chunk, "--limit": limit}
    asking = {"--api-base": api_base, "--retry-failed": retry_failed or None}
    retrieving = {"--top-k": top_k, "--chunk-size": chunk_size, "--retrieval-misses": retrieval_misses}
    if extract or labels is not None:
        _refuse(
            {"--questions": questions, "--pairs": pairs, **generating, **retrieving},
            "each row holds a whole document, without questions and retrieval",
        )
        if teacher is None:
            if labels is None:
                raise ConfigurationError("--extract: no model fills the schema; give --teacher MODEL")
            _refuse(asking, "there is no --teacher")
        return build_documents(
            folder,
            schema,
            output,
            DocumentOptions(labels, teacher, api_base, instruction, negatives, max_characters),
            validation=validation,
            seed=seed,
            calls=CallPolicy(concurrency=concurrency),
            retry_failed=retry_failed,
        )
    whole = {"--instruction": instruction, "--negatives": negatives, "--max-characters": max_characters}
    _refuse(whole, "rows hold whole documents only with --labels or --extract")
    if pairs is not None:
        answered = {"--teacher": teacher, "--questions": questions}
        _refuse(answered | generating | asking, "--pairs are labelled already")
    elif teacher is None:
        raise ConfigurationError(
            "no source of answers: give --teacher MODEL, your own labels of documents with --labels FILE, or of "
            "questions with --pairs FILE.jsonl"
        )
    if questions is not None:
        _refuse(generating, "--questions are asked as they are")
    top_k, chunk_size, retrieval_misses = top_k or 2, chunk_size or 512, retrieval_misses or "drop"
    output_cls = load_schema(schema)
    abstention = _empty_answer(output_cls) if retrieval_misses == "abstain" else None
    nodes = read_nodes(folder, chunk_size=chunk_size)
    retriever = bm25_retriever(nodes, top_k, "build", "build")
    say(f"{len({node.ref_doc_id for node in nodes})} documents, {len(nodes)} chunks")
    settings = BuildSettings(
        answer_schema=class_schema(output_cls), teacher=teacher, top_k=top_k, chunk_size=chunk_size
    )
    llm = None if teacher is None else hosted_teacher(teacher, api_base, top_k * chunk_size)
    own_questions = None if questions is None else read_questions(questions)
    rows: Sequence[Example] = [] if pairs is None else list(_labelled_rows(retriever, pairs, output_cls))
    with build_folder(output, settings) as kept:
        remember_schema(kept, schema, output_cls)
        documents = DocumentChanges(kept, document_hashes(nodes))
        calls, notes = None, list[str]()
        if llm is not None:
            policy = CallPolicy(concurrency=concurrency)
            calls = TeacherCalls(llm, output_cls, kept, policy, retry_failed)
            all_questions = own_questions or calls.questions(
                nodes, per_chunk=questions_per_chunk or 2, limit=limit, ask_for=ask_for, seed=seed
            )
            rows = calls.examples(nodes, retriever, all_questions)
            notes = _failure_lines(calls, api_base or OPENAI)
        settled = _Settled.of(rows, retrieval_misses, abstention)
        return _save(settled, output, validation, seed, documents, calls, notes)


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    """Raise ConfigurationError for options that were given and would change nothing."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ConfigurationError(f"{reason}: leave {', '.join(given)} out")


def _labelled_rows(retriever: BaseRetriever, pairs: Path, output_cls: type[BaseModel]) -> FinetuneDataset:
    """Rows of a file of query/response pairs, with the prompts that LlamaIndex's query engines send."""
    system, user = TEXT_QA_PROMPT_TMPL_MSGS
    builder = RetrievalAugmentedDatasetBuilder(
        retriever,
        qa_template=str(user.content),
        system_prompt=str(system.content),
        output_cls=output_cls,
        retrieval_misses="keep",
    )
    return builder.build(pairs)


def _empty_answer(output_cls: type[BaseModel]) -> str:
    """The answer that says that the context lacks it. Raises ConfigurationError where the schema has none."""
    try:
        return AnswerShape(output_cls, None).answer_text(output_cls())
    except ValueError as error:
        raise ConfigurationError(
            f"--retrieval-misses abstain: {output_cls.__name__} has no empty answer, since a field is required; make "
            "every field optional (optional: true), or drop or keep such rows"
        ) from error


@dataclass(frozen=True)
class _Settled:
    """The rows to write, and what has become of the retrieval misses among ``answered`` rows."""

    examples: list[Example]
    answered: int
    missed: int
    how: RetrievalMisses

    @classmethod
    def of(cls, examples: Sequence[Example], how: RetrievalMisses, abstention: str | None) -> _Settled:
        kept = list(settle_misses(examples, how, abstention))
        return cls(kept, len(examples), sum(map(is_miss, examples)), how)

    def lines(self) -> list[str]:
        """What the summary says of them."""
        if not self.missed:
            return []
        what = {
            "drop": "left out (--retrieval-misses keep keeps them, at no cost)",
            "keep": "kept, which trains inventing (--retrieval-misses drop leaves them out)",
            "abstain": "given the empty answer instead",
        }[self.how]
        return [
            f"{self.missed} of {counted(self.answered, 'answer')} had no chunk in the prompt that supports them, and "
            f"were {what}; a larger --top-k makes that rarer"
        ]


def _save(
    settled: _Settled,
    output: Path,
    validation: float,
    seed: int,
    documents: DocumentChanges,
    calls: TeacherCalls | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Write the training and the held-out file; the result counts rows, rejects and failures."""
    notes = [*settled.lines(), *notes]
    if not settled.examples:
        raise DatasetError("\n".join(["no valid answer, so no data set", *notes]))
    failures: Sequence[FailedCall] = calls.failures if calls else ()
    data = {
        **save_rows(settled.examples, output, validation, seed, documents),
        "retrieval_misses": settled.missed,
        "rejected": calls.rejected if calls else 0,
        "asked_again": calls.outdated if calls else 0,
        "failures": [{"asked": f.subject, "error": f.error, "message": f.message} for f in failures],
    }
    again = f"{counted(data['asked_again'], 'question')} of changed ones asked again"
    return Result(data, ("\n".join([*summary_lines(data, validation, again), *notes]),))


def _failure_lines(calls: TeacherCalls, address: str) -> list[str]:
    """Lines on answers that do not fit the schema, with the reason, and on calls that failed."""
    invalid = [f"{f.subject[:80]!r}: {f.message[:200]}" for f in calls.failures if f.error == INVALID_ANSWER]
    failed = [f"{f.subject[:80]!r}: {_reason(f)}" for f in calls.failures if f.error != INVALID_ANSWER]
    lines = []
    if invalid or calls.rejected:
        count = counted(len(invalid) + calls.rejected, "answer")
        lines.append(
            f"{count} did not fit the schema and were left out (--retry-failed asks again): {calls.rejects}"
        )
        lines += listed(invalid)
    if failed:
        count = counted(len(failed), "call")
        lines.append(f"{count} to {address} failed; fix the cause and add --retry-failed:")
        lines += listed(failed)
    return lines


def _reason(failure: FailedCall) -> str:
    """The message alone where it is a sentence; with the error's class where it is a word, as a KeyError's is."""
    message = failure.message[:200]
    return message if " " in message else f"{failure.error}: {message}".removesuffix(": ")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        example="finetune-structured build papers --schema schema.yaml --teacher gpt-4.1 --output data.jsonl",
    )(build)
