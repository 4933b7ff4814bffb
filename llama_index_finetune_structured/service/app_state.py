"""What a request's application holds, typed: ``app.state`` is not."""

from __future__ import annotations

from fastapi import Request

from .blobs import Blobs
from .database import Database
from .settings import ServiceSettings

__all__ = ["blobs_of", "database_of", "service_settings"]


def database_of(request: Request) -> Database:
    """The database of the service that a request is for."""
    database: Database = request.app.state.database
    return database


def blobs_of(request: Request) -> Blobs:
    """The contents of files of the service that a request is for."""
    blobs: Blobs = request.app.state.blobs
    return blobs


def service_settings(request: Request) -> ServiceSettings:
    """The settings of the service that a request is for."""
    settings: ServiceSettings = request.app.state.settings
    return settings
