"""Examples, pairs, or documents and an LLM -> checked training files; the public names of the data set part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from ..formats.transports import render
    from .checks.problems import Problem
    from .checks.report import CheckReport, check
    from .finetune_dataset import DatasetSummary, FinetuneDataset
    from .generate.answers import AnswerReport, aanswer_questions, answer_questions
    from .generate.documents import document_hashes, read_documents, read_nodes
    from .generate.labelled_documents import DocumentProblem, LabelledDocuments
    from .generate.labelling import alabel_documents, label_documents
    from .generate.llm_calls import CallPolicy
    from .generate.questions import GeneratedQuestions, Question, QuestionGenerator
    from .generate.readers import DocumentText, Page
    from .generate.recipe import ServingRecipe
    from .generate.retrieval import RetrievalAugmentedDatasetBuilder
    from .leakage import Leak, LeakageReport
    from .revalidation import Revalidation
    from .schema.load import load_schema
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".generate.answers": ["AnswerReport", "aanswer_questions", "answer_questions"],
            ".generate.documents": ["document_hashes", "read_documents", "read_nodes"],
            ".generate.labelled_documents": ["DocumentProblem", "LabelledDocuments"],
            ".generate.labelling": ["alabel_documents", "label_documents"],
            ".generate.readers": ["DocumentText", "Page"],
            ".finetune_dataset": ["DatasetSummary", "FinetuneDataset"],
            ".leakage": ["Leak", "LeakageReport"],
            ".generate.llm_calls": ["CallPolicy"],
            ".checks.report": ["CheckReport", "check"],
            ".checks.problems": ["Problem"],
            ".generate.questions": ["GeneratedQuestions", "Question", "QuestionGenerator"],
            "..formats.transports": ["render"],
            ".generate.retrieval": ["RetrievalAugmentedDatasetBuilder"],
            ".revalidation": ["Revalidation"],
            ".schema.load": ["load_schema"],
            ".generate.recipe": ["ServingRecipe"],
        },
    )

__all__ = [
    "AnswerReport",
    "CallPolicy",
    "CheckReport",
    "DatasetSummary",
    "DocumentProblem",
    "DocumentText",
    "FinetuneDataset",
    "GeneratedQuestions",
    "LabelledDocuments",
    "Leak",
    "LeakageReport",
    "Page",
    "Problem",
    "Question",
    "QuestionGenerator",
    "RetrievalAugmentedDatasetBuilder",
    "Revalidation",
    "ServingRecipe",
    "aanswer_questions",
    "alabel_documents",
    "answer_questions",
    "check",
    "document_hashes",
    "label_documents",
    "load_schema",
    "read_documents",
    "read_nodes",
    "render",
]
