"""What filters ask about the rows of a segment, as columns. Texts are numbers here, the same in all segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt

from model.note import hashtag_key
from service.interfaces import Arrays, Filter, StoredNote, attribute_text

NOWHERE = -2
"""The code of a text that no row has."""
Mask = npt.NDArray[np.bool_]
RowNumbers = npt.NDArray[np.int64]


class Codes:
    """A number for each text, for as long as the index lives, also when no row has it any more: some 100 bytes for each
    author, category and hashtag that ever was. -1 is none. Written by one thread, read by any. `attributes`: names of
    those that filters may ask about, whose values are tags too."""

    def __init__(self, attributes: Sequence[str] = (), texts: Iterable[str] = ()) -> None:
        self._attributes = attributes
        self._of: dict[str | None, int] = {None: -1}
        for text in texts:
            self.give(text)

    @property
    def texts(self) -> list[str]:
        """In the order of their codes, from 0 on."""
        return [text for text in list(self._of) if text is not None]

    def give(self, text: str | None) -> int:
        return self._of.setdefault(text, len(self._of) - 1)

    def find(self, text: str | None) -> int:
        return self._of.get(text, NOWHERE)

    def tags_of(self, stored: StoredNote) -> frozenset[int]:
        told = ((name, attribute_text(stored.note.attributes.get(name))) for name in self._attributes)
        values = {self.give(_attribute_tag(name, value)) for name, value in told if value is not None}
        return frozenset({self.give(_hashtag_tag(tag)) for tag in stored.hashtags} | values)

    def asked(self, where: Filter) -> Asked:
        return Asked(
            None if where.category is None else self.find(where.category),
            None if where.author is None else self.find(where.author),
            where.created_after,
            where.created_before,
            self._find_all(map(_hashtag_tag, where.hashtags)),
            self._find_all([*map(_hashtag_tag, where.all_hashtags), *starmap(_attribute_tag, where.attributes)]),
            where.exclude,
            where.exact,
        )

    def _find_all(self, tags: Iterable[str]) -> tuple[int, ...]:
        return tuple({self.find(tag) for tag in tags})


def _hashtag_tag(hashtag: str) -> str:
    return f"#{hashtag_key(hashtag)}"


def _attribute_tag(name: str, value: str) -> str:
    return f"@{name}:{value}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A Filter in codes. `tags`: any of them, () for whatever; `all_tags`: each of them."""

    category: int | None
    author: int | None
    created_after: float | None
    created_before: float | None
    tags: tuple[int, ...]
    all_tags: tuple[int, ...]
    exclude: frozenset[str]
    exact: bool

    @property
    def narrows(self) -> bool:
        """Whether it asks more of a row than that its id is not left out."""
        asked = (self.category, self.author, self.created_after, self.created_before)
        return asked != (None,) * 4 or bool(self.tags or self.all_tags)


@dataclass(frozen=True, slots=True)
class Columns:
    """(rows,) each. `expires` is infinite where a note does not expire."""

    category: npt.NDArray[np.int32]
    author: npt.NDArray[np.int32]
    created: npt.NDArray[np.float64]
    expires: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, rows: int) -> Columns:
        return cls(*np.zeros((2, rows), np.int32), *np.zeros((2, rows), np.float64))

    @classmethod
    def joined(cls, parts: Iterable[Columns]) -> Columns:
        return cls(*(np.concatenate(columns) for columns in zip(*(part.all for part in parts), strict=True)))

    @classmethod
    def of(cls, arrays: Arrays) -> Columns:
        """Those that `arrays` gave."""
        return cls(*(arrays[column.name] for column in fields(cls)))

    def arrays(self) -> Arrays:
        """By their names."""
        return {column.name: values for column, values in zip(fields(self), self.all, strict=True)}

    @property
    def all(self) -> tuple[npt.NDArray[Any], ...]:
        return self.category, self.author, self.created, self.expires

    def __getitem__(self, rows: slice | RowNumbers) -> Columns:
        return Columns(*(column[rows] for column in self.all))

    def describe(self, row: int, stored: StoredNote, codes: Codes) -> None:
        self.category[row] = codes.give(stored.category)
        self.author[row] = codes.give(stored.note.author)
        self.created[row] = stored.note.created_at or 0.0
        self.expires[row] = np.inf if stored.note.expires_at is None else stored.note.expires_at

    def narrow(self, mask: Mask, asked: Asked) -> None:
        """Clear the rows that `asked` does not accept; tags are left to who knows them."""
        if asked.category is not None:
            mask &= self.category == asked.category
        if asked.author is not None:
            mask &= self.author == asked.author
        if asked.created_after is not None:
            mask &= self.created > asked.created_after
        if asked.created_before is not None:
            mask &= self.created < asked.created_before
