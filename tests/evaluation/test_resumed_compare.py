"""compare() with a cache: after a kill, a torn line or an interrupt it asks only for the missing answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured.errors import ConfigurationError, MissingDependencyError
from llama_index_finetune_structured.evaluation.run.answer_log import AnswerLog, RawAnswer

from .systems import ALPHA, BETA, DATA, ScriptedLLM, card, example, quiet


def test_killed_comparison_is_resumed(tmp_path: Path) -> None:
    data = [example(f"call {n}!", card(f"f{n}")) for n in range(6)]
    script: dict[str, Any] = {f"call {n}!": card(f"f{n}") for n in range(6)}
    broken = ScriptedLLM(script=script | {"call 4!": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        quiet({"llm": broken}, data, cache_dir=tmp_path, concurrency=1)
    whole = ScriptedLLM(script=script)
    scorecard = quiet({"llm": whole}, data, cache_dir=tmp_path)
    assert len(broken.prompts) == 5
    assert len(whole.prompts) == 2
    assert scorecard.systems["llm"].exact_match == 1
    third = ScriptedLLM(script={})
    assert quiet({"llm": third}, data, cache_dir=tmp_path).systems == scorecard.systems
    assert third.prompts == []


def test_seconds_per_answer_add_up_the_runs_that_answered(tmp_path: Path) -> None:
    data = [example(f"call {n}!", card(f"f{n}")) for n in range(4)]
    systems = {"it": lambda row: row.answer_object()}
    quiet(systems, data, cache_dir=tmp_path)
    (log,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line, run, elapsed_s in zip(lines, "aabb", (3.0, 5.0, 1.0, 7.0), strict=True):
        line |= {"run": run, "elapsed_s": elapsed_s, "seconds": elapsed_s}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = quiet(systems, data, cache_dir=tmp_path).systems["it"]
    assert found.seconds_per_answer == pytest.approx((5 + 7) / 4)
    assert found.median_latency_s == 4


def test_torn_last_line_is_asked_again(tmp_path: Path) -> None:
    llm = ScriptedLLM(script={"call alpha": ALPHA, "call beta": BETA})
    quiet({"llm": llm}, DATA, cache_dir=tmp_path)
    (log,) = tmp_path.iterdir()
    log.write_bytes(log.read_bytes()[:-20])
    for expected in (1, 0):
        again = ScriptedLLM(script={"call alpha": ALPHA, "call beta": BETA})
        assert quiet({"llm": again}, DATA, cache_dir=tmp_path).systems["llm"].exact_match == 1
        assert len(again.prompts) == expected


@pytest.fixture
def limit_file_sizes() -> Iterator[Callable[[int], None]]:
    """A function that limits the size of files, as a disk does that fills up; 0 for no limit."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("room", [0, 1, 100, -1])
def test_a_disk_that_fills_up_within_an_answer_costs_no_other_answer(
    tmp_path: Path, limit_file_sizes: Callable[[int], None], room: int, concurrency: int
) -> None:
    """``room``: bytes of the fourth answer that are written; -1: all but its line ending."""
    data = [example(f"call {n}!", card(f"f{n}" * 20)) for n in range(6)]
    llm = ScriptedLLM(script={f"call {n}!": card(f"f{n}" * 20) for n in range(6)})
    asking: dict[str, Any] = {"concurrency": concurrency}
    expected = quiet({"llm": llm}, data, cache_dir=tmp_path / "whole", **asking)
    (whole,) = (tmp_path / "whole").iterdir()
    ends = [len(b"".join(whole.read_bytes().splitlines(keepends=True)[:n])) for n in (3, 4)]
    cache = tmp_path / "answers"
    limit_file_sizes(ends[0] + room if room >= 0 else ends[1] - 1)
    with pytest.raises(
        ConfigurationError, match=r"cache_dir .*answers: an answer cannot be written: .*free disk"
    ):
        quiet({"llm": llm}, data, cache_dir=cache, **asking)
    limit_file_sizes(0)
    (log,) = cache.iterdir()
    kept = log.read_bytes().splitlines(keepends=True)
    assert all(RawAnswer.model_validate_json(line) and line.endswith(b"\n") for line in kept)
    assert 2 <= len(kept) <= 4  # the lines hold times, which have more or fewer digits in another run
    again = ScriptedLLM(script=llm.script)
    found = quiet({"llm": again}, data, cache_dir=cache, **asking)
    assert len(again.prompts) == 6 - len(kept)
    assert found.systems["llm"].exact_match == expected.systems["llm"].exact_match == 1
    assert log.read_bytes().startswith(b"".join(kept))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_line_of_an_older_run_is_skipped(tmp_path: Path, place: int) -> None:
    """Earlier versions ended a torn line and appended to it, so it may stand anywhere, first included."""
    llm = ScriptedLLM(script={"call alpha": ALPHA, "call beta": BETA})
    quiet({"llm": llm}, DATA, cache_dir=tmp_path)
    (log,) = tmp_path.iterdir()
    lines = log.read_bytes().splitlines(keepends=True)
    lines.insert(place, lines[0][:40] + b"\n")
    log.write_bytes(b"".join(lines))
    again = ScriptedLLM(script={})
    assert quiet({"llm": again}, DATA, cache_dir=tmp_path).systems["llm"].exact_match == 1
    assert again.prompts == []


def test_a_failure_in_another_process_file_does_not_replace_an_answer(tmp_path: Path) -> None:
    answer = RawAnswer(key="k", example_id="e", text="yes")
    failure = RawAnswer(key="k", example_id="e", error="down", failed=True)
    with AnswerLog(tmp_path, "llm") as first, AnswerLog(tmp_path, "llm") as second:
        second.add(failure)
        first.add(answer)
    assert len(list(tmp_path.iterdir())) == 2
    with AnswerLog(tmp_path, "llm") as log:
        assert log.answers == {"k": answer}


def test_a_cache_that_cannot_be_written_is_refused_before_the_first_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    quiet({"llm": ScriptedLLM(script={"call": ALPHA})}, DATA, cache_dir=tmp_path / "folder")
    (log,) = (tmp_path / "folder").iterdir()
    log.unlink()
    log.mkdir()
    for name in ("file", "folder"):
        llm = ScriptedLLM(script={})
        with pytest.raises(ConfigurationError, match=rf"cache_dir .*{name}: cannot be written"):
            quiet({"llm": llm}, DATA, cache_dir=tmp_path / name)
        assert llm.prompts == []


def test_failed_calls_are_asked_again_but_invalid_answers_are_not(tmp_path: Path) -> None:
    first = ScriptedLLM(script={"call alpha": OSError("down"), "call beta": "no json"})
    quiet({"llm": first}, DATA, cache_dir=tmp_path)
    second = ScriptedLLM(script={"call alpha": ALPHA, "call beta": BETA})
    found = quiet({"llm": second}, DATA, cache_dir=tmp_path).systems["llm"]
    assert len(second.prompts) == 1
    assert found.schema_valid == 0.5


def test_answers_of_another_model_under_the_same_name_are_not_used(tmp_path: Path) -> None:
    quiet({"llm": ScriptedLLM(script={"call": ALPHA})}, DATA, cache_dir=tmp_path)
    other = ScriptedLLM(script={"call alpha": ALPHA, "call beta": BETA}, name="another")
    assert quiet({"llm": other}, DATA, cache_dir=tmp_path).systems["llm"].exact_match == 1


@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_ctrl_c_stops_the_calls_and_keeps_the_answers(tmp_path: Path, inside_a_loop: bool) -> None:
    """A real SIGINT to a process of its own; the answers that were there are not asked again."""
    script = f"""
import asyncio, sys
sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
from tests.evaluation.systems import ScriptedLLM, card, example
from llama_index_finetune_structured import compare
data = [example(f"call {{n}}!", card(f"f{{n}}")) for n in range(50)]
class Telling(ScriptedLLM):
    def _answer(self, prompt):
        print("asked", flush=True)
        return super()._answer(prompt)
def main():
    llm = Telling(script={{"call": card("f")}}, wait_s=0.2)
    compare({{"llm": llm}}, data, concurrency=2, show_progress=False, cache_dir={str(tmp_path)!r})
async def under_a_loop():
    main()
# as notebooks run cells; asyncio.run would keep the first Ctrl-C for itself
asyncio.new_event_loop().run_until_complete(under_a_loop()) if {inside_a_loop} else main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(4):
            assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert "KeyboardInterrupt" in errors
    assert "never retrieved" not in errors
    (log,) = tmp_path.iterdir()
    answers = log.read_text().splitlines()
    assert 2 <= len(answers) < 50
    assert all(json.loads(line)["text"] for line in answers)


def test_a_model_that_did_not_load_is_asked_again(tmp_path: Path) -> None:
    broken = ScriptedLLM(script={"call": ConfigurationError("base model 'x' does not load")})
    assert quiet({"llm": broken}, DATA, cache_dir=tmp_path).systems["llm"].schema_valid == 0
    fixed = ScriptedLLM(script={"call alpha": ALPHA, "call beta": BETA})
    assert quiet({"llm": fixed}, DATA, cache_dir=tmp_path).systems["llm"].exact_match == 1


def test_a_missing_package_ends_the_comparison_instead_of_scoring_0(tmp_path: Path) -> None:
    llm = ScriptedLLM(script={"call": MissingDependencyError("torch", "local", "LoraLLM")})
    with pytest.raises(MissingDependencyError, match=r"\[local\]"):
        quiet({"llm": llm}, DATA, cache_dir=tmp_path)


def test_half_a_surrogate_pair_in_an_answer_does_not_end_the_run(tmp_path: Path) -> None:
    data = [example("call alpha", ALPHA)]
    for _ in range(2):
        found = quiet({"llm": lambda _: card("\ud83d")}, data, cache_dir=tmp_path)
        assert found.systems["llm"].schema_valid == 1
