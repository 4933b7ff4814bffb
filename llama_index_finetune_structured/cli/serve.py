"""The ``serve`` and ``keys`` commands: OpenAI's fine-tuning and chat protocol on this machine."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..errors import ConfigurationError, EngineError, MissingDependencyError
from ..local.model.base_models import DEFAULT_BASE_MODEL, resolve
from ..locks import locked_folder
from ..printable import one_line
from .command import Result, command, say, settings_of

if TYPE_CHECKING:
    from ..service.keys import KeyStore

__all__ = ["register"]

FolderOption = Annotated[Path, typer.Option(help="Folder of the service: database, files, runs, models.")]
_FOLDER = Path("service")


def serve(
    folder: FolderOption = _FOLDER,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need a key ('keys add').")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    base: Annotated[
        list[str] | None,
        typer.Option(
            help="Base model as NAME=PATH, once for each: a folder, a .gguf file or a hub id by the name that clients "
            "use (default: the embedded one)."
        ),
    ] = None,
    embeddings: Annotated[
        list[str] | None,
        typer.Option(
            help="Embedding model as NAME=FOLDER, once for each: a folder as sentence-transformers saves it (needs the "
            "extra 'embeddings')."
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device that trains, as in CUDA_VISIBLE_DEVICES, once for each (default: one worker)."
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="What answers: 'own', models in this process, or 'vllm', a vLLM server of the only base model."
        ),
    ] = "own",
    vllm_command: Annotated[
        str,
        typer.Option(
            help="With --backend vllm: its program, and options for its 'serve', as in '/opt/vllm/bin/vllm "
            "--gpu-memory-utilization 0.5'."
        ),
    ] = "vllm",
    vllm_url: Annotated[
        str | None,
        typer.Option(
            help="With --backend vllm: a server that runs already, in place of the command; its key is $VLLM_API_KEY."
        ),
    ] = None,
) -> Result:
    """Serve OpenAI's and Gradient's fine-tuning protocols on this machine. Needs the extra 'service'.

    Ctrl-C finishes the step at work; the next start goes on with it.
    """
    with _service_extra():
        import uvicorn

        from ..service.app import create_app
        from ..service.embedding_folders import require_embedding_model
        from ..service.json_log import json_log, log_entry
        from ..service.keys import is_loopback
        from ..service.settings import ServiceSettings
    settings = settings_of(
        ServiceSettings,
        folder=folder,
        bases=_named("--base", base or []) or {DEFAULT_BASE_MODEL: DEFAULT_BASE_MODEL},
        embeddings=_embeddings(embeddings or []),
        devices=tuple(device or ()),
        backend=backend,
        vllm_command=tuple(shlex.split(vllm_command)),
        vllm_url=vllm_url,
    )
    with json_log():
        app = create_app(settings)
        if not is_loopback(host) and not app.state.keys.are_required:
            raise ConfigurationError(
                f"--host {host}: other machines could use the service without a key: run 'finetune-structured keys "
                f"add NAME --folder {folder}' first, or listen on 127.0.0.1"
            )
        # A wrong model is told here, and not to the first client.
        _require("--base", settings.bases, resolve)
        _require("--embeddings", settings.embeddings, lambda path: require_embedding_model(Path(path)))
        # The server takes it again; another one is told here, in one line.
        with locked_folder(settings.folder):
            pass
        # Requests are logged by the service, without their content.
        config = uvicorn.Config(app, access_log=False, log_config=None, timeout_graceful_shutdown=10)
        server = uvicorn.Server(config)
        listening = _listening(host, port)
        at = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        log_entry("serving", api=f"{at}/v1", page=f"{at}/")
        try:
            server.run([listening])
        except KeyboardInterrupt:
            log_entry("stopped")
            raise typer.Exit(130) from None
    if not server.started:
        raise EngineError(f"{folder}: the server did not start, for the reason above")
    return Result({"folder": str(folder)}, ("Stopped.",))


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ConfigurationError where that is not possible."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # behind it is the address once more
        raise ConfigurationError(
            f"--host {host} --port {port}: cannot be listened to: {reason}; stop what listens there, or choose another "
            "port"
        ) from error


def _require(option: str, models: Mapping[str, str], check: Callable[[str], object]) -> None:
    """Raise ConfigurationError, with the option's value, for the first model that ``check`` refuses."""
    for name, path in models.items():
        try:
            check(path)
        except ConfigurationError as error:
            raise ConfigurationError(f"{option} {name}={path}: {error}") from error


def _named(option: str, given: list[str]) -> dict[str, str]:
    """Paths by their names, of an option's values."""
    paths: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path or name in paths:
            raise ConfigurationError(f"{option} {text}: expected NAME=PATH, each name once")
        paths[name] = path
    return paths


def _embeddings(given: list[str]) -> dict[str, str]:
    """As ``_named``. A missing extra is told here, and not to the first client."""
    folders = _named("--embeddings", given)
    if folders and find_spec("sentence_transformers") is None:
        raise MissingDependencyError("sentence_transformers", "embeddings", "--embeddings")
    return folders


def add(
    name: Annotated[str, typer.Argument(help="Name of the key, for 'keys list' and 'keys revoke'.")],
    folder: FolderOption = _FOLDER,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may be used for: chat, files, fine_tuning or admin (keys), once for each (default: all but "
            "admin)."
        ),
    ] = None,
    stored_bytes: Annotated[
        int | None, typer.Option(min=1, help="Most bytes of its files (default: 64 GiB).")
    ] = None,
    waiting_jobs: Annotated[
        int | None, typer.Option(min=1, help="Most jobs of it that have not ended (default: 100).")
    ] = None,
) -> Result:
    """Make an API key and print it, once: only its hash is kept."""
    with _keys(folder) as store:
        is_first = not store.are_required
        secret = store.add(name, scopes=scope, max_stored_bytes=stored_bytes, max_waiting_jobs=waiting_jobs)
    if is_first:  # of another folder than the service's, it would be known to none
        say(f"The first key of {folder}: a service of that folder asks for a key from now on.")
    return Result({"name": name, "key": secret}, (secret,))


def list_keys(folder: FolderOption = _FOLDER) -> Result:
    """List the API keys, without their secrets."""
    with _keys(folder, is_new=False) as store:
        found = store.all_keys()
    table = Table("name", "id", "scopes", "revoked")
    for key in found:
        table.add_row(
            *(Text(one_line(cell)) for cell in (key.name, key.id, ", ".join(key.scopes))),
            "yes" if key.revoked else "",
        )
    data = [
        {"name": key.name, "id": key.id, "scopes": list(key.scopes), "revoked": key.revoked} for key in found
    ]
    return Result(data, (table,))


def revoke(
    name: Annotated[str, typer.Argument(help="Name of the key.")], folder: FolderOption = _FOLDER
) -> Result:
    """End an API key. Its files, jobs and models stay."""
    with _keys(folder, is_new=False) as store:
        store.revoke(name)
    return Result({"name": name, "revoked": True}, (f"{name} is revoked",))


@contextmanager
def _keys(folder: Path, *, is_new: bool = True) -> Iterator[KeyStore]:
    """The keys of a service's folder. ``is_new``: which may be made by this command."""
    with _service_extra():
        from ..service.database import Database
        from ..service.keys import KeyStore
        from ..service.settings import ServiceSettings
    settings = ServiceSettings(folder=folder)
    if not is_new and not settings.database_path.is_file():
        raise ConfigurationError(
            f"{folder}: holds no service; expected the --folder of 'serve' or 'keys add'"
        )
    database = Database(settings.database_path)
    try:
        yield KeyStore(database, settings)
    finally:
        database.close()


@contextmanager
def _service_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(error.name or "fastapi", "service", "the service") from error


def register(app: typer.Typer) -> None:
    """Add the commands ``serve``, ``keys add``, ``keys list`` and ``keys revoke``."""
    command(app, example="finetune-structured serve --folder service --base small=models/small")(serve)
    keys = typer.Typer(help="API keys of 'serve': add, list, revoke.", no_args_is_help=True)
    command(keys, example="finetune-structured keys add alice --scope chat")(add)
    command(keys, name="list", example="finetune-structured keys list --folder service")(list_keys)
    command(keys, example="finetune-structured keys revoke alice")(revoke)
    app.add_typer(keys, name="keys")
