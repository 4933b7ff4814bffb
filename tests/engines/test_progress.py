"""Steps and losses are read from a job's events, from their data or their messages."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJobEvent

from llama_index_finetune_structured.engines.hosted.progress import Progress, metric_row, metric_rows


def event(message: str = "", data: Any = None, **fields: Any) -> FineTuningJobEvent:
    given: dict[str, Any] = {
        "id": f"ftevent-{message}-{data}",
        "created_at": 1,
        "object": "fine_tuning.job.event",
    }
    return FineTuningJobEvent.construct(**given | {"level": "info"} | fields, message=message, data=data)


@pytest.mark.parametrize(
    ("message", "data", "row"),
    [
        ("Step 90/100: training loss=0.42", None, {"step": 90, "total_steps": 100, "train_loss": 0.42}),
        ("Step 90: training loss=1e-3", {}, {"step": 90, "train_loss": 0.001}),
        (
            "Step 3/9: training loss=0.20, validation loss=0.3",
            {"step": 3, "total_steps": 9, "train_loss": 0.2, "valid_loss": 0.3},
            {"step": 3, "total_steps": 9, "train_loss": 0.2, "valid_loss": 0.3},
        ),
        (
            "x",
            {"step": 1, "note": "words", "done": True, "full_valid_loss": 0.5},
            {"step": 1, "full_valid_loss": 0.5},
        ),
        ("The job has successfully completed", None, {}),
        ("Validating training file: file-1", {}, {}),
        ("New fine-tuned model created", {"step": "last"}, {}),
        ("Checkpoint created at step 10", [1, 2], {}),
    ],
)
def test_an_event_is_a_row_of_its_numbers(message: str, data: Any, row: dict[str, float]) -> None:
    assert metric_row(event(message, data)) == row


def test_rows_of_one_step_are_merged_and_sorted() -> None:
    events = [
        event("b", {"step": 2, "train_loss": 0.5}),
        event("a", {"step": 1, "train_loss": 0.7}),
        event("c", {"step": 2, "full_valid_loss": 0.6}),
    ]
    assert metric_rows(events) == [
        {"step": 1, "train_loss": 0.7},
        {"step": 2, "train_loss": 0.5, "full_valid_loss": 0.6},
    ]


@pytest.mark.parametrize("level", ["info", "warn", "error", "a_new_level"])
@pytest.mark.parametrize("kind", ["message", "metrics", "a_new_type", None])
def test_the_bar_takes_every_level_and_type(
    level: str, kind: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Progress("job", verbose=True)
    newest_first = [
        event("Step 2/4: training loss=0.5", level=level, type=kind),
        event("Created", level=level),
    ]
    for _ in range(2):
        bar.take("running", newest_first)
    bar.close()
    shown = capsys.readouterr().err
    assert "2/4" in shown
    assert "running, loss 0.500" in shown


def test_a_quiet_bar_is_quiet_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("job", verbose=False)
    bar.take("running", [event("Step 2/4: training loss=0.5")])
    bar.close()
    assert capsys.readouterr().err == ""
