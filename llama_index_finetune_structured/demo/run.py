"""Run the demo: index, teacher, capture, LoRA training, the same questions to five systems, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import LLM
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.query_engine import RetrieverQueryEngine
from pydantic import JsonValue

from ..capture.recorder import rejects_path
from ..dataset import FinetuneDataset, answer_questions
from ..dataset.generate.retrieval import bm25_retriever
from ..engines.lora import LoraFinetuneEngine, LoraJob
from ..errors import DatasetError
from ..evaluation import Scorecard, compare
from ..example import Example, Message, content_hash
from ..files import read_json
from ..llms.lora import LoraLLM
from ..local.model.base_models import DEFAULT_BASE_MODEL
from ..local.train.settings import LoraSettings
from .corpus import REFERENCE_KEY, ApiCard, Function, answerable, functions, node_of, parse_card
from .settings import DemoSettings, open_output, teacher_of
from .teacher import QA_TEMPLATE, DocstringTeacher

__all__ = ["DemoSettings", "run", "train_on", "untuned"]

_ANSWER_TOKENS = 256  # chosen: the longest card fits
_TRAIN_SHARE = 0.7
_BATCH = 20  # chosen: answers generated together; half of the default number of test questions
_SHOWN = 5  # failures listed; the rest are counted
_EPOCHS = 2  # chosen: more bring little, and the demonstration is to take some minutes
_UPPER_LAYERS = 20  # chosen: two thirds of the embedded model's layers, for less time
_PARSER = "docstring parser"


def run(settings: DemoSettings, output: Path, say: Callable[[str], None]) -> Scorecard:
    """Run all steps whose results are not yet in ``output``, and return the scorecard.

    All files are written to ``output``; ``say`` receives progress messages. Raises ConfigurationError where
    ``output`` belongs to a run with other settings, EngineError while another process works there.
    """
    with open_output(output, settings):
        documents = functions()
        retriever = _retriever(documents)
        train, test = _questions(documents, settings)
        say(
            f"{len(documents)} documented functions; {len(train)} to train on, {len(test)} held out by sub-package"
        )
        teacher = teacher_of(settings) or DocstringTeacher()
        data = _captured(_engine(retriever, teacher), train, test, output, say)
        data.save(output / "train.jsonl")
        test.save(output / "test.jsonl")
        engine = train_on(data, settings, output, say)
        systems = {
            name: _engine(retriever, llm) for name, llm in {**_students(engine), "teacher": teacher}.items()
        }
        card = compare(
            systems,
            test,
            output_cls=ApiCard,
            concurrency=_BATCH,
            cache_dir=output / "answers" / engine.fingerprint[:12],
            notes=settings.model_dump(mode="json", exclude_none=True, exclude={"agent"})
            | _facts(settings, output, data, engine.get_current_job()),
        )
        card.to_json(output / "scorecard.json")
        log = read_json(output / "model" / "training_log.json")["steps"]
        card.to_html(output / "report.html", title=str(card.settings["title"]), training_log=log)
        card.to_svg(output / "before-and-after.svg")
        return card


def train_on(
    data: FinetuneDataset, settings: DemoSettings, output: Path, say: Callable[[str], None]
) -> LoraFinetuneEngine:
    """Tune the base model on captured rows, in the folder ``model`` of ``output``."""
    upper = _UPPER_LAYERS if settings.base_model == DEFAULT_BASE_MODEL else None
    engine = LoraFinetuneEngine(
        data,
        base_model=settings.base_model,
        output_dir=output / "model",
        config=LoraSettings(seed=settings.seed, upper_layers=upper, epochs=_EPOCHS),
    )
    engine.finetune()
    job = engine.get_current_job()
    say(f"trained {job.steps} steps in {job.seconds:.0f} s -> {job.adapter}")
    return engine


def _retriever(documents: Sequence[Function]) -> BaseRetriever:
    return bm25_retriever([node_of(function) for function in documents], 1, "demo", "The demo")


def _engine(retriever: BaseRetriever, llm: LLM) -> BaseQueryEngine:
    """A query engine that searches whole documents and gives the model only their ``reference`` part."""
    shown = MetadataReplacementPostProcessor(target_metadata_key=REFERENCE_KEY)
    return RetrieverQueryEngine.from_args(
        retriever, llm=llm, output_cls=ApiCard, node_postprocessors=[shown], text_qa_template=QA_TEMPLATE
    )


def _questions(
    documents: Sequence[Function], settings: DemoSettings
) -> tuple[FinetuneDataset, FinetuneDataset]:
    """Gold examples of functions for training and for testing; no sub-package is on both sides."""
    gold = FinetuneDataset(example for function in documents if (example := _gold(function)) is not None)
    train, test = gold.split(_TRAIN_SHARE, group_by=_group, seed=settings.seed)
    return _sample(train, settings.train_size, settings.seed), _sample(
        test, settings.test_size, settings.seed
    )


def _gold(function: Function) -> Example | None:
    """The example with a function's gold card; None where the card cannot be read from what a model sees."""
    card = parse_card(function.name, function.docstring)
    if not answerable(card) or card != parse_card(function.name, function.reference.partition("\n\n")[2]):
        return None
    return Example(
        messages=(Message(role="user", content=function.question),),
        answer=Message(role="assistant", content=card.model_dump_json()),
        answer_schema=ApiCard.model_json_schema(),
        query=function.question,
        document_id=function.qualified_name,
        metadata={"group": function.group},
    )


def _group(example: Example) -> str:
    return str(example.metadata["group"])


def _sample(data: Iterable[Example], size: int, seed: int) -> FinetuneDataset:
    """``size`` examples in an order that depends on ``seed`` and each example alone."""
    return FinetuneDataset(sorted(data, key=lambda example: content_hash([seed, example.id]))[:size])


def _captured(
    engine: BaseQueryEngine,
    train: FinetuneDataset,
    test: FinetuneDataset,
    output: Path,
    say: Callable[[str], None],
) -> FinetuneDataset:
    """The teacher's answers with a card that has parameters, without those whose prompt shows a held-out group.

    Answers on disk are not requested again.
    """
    path = output / "captured.jsonl"
    # Failed calls are repeated only until training has begun: the trained model belongs to its answers.
    report = answer_questions(
        engine,
        [example.query for example in train if example.query],
        path,
        output_cls=ApiCard,
        retry_failed=not (output / "model").exists(),
    )
    held_out = {_group(example) for example in test}
    groups = {function.qualified_name: function.group for function in functions()}
    kept = [
        example
        for example in (report.load() if report.answers else ())
        if _has_parameters(example)
        and not held_out & {groups.get(s.document_id or "") for s in example.sources}
    ]
    say(f"teacher: {len(report.answers)} answers, {len(report.failures)} failed")
    say(f"{len(kept)} examples with parameters, none with a held-out sub-package in its prompt")
    for failure in report.failures[:_SHOWN]:
        say(f"  {failure.subject}: {failure.error}: {failure.message[:200]}")
    if not kept:
        raise DatasetError(
            f"the teacher gave no valid answer: fix the cause and run it again; see {rejects_path(path)}"
        )
    return FinetuneDataset(kept)


def _has_parameters(example: Example) -> bool:
    """Whether the card has parameters; training on empty cards teaches a small model to leave them out."""
    return bool(ApiCard.model_validate(example.answer_object()).parameters)


def _students(engine: LoraFinetuneEngine) -> dict[str, LLM]:
    """Base and tuned model, each with and without grammar; prompt, token limit and bounds are the same."""
    tuned = engine.get_finetuned_model(max_new_tokens=_ANSWER_TOKENS, batch_size=_BATCH)
    free_tuned = engine.get_finetuned_model(
        max_new_tokens=_ANSWER_TOKENS, batch_size=_BATCH, constrained=False
    )
    return {
        "base": untuned(tuned, constrained=False),
        "base + grammar": untuned(tuned),
        "tuned": free_tuned,
        "tuned + grammar": tuned,
    }


def untuned(tuned: LoraLLM, **settings: Any) -> LoraLLM:
    """The base model of a tuned one, with the same prompt, token limit and bounds."""
    same = tuned.model_dump(include={"base_model", "max_new_tokens", "batch_size", "chat_prompts"})
    return LoraLLM(**same, bounds=tuned.bounds, **settings)


def _facts(settings: DemoSettings, output: Path, data: FinetuneDataset, job: LoraJob) -> dict[str, JsonValue]:
    """Descriptions of the run for its page and for ``report``."""
    return {
        "title": f"{settings.base_model}, before and after",
        "run": str((output / "model").resolve()),
        "teacher": settings.teacher or f"{_PARSER} that reads the retrieved documentation (no key was given)",
        "questions": "'How do I call X?' about the installed networkx, asked of a BM25 query engine with "
        "output_cls; retrieval errors included",
        "trained on": f"{len(data)} captured answers in {job.seconds:.0f} s; the sub-packages of the test "
        "questions were held out",
        "gold": "cards read from the docstrings by a parser",
        "all systems": f"same prompt with schema, {_ANSWER_TOKENS} new tokens at most, same JSON extraction",
    }
