"""In: an adapter folder. Out: merged safetensors, GGUF files, and commands that serve them."""

from .formats import FORMATS, export_adapter

__all__ = ["FORMATS", "export_adapter"]
