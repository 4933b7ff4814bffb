"""The public interface is typed: mypy --strict and pyright pass a user's right script and refuse each wrong line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

USER_SCRIPT = """
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from llama_index_finetune_structured import (
    CheckReport,
    ConfigurationError,
    FinetuneDataset,
    FinetuneEngine,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    OpenAIFineTuningHandler,
    OpenAIFinetuneEngine,
    Scorecard,
    capture,
    check,
    compare,
)
from llama_index_finetune_structured.dataset import QuestionGenerator
from llama_index_finetune_structured.evaluation import Difference


class Album(BaseModel):
    name: str


def tune(index: VectorStoreIndex, questions: list[str]) -> Scorecard:
    teacher = MockLLM()
    with capture("albums.jsonl", output_cls=Album, redact=True) as captured:
        captured.attach(teacher)
        for question in questions:
            index.as_query_engine(llm=teacher, output_cls=Album).query(question)
    print(captured.summary(), captured.rejects_path.name)
    report: CheckReport = check("albums.jsonl", target="local")
    data = FinetuneDataset.load("albums.jsonl")
    train, validation = data.split(0.8, group_by="document", seed=0)
    engine: FinetuneEngine = LoraFinetuneEngine(train, validation=validation, config=LoraSettings(epochs=3))
    engine.finetune()
    student = LoraLLM.from_adapter("albums/adapter", max_tokens=256)
    album = student.structured_predict(Album, PromptTemplate("Which album?"))
    assert isinstance(album, Album)
    scorecard = compare({"tuned": student, "teacher": teacher}, validation, output_cls=Album)
    difference: Difference = scorecard.difference("tuned", "teacher")
    print(report.ok, album.name, difference.low, QuestionGenerator)
    return scorecard


def submit(handler: OpenAIFineTuningHandler) -> str:
    handler.save_finetuning_events("albums.jsonl")
    engine = OpenAIFinetuneEngine("gpt-4.1-nano", "albums.jsonl", seed=1)
    try:
        engine.finetune()
    except ConfigurationError as error:
        return str(error)
    return engine.get_finetuned_model().metadata.model_name
"""
# What each wrong line is wrong in -> the line.
WRONG = {
    "a name that is not there": "from llama_index_finetune_structured import LoraFintuneEngine",
    "a name that a sub-package does not have": "from llama_index_finetune_structured.dataset import Datasets",
    "an argument that the engine does not take": "fs.LoraFinetuneEngine('a.jsonl', no_such_argument=1)",
    "a method that the engine does not have": "fs.LoraFinetuneEngine('a.jsonl').fintune()",
    "a setting that does not exist": "fs.LoraSettings(epoch=3)",
    "a setting of the wrong type": "fs.LoraSettings(epochs='three')",
    "an argument that capture does not take": "fs.capture('a.jsonl', output_class=None)",
    "an attribute that a capture does not have": "fs.capture('a.jsonl').file",
    "an argument of the wrong type": "fs.compare([], fs.FinetuneDataset.load('a.jsonl'))",
    "an attribute that a result does not have": "fs.check('a.jsonl').okay",
    "an option of a class method": "fs.LoraLLM.from_adapter(path='a')",
    "a wrong use of a blocking function's result": "fs.compare({}, []).systems.append(1)",
}
# What the public signatures do not need is not read: torch and transformers alone take most of a minute.
MYPY_CONFIG = """
[mypy]
strict = true
cache_dir = .mypy_cache
[mypy-torch.*,transformers.*,peft.*,accelerate.*,openai.*,datasets.*,numpy.*,nltk.*,sqlalchemy.*,aiohttp.*]
follow_imports = skip
"""
IMPORTED = "import llama_index_finetune_structured as fs\n"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The right script, and one script with each wrong line on a line of its own."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "right.py").write_text(USER_SCRIPT, encoding="utf-8")
    (folder / "wrong.py").write_text(IMPORTED + "\n".join(WRONG.values()) + "\n", encoding="utf-8")
    (folder / "mypy.ini").write_text(MYPY_CONFIG, encoding="utf-8")
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "standard"}))
    return folder


COMMANDS = {
    "mypy": ["mypy", "--config-file", "mypy.ini"],
    "pyright": ["basedpyright", "--pythonpath", sys.executable],
}


@pytest.fixture(scope="module", params=COMMANDS)
def errors(request: pytest.FixtureRequest, scripts: Path) -> dict[str, dict[int, str]]:
    """Script -> line number -> message of each error that a type checker reports."""
    command = [sys.executable, "-m", *COMMANDS[request.param], "right.py", "wrong.py"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=scripts, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found: dict[str, dict[int, str]] = {"right.py": {}, "wrong.py": {}}
    for script, line, message in re.findall(r"(\w+\.py):(\d+)[:\d]*(?: -|:) (error.*)", ran.stdout):
        found[script][int(line)] = message
    return found


def test_a_right_script_passes(errors: dict[str, dict[int, str]]) -> None:
    assert errors["right.py"] == {}


def test_each_wrong_line_is_refused(errors: dict[str, dict[int, str]]) -> None:
    lines = enumerate(WRONG, IMPORTED.count("\n") + 1)
    assert [what for line, what in lines if line not in errors["wrong.py"]] == []
