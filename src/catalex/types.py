"""The legend of shape letters used in every docstring and shape comment of the package.

====== =======================================
letter meaning
====== =======================================
``B``  batch
``N``  items of a catalogue
``U``  users
``E``  interactions (events)
``S``  items of a history
``T``  tokens
``L``  code levels
``K``  codes per level
``D``  width of a content vector
``H``  width of a model
``V``  vocabulary (tokens)
``W``  beams
====== =======================================

Array types carry their scalar type only (`Ints`, `Floats`); shapes stand in the docstring of each function.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
"""Indices, counts and offsets."""

Codes: TypeAlias = NDArray[np.int32]
"""Codes ``(N, L)``: one row an item, one column a level, each in ``[0, K_l)``."""

Floats: TypeAlias = NDArray[np.float32]
"""Content vectors, scores and distances."""

Doubles: TypeAlias = NDArray[np.float64]
"""Metric values and statistics."""

Bools: TypeAlias = NDArray[np.bool_]

JSON: TypeAlias = Any
"""A value that `json.dumps` writes and reads back unchanged."""
