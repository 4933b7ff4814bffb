"""The LLM of a run that succeeded, as its provider serves it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ...errors import EngineError
from ...example import Transport
from .client import Service, reply_errors
from .journal import Run

if TYPE_CHECKING:
    from llama_index.core.llms import LLM
    from openai.types import Model

__all__ = ["described", "tuned_llm"]

logger = logging.getLogger(__name__)


def tuned_llm(service: Service, run: Run, transport: Transport | None, llm_kwargs: dict[str, Any]) -> LLM:
    """The run's model at the same address, over ``transport`` or the one it was trained in.

    Raises EngineError where the provider serves it under a name that is not given.
    """
    from ...llms.hosted import hosted_llm

    options = dict(llm_kwargs)
    trained = None if service.provider.serves_by_deployment else run.fine_tuned_model
    name = options.pop("model", None) or trained
    if name is None:
        made = f"made {run.fine_tuned_model}" if run.fine_tuned_model else "named no model"
        raise EngineError(
            f"job {run.job_id} succeeded and {made}; {service.provider.name} serves it under a name that you "
            "give: deploy it there, then call get_finetuned_model(model='<that name>')"
        )
    settings = {
        "api_base": service.api_base,
        "api_key": service.key,
        "transport": transport or run.transport,
        "context_window": getattr(described(service, name), "max_model_len", None),  # vLLM tells it
    }
    return hosted_llm(name, **{**settings, **options})


def described(service: Service, model: str) -> Model | None:
    """What the provider says of a model; many list none, so its silence is no failure."""
    try:
        return service.client.models.retrieve(model)
    except reply_errors() as error:
        logger.debug("no description of %s: %s", model, type(error).__name__)
        return None
