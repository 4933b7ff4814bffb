"""Training that goes on from an adapter: its weights, its old rows, and fields that are new to it."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from llama_index_finetune_structured import (
    ConfigurationError,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    ServingRecipe,
    check,
    label_documents,
)
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.example import Message
from llama_index_finetune_structured.local.model.adapter import read_card
from llama_index_finetune_structured.local.model.base_models import DEFAULT_BASE_MODEL
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, schema_key
from llama_index_finetune_structured.local.train.checkpoints import newest_checkpoint, part_of
from llama_index_finetune_structured.local.train.recipe import (
    GOING_ON_RATE,
    GOING_ON_START_SHARE,
    learning_rate_of,
)
from tests import tiny

SETTINGS = LoraSettings(rank=4, batch_size=2, epochs=2, checkpoint_steps=2)
GOING_ON = LoraSettings(batch_size=2, epochs=2, checkpoint_steps=2)


class Colour(BaseModel):
    name: str
    warm: bool


class Shade(Colour):
    tone: str | None = None


def _rows(first: int, rows: int) -> FinetuneDataset:
    pairs = [
        (f"Describe colour {n}.", Colour(name=f"c{n}" * 30, warm=n % 2 == 0)) for n in range(first, rows)
    ]
    return FinetuneDataset.from_pairs(pairs, output_cls=Colour)


def _shades(rows: int, filled: int) -> FinetuneDataset:
    pairs = [
        (f"Describe shade {n}.", Shade(name=f"s{n}", warm=n % 2 == 0, tone="deep" if n < filled else None))
        for n in range(rows)
    ]
    return FinetuneDataset.from_pairs(pairs, output_cls=Shade)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on eight colours, with its rows beside the adapter."""
    folder = tmp_path_factory.mktemp("first") / "run"
    LoraFinetuneEngine(_rows(0, 8), base_model=base, output_dir=folder, config=SETTINGS).finetune()
    _rows(0, 8).save(folder / "train.jsonl")
    return folder


def _on(base: Path, first: Path, output: Path, **more: Any) -> LoraFinetuneEngine:
    options: dict[str, Any] = {"config": GOING_ON, "start_from": first, **more}
    return LoraFinetuneEngine(_shades(4, 3), base_model=base, output_dir=output, **options)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def _last_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    return part_of(newest[0], "adapter.")


def test_a_run_begins_with_the_weights_of_the_adapter(base: Path, first: Path, tmp_path: Path) -> None:
    still = GOING_ON.model_copy(update={"learning_rate": 1e-30, "epochs": 1})
    _on(base, first, tmp_path / "still", config=still).finetune()
    before, after = _weights(first), _weights(tmp_path / "still")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name]) for name in before)


def test_rank_alpha_and_layers_are_those_of_the_adapter(base: Path, first: Path, tmp_path: Path) -> None:
    engine = _on(base, first, tmp_path)
    assert (engine.config.rank, engine.config.lora_alpha) == (4, 8)
    for wrong in ({"rank": 8}, {"alpha": 3}, {"upper_layers": 1}, {"thinking": "keep"}):
        with pytest.raises(
            ConfigurationError, match=rf"cannot go on .* with {next(iter(wrong))} .*the adapter has"
        ):
            _on(base, first, tmp_path, config=LoraSettings(**wrong))


def test_an_adapter_of_another_base_is_refused(first: Path, tmp_path: Path) -> None:
    other = tiny.save("qwen2", tmp_path / "other")
    with pytest.raises(ConfigurationError, match="was trained on"):
        _on(other, first, tmp_path / "run")


def test_the_base_is_that_of_the_adapter_where_none_is_named(base: Path, first: Path, tmp_path: Path) -> None:
    engine = LoraFinetuneEngine(_shades(4, 3), start_from=first, output_dir=tmp_path / "run", config=GOING_ON)
    assert engine.base.name == str(base)
    assert engine.fingerprint == _on(base, first, tmp_path / "named").fingerprint
    named = check(_shades(4, 3), start_from=first)
    assert named.tokens == check(_shades(4, 3), base_model=base, start_from=first).tokens
    assert named.tokens != check(_shades(4, 3)).tokens
    assert LoraFinetuneEngine(_shades(4, 3), output_dir=tmp_path).base.name == DEFAULT_BASE_MODEL


def test_options_of_old_rows_need_an_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs start_from="):
        LoraFinetuneEngine(_shades(4, 3), base_model=base, replay=_rows(0, 8), output_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="from 0 to below 1"):
        LoraFinetuneEngine(_shades(4, 3), base_model=base, replay_share=1.0, output_dir=tmp_path)


@pytest.mark.parametrize(("share", "old"), [(0.0, 0), (0.2, 1), (0.5, 4), (0.9, 8)])
def test_old_rows_are_replayed_in_their_share_as_far_as_there_are_any(
    share: float, old: int, base: Path, first: Path, tmp_path: Path
) -> None:
    engine = _on(base, first, tmp_path, replay_share=share)
    assert [example.schema_name for example in engine.examples] == ["Shade"] * (4 + old)
    assert all("tone" not in example.answer_object() for example in engine.examples[4:])


def test_old_answers_that_do_not_fit_the_new_schema_keep_their_own(
    base: Path, first: Path, tmp_path: Path
) -> None:
    class Tint(BaseModel):
        tint: str

    rows = FinetuneDataset.from_pairs([(f"Tint {n}.", Tint(tint=str(n))) for n in range(4)], output_cls=Tint)
    engine = LoraFinetuneEngine(rows, base_model=base, output_dir=tmp_path, start_from=first)
    assert [example.schema_name for example in engine.examples] == ["Tint"] * 4 + ["Colour"] * 4


def test_old_rows_among_the_new_ones_are_not_trained_on_twice(
    base: Path, first: Path, tmp_path: Path
) -> None:
    both = FinetuneDataset([*_shades(4, 3), *list(_rows(0, 8))[:3]])
    engine = LoraFinetuneEngine(both, base_model=base, output_dir=tmp_path, start_from=first)
    assert len(engine.examples) == len({example.id for example in engine.examples}) == 8


def test_a_new_field_is_taught_by_rows_made_of_new_ones_and_of_old_ones(
    base: Path, first: Path, tmp_path: Path
) -> None:
    pairs = [
        (f"Name: s{n}\nTone: deep{n}\nEnd {n}", Shade(name=f"s{n}", warm=True, tone=f"deep{n}"))
        for n in range(3)
    ]
    new = FinetuneDataset.from_pairs(pairs, output_cls=Shade)

    def trained(**more: Any) -> dict[str, str | None]:
        options: dict[str, Any] = {"start_from": first, "config": GOING_ON, **more}
        engine = LoraFinetuneEngine(new, base_model=base, output_dir=tmp_path, **options)
        return {
            str(row.messages[-1].content): json.loads(row.answer_text()).get("tone")
            for row in engine.examples
        }

    as_given = {f"Name: s{n}\nTone: deep{n}\nEnd {n}": f"deep{n}" for n in range(3)}
    without = {f"Name: s{n}\nEnd {n}": None for n in range(3)}
    assert trained(replay_share=0.0) == {**as_given, **without}
    rows = trained()
    old = {text: tone for text, tone in rows.items() if text not in {**as_given, **without}}
    assert rows == {**as_given, **without, **old}
    assert sum(tone is None for tone in old.values()) == 3  # replayed as they were
    filled = {text: tone for text, tone in old.items() if tone is not None}
    assert sorted(filled.values()) == ["deep0", "deep0", "deep1", "deep1", "deep2", "deep2"]
    assert all(f"Tone: {tone}" in text.split("\n") for text, tone in filled.items())
    texts = [text.replace(f"Tone: {tone}", "").strip() for text, tone in old.items()]
    assert len(set(texts)) == 8  # all that there are, before one is both


def test_without_its_old_rows_a_warning_says_how_to_give_them(
    base: Path, first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = Path(shutil.copytree(first / "adapter", tmp_path / "alone"))
    engine = _on(base, alone, tmp_path / "run")
    assert len(engine.examples) == 4
    assert "none are replayed" in caplog.text
    assert "pass them as replay=" in caplog.text
    again = _on(base, alone, tmp_path / "run", replay=_rows(0, 8))
    assert len(again.examples) == 8


def test_another_start_is_another_run(base: Path, first: Path, tmp_path: Path) -> None:
    _on(base, first, tmp_path / "second").finetune()
    engines = [_on(base, start, tmp_path / "x", replay_share=0.0) for start in (first, tmp_path / "second")]
    anew = LoraFinetuneEngine(_shades(4, 3), base_model=base, config=SETTINGS)
    assert len({anew.fingerprint, *(engine.fingerprint for engine in engines)}) == 3


def test_the_learning_rate_of_the_recipe_is_lower(base: Path, first: Path, tmp_path: Path) -> None:
    _on(base, first, tmp_path / "run").finetune()
    settings = json.loads((tmp_path / "run" / "training_log.json").read_text())["settings"]
    assert settings["learning_rate"] == pytest.approx(GOING_ON_RATE * learning_rate_of(32, 2))


@pytest.mark.parametrize("preferred", [False, True])
def test_the_weights_of_the_adapter_have_a_share_in_those_of_the_new_one_but_where_answers_are_preferred(
    preferred: bool, base: Path, first: Path, tmp_path: Path
) -> None:
    wrong = [
        row.model_copy(update={"answer": Message(role="assistant", content="{}")}) for row in _shades(4, 3)
    ]
    engine = _on(base, first, tmp_path, **({"rejects": wrong} if preferred else {}))
    engine.finetune()
    begin, end, before = _weights(first), _weights(tmp_path), _last_checkpoint(tmp_path)
    share = 0.0 if preferred else GOING_ON_START_SHARE
    assert any(not torch.equal(begin[name], end[name]) for name in begin)
    for name, weight in end.items():
        assert torch.allclose(weight, (1 - share) * before[name] + share * begin[name], atol=1e-7), name
    assert all(torch.equal(end[name], before[name]) for name in end) == preferred


_GO_ON = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.engines.test_going_on import _on
_on(*map(Path, sys.argv[2:])).finetune()
"""


def test_a_killed_run_goes_on_to_the_bytes_of_an_undisturbed_one(
    base: Path, first: Path, tmp_path: Path
) -> None:
    _on(base, first, tmp_path / "whole").finetune()
    output, root = tmp_path / "killed", Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", _GO_ON, root, base, first, output])
    while process.poll() is None and not list(output.glob("checkpoints/checkpoint-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _on(base, first, output).finetune()
    name = "adapter/adapter_model.safetensors"
    assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_only_old_rows_showed_is_still_said(base: Path, first: Path, tmp_path: Path) -> None:
    engine = _on(base, first, tmp_path / "run", replay_share=0.0)
    engine.finetune()
    old, new = read_card(first / "adapter"), read_card(engine.adapter)
    assert {schema_key(schema) for schema in old.schemas} < {schema_key(schema) for schema in new.schemas}
    assert new.longest_answer_tokens == old.longest_answer_tokens
    assert old.bounds.longest.items() <= new.bounds.longest.items()
    llm = LoraLLM.from_adapter(tmp_path / "run", max_new_tokens=5)
    assert llm.complete("Describe colour 1.").text is not None


def test_old_documents_are_asked_as_the_new_ones_are_so_that_no_name_tells_them_apart(
    base: Path, first: Path, tmp_path: Path
) -> None:
    rows = {}
    for output_cls, count in ((Colour, 6), (Shade, 4)):
        folder = tmp_path / output_cls.__name__
        folder.mkdir()
        labels = {f"{n}.txt": {"name": f"c{n}", "warm": n % 2 == 0} for n in range(count)}
        for name in labels:
            (folder / name).write_text(
                f"{output_cls.__name__} {name}: Fill Colour from this document.\n\nlight"
            )
        rows[output_cls] = label_documents(folder, output_cls, labels=labels).data
    options: dict[str, Any] = {"config": GOING_ON, "start_from": first, "replay": rows[Colour]}
    engine = LoraFinetuneEngine(rows[Shade], base_model=base, output_dir=tmp_path / "run", **options)
    asked = [str(row.messages[-1].content) for row in engine.examples]
    assert len(asked) == 8
    assert {text.split("\n")[0] for text in asked} == {"Fill Shade from this document."}
    assert sum("\n\nColour " in text and text.endswith("light") for text in asked) == 4
    assert ServingRecipe.of(engine.examples) == ServingRecipe.of(rows[Shade])


def test_a_form_of_prompts_without_schemas_ends_where_there_are_two(
    base: Path, first: Path, tmp_path: Path
) -> None:
    bare = LoraSettings(rank=4, batch_size=2, epochs=1, schema_prompt="none")
    LoraFinetuneEngine(_rows(0, 4), base_model=base, output_dir=tmp_path / "bare", config=bare).finetune()
    for rows, form in ((_rows(4, 8), "none"), (_shades(4, 3), "compact")):
        engine = LoraFinetuneEngine(
            rows,
            base_model=base,
            output_dir=tmp_path / form,
            start_from=tmp_path / "bare",
            config=LoraSettings(epochs=1),
        )
        engine.finetune()
        assert read_card(engine.adapter).schema_prompt == form


def test_check_and_training_name_each_new_field_with_the_rows_that_teach_it(
    base: Path, first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = "'tone' (filled in 3 of {} rows) of Shade: not in the schemas that the adapter was trained on"
    report = check(_shades(4, 3), base_model=base, start_from=first)
    assert report.ok
    assert [p.message for p in report.problems if p.code == "field_new"] == [said.format(4)]
    assert not check(_rows(0, 8), base_model=base, start_from=first).problems
    with caplog.at_level(logging.WARNING):
        _on(base, first, tmp_path / "run").finetune()
    assert said.format(8) in caplog.text, "with the old rows, which leave it out"


def test_training_warns_of_a_field_that_no_row_fills(
    base: Path, first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = _rows(0, 8).revalidate(Shade).examples
    LoraFinetuneEngine(
        held, base_model=base, output_dir=tmp_path, start_from=first, config=GOING_ON
    ).finetune()
    assert "'tone' of Shade: filled in 0 of 8 rows" in caplog.text


def test_the_command_goes_on_with_the_rank_of_the_adapter(base: Path, first: Path, tmp_path: Path) -> None:
    data = _shades(4, 3).save(tmp_path / "more.jsonl")
    command = [
        "train",
        str(data),
        "--base-model",
        str(base),
        "--output",
        str(tmp_path / "run"),
        "--epochs",
        "1",
    ]
    done = CliRunner().invoke(app, [*command, "--start-from", str(first), "--replay-share", "0.2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["r"] == 4
    assert json.loads((tmp_path / "run" / "adapter" / "finetune_structured.json").read_text())["rows"] == 5
    refused = CliRunner().invoke(app, [*command, "--start-from", str(first), "--rank", "8"])
    assert refused.exit_code == 1
    assert "cannot go on" in refused.stderr
    named = CliRunner().invoke(
        app, ["check", str(data), "--base-model", str(base), "--start-from", str(first)]
    )
    assert "field_new" in named.stdout


def test_merged_bounds_allow_what_either_training_showed() -> None:
    old = AnswerBounds(longest={"a": {"#": 9, "#/x": 3}, "b": {"#": 1}}, distinct=("a", "b"), by_text=("b",))
    new = AnswerBounds(longest={"a": {"#": 4, "#/y": 2}, "c": {"#": 5}}, distinct=("c",), by_text=("a",))
    both = new.merged(old)
    assert both.longest == {"a": {"#": 9, "#/x": 3, "#/y": 2}, "b": {"#": 1}, "c": {"#": 5}}
    assert both.distinct == ("b", "c")
    assert both.by_text == ("a", "b")
