"""Registration of commands: results on stdout, messages on stderr, ``--json``, and exit codes.

Exit codes: 0 done; 1 an error of the user, or problems found; 2 a command line that typer refuses, such as a value
that is not in an option's list; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console, RenderableType

from ..capture.known_secrets import mask_secrets
from ..errors import ConfigurationError, FinetuneStructuredError
from ..evaluation.report.terminal import print_plain
from ..printable import escaped_json

__all__ = ["Result", "command", "counted", "finite", "one_of", "say", "settings_of"]

_Settings = TypeVar("_Settings", bound=BaseModel)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class Result:
    """A command's result: ``data`` for ``--json``, ``shown`` for people; the exit code is 1 unless ``ok``."""

    data: dict[str, Any] | list[Any]
    shown: tuple[RenderableType, ...]
    ok: bool = True


def counted(number: int, noun: str) -> str:
    """``1 example``, ``2 examples``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def finite(value: float | None) -> float | None:
    """The value of an option, for its ``callback``: infinities and NaN are refused, which have no form in JSON."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def one_of(*names: str) -> Callable[[str | None], str | None]:
    """A ``callback`` that refuses a value that is not among ``names``, as typer refuses one of a Literal."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
        return value

    return check


def settings_of(cls: type[_Settings], **options: Any) -> _Settings:
    """Settings of the values of a command's options, named as the fields.

    Raises ConfigurationError, with the option, for a value that the settings refuse and typer does not.
    """
    try:
        return cls(**options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = str(problem["loc"][0]).replace("_", "-")
        raise ConfigurationError(
            f"--{option}: {problem['msg']}, found {problem['input']!r}; give another value"
        ) from error


def say(text: str) -> None:
    """Print a progress message to stderr; stdout is reserved for the result."""
    print_plain(Console(stderr=True), mask_secrets(text))


def command(
    app: typer.Typer, *, example: str, name: str | None = None
) -> Callable[[Callable[..., Result]], Callable[..., None]]:
    """Register a function that returns a Result as a command, with ``--json`` and an example in its help."""

    def register(function: Callable[..., Result]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, as_json: bool, **options: Any) -> None:
            with contextlib.redirect_stdout(sys.stderr):  # libraries print as well
                result = _attempt(function, options)
            _print(result, as_json)

        # typer reads options from the signature, so the flag is added to it; __wrapped__ would make
        # inspect.signature return the function's own signature instead.
        signature = inspect.signature(function, eval_str=True)
        flag = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption
        )
        run.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), flag])
        run.__annotations__ = get_type_hints(function, include_extras=True) | {"as_json": JsonOption}
        del run.__dict__["__wrapped__"]
        return app.command(name, epilog=f"Example: {example}")(run)

    return register


def _attempt(function: Callable[..., Result], options: dict[str, Any]) -> Result:
    """The function's result, with errors of the user and the file system as a failed one."""
    try:
        return function(**options)
    except FinetuneStructuredError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        say("Stopped. What was finished is kept: run the same command again to go on.")
        raise typer.Exit(130) from None


def _failed(message: str) -> Result:
    message = mask_secrets(message)
    print_plain(Console(stderr=True, style="red"), f"Error: {message}")
    return Result({"error": message}, (), ok=False)


def _print(result: Result, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(escaped_json(json.dumps(result.data, ensure_ascii=False, indent=1)) + "\n")
        sys.stdout.flush()  # a full disk is an error here, not at the end of the interpreter
    else:
        console = Console()
        for part in result.shown:
            if isinstance(part, str):
                print_plain(console, part)
            else:
                console.print(part, highlight=False)
    if not result.ok:
        raise typer.Exit(1)
