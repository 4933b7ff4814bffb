"""OpenAI's own description of the replies to files, uploads, fine-tuning jobs and models.

``openai_replies.json`` has these parts of https://github.com/openai/openai-openapi (MIT), without texts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SPEC: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
# The list of statuses leaves out the one that the description's own example of a paused job has.
SPEC["components"]["schemas"]["FineTuningJob"]["properties"]["status"]["enum"].append("paused")


def require_described(method: str, path: str, status: int, body: Any) -> None:
    """Raise ValidationError where the reply is not as the description has it, errors included."""
    reference = "#/components/schemas/ErrorResponse" if status >= 400 else _reply(method, path)
    if reference is not None:
        Draft202012Validator({**SPEC, "$ref": reference}).validate(body)


def _reply(method: str, path: str) -> str | None:
    for pattern, methods in SPEC["paths"].items():
        # Names of models may hold slashes, escaped or not.
        expression = re.sub(
            r"\\\{(\w+)\\\}", lambda m: ".+" if m[1] == "model" else "[^/]+", re.escape(pattern)
        )
        if re.fullmatch(expression, path) and method.lower() in methods:
            reference: str = methods[method.lower()]["$ref"]
            return reference
    return None
