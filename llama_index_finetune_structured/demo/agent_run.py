"""Run the demo with an agent: questions, teacher, capture, LoRA training, the held-out questions, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.llms import LLM
from pydantic import JsonValue

from ..capture.recorder import rejects_path
from ..dataset import FinetuneDataset
from ..dataset.splits import unit_hash
from ..engines.lora import LoraFinetuneEngine
from ..errors import DatasetError
from ..evaluation import AgentScorecard, compare_agents
from .agent_capture import CONCURRENCY, MOST_TURNS, CapturedRuns, agent_with, capture_runs
from .agent_questions import generate_agent_questions
from .agent_teacher import ScriptedAgentTeacher
from .agent_tools import AgentTools, documented_functions
from .run import train_on, untuned
from .settings import DemoSettings, open_output, teacher_of

__all__ = ["AgentDemoData", "prepare_agent_data", "run_agents"]

_TRAIN_SHARE = 0.7
_TURN_TOKENS = 160  # chosen: the longest turn names the parameters of two functions
_SHOWN = 5  # failures listed; the rest are counted


@dataclass(frozen=True)
class AgentDemoData:
    """What training and scoring need; the tools are those of the held-out functions, and so are the gold rows."""

    train: FinetuneDataset
    gold: FinetuneDataset
    tools: AgentTools


def run_agents(settings: DemoSettings, output: Path, say: Callable[[str], None]) -> AgentScorecard:
    """Run all steps whose results are not yet in ``output``, and return the scorecard.

    All files are written to ``output``; ``say`` receives progress messages. Raises ConfigurationError where
    ``output`` belongs to a run with other settings, EngineError while another process works there.
    """
    with open_output(output, settings):
        teacher = teacher_of(settings) or ScriptedAgentTeacher()
        data = prepare_agent_data(settings, teacher, output, say)
        engine = train_on(data.train, settings, output, say)
        llms = {**_students(engine), "teacher": teacher}
        card = compare_agents(
            {name: agent_with(llm, data.tools) for name, llm in llms.items()},
            data.gold,
            max_iterations=MOST_TURNS,
            concurrency=CONCURRENCY,
            cache_dir=output / "answers" / engine.fingerprint[:12],
            notes=settings.model_dump(mode="json", exclude_none=True)
            | _facts(settings, output, data, engine),
        )
        card.to_json(output / "scorecard.json")
        card.to_html(output / "report.html", title=str(card.settings["title"]))
        return card


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


def _students(engine: LoraFinetuneEngine) -> dict[str, LLM]:
    """Base and tuned model, both with grammar; prompt, token limit and bounds are the same."""
    tuned = engine.get_finetuned_model(max_new_tokens=_TURN_TOKENS, batch_size=CONCURRENCY)
    return {"base": untuned(tuned), "tuned": tuned}


def _facts(
    settings: DemoSettings, output: Path, data: AgentDemoData, engine: LoraFinetuneEngine
) -> dict[str, JsonValue]:
    """Descriptions of the run for its page."""
    seconds = engine.get_current_job().seconds
    return {
        "title": f"{settings.base_model} as an agent, before and after",
        "run": str((output / "model").resolve()),
        "teacher": settings.teacher or "rules that read the messages (no key was given)",
        "questions": "ten kinds about the functions of the installed networkx, for an agent with four tools",
        "trained on": f"{len(data.train)} captured calls in {seconds:.0f} s; the sub-packages of the test questions "
        "were held out",
        "gold": "the runs of the rules on the same questions",
    }
