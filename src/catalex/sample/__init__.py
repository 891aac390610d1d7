"""A small real sample: two years of a gift shop's sales, as two raw domains in the canonical layout.

`year-one` and `year-two` are folders that the data source `canonical` reads. ATTRIBUTION.md tells their
origin and licence.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DOMAINS = ("year-one", "year-two")
"""Names of the folders below `path()`; the second has products that the first has not."""


def path() -> Path:
    """The folder that holds one folder a domain.

    >>> sorted(folder.name for folder in path().iterdir() if folder.is_dir() and folder.name in DOMAINS)
    ['year-one', 'year-two']
    """
    return Path(str(files(__name__)))
