"""LLMs behind OpenAI's protocol: OpenAI's own, and adapters on vLLM, SGLang and other servers.

LlamaIndex's classes show their key in repr, dumps and pickles; these store it privately. They request structured
answers over the transport the model was trained with; LlamaIndex's choose one by the model's name.
"""

from __future__ import annotations

import inspect
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms import LLM
from llama_index.core.types import PydanticProgramMode
from pydantic import SecretStr, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from ..capture.known_secrets import mask_values, remember_secrets_in, without_secret_settings
from ..errors import MissingDependencyError
from ..example import Transport
from .call_options import refuse_unknown_fields
from .keys import ApiKey, check_address, request_key, secret_key

try:
    from llama_index.llms.openai import OpenAI
    from llama_index.llms.openai.utils import openai_modelname_to_contextsize
    from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]
    from openai import omit

    from .server_confidence import ServerConfidence
except ImportError as error:
    raise MissingDependencyError("llama-index-llms-openai", "openai", "a hosted LLM") from error

__all__ = ["HostedOpenAI", "HostedOpenAILike", "hosted_llm", "text_mode"]

_MODES = {
    "tools": PydanticProgramMode.FUNCTION,
    "text": PydanticProgramMode.LLM,
    "json_schema": PydanticProgramMode.DEFAULT,
    None: PydanticProgramMode.DEFAULT,
}


class _Hosted(ServerConfidence):
    """What both classes below add to LlamaIndex's: secrets that are in no repr, dump or pickle, and the transport."""

    transport: Transport | None = Field(
        default=None, description="How structured answers are requested; None: chosen by the model's name."
    )
    api_key: str | None = Field(default=None, description="Always None: the key is stored privately.")
    default_headers: dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    _key: SecretStr = PrivateAttr(default=SecretStr(""))

    def __init__(
        self, model: str, transport: Transport | None = None, api_key: ApiKey = None, **options: Any
    ) -> None:
        refuse_unknown_fields(type(self), options, also=inspect.signature(OpenAI.__init__).parameters)
        api_key = secret_key(api_key)
        remember_secrets_in(options.get("default_headers"))
        remember_secrets_in(options.get("additional_kwargs"))
        if options.get("api_base"):
            check_address(options["api_base"], "api_base", "api_key")
        options.setdefault("pydantic_program_mode", _MODES[transport])
        super().__init__(model=model, transport=transport, api_key="stored privately", **options)
        self._key, self.api_key = api_key, None

    def _get_credential_kwargs(self, is_async: bool = False) -> dict[str, Any]:
        key = request_key(self._key, self.api_base)
        return {**super()._get_credential_kwargs(is_async), "api_key": key}

    def _get_model_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        request: dict[str, Any] = super()._get_model_kwargs(**kwargs)
        if not request.get("tools"):
            request.pop("tool_choice", None)  # OpenAI's API answers a lone tool_choice with 400
        return request

    def _should_use_structure_outputs(self) -> bool:
        if self.transport is None:
            return bool(super()._should_use_structure_outputs())
        return self.transport == "json_schema"

    def __repr_args__(self) -> Any:
        return [(name, mask_values(value)) for name, value in super().__repr_args__()]

    @model_serializer(mode="wrap")
    def custom_model_dump(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """LlamaIndex's dump with secrets masked, those within ``additional_kwargs``."""
        dump: dict[str, Any] = mask_values(super().custom_model_dump(handler, info))
        return dump

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without connection, key, headers and secrets of ``additional_kwargs``.

        The copy takes its key from the environment.
        """
        settings = without_secret_settings(self.additional_kwargs)
        bare = self.model_copy(update={"default_headers": None, "additional_kwargs": settings})
        bare._key = SecretStr("")
        bare._client = bare._aclient = bare._http_client = bare._async_http_client = None
        return dict(super(_Hosted, bare).__getstate__())


class HostedOpenAI(_Hosted):
    """LlamaIndex's ``OpenAI`` for models whose name it knows, fine-tuned ones included.

    The key is in no repr, dump or pickle, and structured answers use the transport that the model was trained
    with.

    Args:
        model: The model's name at the server.
        transport: How structured answers are requested: ``json_schema``, ``tools`` or ``text``. None: chosen
            by the model's name.
        api_key: The key, stored privately: the attribute is always None. None: $OPENAI_API_KEY; unpickled
            copies use that one.
        **options: Fields of LlamaIndex's class, such as ``api_base`` and ``temperature``.

    Attributes:
        confidence: Whether structured answers come with their ``Trust``, by the server's log-probabilities; False by
            default, since not every service has them.
        calibrations: How probabilities are calibrated for the answers to a schema, by its key.
        taggers: Taggers of the messages' words, by the key of the answers' schema: a second opinion on these.
        default_headers: Extra headers of each request; in no repr, dump or pickle.
    """


class HostedOpenAILike(_Hosted, OpenAILike):  # type: ignore[misc]
    """LlamaIndex's ``OpenAILike`` for every other model: an adapter's name on vLLM, a deployment, ...

    The key is in no repr, dump or pickle, and structured answers use the transport that the model was trained
    with.

    Args:
        model: The model's name at the server.
        transport: How structured answers are requested: ``json_schema``, ``tools`` or ``text``. None: chosen
            by the model's name.
        api_key: The key, stored privately: the attribute is always None. None: $OPENAI_API_KEY; unpickled
            copies use that one.
        **options: Fields of LlamaIndex's class, such as ``api_base`` and ``temperature``.

    Attributes:
        confidence: Whether structured answers come with their ``Trust``, by the server's log-probabilities; False by
            default, since not every service has them.
        calibrations: How probabilities are calibrated for the answers to a schema, by its key.
        taggers: Taggers of the messages' words, by the key of the answers' schema: a second opinion on these.
        default_headers: Extra headers of each request; in no repr, dump or pickle.
    """


def hosted_llm(
    model: str,
    *,
    api_base: str,
    api_key: ApiKey = None,
    transport: Transport | None = None,
    context_window: int | None = None,
    **options: Any,
) -> HostedOpenAI | HostedOpenAILike:
    """The LLM called ``model`` at ``api_base``. Needs the extra ``openai``.

    Args:
        model: The model's name at the server; SGLang's name of an adapter is ``base:adapter``.
        api_base: Address of the server.
        api_key: The key. None: $OPENAI_API_KEY; a server other than OpenAI's may need none.
        transport: How structured answers are requested: ``json_schema``, ``tools`` or ``text``. None: chosen
            by the model's name.
        context_window: In tokens. None: LlamaIndex's figure, 3900 for models whose name it does not know.
        **options: Other fields of the LLM's class, such as ``temperature``.

    Returns:
        ``HostedOpenAI`` where LlamaIndex knows the name and ``context_window`` is None, else
            ``HostedOpenAILike``.
    """
    api_key = secret_key(api_key)
    common = {"api_base": api_base, "api_key": api_key, "transport": transport, **options}
    if context_window is None and _is_known(model):
        return HostedOpenAI(model=model, **common)
    if context_window is not None:
        common["context_window"] = context_window
    defaults = {
        "is_chat_model": True,
        "is_function_calling_model": transport == "tools",
        "should_use_structured_outputs": transport == "json_schema",
    }
    return HostedOpenAILike(model=model, **{**defaults, **common})


def _is_known(model: str) -> bool:
    try:
        openai_modelname_to_contextsize(model)
    except ValueError:
        return False
    return True


def text_mode(llm: LLM) -> LLM:
    """A copy of any ``llm`` that puts the schema into the prompt and parses the text of the answer.

    LlamaIndex's ``OpenAI`` sends ``tool_choice: "required"`` in this mode although it sends no tools, which
    OpenAI's API refuses with 400; the copy omits it. Needs the extra ``openai``.

    Args:
        llm: Any LlamaIndex LLM; it is not changed.
    """
    hosted_class = {OpenAI: HostedOpenAI, OpenAILike: HostedOpenAILike}.get(type(llm))
    if hosted_class is not None and isinstance(llm, OpenAI):
        return hosted_class(**_fields(llm), transport="text")
    changes: dict[str, Any] = {"pydantic_program_mode": PydanticProgramMode.LLM}
    if isinstance(llm, _Hosted):
        changes["transport"] = "text"
    elif isinstance(llm, OpenAI):  # another package's subclass, which is kept
        changes["additional_kwargs"] = {**llm.additional_kwargs, "tool_choice": omit}
    return llm.model_copy(update=changes)


def _fields(llm: OpenAI) -> dict[str, Any]:
    """Constructor arguments of an LLM like this one, its clients included."""
    fields = {name: getattr(llm, name) for name in type(llm).model_fields if name != "pydantic_program_mode"}
    return fields | {
        "api_key": secret_key(llm.api_key),
        "openai_client": llm._client,
        "async_openai_client": llm._aclient,
        "http_client": llm._http_client,
        "async_http_client": llm._async_http_client,
    }
