"""API keys: kept as hashes, with scopes and quotas; who a request is from."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Request
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ..errors import ConfigurationError
from .database import (
    Database,
    Record,
    files,
    gradient_adapters,
    jobs,
    keys,
    models,
    new_id,
    now,
    uploads,
)
from .errors import ApiError
from .settings import ServiceSettings

__all__ = [
    "EVERY_SCOPE",
    "SCOPES",
    "ApiKey",
    "CurrentKey",
    "KeyStore",
    "Scope",
    "current_key",
    "key_store",
    "is_loopback",
    "scoped",
]

Scope = Literal["chat", "files", "fine_tuning", "admin"]
SCOPES: tuple[Scope, ...] = ("chat", "files", "fine_tuning")
"""What a key may be used for where nothing else is said; every key may list the models that it sees."""
EVERY_SCOPE: tuple[Scope, ...] = (*SCOPES, "admin")
"""All scopes; that of ``admin`` is for keys."""
_PREFIX = "fts-"
_LOCAL = "local"  # the owner of all that is made without keys


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. ``id`` is the owner of what is made with it."""

    id: str
    name: str
    scopes: tuple[str, ...]
    max_stored_bytes: int
    max_waiting_jobs: int
    revoked: bool = False
    created_at: int = 0


class KeyStore:
    """The keys in the database. Quotas that a key has none of are those of the settings."""

    def __init__(self, database: Database, settings: ServiceSettings) -> None:
        self._database, self._settings = database, settings

    def add(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        max_stored_bytes: int | None = None,
        max_waiting_jobs: int | None = None,
    ) -> str:
        """Make a key and return its secret, which is not kept. ``scopes``: None for all but ``admin``.

        What was made before there were keys is the first one's.
        Raises ConfigurationError for a name that is taken, or an unknown scope.
        """
        scopes = SCOPES if scopes is None else scopes
        if unknown := sorted(set(scopes) - set(EVERY_SCOPE)):
            raise ConfigurationError(f"scope {unknown[0]!r}: expected of {', '.join(EVERY_SCOPE)}")
        secret = _PREFIX + secrets.token_urlsafe(32)
        row = {
            "id": new_id("key_"),
            "name": name,
            "created_at": now(),
            "secret_sha256": _hashed(secret),
            "scopes": list(scopes),
            "max_stored_bytes": max_stored_bytes,
            "max_waiting_jobs": max_waiting_jobs,
        }
        try:
            with self._database.write() as connection:
                connection.execute(insert(keys).values(row))
                for table in (files, uploads, jobs, models, gradient_adapters):
                    owned = update(table).where(table.c.owner == _LOCAL)
                    connection.execute(owned.values(owner=row["id"]))
        except IntegrityError:
            raise ConfigurationError(
                f"there is a key {name!r} already; expected a new name, also after a key was revoked"
            ) from None
        return secret

    def revoke(self, name: str) -> None:
        """End a key. What was made with it stays. Raises ConfigurationError where there is no such key."""
        with self._database.write() as connection:
            changed = connection.execute(update(keys).where(keys.c.name == name).values(revoked=True))
        if not changed.rowcount:
            raise ConfigurationError(f"there is no key {name!r}; 'keys list' shows all")

    def all_keys(self) -> list[ApiKey]:
        """All keys, in the order in which they were made."""
        with self._database.read() as connection:
            return [self._key(row) for row in connection.execute(select(keys).order_by(keys.c.number))]

    @property
    def are_required(self) -> bool:
        """Whether there is a key, also a revoked one: revoking the last one does not open the service."""
        with self._database.read() as connection:
            return bool(connection.scalar(select(func.count()).select_from(keys)))

    def find(self, secret: str) -> ApiKey | None:
        """The key with that secret; None where there is none, or it was revoked."""
        # Found by the hash of a random secret, so the time that it takes tells nothing of any secret.
        with self._database.read() as connection:
            where = (keys.c.secret_sha256 == _hashed(secret), keys.c.revoked.is_(False))
            row = connection.execute(select(keys).where(*where)).one_or_none()
        return None if row is None else self._key(row)

    def local(self) -> ApiKey:
        """Stands for everybody on this machine where there are no keys."""
        limits = self._settings
        return ApiKey(_LOCAL, _LOCAL, EVERY_SCOPE, limits.max_stored_bytes, limits.max_waiting_jobs)

    def _key(self, row: Record) -> ApiKey:
        return ApiKey(
            row.id,
            row.name,
            tuple(row.scopes),
            row.max_stored_bytes or self._settings.max_stored_bytes,
            row.max_waiting_jobs or self._settings.max_waiting_jobs,
            row.revoked,
            row.created_at,
        )


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_store(request: Request) -> KeyStore:
    """The keys of the service that a request is for."""
    store: KeyStore = request.app.state.keys
    return store


def current_key(request: Request) -> ApiKey:
    """The key of a request, for FastAPI's ``Depends``. Raises ApiError where it has none that is valid."""
    store = key_store(request)
    if not store.are_required:
        _require_local(request)
        key = store.local()
    else:
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        found = store.find(secret.strip()) if kind.lower() == "bearer" else None
        if found is None:
            raise ApiError(
                401,
                "Incorrect or missing API key: expected the header 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        key = found
    request.state.key = key.id  # for the log
    return key


CurrentKey = Annotated[ApiKey, Depends(current_key)]
"""The type of a parameter that is the request's key."""


def scoped(scope: Scope) -> Callable[[ApiKey], ApiKey]:
    """A dependency: the request's key, which must have the scope."""

    def scoped_key(key: CurrentKey) -> ApiKey:
        if scope not in key.scopes:
            raise ApiError(
                403,
                f"This key has no scope {scope!r}, only: {', '.join(key.scopes) or 'none'}.",
                code="missing_scope",
            )
        return key

    return scoped_key


def _require_local(request: Request) -> None:
    """Raise ApiError, without keys, for a request from another machine, or of a page of another site in a browser.

    Such a page reaches this machine by its own name for 127.0.0.1, or by sending a form here.
    """
    client = request.client.host if request.client else ""
    site = urlsplit(f"//{request.headers.get('host', '')}")
    origin = request.headers.get("origin")
    if not is_loopback(client) or not is_loopback(site.hostname or ""):
        raise ApiError(
            401, "Without API keys, the service answers on this machine's loopback address alone.",
            code="invalid_api_key",
        )  # fmt: skip
    if origin is not None and urlsplit(origin).netloc != site.netloc:
        raise ApiError(403, "Requests of other sites' pages are refused.", code="other_origin")
