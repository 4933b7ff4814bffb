"""Make small, owned language models give reliable structured answers inside LlamaIndex.

The names below are the public interface. They load on first use: importing the package loads no LlamaIndex, torch,
openai or gradientai.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# Bound now: importing the sub-package later would put the module of the same name in the place of the class.
from .capture.scope import capture
from .lazy import lazy_names

if TYPE_CHECKING:
    from .capture.handlers import GradientAIFineTuningHandler, OpenAIFineTuningHandler
    from .dataset.answers import AnswerReport, aanswer_questions, answer_questions
    from .dataset.documents import read_nodes
    from .dataset.finetune_dataset import FinetuneDataset
    from .dataset.leakage import LeakageReport
    from .dataset.paid_calls import CallPolicy
    from .dataset.preflight import CheckReport, check
    from .dataset.questions import GeneratedQuestions, Question, QuestionGenerator
    from .dataset.retrieval import RetrievalAugmentedDatasetBuilder
    from .dataset.revalidation import Revalidation
    from .dataset.schemas import load_schema
    from .dataset.serving import ServingRecipe
    from .dataset.summary import DatasetSummary
    from .engines.base import FinetuneEngine
    from .engines.gradient import GradientFinetuneEngine
    from .engines.lora import LoraFinetuneEngine, LoraJob
    from .engines.openai import OpenAIFinetuneEngine
    from .engines.sunset import SunsetWarning
    from .engines.waits import Waits
    from .errors import (
        CaptureError,
        CheckpointError,
        ConfigurationError,
        DatasetError,
        EngineError,
        FinetuneStructuredError,
        MissingDependencyError,
        ParityError,
        ServiceError,
        StructuredAnswerError,
    )
    from .evaluation.asking import AskSettings
    from .evaluation.compare import acompare, compare
    from .evaluation.costs import Prices
    from .evaluation.learning_curve import LearningCurve, learning_curve
    from .evaluation.parity import Parity, parity
    from .evaluation.rules import FieldRule, embedding_similarity
    from .evaluation.scorecard import Scorecard
    from .evaluation.texts import TextScorecard, compare_texts
    from .example import Example, Message, Source, Usage
    from .llms.gradient import GradientBaseModelLLM, GradientModelAdapterLLM
    from .llms.hosted import hosted_llm, text_mode
    from .llms.llama_cpp import LlamaCppServer
    from .llms.lora import LoraLLM
    from .llms.program import OpenAIPydanticProgram
    from .llms.served import served_llm
    from .lora.export import export_adapter
    from .lora.serving import ServingCommand, serving_commands
    from .lora.settings import LoraSettings
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "capture.handlers": ["GradientAIFineTuningHandler", "OpenAIFineTuningHandler"],
            "dataset.answers": ["AnswerReport", "aanswer_questions", "answer_questions"],
            "dataset.documents": ["read_nodes"],
            "dataset.finetune_dataset": ["FinetuneDataset"],
            "dataset.leakage": ["LeakageReport"],
            "dataset.paid_calls": ["CallPolicy"],
            "dataset.preflight": ["CheckReport", "check"],
            "dataset.questions": ["GeneratedQuestions", "Question", "QuestionGenerator"],
            "dataset.retrieval": ["RetrievalAugmentedDatasetBuilder"],
            "dataset.revalidation": ["Revalidation"],
            "dataset.schemas": ["load_schema"],
            "dataset.serving": ["ServingRecipe"],
            "dataset.summary": ["DatasetSummary"],
            "engines.base": ["FinetuneEngine"],
            "engines.gradient": ["GradientFinetuneEngine"],
            "engines.lora": ["LoraFinetuneEngine", "LoraJob"],
            "engines.openai": ["OpenAIFinetuneEngine"],
            "engines.sunset": ["SunsetWarning"],
            "engines.waits": ["Waits"],
            "errors": [
                "CaptureError",
                "CheckpointError",
                "ConfigurationError",
                "DatasetError",
                "EngineError",
                "FinetuneStructuredError",
                "MissingDependencyError",
                "ParityError",
                "ServiceError",
                "StructuredAnswerError",
            ],
            "evaluation.asking": ["AskSettings"],
            "evaluation.compare": ["acompare", "compare"],
            "evaluation.costs": ["Prices"],
            "evaluation.learning_curve": ["LearningCurve", "learning_curve"],
            "evaluation.parity": ["Parity", "parity"],
            "evaluation.rules": ["FieldRule", "embedding_similarity"],
            "evaluation.scorecard": ["Scorecard"],
            "evaluation.texts": ["TextScorecard", "compare_texts"],
            "example": ["Example", "Message", "Source", "Usage"],
            "llms.gradient": ["GradientBaseModelLLM", "GradientModelAdapterLLM"],
            "llms.hosted": ["hosted_llm", "text_mode"],
            "llms.llama_cpp": ["LlamaCppServer"],
            "llms.lora": ["LoraLLM"],
            "llms.program": ["OpenAIPydanticProgram"],
            "llms.served": ["served_llm"],
            "lora.export": ["export_adapter"],
            "lora.serving": ["ServingCommand", "serving_commands"],
            "lora.settings": ["LoraSettings"],
        },
    )

__version__ = "0.1.0"

__all__ = [
    "AnswerReport",
    "AskSettings",
    "CallPolicy",
    "CaptureError",
    "CheckReport",
    "CheckpointError",
    "ConfigurationError",
    "DatasetError",
    "DatasetSummary",
    "EngineError",
    "Example",
    "FieldRule",
    "FinetuneDataset",
    "FinetuneEngine",
    "FinetuneStructuredError",
    "GeneratedQuestions",
    "GradientAIFineTuningHandler",
    "GradientBaseModelLLM",
    "GradientFinetuneEngine",
    "GradientModelAdapterLLM",
    "LeakageReport",
    "LearningCurve",
    "LlamaCppServer",
    "LoraFinetuneEngine",
    "LoraJob",
    "LoraLLM",
    "LoraSettings",
    "Message",
    "MissingDependencyError",
    "OpenAIFineTuningHandler",
    "OpenAIFinetuneEngine",
    "OpenAIPydanticProgram",
    "Parity",
    "ParityError",
    "Prices",
    "Question",
    "QuestionGenerator",
    "RetrievalAugmentedDatasetBuilder",
    "Revalidation",
    "Scorecard",
    "ServiceError",
    "ServingCommand",
    "ServingRecipe",
    "Source",
    "StructuredAnswerError",
    "SunsetWarning",
    "TextScorecard",
    "Usage",
    "Waits",
    "aanswer_questions",
    "acompare",
    "answer_questions",
    "capture",
    "check",
    "compare",
    "compare_texts",
    "embedding_similarity",
    "export_adapter",
    "hosted_llm",
    "learning_curve",
    "load_schema",
    "parity",
    "read_nodes",
    "served_llm",
    "serving_commands",
    "text_mode",
]
