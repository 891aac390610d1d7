"""The nouns of the live catalogue: an item as it is stored, a new one, and which items a request wants."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from catalex.errors import CatalexError, user_error
from catalex.features.text import clean

LONGEST_KEY = 200
"""Characters of a key, at most: keys are indexed, and stand in logs and addresses."""
LONGEST_TITLE = 500
"""Characters of a title, at most; longer ones are cut."""
LONGEST_NAME = 100
"""Characters of the name of a category or an attribute, at most."""
MOST_NAMES = 64
"""Categories, or attributes, that an item may have."""


class UnknownItemError(CatalexError):
    """The catalogue has no item of this key."""


class KeyTakenError(CatalexError):
    """The key belongs to an item with other content."""


@dataclass(frozen=True)
class NewItem:
    """An item as its owner brings it.

    Attributes:
        key: The caller's own id of the item, 1 to `LONGEST_KEY` characters.
        title, brand, categories, description, keywords: What the bundle's recipe makes the item's text of, in
            the same way as of the items it was trained on.
        extra: Further fields, for recipes that read ``extra.<key>``.
        text: The whole text, in place of what the fields above would give.
        image: Image file, for encoders that read images; kept to be shown either way.
        attributes: Numbers such as a price, for ranges in requests.
    """

    key: str
    title: str | None = None
    brand: str | None = None
    categories: tuple[str, ...] = ()
    description: str | None = None
    keywords: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    text: str | None = None
    image: bytes | None = None
    in_stock: bool = True
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the live catalogue.

    Attributes:
        key: The caller's own id of the item.
        number: Its item id in the trie, never given to another item.
        identifier: Its ``L`` codes, which never change.
        title: Something to show a person; never empty.
        text: What the encoder read.
        categories: Every category it is in.
        in_stock: Requests may ask for items in stock only.
        attributes: Numbers such as a price.
        has_image: Whether `LiveCatalogue.image` gives something.
    """

    key: str
    number: int
    identifier: tuple[int, ...]
    title: str
    text: str
    categories: tuple[str, ...] = ()
    in_stock: bool = True
    attributes: Mapping[str, float] = field(default_factory=dict)
    has_image: bool = False

    @property
    def category(self) -> str | None:
        """The last category, by the convention of shops the narrowest; None without any."""
        return self.categories[-1] if self.categories else None


@dataclass(frozen=True)
class Selection:
    """Which items a request wants; an empty one allows everything.

    Attributes:
        categories: Only items in at least one of these.
        in_stock: Only items in stock.
        ranges: For attributes by name the least and the largest value, either of which may be None. Items
            that lack the attribute are out.
    """

    categories: tuple[str, ...] = ()
    in_stock: bool = False
    ranges: tuple[tuple[str, float | None, float | None], ...] = ()

    def allows(self, item: Item) -> bool:
        """Whether an item is wanted."""
        if self.in_stock and not item.in_stock:
            return False
        if self.categories and not set(self.categories) & set(item.categories):
            return False
        for name, least, largest in self.ranges:
            value = item.attributes.get(name)
            if value is None or (least is not None and value < least):
                return False
            if largest is not None and value > largest:
                return False
        return True

    def __bool__(self) -> bool:
        return bool(self.categories or self.in_stock or self.ranges)


@dataclass(frozen=True)
class Change:
    """What is to be changed of an item; None leaves a field as it is.

    Attributes:
        key: Whose.
        attributes: Laid over those it has; a value of None takes one away.
    """

    key: str
    title: str | None = None
    categories: Sequence[str] | None = None
    in_stock: bool | None = None
    attributes: Mapping[str, float | None] | None = None


def checked_key(key: str) -> str:
    """A key as it may be stored.

    Raises:
        CatalexError: When it is empty, too long, or has characters that no database keeps.
    """
    if not key or len(key) > LONGEST_KEY or not _storable(key):
        raise user_error(
            "this cannot be the key of an item",
            place="key",
            value=key,
            allowed=f"1 to {LONGEST_KEY} characters without control characters",
        )
    return key


def checked_title(title: str) -> str:
    """A title in one line, cut to `LONGEST_TITLE` characters."""
    return clean(title[: 4 * LONGEST_TITLE].replace("\0", ""))[:LONGEST_TITLE]


def checked_categories(names: Sequence[str] | None) -> tuple[str, ...]:
    """Categories without empty names or repetitions.

    Raises:
        CatalexError: When there are too many, or a name is too long or cannot be stored.
    """
    found = categories_of(names)
    if len(found) > MOST_NAMES:
        raise user_error("an item has too many categories", value=len(found), allowed=f"at most {MOST_NAMES}")
    for name in found:
        _check_name(name, "categories")
    return found


def checked_attributes(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Attributes as floats; None where one is to be taken away.

    Raises:
        CatalexError: When there are too many, a name cannot be stored, or a value is no finite number.
    """
    if len(values) > MOST_NAMES:
        raise user_error(
            "an item has too many attributes", value=len(values), allowed=f"at most {MOST_NAMES}"
        )
    found: dict[str, float | None] = {}
    for name, value in values.items():
        _check_name(name, "attributes")
        if value is not None and (isinstance(value, bool) or not math.isfinite(value)):
            raise user_error("an attribute is a finite number", place=f"attributes.{name[:40]}", value=value)
        found[name] = None if value is None else float(value)
    return found


def _check_name(name: str, place: str) -> None:
    if not 1 <= len(name) <= LONGEST_NAME or not _storable(name):
        raise user_error(
            "this cannot be a name",
            place=place,
            value=name,
            allowed=f"1 to {LONGEST_NAME} characters without control characters",
        )


def _storable(text: str) -> bool:
    """Whether every database keeps a text: no control characters, no lone surrogates."""
    return all(unicodedata.category(one) not in ("Cc", "Cs") for one in text)


def categories_of(value: Sequence[str] | None) -> tuple[str, ...]:
    """Categories as a tuple without empty names or repetitions."""
    return tuple(dict.fromkeys(name for name in value or () if name))


def unknown(key: str) -> UnknownItemError:
    """The refusal of a key that the catalogue does not have."""
    return UnknownItemError(f"the catalogue has no item {short(key)}.")


def short(key: str) -> str:
    """A key as messages show it."""
    return repr(key if len(key) <= 80 else key[:77] + "...")
