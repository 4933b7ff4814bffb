"""Examples -> checked training files: load, split, check, questions, answers, retrieval-augmented rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .answers import AnswerReport, aanswer_questions, answer_questions
    from .documents import read_nodes
    from .finetune_dataset import FinetuneDataset
    from .leakage import Leak, LeakageReport
    from .paid_calls import CallPolicy
    from .preflight import CheckReport, check
    from .problems import Problem
    from .questions import GeneratedQuestions, Question, QuestionGenerator
    from .rendering import render
    from .retrieval import RetrievalAugmentedDatasetBuilder
    from .revalidation import Revalidation
    from .schemas import load_schema
    from .serving import ServingRecipe
    from .summary import DatasetSummary
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "answers": ["AnswerReport", "aanswer_questions", "answer_questions"],
            "documents": ["read_nodes"],
            "finetune_dataset": ["FinetuneDataset"],
            "leakage": ["Leak", "LeakageReport"],
            "paid_calls": ["CallPolicy"],
            "preflight": ["CheckReport", "check"],
            "problems": ["Problem"],
            "questions": ["GeneratedQuestions", "Question", "QuestionGenerator"],
            "rendering": ["render"],
            "retrieval": ["RetrievalAugmentedDatasetBuilder"],
            "revalidation": ["Revalidation"],
            "schemas": ["load_schema"],
            "serving": ["ServingRecipe"],
            "summary": ["DatasetSummary"],
        },
    )

__all__ = [
    "AnswerReport",
    "CallPolicy",
    "CheckReport",
    "DatasetSummary",
    "FinetuneDataset",
    "GeneratedQuestions",
    "Leak",
    "LeakageReport",
    "Problem",
    "Question",
    "QuestionGenerator",
    "RetrievalAugmentedDatasetBuilder",
    "Revalidation",
    "ServingRecipe",
    "aanswer_questions",
    "answer_questions",
    "check",
    "load_schema",
    "read_nodes",
    "render",
]
