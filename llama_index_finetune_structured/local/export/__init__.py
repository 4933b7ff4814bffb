"""Adapters in the formats that other programs read: merged safetensors and GGUF."""

from .adapter_export import FORMATS, export_adapter

__all__ = ["FORMATS", "export_adapter"]
