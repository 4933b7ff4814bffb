"""Working on data sets needs none of the heavy extras."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from llama_index_finetune_structured import FinetuneDataset, check
from llama_index_finetune_structured.dataset import answer_questions, QuestionGenerator
from llama_index_finetune_structured.dataset import RetrievalAugmentedDatasetBuilder, render

data = FinetuneDataset.from_pairs([(f"q{n}", {"a": n}) for n in range(10)], schema={"type": "object"})
assert check(data, target="openai").ok
RetrievalAugmentedDatasetBuilder(None, share_without_context=1.0).build([("q", "a")], show_progress=False)
print(sorted({"torch", "openai", "transformers", "datasets", "gradientai"} & set(sys.modules)))
"""


def test_building_and_checking_data_loads_no_extra() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
