"""The LLM of a hosted run's tuned model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import EngineError
from ...example import Transport
from .client import Service, model_description
from .journal import Run

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

__all__ = ["tuned_llm"]


def tuned_llm(service: Service, run: Run, transport: Transport | None, llm_kwargs: dict[str, Any]) -> LLM:
    """The run's model at the same address, with ``transport`` or the one it was trained for.

    Raises EngineError where the provider serves it under a name that ``llm_kwargs`` does not give.
    """
    from ...llms.hosted import hosted_llm

    options = dict(llm_kwargs)
    trained = None if service.provider.serves_by_deployment else run.fine_tuned_model
    name = options.pop("model", None) or trained
    if name is None:
        made = f"made {run.fine_tuned_model}" if run.fine_tuned_model else "named no model"
        raise EngineError(
            f"job {run.job_id} succeeded and {made}; {service.provider.name} serves it under a name that you "
            "choose: deploy it there, then call get_finetuned_model(model='<that name>')"
        )
    settings = {
        "api_base": service.api_base,
        "api_key": service.key,
        "transport": transport or run.transport,
        # vLLM gives max_model_len; without it LlamaIndex guesses the window from the name.
        "context_window": getattr(model_description(service, name), "max_model_len", None),
    }
    return hosted_llm(name, **{**settings, **options})
