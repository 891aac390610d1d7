"""Full ranking, item level, strata, seeds and significance."""

from __future__ import annotations

from catalex.evaluation.comparison import aggregate, compare
from catalex.evaluation.protocol import check_split, evaluate
from catalex.evaluation.results import RANKS_FILE, Result, summary

__all__ = ["RANKS_FILE", "Result", "aggregate", "check_split", "compare", "evaluate", "summary"]
