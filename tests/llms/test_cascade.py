"""A cascade returns the student's answer where it is sure, else the teacher's, whatever way it is asked."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, Field

from llama_index_finetune_structured import (
    Cascade,
    ConfigurationError,
    LoraLLM,
    Prices,
    ServiceError,
    StructuredAnswerError,
    capture,
    hosted_llm,
)
from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.capture import read_examples
from llama_index_finetune_structured.llms.structured import with_schema
from llama_index_finetune_structured.local.schema.bounds import schema_key
from llama_index_finetune_structured.trust.answer_trust import Trust
from llama_index_finetune_structured.trust.calibration import Calibration
from llama_index_finetune_structured.trust.lookup import trust_of
from tests.fakes.openai_server import OpenAIServer

CHAT = "/v1/chat/completions"
ALWAYS, NEVER = 1e-9, 1 - 1e-9  # thresholds that every answer of the tiny model reaches, and none


class Sign(BaseModel):
    """A road sign."""

    stop: bool
    lane: int = Field(ge=0, le=9)


TEACHERS = Sign(stop=True, lane=7)
PROMPT = PromptTemplate("Which sign is {thing}?")
ASKED = [ChatMessage(role="user", content="Which sign is it?")]
FORM = {"response_format": with_schema(Sign, None)["response_format"]}


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    def answer(body: dict[str, Any]) -> str:
        return TEACHERS.model_dump_json() if "Sign" in json.dumps(body) else "A text."

    with OpenAIServer(answer_chat=answer) as running:
        yield running


@pytest.fixture
def teacher(server: OpenAIServer) -> Any:
    return _teacher(server)


def _teacher(server: OpenAIServer, **options: Any) -> Any:
    given = {"api_key": server.key, "transport": "json_schema", "max_retries": 0, **options}
    return hosted_llm("big-teacher", api_base=server.base, context_window=9000, **given)


@pytest.fixture(scope="module")
def student(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=60)


def _calibrated(student: LoraLLM, held_out: list[tuple[float, bool]]) -> LoraLLM:
    calibration = Calibration(rows=len(held_out), held_out=tuple(held_out))
    return student.model_copy(update={"calibrations": {schema_key(class_schema(Sign)): calibration}})


def _parsed(answer: Any) -> tuple[Sign, Trust]:
    if isinstance(answer, Sign):
        return answer, trust_of(answer)
    text = answer.text if hasattr(answer, "text") else answer.message.content
    return Sign.model_validate_json(text), trust_of(answer)


async def _last(stream: Any) -> Any:
    return [chunk async for chunk in await stream][-1]


WAYS: dict[str, Callable[[Any], Any]] = {
    "predict": lambda llm: llm.structured_predict(Sign, PROMPT, thing="it"),
    "apredict": lambda llm: asyncio.run(llm.astructured_predict(Sign, PROMPT, thing="it")),
    "stream": lambda llm: list(llm.stream_structured_predict(Sign, PROMPT, thing="it"))[-1],
    "astream": lambda llm: asyncio.run(_last(llm.astream_structured_predict(Sign, PROMPT, thing="it"))),
    "structured llm": lambda llm: llm.as_structured_llm(Sign).chat(ASKED).raw,
    "structured llm, async": lambda llm: asyncio.run(llm.as_structured_llm(Sign).achat(ASKED)).raw,
    "chat": lambda llm: llm.chat(ASKED, **FORM),
    "achat": lambda llm: asyncio.run(llm.achat(ASKED, **FORM)),
    "stream_chat": lambda llm: list(llm.stream_chat(ASKED, **FORM))[-1],
    "astream_chat": lambda llm: asyncio.run(_last(llm.astream_chat(ASKED, **FORM))),
    "complete": lambda llm: llm.complete("Which sign is it?", **FORM),
    "acomplete": lambda llm: asyncio.run(llm.acomplete("Which sign is it?", **FORM)),
    "stream_complete": lambda llm: list(llm.stream_complete("Which sign is it?", **FORM))[-1],
    "astream_complete": lambda llm: asyncio.run(_last(llm.astream_complete("Which sign is it?", **FORM))),
}


def _engine(llm: Any) -> Any:
    index = VectorStoreIndex.from_documents([Document(text="A road.")], embed_model=MockEmbedding(8))
    return index.as_query_engine(llm=llm, output_cls=Sign)


def test_a_sure_answer_is_the_students_in_every_way_of_asking(
    student: LoraLLM, teacher: Any, server: OpenAIServer
) -> None:
    cascade = Cascade(student, teacher, threshold=ALWAYS)
    alone = student.structured_predict(Sign, PROMPT, thing="it")
    for way, ask in WAYS.items():
        answer, trust = _parsed(ask(cascade))
        assert (trust.answered_by, trust.sure) == (student.metadata.model_name, True), way
        assert trust.probability is not None, way
        assert answer == alone, way
    assert server.calls("POST", CHAT) == []
    assert cascade.summary()["answered_by_student"] == len(WAYS)


def test_an_answer_that_is_not_sure_is_the_teachers_in_every_way_of_asking(
    student: LoraLLM, teacher: Any, server: OpenAIServer
) -> None:
    cascade = Cascade(student, teacher, threshold=NEVER)
    for way, ask in WAYS.items():
        answer, trust = _parsed(ask(cascade))
        assert answer == TEACHERS, way
        assert (trust.answered_by, trust.sure, trust.probability) == ("big-teacher", True, None), way
    assert server.refusals == []
    assert cascade.summary()["answered_by_teacher"] == len(WAYS)


@pytest.mark.parametrize(("threshold", "by"), [(ALWAYS, "student"), (NEVER, "teacher")])
def test_a_pydantic_program_that_writes_the_schema_into_the_prompt_gets_an_answer_of_the_cascade(
    threshold: float, by: str, student: LoraLLM, teacher: Any
) -> None:
    cascade = Cascade(student, teacher, threshold=threshold)
    program = LLMTextCompletionProgram.from_defaults(
        output_cls=Sign, prompt_template_str="Which sign is it?", llm=cascade
    )
    answer = program()
    assert (answer == TEACHERS) == (by == "teacher")
    assert trust_of(answer).sure
    assert (trust_of(answer).answered_by == "big-teacher") == (by == "teacher")
    assert cascade.summary()[f"answered_by_{by}"] == 1


def test_a_query_engine_with_an_output_class_asks_both(student: LoraLLM, teacher: Any) -> None:
    for threshold, by in ((ALWAYS, "student"), (NEVER, "teacher")):
        cascade = Cascade(student, teacher, threshold=threshold)
        answer = _engine(cascade).query("Which sign?").response
        assert isinstance(answer, Sign)
        assert trust_of(answer).sure
        assert (trust_of(answer).answered_by == "big-teacher") == (by == "teacher")
        assert (answer == TEACHERS) == (by == "teacher")
        assert cascade.summary()[f"answered_by_{by}"] == 1
        asynchronous = asyncio.run(_engine(cascade).aquery("Which sign?"))
        assert asynchronous.response == answer


def test_a_text_is_the_teachers_since_nothing_tells_how_sure_it_is(student: LoraLLM, teacher: Any) -> None:
    cascade = Cascade(student, teacher, threshold=ALWAYS)

    async def ways() -> list[str]:
        return [
            (await cascade.achat(ASKED)).message.content or "",
            (await cascade.acomplete("Hello")).text,
            (await _last(cascade.astream_chat(ASKED))).message.content,
            (await _last(cascade.astream_complete("Hello"))).text,
        ]

    texts = [
        cascade.chat(ASKED).message.content,
        cascade.complete("Hello").text,
        list(cascade.stream_chat(ASKED))[-1].message.content,
        list(cascade.stream_complete("Hello"))[-1].text,
        cascade.predict(PROMPT, thing="it"),
        *asyncio.run(ways()),
    ]
    assert texts == ["A text."] * 9
    assert cascade.summary()["texts"] == 9


def test_a_stream_of_objects_shows_the_students_partial_ones_and_ends_with_the_answer(
    student: LoraLLM, teacher: Any
) -> None:
    seen: list[Any] = list(
        Cascade(student, teacher, threshold=NEVER).stream_structured_predict(Sign, PROMPT, thing="it")
    )
    assert len(seen) > 1
    assert seen[-1] == TEACHERS
    sure: list[Any] = list(
        Cascade(student, teacher, threshold=ALWAYS).stream_structured_predict(Sign, PROMPT, thing="it")
    )
    assert sure[-1] == student.structured_predict(Sign, PROMPT, thing="it")


def test_the_deltas_of_a_chat_stream_are_the_answer_and_nothing_that_was_withdrawn(
    student: LoraLLM, teacher: Any
) -> None:
    chunks = list(Cascade(student, teacher, threshold=NEVER).stream_chat(ASKED, **FORM))
    assert Sign.model_validate_json("".join(chunk.delta or "" for chunk in chunks)) == TEACHERS


@pytest.mark.parametrize("ask", [WAYS["predict"], WAYS["apredict"], WAYS["stream"], WAYS["astream"]])
def test_the_teacher_answers_where_the_student_has_no_answer_that_fits(
    ask: Callable[[Any], Any], tiny_llama: Path, teacher: Any
) -> None:
    cut = LoraLLM(base_model=str(tiny_llama), max_new_tokens=3, constrained=False)
    with pytest.raises(StructuredAnswerError):
        ask(cut)
    assert ask(Cascade(cut, teacher, threshold=ALWAYS)) == TEACHERS


def test_the_teacher_answers_a_prompt_that_is_too_long_for_the_student(
    student: LoraLLM, teacher: Any
) -> None:
    cascade = Cascade(student, teacher, threshold=ALWAYS)
    assert cascade.structured_predict(Sign, PROMPT, thing="long " * 2000) == TEACHERS


def test_where_the_teacher_fails_the_students_answer_is_returned_as_not_sure(
    student: LoraLLM, teacher: Any, server: OpenAIServer, caplog: pytest.LogCaptureFixture
) -> None:
    cascade = Cascade(student, teacher, threshold=NEVER)
    server.fault("POST", CHAT, "reply", times=len(WAYS))
    with caplog.at_level(logging.WARNING):
        for way in WAYS:
            _, trust = _parsed(WAYS[way](cascade))
            assert (trust.answered_by, trust.sure) == (student.metadata.model_name, False), way
    counts = cascade.summary()
    assert counts["unsure"] == counts["teacher_failures"] == counts["handed_over"] == len(WAYS)
    assert sum("the teacher did not answer" in record.message for record in caplog.records) == 1
    assert _parsed(WAYS["predict"](cascade))[0] == TEACHERS


def test_the_teachers_error_is_raised_where_it_is_wanted_or_the_student_has_no_answer(
    tiny_llama: Path, student: LoraLLM, teacher: Any, server: OpenAIServer
) -> None:
    server.fault("POST", CHAT, "reply", times=3)
    strict = Cascade(student, teacher, threshold=NEVER, on_teacher_error="raise")
    for way in ("predict", "achat"):
        with pytest.raises(Exception, match="injected"):
            WAYS[way](strict)
    cut = LoraLLM(base_model=str(tiny_llama), max_new_tokens=3, constrained=False)
    cascade = Cascade(cut, teacher, threshold=ALWAYS)
    with pytest.raises(Exception, match="injected") as raised:
        WAYS["predict"](cascade)
    assert isinstance(raised.value.__cause__, StructuredAnswerError)
    assert cascade.summary()["unanswered"] == 1


def test_an_answer_of_the_teacher_that_does_not_fit_counts_as_a_failure(
    student: LoraLLM, tmp_path: Path
) -> None:
    with OpenAIServer(answer_chat=lambda body: '{"stop": "perhaps"}') as server:
        cascade = Cascade(student, _teacher(server), threshold=NEVER, capture=tmp_path / "more.jsonl")
        for way in ("predict", "stream", "achat"):
            assert _parsed(WAYS[way](cascade))[1].sure is False
    assert cascade.summary()["captured"]["rejected"] == {"schema_mismatch": 3}
    assert (tmp_path / "more.jsonl").read_text() == ""


@pytest.mark.parametrize("way", ["predict", "apredict", "stream"])
def test_a_teacher_that_takes_too_long_has_failed(
    way: str, student: LoraLLM, teacher: Any, server: OpenAIServer
) -> None:
    server.fault("POST", CHAT, "hang", times=2)
    started = time.monotonic()
    _, trust = _parsed(WAYS[way](Cascade(student, teacher, threshold=NEVER, teacher_timeout=0.5)))
    assert trust.sure is False
    assert time.monotonic() - started < 50, "a hanging reply takes 60 s"
    strict = Cascade(student, teacher, threshold=NEVER, teacher_timeout=0.5, on_teacher_error="raise")
    with pytest.raises(ServiceError, match=r"within 0\.5 s"):
        WAYS[way](strict)


def test_a_teacher_within_its_time_answers(student: LoraLLM, teacher: Any, tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    cascade = Cascade(student, teacher, threshold=NEVER, teacher_timeout=300, capture=path)
    for way in ("predict", "apredict"):
        assert _parsed(WAYS[way](cascade))[0] == TEACHERS
    assert len(list(read_examples(path))) == 2, "calls in the thread of a timeout are captured too"


def test_cancelling_a_call_cancels_the_teachers(student: LoraLLM, teacher: Any, server: OpenAIServer) -> None:
    fault = server.fault("POST", CHAT, "hang")
    cascade = Cascade(student, teacher, threshold=NEVER)

    async def cancelled() -> None:
        task = asyncio.create_task(cascade.astructured_predict(Sign, PROMPT, thing="it"))
        await asyncio.to_thread(fault.seen.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert cascade.summary()["handed_over"] == 0, "who cancels wants no answer"


@pytest.mark.parametrize("way", ["predict", "query engine", "chat", "astream"])
def test_a_hand_over_is_captured_as_the_teachers_call_alone_would_be(
    way: str, student: LoraLLM, teacher: Any, tmp_path: Path
) -> None:
    ways = {**WAYS, "query engine": lambda llm: _engine(llm).query("Which sign?")}
    with capture(tmp_path / "alone.jsonl"):
        ways["apredict" if way == "astream" else way](teacher)
    cascade = Cascade(student, teacher, threshold=NEVER, capture=tmp_path / "more.jsonl")
    ways[way](cascade)
    [alone] = read_examples(tmp_path / "alone.jsonl")
    [row] = read_examples(tmp_path / "more.jsonl")
    assert row.id == alone.id
    assert (row.query, row.usage, row.model) == (alone.query, alone.usage, alone.model)
    assert [source.score for source in row.sources] == [source.score for source in alone.sources]
    Sign.model_validate_json(str(row.metadata["student_answer"]))
    assert 0 < float(str(row.metadata["student_probability"])) < 1
    assert row.metadata["student"] == student.metadata.model_name


def test_only_hand_overs_are_captured(student: LoraLLM, teacher: Any, tmp_path: Path) -> None:
    sure = Cascade(student, teacher, threshold=ALWAYS, capture=tmp_path / "sure.jsonl")
    WAYS["predict"](sure)
    sure.complete("Hello")
    WAYS["predict"](teacher)
    assert (tmp_path / "sure.jsonl").read_text() == ""


def test_hand_overs_are_redacted(student: LoraLLM, teacher: Any, tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    cascade = Cascade(student, teacher, threshold=NEVER, capture=path, redact=True)
    cascade.structured_predict(Sign, PROMPT, thing="that of jane.doe@example.com")
    assert "jane.doe" not in path.read_text()
    assert "Which sign" in path.read_text()


def test_two_hundred_calls_at_once_are_all_answered_counted_and_captured(
    student: LoraLLM, teacher: Any, tmp_path: Path
) -> None:
    prompts = [PromptTemplate(f"Sign {n}?") for n in range(200)]

    async def answers(cascade: Cascade) -> list[Any]:
        return await asyncio.gather(*(cascade.astructured_predict(Sign, prompt) for prompt in prompts))

    probabilities = []
    sure = Cascade(student, teacher, threshold=ALWAYS)
    for answer in asyncio.run(answers(sure)):
        probabilities.append(trust_of(answer).probability or 0.0)
    middle = sorted(probabilities)[100]
    mixed = Cascade(student, teacher, threshold=middle, capture=tmp_path / "more.jsonl")
    found = [trust_of(answer) for answer in asyncio.run(answers(mixed))]
    counts = mixed.summary()
    by_teacher = sum(trust.answered_by == "big-teacher" for trust in found)
    assert all(trust.sure for trust in found)
    assert (counts["answered_by_student"], counts["answered_by_teacher"]) == (200 - by_teacher, by_teacher)
    assert counts["tokens"]["teacher"] == {
        "prompt_tokens": 10 * by_teacher,
        "completion_tokens": 5 * by_teacher,
    }
    assert len(list(read_examples(tmp_path / "more.jsonl"))) == by_teacher > 0


def test_a_copy_answers_alike_counts_anew_and_shows_no_key(student: LoraLLM, server: OpenAIServer) -> None:
    secret = "sk-neverseen-1234567890"
    from llama_index.llms.openai import OpenAI

    open_teacher = OpenAI("gpt-4o", api_base=server.base, api_key=secret)
    shown = Cascade(student, open_teacher, threshold=NEVER)
    assert secret not in f"{shown!r} {shown} {shown.model_dump()} {shown.to_json()} {shown.to_dict()}"
    cascade = Cascade(student, _teacher(server), threshold=NEVER)
    WAYS["predict"](cascade)
    for other in (copy.deepcopy(cascade), pickle.loads(pickle.dumps(cascade))):
        assert other.summary()["handed_over"] == 0
        other.teacher = cascade.teacher  # its pickle has no key
        assert _parsed(WAYS["predict"](other))[0] == TEACHERS
        assert other.summary()["handed_over"] == 1


def test_the_calls_of_both_models_are_spans_below_the_cascades_and_their_tokens_are_counted_once(
    student: LoraLLM, teacher: Any
) -> None:
    counter, spans = TokenCountingHandler(), SimpleSpanHandler()
    own = student.model_copy()
    cascade = Cascade(own, teacher, threshold=NEVER, callback_manager=CallbackManager([counter]))
    get_dispatcher().add_span_handler(spans)
    try:
        WAYS["predict"](cascade)
    finally:
        get_dispatcher().span_handlers.remove(spans)
    kinds = {span.id_: span.id_.rpartition("-")[0].split("-")[0] for span in spans.completed_spans}
    below = {kinds[span.id_]: kinds.get(span.parent_id or "") for span in spans.completed_spans}
    assert below["LoraLLM.structured_predict"] == "Cascade.structured_predict"
    assert below["HostedOpenAILike.structured_predict"] == "Cascade.structured_predict"
    student_tokens = cascade.summary()["tokens"]["student"]
    assert len(counter.llm_token_counts) == 2
    assert counter.total_llm_token_count == sum(student_tokens.values()) + 15


def test_the_summary_says_what_was_spent_and_saved(student: LoraLLM, teacher: Any) -> None:
    prices = Prices(input_per_million=1e6, output_per_million=2e6, student_per_query=1)
    cascade = Cascade(student, teacher, threshold=NEVER, prices=prices)
    for _ in range(3):
        WAYS["predict"](cascade)
    found = cascade.summary()
    assert found["money"] == {"spent": 3 * 20 + 3, "saved": -3, "currency": "USD"}
    assert found["share_handed_over"] == 1
    assert found["share_interval"][0] < 1 == found["share_interval"][1]


def test_metrics_are_in_prometheus_format(student: LoraLLM, teacher: Any) -> None:
    cascade = Cascade(student, teacher, threshold=NEVER)
    WAYS["predict"](cascade)
    text = cascade.metrics()
    assert 'cascade_calls_total{answered_by="teacher"} 1\n' in text
    assert 'cascade_tokens_total{role="teacher",kind="prompt"} 10\n' in text
    for line in text.splitlines():
        name = line.split()[2] if line.startswith("#") else line.partition("{")[0].partition(" ")[0]
        assert f"# TYPE {name} " in text


def test_what_is_packed_into_a_prompt_fits_both_models(student: LoraLLM, server: OpenAIServer) -> None:
    small = Cascade(student, hosted_llm("t", api_base=server.base, context_window=900), threshold=0.5)
    assert small.metadata.context_window == 900
    large = Cascade(student, _teacher(server), threshold=0.5)
    assert large.metadata.context_window == student.metadata.context_window
    assert large.metadata_for(Sign).context_window == student.metadata_for(Sign).context_window


def test_an_accuracy_is_kept_by_the_held_out_rows(
    student: LoraLLM, teacher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sure = [(0.99 - n / 1e4, True) for n in range(300)]
    unsure = [(0.3 - n / 1e4, n % 2 == 0) for n in range(100)]
    cascade = Cascade(_calibrated(student, sure + unsure), teacher, accuracy=0.95)
    [threshold] = cascade.summary()["thresholds"].values()
    assert 0.2 < threshold < 0.97
    few = Cascade(_calibrated(student, sure[:50]), teacher, accuracy=0.95)
    assert list(few.summary()["thresholds"].values()) == [None]
    assert "At least" in caplog.text
    assert _parsed(WAYS["predict"](few))[0] == TEACHERS


def test_a_budget_hands_over_its_share_of_the_held_out_rows(student: LoraLLM, teacher: Any) -> None:
    held_out = [(n / 100, True) for n in range(100)]
    cascade = Cascade(_calibrated(student, held_out), teacher, budget=0.2)
    assert list(cascade.summary()["thresholds"].values()) == [0.2]


def test_what_cannot_work_is_refused_with_its_remedy(student: LoraLLM, teacher: Any) -> None:
    calibrated = _calibrated(student, [(0.9, True)] * 10)
    rules: list[dict[str, Any]] = [
        {},
        {"accuracy": 0.9, "budget": 0.1},
        {"accuracy": 95},
        {"budget": 0},
        {"threshold": 1.5},
    ]
    for rule in rules:
        with pytest.raises(ConfigurationError, match=r"exactly one|between 0 and 1"):
            Cascade(calibrated, teacher, **rule)
    with pytest.raises(ConfigurationError, match=r"calibrate\(llm, data\)"):
        Cascade(student, teacher, accuracy=0.9)
    with pytest.raises(ConfigurationError, match=r"calibrate\(llm, data\)"):
        Cascade(student, teacher, budget=0.1)
    with pytest.raises(ConfigurationError, match="confidence=True"):
        Cascade(student.model_copy(update={"confidence": False}), teacher, threshold=0.5)
    with pytest.raises(ConfigurationError, match="LoraLLM"):
        Cascade(MockLLM(), teacher, threshold=0.5)
    with pytest.raises(ConfigurationError, match="teacher_timeout"):
        Cascade(student, teacher, threshold=0.5, teacher_timeout=0)

    class Other(BaseModel):
        name: int

    cascade = Cascade(calibrated, teacher, budget=0.1)
    with pytest.raises(ConfigurationError, match="not: tune"):
        cascade.structured_predict(Other, PROMPT, thing="it")


def test_a_cascade_is_a_teacher_too(student: LoraLLM, teacher: Any) -> None:
    inner = Cascade(student, teacher, threshold=NEVER)
    outer = Cascade(student, inner, threshold=NEVER)
    answer, trust = _parsed(WAYS["predict"](outer))
    assert (answer, trust.answered_by, trust.sure) == (TEACHERS, "big-teacher", True)
    assert outer.summary()["tokens"]["teacher"]["completion_tokens"] > 5, "of both models of the inner one"
