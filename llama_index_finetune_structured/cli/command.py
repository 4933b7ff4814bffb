"""Registration of commands: results on stdout, messages on stderr, ``--json``, and exit codes.

Exit codes: 0 done; 1 an error of the user, or problems found; 2 unknown option (typer's own); 130 stopped by
Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError
from rich.console import Console, RenderableType

from ..capture.known_secrets import mask_secrets
from ..errors import FinetuneStructuredError
from ..printable import printable

__all__ = ["FEW_ROWS", "Result", "command", "counted", "say"]

FEW_ROWS = 50
"""Commands warn below this many training rows. Chosen: some dozens of rows teach no more than the form."""

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


def say(text: str) -> None:
    """Print a progress message to stderr; stdout is reserved for the result."""
    Console(stderr=True).print(printable(mask_secrets(text)), markup=False, highlight=False, soft_wrap=True)


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
    except ValidationError as error:  # of settings whose limits an option does not state
        problem = error.errors(include_url=False)[0]
        return _failed(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, found {problem['input']!r}")
    except OSError as error:
        return _failed(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        say("Stopped. What was finished is kept: run the same command again to go on.")
        raise typer.Exit(130) from None


def _failed(message: str) -> Result:
    message = mask_secrets(message)
    Console(stderr=True, style="red").print(
        printable(f"Error: {message}"), markup=False, highlight=False, soft_wrap=True
    )
    return Result({"error": message}, (), ok=False)


def _print(result: Result, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(_json_text(result.data) + "\n")
    else:
        console = Console()
        for part in result.shown:
            shown = printable(part) if isinstance(part, str) else part
            console.print(shown, markup=False, highlight=False, soft_wrap=isinstance(part, str))
    if not result.ok:
        raise typer.Exit(1)


def _json_text(data: dict[str, Any] | list[Any]) -> str:
    """The data as JSON; control characters that JSON allows as they are, and half surrogate pairs, are escaped too."""
    text = json.dumps(data, ensure_ascii=False, indent=1)
    return "".join(
        char if char == "\n" or printable(char) == char else f"\\u{ord(char):04x}" for char in text
    )
