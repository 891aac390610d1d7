"""`Options`: the base of every block of a recipe. Strict, frozen, and helpful about typing errors.

Each component declares its own options in the file they steer; the pipelines compose them into a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalex.errors import CatalexError, nearest, user_error

Positive = Annotated[int, Field(ge=1)]
"""A whole number of at least one: sizes, counts, lengths."""

Rate = Annotated[float, Field(ge=0, lt=1)]
"""A share that may be zero but not all: dropout."""


class Options(BaseModel):
    """Immutable, validated settings of one component. Unknown keys are refused with the nearest name."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, values: Mapping[str, Any], place: str) -> Self:
        """Validate `values` (read from a recipe at `place`).

        Raises:
            CatalexError: One sentence that names the first wrong key, its value and what is allowed.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _explain(error, cls, place) from None


def with_preset(values: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """`values` of a block laid over the preset that its key ``preset`` names, before validation.

    An unknown preset is left to the field's own validation.
    """
    if not isinstance(values, Mapping):
        return values
    return {**presets.get(str(values.get("preset")), {}), **values}


def _explain(error: ValidationError, model: type[BaseModel], place: str) -> CatalexError:
    """The first problem of a pydantic error as one sentence."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join([place, *path]) if path else place
    if first["type"] == "extra_forbidden":
        choices = _fields_at(model, path[:-1])
        close = nearest(path[-1], choices)
        return user_error(
            f"unknown key {path[-1]!r}",
            place=".".join([place, *path[:-1]]),
            allowed=sorted(choices) or None,
            remedy=f"did you mean {close!r}?" if close else "remove it",
        )
    if first["type"] == "missing":
        return user_error(
            f"key {path[-1]!r} is missing", place=".".join([place, *path[:-1]]), remedy=f"add {path[-1]!r}"
        )
    return user_error(first["msg"][0].lower() + first["msg"][1:], place=where, value=first["input"])


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Field names of the nested model that `path` leads to; mapping keys and list positions are skipped."""
    current: type[BaseModel] = model
    for part in path:
        field = current.model_fields.get(part)
        if field is None:
            continue
        inner = [a for a in _arguments(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        current = inner[0]
    return list(current.model_fields)


def _arguments(annotation: Any) -> list[Any]:
    """An annotation and everything nested in its brackets."""
    found = [annotation]
    for inner in getattr(annotation, "__args__", ()):
        found.extend(_arguments(inner))
    return found
