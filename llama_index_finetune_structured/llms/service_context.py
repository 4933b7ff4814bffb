"""The older notebooks' ServiceContext: one clear word on what replaces it."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import ConfigurationError

__all__ = ["ServiceContext"]


class ServiceContext:
    """LlamaIndex took ServiceContext away; every use raises ConfigurationError with what to write instead."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        _refuse()

    @classmethod
    def from_defaults(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raise ConfigurationError with what to write instead."""
        _refuse()


def _refuse() -> NoReturn:
    raise ConfigurationError(
        "ServiceContext is gone from LlamaIndex, and service_context= is silently ignored. Write instead:\n"
        "  llm=             index.as_query_engine(llm=llm, output_cls=...), DatasetGenerator(llm=llm, ...)\n"
        "  callback_manager VectorStoreIndex(nodes, callback_manager=callback_manager)\n"
        "  chunk_size       SentenceSplitter(chunk_size=...)\n"
        '  pydantic_program_mode="llm"  text_mode(llm)'
    )
