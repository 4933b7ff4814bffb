"""Adapters in the formats that other programs read: merged safetensors and GGUF."""

from .formats import FORMATS, export_adapter

__all__ = ["FORMATS", "export_adapter"]
