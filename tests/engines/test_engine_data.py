"""Engines accept their training data as ``data`` or, as in llama-index-finetuning, as ``data_path``."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.engines.base import one_of_data, path_or_dataset
from llama_index_finetune_structured.errors import ConfigurationError


def test_either_name_is_accepted() -> None:
    assert one_of_data("a.jsonl", None) == one_of_data(None, "a.jsonl") == "a.jsonl"


def test_both_names_or_none_are_an_error_that_names_them() -> None:
    with pytest.raises(ConfigurationError, match="both data and data_path are set: pass one"):
        one_of_data("a.jsonl", "b.jsonl")
    with pytest.raises(ConfigurationError, match="no training data: pass data="):
        one_of_data(None, None)


def test_a_file_of_examples_is_read_as_a_dataset_and_any_other_file_stays_a_path(tmp_path: Path) -> None:
    examples = FinetuneDataset.from_pairs([("Q", '{"a": 1}')], schema={"type": "object"})
    canonical = examples.save(tmp_path / "examples.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text('{"messages": []}\n')
    assert isinstance(path_or_dataset(canonical), FinetuneDataset)
    assert path_or_dataset(other) == other


def test_a_missing_file_and_a_wrong_type_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such training file"):
        path_or_dataset(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match="data is a int; expected a path or a FinetuneDataset"):
        path_or_dataset(3)  # type: ignore[arg-type]
