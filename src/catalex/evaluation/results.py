"""`Result`: what one trained system did on the test cases of one domain, user by user, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalex.artifacts import read_parquet, write_parquet
from catalex.errors import user_error
from catalex.evaluation.beyond import beyond_accuracy
from catalex.evaluation.metrics import METRICS, measure
from catalex.evaluation.strata import stratified
from catalex.types import JSON, Doubles, Ints

RANKS_FILE = "ranks.parquet"
_METADATA = b"catalex.result"
_SCHEMA = pa.schema(
    [("user_id", pa.int64()), ("target", pa.int64()), ("rank", pa.int64()), ("top", pa.list_(pa.int32()))]
)


@dataclass(frozen=True)
class Result:
    """Ranks of one system, one seed, on one domain.

    Attributes:
        system: Name of the system in tables ("sasrec").
        domain: Name of the domain.
        split_id: The split that the cases and the system belong to.
        seed: Seed of the training run.
        ks: List lengths to report, ascending; 5 and 10 are always reported.
        users: ``(B,)`` user ids, ascending.
        targets: ``(B,)`` item that each user chose.
        ranks: ``(B,)`` 1-based rank of the target among all items; 0 where it was not found.
        top: ``(B, k)`` recommended items, best first; -1 after the end of a short list.
    """

    system: str
    domain: str
    split_id: str
    seed: int
    ks: tuple[int, ...]
    users: Ints
    targets: Ints
    ranks: Ints
    top: Ints

    def __len__(self) -> int:
        """Number of users B."""
        return len(self.users)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics: recall and ndcg at 5, 10 and every further k, and mrr@10."""
        lengths = sorted({5, 10, *self.ks})
        return [f"{name}@{k}" for name in ("recall", "ndcg") for k in lengths] + ["mrr@10"]

    def values(self, metric: str) -> Doubles:
        """``(B,)`` per-user values of a metric such as ``ndcg@10``.

        Raises:
            CatalexError: When the metric is unknown.
        """
        name, _, k = metric.partition("@")
        if name not in METRICS or not k.isdigit() or int(k) < 1:
            raise user_error("unknown metric", value=metric, allowed=[f"{known}@K" for known in METRICS])
        return measure(metric, self.ranks)

    def write(self, path: Path) -> None:
        """Write the per-user table as Parquet; the remaining fields travel in its metadata."""
        facts = {
            "system": self.system,
            "domain": self.domain,
            "split_id": self.split_id,
            "seed": self.seed,
            "ks": list(self.ks),
            "width": self.top.shape[1],
        }
        filled = self.top >= 0
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(filled.sum(axis=1))])
        lists: Any = pa.ListArray
        lists = lists.from_arrays(pa.array(offsets, pa.int32()), pa.array(self.top[filled], pa.int32()))
        metadata = {_METADATA: json.dumps(facts, sort_keys=True).encode()}
        columns = [pa.array(self.users), pa.array(self.targets), pa.array(self.ranks), lists]
        write_parquet(path, pa.Table.from_arrays(columns, schema=_SCHEMA.with_metadata(metadata)))

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote.

        Raises:
            CatalexError: When the file is missing, damaged or not a result.
        """
        table = read_parquet(path, _SCHEMA.names)
        raw = (table.schema.metadata or {}).get(_METADATA)
        if raw is None:
            raise user_error(
                "the file is not a result of an evaluation", place=path, remedy="run 'catalex evaluate'"
            )
        facts = json.loads(raw)
        lists: Any = table["top"].combine_chunks()
        top = np.full((table.num_rows, facts["width"]), -1, np.int64)
        top[np.arange(facts["width"]) < np.diff(lists.offsets.to_numpy())[:, None]] = (
            lists.flatten().to_numpy()
        )
        users, targets, ranks = (table[c].to_numpy().astype(np.int64) for c in _SCHEMA.names[:3])
        ks = tuple(facts["ks"])
        return cls(
            facts["system"], facts["domain"], facts["split_id"], facts["seed"], ks, users, targets, ranks, top
        )


def summary(result: Result, popularity: Ints) -> dict[str, JSON]:
    """The numbers of one result, ready for JSON.

    Args:
        result: The result.
        popularity: ``(N,)`` training interactions of each item of the domain.

    Returns:
        ``system``, ``domain``, ``split_id``, ``seed``, ``users``, each metric by name (``recall@5`` ...
        ``mrr@10``), ``strata`` (rows of `strata.stratified`) and ``beyond`` (`beyond.beyond_accuracy` of the
        top lists).
    """
    values = {name: result.values(name) for name in result.metrics}
    return {
        "system": result.system,
        "domain": result.domain,
        "split_id": result.split_id,
        "seed": result.seed,
        "users": len(result),
        **{name: float(column.mean()) if len(column) else 0.0 for name, column in values.items()},
        "strata": stratified(values, popularity[result.targets]),
        "beyond": beyond_accuracy(result.top, result.targets, popularity),
    }
