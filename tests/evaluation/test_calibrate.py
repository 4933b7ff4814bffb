"""``calibrate``: a model's probabilities are fitted to rows, kept in its adapter, and applied to its answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.llms import MockLLM
from pydantic import BaseModel

from llama_index_finetune_structured import (
    ConfigurationError,
    Example,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    calibrate,
    compare,
    export_adapter,
)
from llama_index_finetune_structured.evaluation import calibration as calibration_module
from llama_index_finetune_structured.local.model.adapter import read_card
from llama_index_finetune_structured.trust.lookup import trust_of
from tests import tiny


class Song(BaseModel):
    """A song."""

    title: str
    seconds: int


def songs(first: int, count: int) -> FinetuneDataset:
    numbers = range(first, first + count)
    pairs = [(f"Track {n}: {n} s", Song(title=f"Track {n}", seconds=n)) for n in numbers]
    return FinetuneDataset.from_pairs(pairs, output_cls=Song)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    base = tiny.save("llama", folder / "base")
    settings = LoraSettings(rank=2, epochs=1)
    LoraFinetuneEngine(songs(0, 8), base_model=base, output_dir=folder / "run", config=settings).finetune()
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def ask(llm: LoraLLM) -> Any:
    return trust_of(llm.structured_predict(Song, PromptTemplate("Track 3: 3 s")))


def test_the_fit_is_applied_and_stays_with_the_adapter(run: Path, tmp_path: Path) -> None:
    llm = LoraLLM.from_adapter(run)
    hashes = read_card(run / "adapter").files
    assert not ask(llm).calibrated
    cache = tmp_path / "answers"
    found = calibrate(llm, songs(100, 24), output_cls=Song, cache_dir=cache, show_progress=False)
    assert ask(found).calibrated
    assert not llm.calibrations
    card = read_card(run / "adapter")
    assert card.files == hashes
    assert card.calibrations == found.calibrations
    assert [fit.rows for fit in card.calibrations.values()] == [24]
    assert [len(fit.held_out) for fit in card.calibrations.values()] == [24]
    again = LoraLLM.from_adapter(run)
    assert again.calibrations == found.calibrations
    assert ask(again).probability == ask(found).probability
    merged = export_adapter(run / "adapter", tmp_path / "merged", format="merged")
    assert LoraLLM.from_merged(merged).calibrations == found.calibrations


def test_each_way_to_ask_a_model_keeps_its_trust(run: Path) -> None:
    llm = LoraLLM.from_adapter(run)

    def function(_: Example) -> Any:
        return llm.structured_predict(Song, PromptTemplate("Track 3: 3 s"))

    systems: dict[str, Any] = {"bare": llm, "structured": llm.as_structured_llm(Song), "function": function}
    card = compare(systems, songs(100, 2), output_cls=Song, show_progress=False)
    for row in card.rows:
        for answer in row.answers.values():
            assert answer.trust is not None
            assert answer.trust.tokens is not None
            assert [value.path for value in answer.trust.values] == [("title",), ("seconds",)]


def test_answers_in_the_cache_are_not_asked_again(run: Path, tmp_path: Path) -> None:
    llm, data = LoraLLM.from_adapter(run), songs(100, 20)
    first = calibrate(llm, data, output_cls=Song, cache_dir=tmp_path / "answers", show_progress=False)
    log = next((tmp_path / "answers").iterdir())
    before = log.read_bytes()
    second = calibrate(llm, data, output_cls=Song, cache_dir=tmp_path / "answers", show_progress=False)
    assert log.read_bytes() == before
    assert second.calibrations == first.calibrations


def test_few_rows_calibrate_nothing_and_it_is_logged(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = calibrate(LoraLLM.from_adapter(run), songs(100, 5), output_cls=Song, show_progress=False)
    assert not found.calibrations
    assert not read_card(run / "adapter").calibrations
    assert "fewer than 20 of the 5 answers" in caplog.text


def test_another_adapter_in_the_folder_keeps_its_card(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_card(run / "adapter")
    other = card.model_copy(update={"files": {**card.files, "adapter_model.safetensors": "0"}})
    monkeypatch.setattr(calibration_module, "read_card", lambda _: other)
    calibration_module._write(run / "adapter", {}, card.files)
    assert "another adapter" in caplog.text


def test_only_a_local_model_can_be_calibrated() -> None:
    with pytest.raises(ConfigurationError, match="MockLLM"):
        calibrate(MockLLM(), songs(0, 3), show_progress=False)  # type: ignore[arg-type]
