"""Section "How it was made": recipe, versions, seeds and hashes, so that the run can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from catalex.reporting.blocks import Block, Code, Section, Table, cells, flatten, not_run
from catalex.reporting.tables import MISSING


def origin(report: Mapping[str, Any]) -> Section:
    """The environment as a table, the recipe as it was run."""
    environment, recipe = report.get("environment") or {}, report.get("recipe") or {}
    title = "How it was made"
    if not environment and not recipe:
        return not_run("origin", title, "neither a recipe nor an environment in this report")
    blocks: list[Block] = []
    if environment:
        rows = [cells(key, _text(value)) for key, value in flatten(environment).items()]
        blocks.append(
            Table("Environment, versions, seeds and hashes", ["name", "value"], rows, text_columns=2)
        )
    if recipe:
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
        blocks.append(Code("The recipe with every default filled in", text.rstrip()))
    return Section("origin", title, blocks)


def _text(value: object) -> str:
    """Identifiers and versions are shown as they are, never rounded or grouped."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or MISSING
    return MISSING if value is None or value == "" else str(value)
