"""Lines of a Gradient training file -> the samples that its client accepts; imports no LlamaIndex."""

from __future__ import annotations

from typing import Any

__all__ = ["gradient_sample"]


def gradient_sample(row: Any) -> dict[str, Any]:
    """The part of a parsed line that Gradient trains on: its ``inputs`` and ``fineTuningParameters``.

    Args:
        row: The line as JSON parses it.

    Raises:
        ValueError: Gradient's client would refuse the sample.
    """
    inputs = row.get("inputs") if isinstance(row, dict) else None
    if not _is_text(inputs) and not _is_parts(inputs):
        raise ValueError(
            'expected {"inputs": text} or parts {"value": text, "trainable": true or false}, none of them empty; '
            'GradientAIFineTuningHandler and FinetuneDataset.save(format="gradient") write such lines'
        )
    parameters = row.get("fineTuningParameters")
    if not isinstance(parameters, dict):
        return {"inputs": inputs}
    multiplier = parameters.get("multiplier")
    if multiplier is not None and (isinstance(multiplier, bool) or not _is_positive(multiplier)):
        raise ValueError(f"fineTuningParameters: the multiplier is {multiplier!r}, expected a number above 0")
    return {"inputs": inputs, "fineTuningParameters": parameters}


def _is_text(inputs: object) -> bool:
    return isinstance(inputs, str) and bool(inputs)


def _is_parts(inputs: object) -> bool:
    return (
        isinstance(inputs, list)
        and all(isinstance(part, dict) and _is_text(part.get("value")) for part in inputs)
        and any(part.get("trainable", True) for part in inputs)
    )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0
