"""What ``finetune-structured export`` does: write an export, render how to serve it, and gate it on parity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from ..dataset import FinetuneDataset
from ..errors import ConfigurationError
from ..evaluation.export_parity import Parity, parity
from ..llms.exported import opened_export
from ..llms.lora import LoraLLM
from ..local.export import export_adapter
from ..local.export.serving import serving_commands
from ..local.model.adapter import find_adapter

__all__ = ["Exported", "export_and_check"]


@dataclass(frozen=True)
class Exported:
    """The outcome, for programs and for people; ``ok`` is False where the export is not at parity."""

    data: dict[str, Any]
    shown: tuple[RenderableType, ...]
    ok: bool = True


def export_and_check(
    model: str | Path,
    output: str | Path,
    *,
    format: str = "merged",
    dtype: str | None = None,
    base_model: str | None = None,
    check: str | Path | None = None,
    name: str = "tuned",
) -> Exported:
    """Export a train folder or adapter; with ``check``, a data file, ask adapter and export its prompts.

    The arguments are ``export_adapter``'s; ``name`` is what servers shall call the model. Raises as
    ``export_adapter`` and ``parity`` do; a bad data file is refused before anything is written.
    """
    adapter, target = find_adapter(Path(model)), Path(output)
    examples = None if check is None else list(FinetuneDataset.load(check))
    if examples is not None and format == "gguf-base":
        raise ConfigurationError("a check compares what was trained, and gguf-base is the base alone")
    export_adapter(adapter, target, format=format, dtype=dtype, base_model=base_model)
    size = sum(file.stat().st_size for file in (target, *target.rglob("*")) if file.is_file())
    data: dict[str, Any] = {"output": str(target), "format": format, "bytes": size}
    shown: tuple[RenderableType, ...] = (f"{target}: {format}, {size / 1e6:,.1f} MB",)
    if format in ("merged", "gguf"):
        commands = serving_commands(target, name=name)
        data["serve"] = {server: str(command) for server, command in commands.items()}
        shown += tuple(f"To serve with {server}: {command}" for server, command in commands.items())
    if examples is None:
        return Exported(data, shown)
    gate = _gate(adapter, target, format, base_model, examples)
    data["parity"] = gate.model_dump(mode="json", exclude={"answers"}) | {"failures": gate.failures}
    return Exported(data, (*shown, gate.table(), gate.verdict()), ok=gate.passed)


def _gate(adapter: Path, output: Path, format: str, base_model: str | None, examples: list[Any]) -> Parity:
    moved = {} if base_model is None else {"base_model": base_model}
    with opened_export(output, adapter, format=format, base_model=base_model) as llm:
        return parity(LoraLLM.from_adapter(adapter, **moved), examples, {format: llm})
