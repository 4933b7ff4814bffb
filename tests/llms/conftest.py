"""Shared by the tests of the models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llama_index_instrumentation import get_dispatcher

from tests.llms.structured_events import StructuredEvents


@pytest.fixture
def structured_events() -> Iterator[StructuredEvents]:
    handler = StructuredEvents()
    get_dispatcher().add_event_handler(handler)
    yield handler
    get_dispatcher().event_handlers.remove(handler)
