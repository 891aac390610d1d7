"""Collaborative item vectors for tokenizers that align codes with them (LETTER): those of our own SASRec.

Tokenizers may not know recommenders, so the vectors are made here and handed over with the domain. Nothing of
the validation or test interactions is in them: the SASRec is fitted on the training sequences without their
last items, and those last items choose its best epoch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from catalex.artifacts import read_arrays, read_json
from catalex.data.domain import Domain
from catalex.data.histories import Cases, Histories
from catalex.errors import user_error
from catalex.recommenders import make_recommender
from catalex.recommenders.base import RecommenderDomain
from catalex.recommenders.popularity import CONFIG_FILE, MODEL_FILE
from catalex.recommenders.sasrec import SASRec
from catalex.tokenizers.base import CollaborativeNeed
from catalex.types import Floats

TABLE = "model.table.weight"
"""SASRec's item embeddings in its file; the row behind the items is padding."""


def collaborative_vectors(
    need: CollaborativeNeed, domain: Domain, *, seed: int, device: str, partial: Path | None = None
) -> Floats:
    """``(N, width)`` item embeddings of a SASRec: of the folder that is named for the domain, or of one that
    is trained now.

    Args:
        need: Width, and where the vectors come from.
        domain: Its training sequences are all that is read.
        seed: Fixes the result on one device.
        device: "cpu" or "cuda".
        partial: Folder for checkpoints of the training.

    Raises:
        CatalexError: When the folder holds something else, or another width, number of items or split.
    """
    if domain.name in need.source.folders:
        return _read(need.source.folders[domain.name], need.width, domain)
    recommender = _untrained(need)
    recommender.fit([training_only(domain)], seed=seed, device=device, partial=partial)
    recommender.to("cpu")
    assert recommender.model is not None
    found: Floats = recommender.model.candidates().detach().numpy().astype(np.float32)
    return found


def check_collaborative(need: CollaborativeNeed, domains: list[str]) -> None:
    """Refuse wrong options of the SASRec, and folders of domains that the tokenizer does not learn from,
    before anything is trained."""
    _untrained(need)
    for name in need.source.folders:
        if name not in domains:
            raise user_error(
                f"the tokenizer does not learn from domain {name!r}",
                place="tokenizer.collaborative.folders",
                value=name,
                allowed=domains,
            )


def training_only(domain: Domain) -> RecommenderDomain:
    """A domain whose validation cases are the last *training* items of users with three or more."""
    training = domain.sequences.training
    lengths = training.lengths
    held = lengths >= 3
    shorter = np.where(held, lengths - 1, lengths)
    kept = np.arange(len(training.items)) < np.repeat(training.offsets[:-1] + shorter, lengths)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(shorter)])
    remaining = Histories(offsets, training.items[kept])
    users = np.flatnonzero(held)
    cases = Cases(users, remaining.take(users), training.items[training.offsets[1:][held] - 1])
    return RecommenderDomain(domain.name, len(domain), remaining, cases, domain.split_id)


def _untrained(need: CollaborativeNeed) -> SASRec:
    block = {"name": "sasrec", **need.source.recommender, "hidden": need.width}
    found = make_recommender(block, "tokenizer.collaborative.recommender")
    assert isinstance(found, SASRec)
    return found


def _read(folder: Path, width: int, domain: Domain) -> Floats:
    """The item embeddings of a trained SASRec."""
    config = read_json(folder / CONFIG_FILE)
    if config.get("name") != "sasrec":
        raise user_error(
            "this is not a trained SASRec",
            place=folder / CONFIG_FILE,
            value=config.get("name"),
            allowed="sasrec",
            remedy="name the folder 'recommender' of a stage that trained one, or leave it out",
        )
    split = config.get("split_ids", {}).get(domain.name)
    if split != domain.split_id:
        raise user_error(
            f"the SASRec was trained on another split of {domain.name!r}",
            place=folder / CONFIG_FILE,
            value=split,
            allowed=domain.split_id,
            remedy="train it on this domain, or leave the folder out",
        )
    table: Floats = read_arrays(folder / MODEL_FILE)[TABLE][:-1].astype(np.float32)
    if table.shape != (len(domain), width):
        raise user_error(
            "the SASRec has another size",
            place=folder,
            value=list(table.shape),
            allowed=str([len(domain), width]),
            remedy="train it with hidden equal to the latent width of the tokenizer",
        )
    return table
