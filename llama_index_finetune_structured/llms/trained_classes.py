"""The classes of an adapter's training answers, by the names in its card."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from ..answer_classes import classes_named
from ..answer_values import class_schema
from ..errors import ConfigurationError
from ..local.schema.bounds import schema_key

__all__ = ["only_class"]


def only_class(names: Mapping[str, str], source: str) -> type[BaseModel]:
    """The class that ``names``, by the key of its schema, has alone. ``source`` names the adapter in errors.

    Raises ConfigurationError where there is not exactly one, or it is not imported, or has another schema.
    """
    if len(names) != 1:
        found = (
            f"were trained for {', '.join(sorted(names.values()))}" if names else "have no class on record"
        )
        raise ConfigurationError(
            f"{source}: its answers {found}; pass the class itself to structured_predict"
        )
    [(key, path)] = names.items()
    others = False
    for output_cls in classes_named(path):
        if schema_key(class_schema(output_cls)) == key:
            return output_cls
        others = True
    if others:
        reason = "has another JSON schema now: train again, or restore it"
    elif ".py:" in path:
        reason = f"is not loaded: call load_schema({path!r}), with the folder of that file before it, first"
    else:
        reason = f"is not imported: import {path.partition(':')[0]} first"
    raise ConfigurationError(f"{source}: its answers are of {path}, which {reason}")
