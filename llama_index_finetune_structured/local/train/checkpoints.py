"""Checkpoints, written atomically: safetensors and JSON in a folder that is renamed into place."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...files import read_json, remove_leftovers, replacing_folder

if TYPE_CHECKING:
    import torch

__all__ = ["newest_checkpoint", "remove_unfinished", "save_checkpoint"]

_NAME = re.compile(r"checkpoint-(\d{8})")
_STATE, _TENSORS = "state.json", "state.safetensors"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write ``checkpoint-<step>`` atomically and remove all but the newest ``keep``; returns its folder.

    ``state``: what JSON can hold; the step is added. Raises CheckpointError.
    """
    from safetensors.torch import save_file

    target = folder / f"checkpoint-{step:08d}"
    try:
        with replacing_folder(target) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished / _TENSORS)
            (unfinished / _STATE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    except Exception as error:  # safetensors raises its own error type for a full disk
        raise CheckpointError(
            f"{target}: could not be written ({error}). Nothing was corrupted: free disk space or fix the "
            "folder's permissions and run finetune() again; it resumes from the newest complete checkpoint."
        ) from error
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest complete checkpoint; None without one. Broken ones are skipped."""
    from safetensors.torch import load_file

    for path in reversed(_checkpoints(folder)):
        try:
            return load_file(path / _TENSORS), read_json(path / _STATE)
        except Exception:  # incomplete after a crash, with any kind of error: try the one before
            continue
    return None


def remove_unfinished(folder: Path) -> None:
    """Remove what interrupted saves left in a run's folder."""
    remove_leftovers(folder)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
