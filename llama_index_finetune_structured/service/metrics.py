"""Figures of the service for Prometheus: requests, jobs by status, stored bytes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from .database import Database, files, jobs

__all__ = ["ServiceMetrics"]

_NAME = "finetune_structured"


class ServiceMetrics:
    """The figures of one server. ``registry`` is where other parts add theirs."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter(f"{_NAME}_requests", "Requests.", labels, registry=self.registry)
        self._seconds = Histogram(
            f"{_NAME}_request_seconds", "Seconds of a request.", ("method", "route"), registry=self.registry
        )
        self.registry.register(_Stored(database))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; ``route`` is the path of the route, which has no ids."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _Stored(Collector):
    """Figures that are read from the database when they are asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield from ()  # else it would be collected once to learn the names

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Jobs by status, and the bytes of files."""
        with self._database.read() as connection:
            counts = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all()
            stored = connection.scalar(select(func.coalesce(func.sum(files.c.bytes), 0)))
        by_status = GaugeMetricFamily(f"{_NAME}_jobs", "Fine-tuning jobs.", labels=["status"])
        for status, count in counts:
            by_status.add_metric([status], count)
        yield by_status
        yield GaugeMetricFamily(f"{_NAME}_stored_bytes", "Bytes of all files.", value=stored or 0)
