"""Cascade: a small model that answers where it is sure, and a teacher for the rest, whose answers are training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.llm import LLM
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.utilities.token_counting import TokenCounter
from pydantic import BaseModel, Field
from typing_extensions import Self

from ..capture.redaction import Redactor
from ..errors import ConfigurationError
from .cascade_answers import CascadeAnswers
from .cascade_calls import CascadeCalls, Role
from .cascade_counts import CascadeCounts, money, prometheus_text, summary_of
from .cascade_rule import AcceptanceRule, SchemaRules
from .prices import Prices
from .structured_lora import SchemaRoomLLM

__all__ = ["Cascade"]

_ROLES: tuple[Role, ...] = ("student", "teacher", "text")


class Cascade(CascadeAnswers, SchemaRoomLLM):
    """A student that answers where it is sure, and a teacher that is asked for the rest.

    A structured call is put to the student. Its answer is returned where the probability that it is right reaches the
    threshold, else the call is put to the teacher, too; so are calls to which the student has no answer that fits, and
    prompts that are too long for it. ``trust_of(answer)`` says which model answered (``answered_by``, by its name) and
    whether the answer is ``sure``. Calls without a schema go to the teacher: nothing tells how sure a text is. Streams
    of objects show the student's partial ones, which the teacher's answer may replace: the last object is the answer.
    Streams of text, where a schema is asked for by ``response_format``, have the whole answer in one chunk.

    A call with tools is a structured one too: its answer, a text or calls of the tools, is the student's turn or the
    teacher's, in streams in one chunk. So a cascade is the ``llm`` of a ``FunctionAgent`` where both models call
    tools, and the teacher's turns are captured as an agent's rows.

    Exactly one of ``accuracy``, ``budget`` and ``threshold`` is given. The first two choose a threshold for each
    schema on the student's held-out rows, which ``tune()`` and ``calibrate`` leave in its calibrations.

    LlamaIndex's events and callbacks are those of the two models, below the cascade's span.

    Args:
        student: The LLM that is asked first: a ``LoraLLM``, a ``FollowingLoraLLM``, whose new versions are followed,
            or one of ``served_llm`` or ``hosted_llm`` with confidence.
        teacher: The LLM that is asked where the student is not sure: any LlamaIndex LLM, another cascade too.
        accuracy: Least share of right answers among those of the student that are returned as sure, such as 0.95, with
            a confidence of 95%: over the next calls, as many as there were held-out rows or more, where these are of
            the same kind as those.
        budget: Share of the held-out rows whose answers would be handed over, such as 0.2.
        threshold: Least probability of a sure answer.
        on_teacher_error: Where the teacher fails, answers with what does not fit or takes too long: ``student``
            (default) returns the student's answer, whose trust is not ``sure``, or raises where there is none;
            ``raise`` raises the teacher's error.
        teacher_timeout: Seconds that the teacher may take; None (default): no limit but its own. Asynchronous calls
            are cancelled then, others end by themselves.
        capture: File to which the teacher's valid answers to calls that were handed over are written, as ``capture``
            writes them, with the student's answer and its probability in ``Example.metadata``.
        redact: As of ``capture``.
        fsync: As of ``capture``.
        prices: Prices of both models, for ``summary()``.
        callback_manager: LlamaIndex's callback manager, set for both models. None: each keeps its own.

    Raises:
        ConfigurationError: None or several of ``accuracy``, ``budget`` and ``threshold`` are given, or one out of
            range; ``student`` does not say how sure it is, or is not calibrated. Of a call: its schema
            is not calibrated.
        CaptureError: ``capture`` cannot be written.
    """

    accuracy: float | None = Field(
        default=None, description="Least share of right answers among the sure ones."
    )
    budget: float | None = Field(default=None, description="Share of the held-out rows that is handed over.")
    threshold: float | None = Field(default=None, description="Least probability of a sure answer.")
    capture: Path | None = Field(default=None, description="File of the hand-overs.")
    prices: Prices | None = Field(default=None, description="Prices of both models.")

    def __init__(
        self,
        student: LLM,
        teacher: LLM,
        *,
        accuracy: float | None = None,
        budget: float | None = None,
        threshold: float | None = None,
        on_teacher_error: Literal["student", "raise"] = "student",
        teacher_timeout: float | None = None,
        capture: str | Path | None = None,
        redact: bool | Redactor = False,
        fsync: bool = False,
        prices: Prices | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        rules = SchemaRules(AcceptanceRule(accuracy, budget, threshold))
        _require_confident(student)
        if on_teacher_error not in ("student", "raise"):
            raise ConfigurationError(f"on_teacher_error={on_teacher_error!r}: expected 'student' or 'raise'")
        if teacher_timeout is not None and not teacher_timeout > 0:
            raise ConfigurationError(f"teacher_timeout={teacher_timeout!r}: expected seconds, more than 0")
        super().__init__(
            student=student,
            teacher=teacher,
            accuracy=accuracy,
            budget=budget,
            threshold=threshold,
            on_teacher_error=on_teacher_error,
            teacher_timeout=teacher_timeout,
            capture=None if capture is None else Path(capture).absolute(),
            prices=prices,
        )
        rules.require(self._calibrations)
        self._rules, self._counts = rules, CascadeCounts()
        self._calls = CascadeCalls(self.capture, redact, fsync)
        if callback_manager is not None:
            self.callback_manager = callback_manager

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; the callback manager, which LlamaIndex's query engines set, for both models too."""
        super().__setattr__(name, value)
        if name == "callback_manager":
            self.student.callback_manager = self.teacher.callback_manager = value

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that counts anew and shares the models, whose connections and weights cannot be copied."""
        shared: dict[int, Any] = {id(llm): llm for llm in (self.student, self.teacher)}
        return super().__deepcopy__({**(memo or {}), **shared})

    def __repr_args__(self) -> Any:
        yield "student", self.student.metadata.model_name
        yield "teacher", self.teacher.metadata.model_name
        for name in ("accuracy", "budget", "threshold", "on_teacher_error", "teacher_timeout", "capture"):
            if (value := getattr(self, name)) is not None:
                yield name, value

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex's dumps."""
        return "cascade"

    @property
    def metadata(self) -> LLMMetadata:
        """As LlamaIndex reads it: what is packed into a prompt fits into the windows of both models."""
        return self._metadata(self.student.metadata, self.teacher.metadata.context_window)

    def metadata_for(self, output_cls: type[BaseModel]) -> LLMMetadata:
        """As ``metadata``, with room for exactly the schema of a class; as ``LoraLLM.metadata_for``.

        Args:
            output_cls: Class of the answers.

        Raises:
            ConfigurationError: Schema and answer leave no room for a text.
        """
        tool = get_function_tool(output_cls).metadata.to_openai_tool()
        room = TokenCounter().estimate_tokens_in_tools([tool])
        own: Any = getattr(self.student, "metadata_for", None)  # a server's has none
        student: LLMMetadata = self.student.metadata if own is None else own(output_cls)
        return self._metadata(student, self.teacher.metadata.context_window - room)

    def _metadata(self, student: LLMMetadata, teachers_window: int) -> LLMMetadata:
        teacher = self.teacher.metadata
        return LLMMetadata(
            context_window=min(student.context_window, teachers_window),
            num_output=max(student.num_output, teacher.num_output),
            is_chat_model=True,
            is_function_calling_model=student.is_function_calling_model and teacher.is_function_calling_model,
            model_name=f"{student.model_name}, else {teacher.model_name}",
        )

    def summary(self) -> dict[str, Any]:
        """What became of the calls of this process so far.

        Returns:
            Counts: ``answered_by_student``, ``answered_by_teacher``, ``unsure`` (the student's answers where the
                teacher failed), ``unanswered`` (neither has an answer), ``texts`` (calls without a schema, by the
                teacher), ``handed_over``, ``teacher_failures``. ``share_handed_over`` with its 95% interval,
                ``share_interval``, None before the first call. ``tokens`` by ``student``, ``teacher`` and ``text``,
                as the models report them. ``money`` with ``spent`` and ``saved``, None without prices.
                ``thresholds`` by the key of the schema, None where no answer is sure. ``schemas``, by the same keys:
                ``recent_share`` handed over of the last 100 calls, ``expected_share`` and ``expected_interval`` by the
                held-out rows, ``is_drifting`` and ``drift_episodes``. ``captured``: the counts of the capture.
        """
        outcomes, tokens = self._counts.outcomes(), self._tokens()
        return {
            **summary_of(outcomes),
            "tokens": tokens,
            "money": None if self.prices is None else money(self.prices, outcomes, tokens),
            "thresholds": self._rules.thresholds(),
            "schemas": self._counts.schemas(),
            "captured": self._calls.captured(),
        }

    def metrics(self) -> str:
        """The counters of this process as text in Prometheus' exposition format."""
        watched = self._counts.schemas().values()
        return prometheus_text(
            self._counts.outcomes(),
            self._tokens(),
            drift_episodes=sum(each["drift_episodes"] for each in watched),
            drifting=sum(each["is_drifting"] for each in watched),
        )

    def _tokens(self) -> dict[str, dict[str, int]]:
        return {role: self._calls.tokens(role) for role in _ROLES}


def _require_confident(student: LLM) -> None:
    if not hasattr(student, "calibrations"):
        raise ConfigurationError(
            f"student: found {type(student).__name__}, expected a LoraLLM, FollowingLoraLLM, or what served_llm or "
            "hosted_llm returns, whose answers say how sure they are"
        )
    if not getattr(student, "confidence", False):
        raise ConfigurationError(
            "student: has confidence=False, so that its answers do not say how sure they are: pass confidence=True"
        )
