"""The database of the service: SQLite with a write-ahead log, one short transaction a change.

Server, workers and commands open it at the same time. A change is on disk when its transaction ends.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_random

from ..errors import ConfigurationError

__all__ = [
    "Database",
    "Record",
    "checkpoints",
    "events",
    "files",
    "gradient_adapters",
    "jobs",
    "keys",
    "models",
    "new_id",
    "now",
    "parts",
    "uploads",
]

Record = Any
"""A row of a table, its columns as attributes. SQLAlchemy 2.0 and 2.1 write the type of a row differently."""
_VERSION = 1
_WAIT_MS = 30_000  # chosen: a change takes milliseconds, so a longer wait is a fault
# SQLite does not wait by itself where several processes open a file that is new, or whose last user was killed.
_PATIENTLY = Retrying(
    retry=retry_if_exception_message(match=".*locked"),
    wait=wait_random(max=0.1),
    stop=stop_after_delay(_WAIT_MS / 1000),
    reraise=True,
)
_tables = MetaData()
_JSON = JSON(none_as_null=True)


def _number() -> Column[int]:
    """The order in which rows were made."""
    return Column("number", Integer, primary_key=True, autoincrement=True)


def _id() -> Column[str]:
    return Column("id", String, nullable=False, unique=True)


def _owner() -> Column[str]:
    """The id of the key that the row belongs to."""
    return Column("owner", String, nullable=False, index=True)


def _made() -> Column[int]:
    return Column("created_at", Integer, nullable=False)


keys = Table(
    "keys", _tables, _number(), _id(), _made(),
    Column("name", String, nullable=False, unique=True),
    Column("secret_sha256", String, nullable=False, unique=True),
    Column("scopes", _JSON, nullable=False),
    Column("max_stored_bytes", Integer),
    Column("max_waiting_jobs", Integer),
    Column("revoked", Boolean, nullable=False, default=False),
)  # fmt: skip
files = Table(
    "files", _tables, _number(), _id(), _owner(), _made(),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String, nullable=False, index=True),
    Column("expires_at", Integer),
)  # fmt: skip
uploads = Table(
    "uploads", _tables, _number(), _id(), _owner(), _made(),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("status", String, nullable=False),
    Column("expires_at", Integer, nullable=False),
    Column("file_seconds", Integer),  # after which the file expires
    Column("file_id", String),
)  # fmt: skip
parts = Table(
    "parts", _tables, _number(), _id(), _made(),
    Column("upload_id", String, ForeignKey("uploads.id"), nullable=False, index=True),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String, nullable=False, index=True),
)  # fmt: skip
jobs = Table(
    "jobs", _tables, _number(), _id(), _owner(), _made(),
    Column("model", String, nullable=False),  # the base model
    Column("start_model", String),  # the tuned model that training goes on from
    Column("method", String, nullable=False, default="supervised"),
    Column("status", String, nullable=False, index=True),
    Column("training_file", String, nullable=False),
    Column("training_sha256", String, nullable=False),
    Column("training_name", String, nullable=False),
    Column("validation_file", String),
    Column("validation_sha256", String),
    Column("validation_name", String),
    Column("hyperparameters", _JSON, nullable=False),  # as they were asked for
    Column("taken", _JSON),  # as they were trained with
    Column("suffix", String),
    Column("seed", Integer, nullable=False),
    Column("metadata", _JSON),
    Column("started_at", Integer),
    Column("turn", Integer),  # the number of the start among those of all jobs
    Column("attempts", Integer, nullable=False, default=0),  # starts since the last finished step
    Column("finished_at", Integer),
    Column("estimated_finish", Integer),
    Column("trained_tokens", Integer),  # of one epoch, until the job has succeeded
    Column("error", _JSON),
    Column("fine_tuned_model", String),
    Column("result_file", String),
)  # fmt: skip
events = Table(
    "events", _tables, _number(), _id(), _made(),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False, index=True),
    Column("level", String, nullable=False),
    Column("message", String, nullable=False),
    Column("type", String, nullable=False),
    Column("data", _JSON),
    Column("step", Integer),  # of metrics: a step has one event, however often it was computed
    UniqueConstraint("job_id", "step"),
)  # fmt: skip
checkpoints = Table(
    "checkpoints", _tables, _number(), _id(), _made(),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False, index=True),
    Column("model", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("metrics", _JSON, nullable=False),
)  # fmt: skip
models = Table(
    "models", _tables, _number(), _id(), _owner(), _made(),  # the id is the name
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False),
    Column("base", String, nullable=False),  # as the settings name it
    Column("base_path", String, nullable=False),
    Column("loss", Float),
)  # fmt: skip
gradient_adapters = Table(
    "gradient_adapters", _tables, _number(), _id(), _owner(), _made(),
    Column("name", String, nullable=False),
    Column("base", String, nullable=False),  # as the settings name it
    Column("base_path", String, nullable=False),
    Column("lora", _JSON, nullable=False),  # its settings
    Column("steps", Integer, nullable=False),  # those that are finished
    Column("updated_at", Integer, nullable=False),  # in microseconds
)  # fmt: skip


def now() -> int:
    """The time as the protocol has it, in seconds."""
    return int(time.time())


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}{secrets.token_hex(12)}"


class Database:
    """The service's SQLite file, made where it is missing.

    Raises ConfigurationError where the file is not of this version of the service, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # As many connections as threads ask: each is short.
        self._engine = create_engine(f"sqlite:///{path}", max_overflow=-1)
        event.listen(self._engine, "connect", _set_up)
        event.listen(self._engine, "begin", _begin)
        try:
            self._create()
        except Exception as error:
            self.close()
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(
                f"{path}: cannot be used as the service's database ({type(error).__name__}); expected a folder that "
                "you can write, and no other program's file"
            ) from error

    def _create(self) -> None:
        with self.write() as connection:
            version = connection.execute(text("PRAGMA user_version")).scalar_one()
            if version not in (0, _VERSION):
                raise ConfigurationError(
                    f"{self.path}: has version {version}, expected {_VERSION}; use the release that made it, or "
                    "another folder"
                )
            _tables.create_all(connection)
            connection.execute(text(f"PRAGMA user_version = {_VERSION}"))
        self.path.chmod(0o600)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One change: other changes wait until the block ends, and nothing is changed where it raises."""
        with (
            self._engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One state of the database, whatever is changed meanwhile."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _set_up(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin below, and not by themselves
    for setting in (
        f"busy_timeout = {_WAIT_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        for attempt in _PATIENTLY:
            with attempt:
                connection.execute(f"PRAGMA {setting}")


def _begin(connection: Connection) -> None:
    # A change that began as a read could fail where another one was first.
    writes = connection.get_execution_options().get("writes")
    for attempt in _PATIENTLY:
        with attempt:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
