"""The names that ``llama_index_finetune_structured.llms`` exports all load, and loading the package loads no torch."""

from __future__ import annotations

import subprocess
import sys

from llama_index_finetune_structured import llms


def test_every_exported_name_loads() -> None:
    for name in llms.__all__:
        assert getattr(llms, name) is not None
        assert name in dir(llms)


def test_the_answer_bounds_and_the_local_llm_load_no_torch() -> None:
    code = (
        "import sys; from llama_index_finetune_structured.llms import AnswerBounds, LoraLLM; "
        "print('torch' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert loaded.stdout.strip() == "False"
