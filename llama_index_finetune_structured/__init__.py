"""Make small, owned language models give reliable structured answers inside LlamaIndex.

The names below are the public interface. They load on first use: importing the package loads no LlamaIndex, torch,
openai or gradientai.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# Bound now: importing the sub-package later would put the module of the same name in the place of the class.
from .capture.session import capture
from .lazy import lazy_names

if TYPE_CHECKING:
    from .capture.handlers import GradientAIFineTuningHandler, OpenAIFineTuningHandler
    from .dataset.checks.report import CheckReport, check
    from .dataset.finetune_dataset import DatasetSummary, FinetuneDataset
    from .dataset.generate.answers import AnswerReport, aanswer_questions, answer_questions
    from .dataset.generate.documents import read_documents, read_nodes
    from .dataset.generate.labelled_documents import DocumentProblem, LabelledDocuments
    from .dataset.generate.labelling import alabel_documents, label_documents
    from .dataset.generate.llm_calls import CallPolicy
    from .dataset.generate.questions import GeneratedQuestions, Question, QuestionGenerator
    from .dataset.generate.readers import DocumentText
    from .dataset.generate.recipe import ServingRecipe
    from .dataset.generate.retrieval import RetrievalAugmentedDatasetBuilder
    from .dataset.leakage import LeakageReport
    from .dataset.revalidation import Revalidation
    from .dataset.schema.load import load_schema
    from .engines.base import FinetuneEngine
    from .engines.gradient import GradientFinetuneEngine
    from .engines.hosted.deprecations import SunsetWarning
    from .engines.hosted.engine import OpenAIFinetuneEngine
    from .engines.lora import LoraFinetuneEngine, LoraJob
    from .engines.timeouts import Timeouts
    from .errors import (
        CaptureError,
        CheckpointError,
        ConfigurationError,
        DatasetError,
        EngineError,
        FinetuneStructuredError,
        MissingDependencyError,
        ParityError,
        PromptTooLongError,
        QueueFullError,
        RequestTimeoutError,
        ServiceError,
        StructuredAnswerError,
    )
    from .evaluation.agents import (
        AgentScorecard,
        acompare_agents,
        arun_agent,
        ascore_turns,
        compare_agents,
        run_agent,
        score_turns,
    )
    from .evaluation.calibration import acalibrate, calibrate
    from .evaluation.comparison import acompare, compare
    from .evaluation.export_parity import Parity, parity
    from .evaluation.learning_curves import LearningCurve, learning_curve
    from .evaluation.run.agent_run import AgentRun
    from .evaluation.score.rules import FieldRule, embedding_similarity
    from .evaluation.scorecard import Scorecard
    from .evaluation.selection import aselect, select
    from .evaluation.texts import TextScorecard, compare_texts
    from .example import Example, Message, Source, Usage
    from .llms.cascade import Cascade
    from .llms.compat import OpenAIPydanticProgram
    from .llms.following import FollowingLoraLLM
    from .llms.gradient import GradientBaseModelLLM, GradientModelAdapterLLM
    from .llms.hosted import hosted_llm, text_mode
    from .llms.llama_cpp import LlamaCppServer
    from .llms.lora import LoraLLM
    from .llms.prices import Prices
    from .llms.served import served_llm
    from .local.export import export_adapter
    from .local.export.serving import ServingCommand, serving_commands
    from .local.train.settings import LoraSettings
    from .stated_rules import answer_rules
    from .trust.answer_trust import EndTrust, Evidence, FieldTrust, LogProbability, Trust
    from .trust.lookup import trust_of
    from .tuning.improve import Improvement, improve
    from .tuning.run import tune
    from .tuning.versions import rollback
    from .written_values.annotation import AsWritten, Money
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".capture.handlers": ["GradientAIFineTuningHandler", "OpenAIFineTuningHandler"],
            ".dataset.generate.answers": ["AnswerReport", "aanswer_questions", "answer_questions"],
            ".dataset.generate.documents": ["read_documents", "read_nodes"],
            ".dataset.generate.labelled_documents": ["DocumentProblem", "LabelledDocuments"],
            ".dataset.generate.labelling": ["alabel_documents", "label_documents"],
            ".dataset.generate.readers": ["DocumentText"],
            ".dataset.finetune_dataset": ["DatasetSummary", "FinetuneDataset"],
            ".dataset.leakage": ["LeakageReport"],
            ".dataset.generate.llm_calls": ["CallPolicy"],
            ".dataset.checks.report": ["CheckReport", "check"],
            ".dataset.generate.questions": ["GeneratedQuestions", "Question", "QuestionGenerator"],
            ".dataset.generate.retrieval": ["RetrievalAugmentedDatasetBuilder"],
            ".dataset.revalidation": ["Revalidation"],
            ".dataset.schema.load": ["load_schema"],
            ".dataset.generate.recipe": ["ServingRecipe"],
            ".engines.base": ["FinetuneEngine"],
            ".engines.gradient": ["GradientFinetuneEngine"],
            ".engines.lora": ["LoraFinetuneEngine", "LoraJob"],
            ".engines.hosted.engine": ["OpenAIFinetuneEngine"],
            ".engines.hosted.deprecations": ["SunsetWarning"],
            ".engines.timeouts": ["Timeouts"],
            ".errors": [
                "CaptureError",
                "CheckpointError",
                "ConfigurationError",
                "DatasetError",
                "EngineError",
                "FinetuneStructuredError",
                "MissingDependencyError",
                "ParityError",
                "PromptTooLongError",
                "QueueFullError",
                "RequestTimeoutError",
                "ServiceError",
                "StructuredAnswerError",
            ],
            ".evaluation.agents": [
                "AgentScorecard",
                "acompare_agents",
                "arun_agent",
                "ascore_turns",
                "compare_agents",
                "run_agent",
                "score_turns",
            ],
            ".evaluation.calibration": ["acalibrate", "calibrate"],
            ".evaluation.comparison": ["acompare", "compare"],
            ".evaluation.learning_curves": ["LearningCurve", "learning_curve"],
            ".evaluation.export_parity": ["Parity", "parity"],
            ".evaluation.run.agent_run": ["AgentRun"],
            ".evaluation.score.rules": ["FieldRule", "embedding_similarity"],
            ".evaluation.scorecard": ["Scorecard"],
            ".evaluation.selection": ["aselect", "select"],
            ".evaluation.texts": ["TextScorecard", "compare_texts"],
            ".example": ["Example", "Message", "Source", "Usage"],
            ".llms.cascade": ["Cascade"],
            ".llms.gradient": ["GradientBaseModelLLM", "GradientModelAdapterLLM"],
            ".llms.hosted": ["hosted_llm", "text_mode"],
            ".llms.llama_cpp": ["LlamaCppServer"],
            ".llms.lora": ["LoraLLM"],
            ".llms.prices": ["Prices"],
            ".llms.compat": ["OpenAIPydanticProgram"],
            ".llms.following": ["FollowingLoraLLM"],
            ".llms.served": ["served_llm"],
            ".local.export": ["export_adapter"],
            ".local.export.serving": ["ServingCommand", "serving_commands"],
            ".local.train.settings": ["LoraSettings"],
            ".tuning.improve": ["Improvement", "improve"],
            ".trust.answer_trust": ["EndTrust", "Evidence", "FieldTrust", "LogProbability", "Trust"],
            ".trust.lookup": ["trust_of"],
            ".stated_rules": ["answer_rules"],
            ".written_values.annotation": ["AsWritten", "Money"],
            ".tuning.run": ["tune"],
            ".tuning.versions": ["rollback"],
        },
    )

__version__ = "0.1.0"

__all__ = [
    "AgentRun",
    "AgentScorecard",
    "AnswerReport",
    "AsWritten",
    "CallPolicy",
    "CaptureError",
    "Cascade",
    "CheckReport",
    "CheckpointError",
    "ConfigurationError",
    "DatasetError",
    "DatasetSummary",
    "DocumentProblem",
    "DocumentText",
    "EndTrust",
    "EngineError",
    "Evidence",
    "Example",
    "FieldRule",
    "FieldTrust",
    "FinetuneDataset",
    "FinetuneEngine",
    "FinetuneStructuredError",
    "FollowingLoraLLM",
    "GeneratedQuestions",
    "GradientAIFineTuningHandler",
    "GradientBaseModelLLM",
    "GradientFinetuneEngine",
    "GradientModelAdapterLLM",
    "Improvement",
    "LabelledDocuments",
    "LeakageReport",
    "LearningCurve",
    "LlamaCppServer",
    "LogProbability",
    "LoraFinetuneEngine",
    "LoraJob",
    "LoraLLM",
    "LoraSettings",
    "Message",
    "MissingDependencyError",
    "Money",
    "OpenAIFineTuningHandler",
    "OpenAIFinetuneEngine",
    "OpenAIPydanticProgram",
    "Parity",
    "ParityError",
    "Prices",
    "PromptTooLongError",
    "Question",
    "QuestionGenerator",
    "QueueFullError",
    "RequestTimeoutError",
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
    "Timeouts",
    "Trust",
    "Usage",
    "aanswer_questions",
    "acalibrate",
    "acompare",
    "acompare_agents",
    "alabel_documents",
    "answer_questions",
    "answer_rules",
    "arun_agent",
    "ascore_turns",
    "calibrate",
    "aselect",
    "capture",
    "check",
    "compare",
    "compare_agents",
    "compare_texts",
    "embedding_similarity",
    "export_adapter",
    "hosted_llm",
    "improve",
    "label_documents",
    "learning_curve",
    "load_schema",
    "parity",
    "read_documents",
    "read_nodes",
    "rollback",
    "run_agent",
    "score_turns",
    "select",
    "served_llm",
    "serving_commands",
    "text_mode",
    "trust_of",
    "tune",
]
