"""Errors of a model's calls as those of the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigurationError, DatasetError, EngineError, PromptTooLongError
from ..local.generate.grammar_errors import GrammarError, NoRoomError
from .errors import ApiError, invalid
from .json_log import log_failure

__all__ = ["answer_errors"]


@contextmanager
def answer_errors(
    param: str | None = None, *, schema: str | None = None, limit: str | None = None
) -> Iterator[None]:
    """Raise what goes wrong in this block as ApiError.

    ``param``: the field that holds what is asked. ``schema``, ``limit``: those of the answer's schema and token limit.
    """
    try:
        yield
    except ApiError:
        raise
    except PromptTooLongError as error:
        raise invalid(str(error), param, code="context_length_exceeded") from error
    except DatasetError as error:  # of the chat template
        raise invalid(str(error), param) from error
    except GrammarError as error:
        raise invalid(error.told, schema, code="invalid_schema") from error
    except NoRoomError as error:
        raise invalid(error.told, limit) from error
    except ConfigurationError as error:
        raise invalid(str(error)) from error
    except EngineError as error:
        raise ApiError(500, str(error), code="generation_failed") from error
    except Exception as error:
        log_failure(error, "answer")
        message = "The answer could not be generated; the server's log says why."
        raise ApiError(500, message, code="generation_failed") from error
