"""Examples -> checked training files: load, save, split, preflight, formats, questions, retrieval.

The front door; each name loads its module on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "CallPolicy": "paid_calls",
    "CheckReport": "preflight",
    "DatasetSummary": "summary",
    "FinetuneDataset": "finetune_dataset",
    "Question": "questions",
    "QuestionGenerator": "questions",
    "RetrievalAugmentedDatasetBuilder": "retrieval",
    "ServingRecipe": "serving",
    "aanswer_questions": "answers",
    "answer_questions": "answers",
    "check": "preflight",
    "load_schema": "schemas",
    "read_nodes": "documents",
    "render": "rendering",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
