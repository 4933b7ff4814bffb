"""``improve``: new rows make a new version, which serves where it is not worse; nothing that serves is ever lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import (
    ConfigurationError,
    DatasetError,
    EngineError,
    Example,
    FinetuneDataset,
    FollowingLoraLLM,
    LoraLLM,
    Scorecard,
    improve,
    rollback,
    tune,
)
from llama_index_finetune_structured.engines.lora import LoraFinetuneEngine
from llama_index_finetune_structured.local.model.versions import read_history
from llama_index_finetune_structured.local.train.trainer import Trainer
from llama_index_finetune_structured.locks import locked_folder
from llama_index_finetune_structured.tuning import improve as improving
from llama_index_finetune_structured.tuning import scored_run
from tests import tiny
from tests.tuning.test_tune import Album, Song, songs

OLD, NEW = 12, 18
QUESTION = "Track 7: 99 s"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of ``tune`` on 12 songs, for copies."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    tune(songs(OLD), base, output_dir=folder)
    return folder


@pytest.fixture(scope="module")
def promoted(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, whose second version serves."""
    folder = Path(shutil.copytree(tuned, tmp_path_factory.mktemp("promoted") / "run"))
    assert improve(folder, capture(), margin=1).promoted
    return folder


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "run"))


@pytest.fixture
def second(promoted: Path, tmp_path: Path) -> Path:
    """A copy of the run with two versions."""
    return Path(shutil.copytree(promoted, tmp_path / "run"))


def capture(first: int = OLD, rows: int = NEW) -> list[Example]:
    """Songs of documents that the run has not seen."""
    return [e.model_copy(update={"document_id": f"n{n}"}) for n, e in enumerate(songs(rows))][first:]


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("it trained")


def _ids(path: Path) -> list[str]:
    return [example.id for example in FinetuneDataset.load(path)]


def _answer(run: Path) -> str:
    return str(LoraLLM.from_adapter(run).complete(QUESTION, max_new_tokens=20).text)


# The promise


def test_a_run_improves_is_promoted_goes_back_and_a_running_llm_follows_without_a_restart(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = FollowingLoraLLM(run=run, max_new_tokens=20)
    old = llm.complete(QUESTION).text
    assert old == _answer(run)
    done = improve(run, FinetuneDataset(capture()).save(tmp_path / "handed.jsonl"), margin=1)
    assert (done.version, done.promoted, done.serves) == ("0002", True, "0002")
    assert done.folder == run / "versions" / "0002"
    told = capsys.readouterr().err
    assert "1/3 6 of 6 rows are new. " in told
    assert "3/3 Scoring current and candidate on " in told
    assert "Version 0002 is promoted: it is not worse by more than 100.0 points" in told
    new = llm.complete(QUESTION).text
    assert new == _answer(run) == _answer(done.folder)
    assert new != old
    assert rollback(run) == "0001"
    assert llm.complete(QUESTION).text == old == _answer(run)


def test_a_version_is_a_whole_run_and_the_held_out_rows_are_the_same(second: Path) -> None:
    version = second / "versions" / "0002"
    assert _ids(version / "train.jsonl") == [*_ids(second / "train.jsonl"), *(e.id for e in capture())]
    assert _ids(version / "validation.jsonl") == _ids(second / "validation.jsonl")
    first, card = (Scorecard.from_json(folder / "scorecard.json") for folder in (second, version))
    assert list(card.systems) == ["current", "candidate"]
    assert [row.example_id for row in card.rows] == [row.example_id for row in first.rows]
    assert card.systems["current"].field_score == first.systems["tuned"].field_score
    assert "Version 0002 of run against version 0001" in (version / "report.html").read_text()
    assert LoraLLM.from_adapter(version).adapter == version / "adapter"


def test_a_version_may_go_on_from_the_one_that_serves_on_new_rows_and_as_many_old_ones(
    second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = capture(NEW, NEW + 3)
    done = improve(second, new, margin=1, start_from="current")
    assert (done.version, done.promoted, done.taken) == ("0003", True, 3)
    assert _ids(done.folder / "train.jsonl")[-3:] == [row.id for row in new]
    run = json.loads((done.folder / "run.json").read_text())
    assert run["start adapter"]
    assert "6 rows" in str(Scorecard.from_json(done.folder / "scorecard.json").settings["trained on"])
    monkeypatch.setattr(LoraFinetuneEngine, "finetune", _refuse)
    assert improve(second, new, margin=1, start_from="current").version == "0003"
    with pytest.raises(ConfigurationError, match="expected 'base' or 'current'"):
        improve(second, new, start_from="elsewhere")  # type: ignore[arg-type]


def test_a_version_that_may_be_worse_is_kept_and_does_not_serve(run: Path) -> None:
    done = improve(run, capture())
    assert (done.promoted, done.serves) == (False, "0001")
    assert "So few rows cannot tell" in done.reason
    assert LoraLLM.from_adapter(run).adapter == run / "adapter"
    assert (done.folder / "adapter").is_dir()
    with pytest.raises(ConfigurationError, match="no version before the one that serves"):
        rollback(run)


def test_a_wider_margin_promotes_the_same_version_without_training_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not improve(run, capture()).promoted
    monkeypatch.setattr(LoraFinetuneEngine, "finetune", _refuse)
    done = improve(run, capture(), margin=1)
    assert (done.version, done.promoted) == ("0002", True)


def test_what_was_taken_and_left_out_is_told_in_numbers(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraFinetuneEngine, "finetune", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        improve(run, [*songs(OLD), *capture()])
    told = capsys.readouterr().err
    held_out, trained = len(_ids(run / "validation.jsonl")), len(_ids(run / "train.jsonl"))
    assert f"6 of 18 rows are new; left out: {held_out} held out, {trained} trained on already. " in told
    assert f"{trained + 6} rows to train on with those of version 0001. " in told
    assert "Held-out rows are few: a student with equal answers could be " in told
    assert "the same call goes on from there" in told


def test_nothing_new_is_an_error_that_says_why(run: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"nothing new to train on: 0 of 12 rows are new; left out: \d+ held"
    ):
        improve(run, songs(OLD))
    assert not list((run / "versions").glob("0*"))


def test_new_rows_without_a_document_are_told_where_documents_are_held_out(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    improve(run, [e.model_copy(update={"document_id": None}) for e in capture()])
    assert "6 of 6 new rows name no document" in caplog.text


# Rounds


def test_a_third_version_is_trained_on_the_rows_of_the_one_that_serves(second: Path) -> None:
    done = improve(second, capture(NEW, NEW + 4), margin=1)
    assert (done.version, done.promoted, done.taken) == ("0003", True, 4)
    old = _ids(second / "versions" / "0002" / "train.jsonl")
    assert _ids(done.folder / "train.jsonl")[: len(old)] == old
    assert [rollback(second), rollback(second)] == ["0002", "0001"]
    with pytest.raises(ConfigurationError, match="no version before"):
        rollback(second)
    assert [entry.version for entry in read_history(second)] == ["0001", "0002", "0003", "0002", "0001"]


def test_after_a_rollback_the_next_version_is_made_of_the_one_that_serves(second: Path) -> None:
    rollback(second)
    done = improve(second, capture(NEW, NEW + 4), margin=1)
    assert _ids(done.folder / "train.jsonl") == [
        *_ids(second / "train.jsonl"),
        *(e.id for e in capture(NEW, NEW + 4)),
    ]
    assert rollback(second) == "0001"


def test_the_same_call_returns_at_once_and_never_promotes_again_what_was_rolled_back(
    second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraFinetuneEngine, "finetune", _refuse)
    monkeypatch.setattr(scored_run, "compare", _refuse)
    pointer = (second / "current.json").read_bytes()
    done = improve(second, capture(), margin=1)
    assert (done.version, done.promoted, done.serves) == ("0002", True, "0002")
    assert (second / "current.json").read_bytes() == pointer
    rollback(second)
    done = improve(second, capture(), margin=1)
    assert list(done.lines())[:2] == [
        f"Version 0002 was promoted: {done.reason}.",
        "Version 0001 serves.",
    ]
    assert LoraLLM.from_adapter(second).adapter == second / "adapter"


def test_a_version_that_was_compared_with_one_that_serves_no_more_is_not_promoted(
    second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = LoraFinetuneEngine.finetune

    def meanwhile(engine: LoraFinetuneEngine) -> None:
        train(engine)
        rollback(second)  # allowed while improve works

    monkeypatch.setattr(LoraFinetuneEngine, "finetune", meanwhile)
    done = improve(second, capture(NEW, NEW + 4), margin=1)
    assert (done.promoted, done.serves) == (False, "0001")
    assert "version 0002, with which it was compared, does not serve any more" in done.reason
    monkeypatch.setattr(LoraFinetuneEngine, "finetune", train)
    assert improve(second, capture(NEW, NEW + 4), margin=1).version == "0004"


# Stopped and damaged


def test_stopped_while_it_trains_the_same_call_goes_on_though_the_capture_has_grown(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = [], Trainer._train_step

    def interrupted(self: Trainer, batch: Any) -> dict[str, float]:
        steps.append(self.step)
        if self.step == 7:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    path = FinetuneDataset(capture()).save(tmp_path / "handed.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 8"):
            improve(run, path, margin=1)
        FinetuneDataset(capture(OLD, NEW + 2)).save(path)
        done = improve(run, path, margin=1)
    assert (done.version, done.taken) == ("0002", 6)
    assert steps == list(range(len(steps)))
    assert improve(run, path, margin=1).taken == 2


def test_stopped_while_it_scores_the_same_call_goes_on_without_training(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scored_run, "compare", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            improve(run, capture(), margin=1)
    assert LoraLLM.from_adapter(run).adapter == run / "adapter"
    monkeypatch.setattr(LoraFinetuneEngine, "finetune", _refuse)
    assert improve(run, capture(), margin=1).promoted


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_any_point_a_whole_version_serves_and_the_same_call_finishes(
    tuned: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.tuning.killed_improvements", str(tuned), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["kills"]) >= 20
    assert all(kill["killed"] for kill in report["kills"]), report["kills"]
    for kill in report["kills"]:
        assert kill["served"] in ("0001", "0002"), kill
        assert kill["answer"] == report["answers"][kill["served"]], kill
        assert kill["finished"] == report["finished"], kill
    assert {kill["served"] for kill in report["kills"]} == {"0001", "0002"}
    for kill in report["back"]:
        assert kill["killed"]
        assert kill["answer"] == report["answers"][kill["served"]], kill
    assert {kill["served"] for kill in report["back"]} == {"0001", "0002"}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "current.json").write_text("{}"), "not known which version serves"),
        (lambda run: (run / "current.json").unlink(), "is missing, so that it is not known"),
        (lambda run: shutil.rmtree(run / "versions" / "0002"), "says that it serves; restore it"),
        (
            lambda run: (run / "versions" / "0002" / "adapter" / "adapter_model.safetensors").write_bytes(
                b"x"
            ),
            "is not what",
        ),
    ],
    ids=["pointer", "no pointer", "no folder", "weights"],
)
def test_what_is_damaged_of_the_version_that_serves_is_an_error_with_a_way_out(
    second: Path, damage: Any, told: str
) -> None:
    damage(second)
    with pytest.raises(ConfigurationError, match=told):
        LoraLLM.from_adapter(second)
    assert LoraLLM.from_adapter(second / "adapter").adapter == second / "adapter"


def test_a_rollback_to_a_damaged_version_is_refused(second: Path) -> None:
    (second / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigurationError, match="not what"):
        rollback(second)
    assert LoraLLM.from_adapter(second).adapter == second / "versions" / "0002" / "adapter"


def test_a_pointer_cannot_lead_out_of_the_run(second: Path) -> None:
    text = (second / "current.json").read_text().replace('"0002"', '"../../x"')
    (second / "current.json").write_text(text)
    with pytest.raises(ConfigurationError, match="damaged"):
        LoraLLM.from_adapter(second)


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_rows_that_were_changed_since_are_refused(run: Path, name: str) -> None:
    lines = (run / name).read_text().splitlines()
    (run / name).write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises((ConfigurationError, DatasetError), match=name):
        improve(run, capture())


def test_a_folder_that_is_no_finished_run_is_refused_and_left_alone(run: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"holds no run of tune\(\)"):
        improve(empty, capture())
    with pytest.raises(ConfigurationError, match="no version before"):
        rollback(empty)
    assert not list(empty.iterdir())
    (run / "scorecard.json").unlink()
    with pytest.raises(ConfigurationError, match="not finished"):
        improve(run, capture())


def test_a_second_process_is_told_of_the_first(run: Path) -> None:
    with (
        locked_folder(run / "answers"),
        pytest.raises(EngineError, match=f"process {os.getpid()} is at work"),
    ):
        improve(run, capture())


@pytest.mark.parametrize("margin", [-0.1, 1.5, float("nan")])
def test_a_margin_out_of_range_is_refused(run: Path, margin: float) -> None:
    with pytest.raises(ConfigurationError, match=r"margin: .*from 0 to 1"):
        improve(run, capture(), margin=margin)


def test_another_class_than_the_runs_is_refused(run: Path) -> None:
    with pytest.raises(ConfigurationError, match="tuned with output_cls=None, found Album"):
        improve(run, capture(), output_cls=Album)


def test_a_run_of_a_class_takes_rows_as_the_class_writes_them(base: Path, tmp_path: Path) -> None:
    def lines(numbers: Sequence[int]) -> Path:
        rows = [(f"Track {n}", f'{{"title": "Track {n}", "seconds": "{n}"}}') for n in numbers]
        return FinetuneDataset.from_pairs(rows).save(tmp_path / f"chat{numbers[0]}.jsonl", "openai")

    tune(lines(range(6)), base, output_cls=Song, output_dir=tmp_path / "run")
    done = improve(tmp_path / "run", lines(range(10, 13)), output_cls=Song, margin=1)
    assert isinstance(FinetuneDataset.load(done.folder / "train.jsonl")[-1].answer_object()["seconds"], int)
    assert done.promoted


def test_bad_rows_stop_it_with_the_words_of_check(run: Path, tmp_path: Path) -> None:
    path = FinetuneDataset(capture()).save(tmp_path / "rows.jsonl")
    lines = path.read_text().splitlines()
    bad = json.loads(lines[2])
    bad["answer"]["content"] = '{"title": "no seconds"}'
    path.write_text("\n".join([*lines[:2], json.dumps(bad), *lines[3:]]))
    with pytest.raises(DatasetError, match=r"rows\.jsonl:3: error \[answer_not_in_schema\]"):
        improve(run, path)
    assert not list((run / "versions").glob("0*"))


def test_one_of_several_processes_is_refused_to_improve(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        world_size = 2

    monkeypatch.setattr(improving, "DistributedRun", Two)
    with pytest.raises(ConfigurationError, match="one of several"):
        improve(run, capture())


def test_a_moved_base_model_can_be_named(run: Path, base: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    assert improve(run, capture(), base_model=moved, margin=1).promoted


def test_the_first_run_can_be_called_again_beside_its_versions(second: Path, base: Path) -> None:
    assert tune(songs(OLD), base, output_dir=second).adapter == second / "adapter"
    assert LoraLLM.from_adapter(second).adapter == second / "versions" / "0002" / "adapter"
