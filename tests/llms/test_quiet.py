"""Using a local model prints no warning, in whichever thread it would arise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, sys
from llama_index.core import PromptTemplate
from pydantic import BaseModel
from llama_index_finetune_structured import LoraLLM

class Song(BaseModel):
    seconds: int

llm = LoraLLM(base_model=sys.argv[1], max_new_tokens=20)
assert llm.complete("go").text
assert llm.complete("go", stop=["never there"], temperature=1.0, seed=1).raw
assert "".join(chunk.delta for chunk in llm.stream_complete("go"))
assert asyncio.run(llm.acomplete("go")).text
assert llm.structured_predict(Song, PromptTemplate("go")).seconds >= 0
assert list(llm.stream_structured_predict(Song, PromptTemplate("go")))
assert llm.as_structured_llm(Song).complete("go").text
print("done")
"""


def test_a_whole_conversation_prints_nothing_and_passes_where_warnings_are_errors(tiny_llama: Path) -> None:
    """In a process of its own: a library may log or print what pytest's filters do not see."""
    for options in (["-W", "error"], ["-W", "always::FutureWarning"]):
        ended = subprocess.run(
            [sys.executable, *options, "-c", SCRIPT, str(tiny_llama)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (ended.stdout, ended.stderr, ended.returncode) == ("done\n", "", 0), options
