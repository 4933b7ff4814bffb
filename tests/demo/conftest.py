"""What the tests of the demo's agent share."""

from __future__ import annotations

import pytest

from llama_index_finetune_structured.demo.agent_tools import AgentTools, documented_functions


@pytest.fixture(scope="session")
def agent_tools() -> AgentTools:
    """The tools over all functions."""
    return AgentTools(documented_functions())
