"""Which document a label names: by its path, in another case or Unicode form, without folders or suffix."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from .readers import READERS

__all__ = ["DocumentNames"]

_SHOWN = 3  # chosen: documents of an ambiguous name that an error lists


class DocumentNames:
    """The names of documents, for labels that write them otherwise.

    The path as it is counts first, then in another Unicode form, then in another case, with those of ``folder`` before
    it or without its own folders, and at last without the suffix. What fits several documents names none.

    ``folder``: the one that the names are relative to; None: they are not of files.
    """

    def __init__(self, names: Collection[str], folder: Path | None = None) -> None:
        self._names = frozenset(names)
        self._folder = [] if folder is None else _folded(Path(os.path.abspath(folder)).as_posix()).split("/")
        self._composed, self._folded, self._bare = (defaultdict[str, list[str]](list) for _ in range(3))
        for name in sorted(names):
            folded = _folded(name)
            self._composed[unicodedata.normalize("NFC", name)].append(name)
            for tail in _tails(folded):
                self._folded[tail].append(name)
            for tail in _tails(_without_suffix(folded)):
                self._bare[tail].append(name)

    def find(self, name: str) -> str:
        """The document's own name. Raises ValueError where a label's name fits none, or several."""
        if name in self._names:
            return name
        for found in self._candidates(name):
            if len(found) == 1:
                return found[0]
            if found:
                shown = " or ".join(map(repr, found[:_SHOWN]))
                raise ValueError(f"{name!r} may be {shown}; write the whole path as it is")
        raise ValueError(f"there is no document {name!r}; correct the name, or add the document")

    def _candidates(self, name: str) -> Iterator[list[str]]:
        yield self._composed.get(unicodedata.normalize("NFC", name.strip()), [])
        folded = _folded(name)
        for known, bare in ((self._folded, False), (self._bare, True)):
            for path in (folded, self._inside(folded)):
                yield [other for other in known.get(path, []) if _form(other, bare) == path]
            yield known.get(folded, [])

    def _inside(self, path: str) -> str:
        """A label's path without the folder's own, of which it may have any of the last parts."""
        parts = path.split("/")
        starts = (at for at in range(len(parts) - 1, 0, -1) if parts[:at] == self._folder[-at:])
        return "/".join(parts[next(starts, 0) :])


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))
    return unicodedata.normalize("NFC", plain.casefold())


def _form(name: str, is_bare: bool) -> str:
    return _without_suffix(_folded(name)) if is_bare else _folded(name)


def _tails(path: str) -> Iterator[str]:
    """The path itself, then without its first folder, and so on."""
    parts = path.split("/")
    return ("/".join(parts[at:]) for at in range(len(parts)))


def _without_suffix(path: str) -> str:
    return next((path.removesuffix(suffix) for suffix in READERS if path.endswith(suffix)), path)
