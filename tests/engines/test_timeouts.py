"""Time limits that cannot be waited for are refused where they are given."""

from __future__ import annotations

from dataclasses import fields

import pytest

from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import ConfigurationError

NAMES = [setting.name for setting in fields(Timeouts) if setting.name != "clock"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, 0, None, "60"])
@pytest.mark.parametrize("name", NAMES)
def test_a_time_that_is_not_a_finite_number_above_0_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"Timeouts\({name}=.*finite number of seconds above 0"):
        Timeouts(**{name: value})  # type: ignore[arg-type]


def test_whole_and_broken_seconds_are_accepted() -> None:
    assert Timeouts(job_s=1, poll_s=0.01).poll_s == 0.01
