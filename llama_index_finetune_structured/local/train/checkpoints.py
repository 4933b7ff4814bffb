"""Checkpoints, written atomically: safetensors and JSON in a folder that is renamed into place, with checksums."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checksums import read_checked_json, with_checksum
from ...descriptors import open_regular
from ...errors import CheckpointError
from ...files import replacing_folder
from ...printable import package_logger
from ..model.base_files import file_sha256
from ..model.finite import not_finite

if TYPE_CHECKING:
    import torch

__all__ = ["holds_checkpoints", "newest_checkpoint", "part_of", "save_checkpoint"]

_logger = package_logger(__name__)
_NAME = re.compile(r"checkpoint-(\d{8})")
_STATE, _TENSORS = "state.json", "state.safetensors"
_KEPT = 2  # the newest may turn out to be damaged
_TENSORS_SHA256 = "tensors sha256"
_Content = tuple[dict[str, "torch.Tensor"], dict[str, Any]]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> Path:
    """Write ``checkpoint-<step>`` atomically and keep it and the one before; returns its folder.

    Those of later steps are removed too: the run did not go on from them, so they are damaged. ``state``: what JSON
    can hold; the step and the checksums are added. Raises CheckpointError.
    """
    from safetensors.torch import save_file

    target = folder / f"checkpoint-{step:08d}"
    try:
        with replacing_folder(target) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished / _TENSORS)
            whole = {"step": step, **state, _TENSORS_SHA256: file_sha256(unfinished / _TENSORS)}
            (unfinished / _STATE).write_text(json.dumps(with_checksum(whole)), encoding="utf-8")
    except Exception as error:  # safetensors raises its own error type for a full disk
        raise CheckpointError(
            f"{target}: could not be written ({error}). Nothing was corrupted: free disk space or fix the "
            "folder's permissions and run finetune() again; it resumes from the newest complete checkpoint."
        ) from error
    saved = _checkpoints(folder)
    kept = [path for path in saved if path.name <= target.name][-_KEPT:]
    for old in saved:
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return target


def newest_checkpoint(
    folder: Path,
    why_unusable: Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], str | None] = lambda *_: None,
) -> _Content | None:
    """Tensors and state of the newest whole checkpoint; None without one.

    ``why_unusable``: the reason why the run cannot use a whole checkpoint, or None. Checkpoints that are damaged or
    unusable are passed over, with a warning that says which, why, and from which step the run goes on.
    """
    refused = list[str]()
    for path in reversed(_checkpoints(folder)):
        try:
            tensors, state = _read(path)
            reason = why_unusable(tensors, state)
            if reason is not None:
                raise ValueError(reason)
        except Exception as error:  # safetensors and JSON raise errors of many kinds
            if path.exists():  # else removed meanwhile by the process that trains
                refused.append(f"{path} ({error})")
            continue
        _warn(refused, f"step {state['step']}")
        return tensors, state
    _warn(refused, "the beginning")
    return None


def _warn(refused: list[str], start: str) -> None:
    if refused:
        _logger.warning("not used, because damaged: %s. Training goes on from %s", "; ".join(refused), start)


def _read(path: Path) -> _Content:
    """The content of a checkpoint. Raises an error of any kind for one that is not as it was written."""
    from safetensors.torch import load

    state = read_checked_json(path / _STATE)
    if path.name != f"checkpoint-{state['step']:08d}":
        raise ValueError(f"its state is of step {state['step']}")
    with open_regular(path / _TENSORS) as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest() != state.pop(_TENSORS_SHA256):
        raise ValueError("its tensors do not match their checksum")
    tensors = load(content)
    if names := not_finite(tensors.items()):
        raise ValueError(f"its tensor {names[0]} is not finite")
    return tensors, state


def holds_checkpoints(folder: Path) -> bool:
    """Whether there are checkpoints, whole or damaged."""
    return bool(_checkpoints(folder))


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def part_of(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with ``part``, by the rest of their names."""
    return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
