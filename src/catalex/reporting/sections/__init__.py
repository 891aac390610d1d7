"""The sections of a report, one file each, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from catalex.reporting.blocks import Section
from catalex.reporting.sections.accuracy import accuracy
from catalex.reporting.sections.cost import cost
from catalex.reporting.sections.curves import curves
from catalex.reporting.sections.data import data
from catalex.reporting.sections.examples import examples
from catalex.reporting.sections.origin import origin
from catalex.reporting.sections.prefixes import prefixes
from catalex.reporting.sections.summary import summary
from catalex.reporting.sections.tokenizer import tokenizer

SECTIONS: tuple[Callable[[Mapping[str, Any]], Section], ...] = (
    summary, data, tokenizer, prefixes, curves, accuracy, examples, cost, origin,
)  # fmt: skip
"""Each takes the whole report (`structure.Report`) and never fails for want of a key."""
