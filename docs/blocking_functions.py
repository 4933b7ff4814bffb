"""Shows ``compare = blocking(acompare)`` in the API reference as a function with the signature of ``acompare``."""

from __future__ import annotations

from typing import Any

import griffe


class BlockingFunctions(griffe.Extension):
    """Replaces each attribute of that form, of a module or class, by a function."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self._replace_in(pkg)

    def _replace_in(self, parent: griffe.Module | griffe.Class) -> None:
        for name, member in list(parent.members.items()):
            if isinstance(member, (griffe.Module, griffe.Class)):
                self._replace_in(member)
            elif isinstance(member, griffe.Attribute) and isinstance(member.value, griffe.ExprCall):
                source = (
                    parent.members.get(str(member.value.arguments[0])) if member.value.arguments else None
                )
                if str(member.value.function) == "blocking" and isinstance(source, griffe.Function):
                    parent.set_member(name, _function(name, source))


def _function(name: str, source: griffe.Function) -> griffe.Function:
    function = griffe.Function(
        name, parameters=source.parameters, returns=source.returns, lineno=source.lineno
    )
    if source.docstring is not None:
        function.docstring = griffe.Docstring(source.docstring.value, parent=function)
    return function
