"""Run the demo with an agent: questions, teacher, capture, LoRA training, the held-out questions, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.llms import LLM

from ..capture.recorder import rejects_path
from ..dataset import FinetuneDataset
from ..dataset.splits import unit_hash
from ..errors import DatasetError
from .agent_capture import CapturedRuns, agent_with, capture_runs
from .agent_questions import generate_agent_questions
from .agent_teacher import ScriptedAgentTeacher
from .agent_tools import AgentTools, documented_functions
from .settings import DemoSettings

__all__ = ["AgentDemoData", "prepare_agent_data"]

_TRAIN_SHARE = 0.7
_SHOWN = 5  # failures listed; the rest are counted


@dataclass(frozen=True)
class AgentDemoData:
    """What training and scoring need; the tools are those of the held-out functions, and so are the gold rows."""

    train: FinetuneDataset
    gold: FinetuneDataset
    tools: AgentTools


def prepare_agent_data(
    settings: DemoSettings, teacher: LLM, output: Path, say: Callable[[str], None]
) -> AgentDemoData:
    """Capture the runs of ``teacher`` on the training questions, and the gold runs on the held-out ones.

    The functions are divided by sub-package, and each side has tools of its own: no training run can see a held-out
    function in a tool's result. Runs in ``output`` are not repeated. Raises DatasetError where no run succeeded.
    """
    known = documented_functions()
    in_train = {f.name for f in known if unit_hash(settings.seed, f.group) < _TRAIN_SHARE}
    train_tools = AgentTools([function for function in known if function.name in in_train])
    tools = AgentTools([function for function in known if function.name not in in_train])
    held_out = generate_agent_questions(tools, settings.test_size, seed=settings.seed + 1)
    questions = generate_agent_questions(
        train_tools, settings.train_size, seed=settings.seed, without={q.text for q in held_out}
    )
    say(f"{len(known)} functions, {len(known) - len(in_train)} of them held out by sub-package")
    gold = capture_runs(agent_with(ScriptedAgentTeacher(), tools), held_out, output / "gold.jsonl").dataset()
    # Failed runs are repeated only until training has begun: the trained model belongs to its rows.
    path = output / "captured.jsonl"
    captured = capture_runs(
        agent_with(teacher, train_tools), questions, path, ask=not (output / "model").exists()
    )
    _tell(captured, say)
    if not captured.runs:
        raise DatasetError(
            f"the teacher completed no run: fix the cause and run it again; see {rejects_path(path)}"
        )
    train = captured.dataset()
    train.save(output / "train.jsonl")
    gold.save(output / "test.jsonl")
    return AgentDemoData(train, gold, tools)


def _tell(captured: CapturedRuns, say: Callable[[str], None]) -> None:
    say(
        f"teacher: {len(captured.runs)} complete runs with {len(captured.dataset())} calls of the model, "
        f"{len(captured.failures)} failed"
    )
    for question, error in list(captured.failures.items())[:_SHOWN]:
        say(f"  {question}: {error[:200]}")
