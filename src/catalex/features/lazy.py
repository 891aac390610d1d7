"""`Lazy`: a sequence whose elements are fetched when they are asked for, one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T", covariant=True)


class Lazy(Sequence[T], ABC):
    """Indexing and slices over `__len__` and `fetch`; a slice is a list."""

    @abstractmethod
    def fetch(self, place: int) -> T:
        """The element at `place`, from 0 to the length less 1."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.fetch(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.fetch(index % len(self))
