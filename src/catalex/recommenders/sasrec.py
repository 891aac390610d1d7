"""SASRec as a recommender: the strong baseline over item ids, the full softmax at every position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from catalex.artifacts import read_arrays, read_json, write_arrays, write_json
from catalex.data.histories import Cases, Histories
from catalex.data.histories import popularity as count_interactions
from catalex.errors import user_error
from catalex.evaluation.metrics import ndcg_at
from catalex.models.sasrec import SASRecModel
from catalex.options import Options, Positive
from catalex.recommenders.base import ABSENT, Ranking, RecommenderDomain, ScoringRecommender
from catalex.recommenders.popularity import CONFIG_FILE, MODEL_FILE, only_domain
from catalex.training.distributed import global_mean, process_count
from catalex.training.loop import Batch, TrainingOptions, train
from catalex.training.seeds import generator, seed_torch
from catalex.types import JSON, Floats, Ints


class SASRecOptions(TrainingOptions):
    """Size and training of SASRec; defaults without a source are those of the development runs."""

    hidden: int = Field(default=64, ge=1)
    """Width H (RecBole's SASRec; 64 in the tables of UniSRec and its successors)."""
    layers: int = Field(default=2, ge=1)
    """Transformer blocks (Kang & McAuley 2018, section 4.3)."""
    heads: int = Field(default=2, ge=1)
    """Attention heads; `hidden` is divisible by it (RecBole's SASRec)."""
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Share of activations dropped; .5 is common with sampled negatives, the full softmax wants less."""
    max_history: int = Field(default=20, ge=1)
    """Latest items read (protocol of TIGER and UTGRec)."""
    norm: Literal["post", "pre"] = "post"
    """Layer normalisation after (BERT, RecBole) or before each part of a block."""
    validation_users: int = Field(default=50_000, ge=1)
    """Users of a validation; a random choice of this many where there are more, never the first."""

    epochs: Positive = 200
    """Passes at most; early stopping usually ends sooner."""
    batch_size: Positive = 256
    """Training windows a step."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """The model is small: nothing is gained by bf16."""


class SASRec(ScoringRecommender):
    """A causal transformer over the items of one domain.

    A history longer than `max_history` is cut to its latest items; a user without history gets popularity.

    Attributes:
        model: The network, None before `fit` or `load`.
        popularity: ``(N,)`` training interactions of each item.
        split_ids: The split it was fitted on, by domain.
        device: Where it scores; change it with `to`.
    """

    Options: ClassVar[type[Options]] = SASRecOptions

    def __init__(self, options: SASRecOptions | None = None) -> None:
        self.options = options or SASRecOptions()
        if self.options.hidden % self.options.heads:
            raise user_error(
                "hidden is not divisible by heads",
                place="sasrec",
                value=(self.options.hidden, self.options.heads),
                remedy="choose a width that is a multiple of the number of heads",
            )
        self.model: SASRecModel | None = None
        self.popularity: Ints = np.zeros(0, np.int64)
        self.split_ids: dict[str, str] = {}
        self.device = "cpu"

    def fit(
        self,
        domains: Sequence[RecommenderDomain],
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> Mapping[str, JSON]:
        domain = only_domain(domains, "sasrec")
        windows = training_windows(domain.training, self.options.max_history, domain.items)
        if not len(windows):
            raise user_error(
                "no user has two training interactions, so there is no next item to learn",
                place=domain.name,
                remedy="check the split of the domain",
            )
        self.popularity = count_interactions(domain.training, domain.items)
        self.split_ids = {domain.name: domain.split_id}
        seed_torch(seed, "sasrec", "initial weights")
        self.model = self._build(domain.items)
        self.to(device)
        validation = _sample(domain.validation, self.options.validation_users, seed)
        report = train(
            self.model,
            plan=lambda epoch: WindowPlan(
                windows, self.options.batch_size, generator(seed, "epoch", epoch), device
            ),
            loss=_loss,
            validate=lambda _: self._ndcg(validation),
            options=self.options,
            seed=seed,
            device=device,
            partial=partial,
            name=f"sasrec on {domain.name}",
        )
        return {
            "valid_ndcg@10": report.best_metric,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "best_epoch": report.best_epoch,
            "steps": report.steps,
            "seconds": report.seconds,
            "curves": report.curves,
        }

    def score(self, histories: Histories) -> Floats:
        blocks = [scores.cpu().numpy() for _, scores in self._scores(histories)]
        return np.concatenate(blocks) if blocks else np.zeros((0, len(self.popularity)), np.float32)

    def recommend(self, histories: Histories, k: int) -> Ranking:
        """As in the base class, but only the scores that can be among the best `k` leave the device."""
        items = np.full((len(histories), k), ABSENT, np.int64)
        best = np.full((len(histories), k), -np.inf, np.float32)
        for start, scores in self._scores(histories):
            count = min(k, scores.shape[1])
            # Sorting is stable, topk is not: equal scores have to come out in the order of item ids.
            threshold = scores.topk(count, dim=1).values[:, -1:]
            width = int((scores >= threshold).sum(dim=1).max())
            near = scores.topk(width, dim=1).indices.sort(dim=1).values
            values, order = scores.gather(1, near).sort(dim=1, descending=True, stable=True)
            rows = slice(start, start + len(scores))
            items[rows, :count] = near.gather(1, order)[:, :count].cpu().numpy()
            best[rows, :count] = values[:, :count].cpu().numpy()
        return Ranking(items, best)

    def ranks(self, cases: Cases, k: int) -> Ints:
        """As in the base class, counted on the device."""
        found = np.zeros(len(cases), np.int64)
        for start, scores in self._scores(cases.histories):
            rows = slice(start, start + len(scores))
            own = scores.gather(1, torch.from_numpy(cases.targets[rows, None]).to(scores.device))
            found[rows] = (scores >= own).sum(dim=1).cpu().numpy()
            if bool(scores.isnan().any()):
                raise FloatingPointError("SASRec returned NaN scores")
        return found

    def to(self, device: str) -> Self:
        """Move to "cpu" or "cuda"."""
        self._fitted().to(device)
        self.device = device
        return self

    def save(self, folder: Path) -> None:
        weights = {
            f"model.{name}": value.cpu().numpy() for name, value in self._fitted().state_dict().items()
        }
        write_arrays(folder / MODEL_FILE, {"popularity": self.popularity, **weights})
        config = {
            "name": "sasrec",
            "split_ids": self.split_ids,
            "options": self.options.model_dump(mode="json"),
        }
        write_json(folder / CONFIG_FILE, config)

    @classmethod
    def load(cls, folder: Path) -> Self:
        config = read_json(folder / CONFIG_FILE)
        arrays = read_arrays(folder / MODEL_FILE)
        recommender = cls(SASRecOptions.parse(config["options"], str(folder / CONFIG_FILE)))
        recommender.split_ids = config["split_ids"]
        recommender.popularity = arrays.pop("popularity")
        recommender.model = recommender._build(len(recommender.popularity))
        recommender.model.load_state_dict(
            {name.removeprefix("model."): torch.from_numpy(value) for name, value in arrays.items()}
        )
        recommender.model.eval()
        return recommender

    def _build(self, items: int) -> SASRecModel:
        o = self.options
        return SASRecModel(items, o.max_history, o.hidden, o.layers, o.heads, o.dropout, o.norm)

    def _fitted(self) -> SASRecModel:
        if self.model is None:
            raise user_error("sasrec has not been trained", remedy="fit or load it first")
        return self.model

    @torch.inference_mode()
    def _scores(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """First row and scores ``(b, N)`` on the device of each block of histories."""
        model = self._fitted().eval()
        latest = histories.latest(self.options.max_history)
        padded, lengths = pad(latest, self.options.max_history, len(self.popularity))
        popular = torch.from_numpy(self.popularity).to(self.device, torch.float32)
        for start in range(0, len(histories), self.BLOCK):
            block = torch.from_numpy(padded[start : start + self.BLOCK]).to(self.device)
            sizes = torch.from_numpy(lengths[start : start + self.BLOCK]).to(self.device)
            scores = model.logits(model.last(block, sizes.clamp(min=1)))
            yield start, torch.where(sizes[:, None] > 0, scores, popular)

    def _ndcg(self, cases: Cases) -> float:
        values = ndcg_at(self.ranks(cases, 10), 10)
        return float(values.mean()) if len(values) else 0.0


# --- training examples ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Training sequences cut to S positions.

    Attributes:
        histories: ``(windows, S)`` input items, padded on the right with N.
        targets: ``(windows, S)`` the item after each, -1 at padding.
    """

    histories: Ints
    targets: Ints

    def __len__(self) -> int:
        return len(self.histories)


def training_windows(training: Histories, length: int, items: int) -> Windows:
    """Cut every training sequence into adjacent windows of `length` positions, counted from its end.

    Each pair of neighbours of a sequence is a position of exactly one window, so none is lost and none counts
    twice; the oldest window of a long sequence may be short.

    Args:
        training: Training histories of U users.
        length: S, positions of a window.
        items: N, the padding id.
    """
    positions = np.maximum(training.lengths - 1, 0)
    window_counts = -(-positions // length)
    first_window = np.cumsum(window_counts) - window_counts
    owners = np.repeat(np.arange(len(training)), positions)
    place = np.arange(len(owners)) - np.repeat(np.cumsum(positions) - positions, positions)
    chunk = (positions[owners] - 1 - place) // length
    column = place - np.maximum(positions[owners] - (chunk + 1) * length, 0)
    row = first_window[owners] + chunk
    histories = np.full((int(window_counts.sum()), length), items, np.int64)
    targets = np.full_like(histories, -1)
    source = training.offsets[owners] + place
    histories[row, column] = training.items[source]
    targets[row, column] = training.items[source + 1]
    return Windows(histories, targets)


def pad(histories: Histories, length: int, items: int) -> tuple[Ints, Ints]:
    """Histories of at most `length` items as ``(B, length)``, padded with `items`, and their lengths."""
    padded = np.full((len(histories), length), items, np.int64)
    padded[np.arange(length) < histories.lengths[:, None]] = histories.items
    return padded, histories.lengths


class WindowPlan:
    """The batches of one epoch: all windows in random order, every batch full (the last wraps round to the
    first).

    With one process the positions that have a target are listed, padded to a multiple of the batch size: few
    distinct shapes, and no work on padding. Several processes share the rows of a batch, so there all
    positions are kept.
    """

    def __init__(self, windows: Windows, batch_size: int, random: np.random.Generator, device: str) -> None:
        self.windows, self.batch_size, self.device = windows, batch_size, device
        self.order = random.permutation(len(windows))
        self.list_positions = process_count() == 1

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        numbers = np.arange(index * self.batch_size, (index + 1) * self.batch_size) % len(self.windows)
        rows = self.order[numbers]
        batch = {"histories": self.windows.histories[rows], "targets": self.windows.targets[rows]}
        if self.list_positions:
            targets = batch["targets"].ravel()
            real = np.flatnonzero(targets >= 0)
            padding = -len(real) % self.batch_size
            batch["positions"] = np.pad(real, (0, padding))
            batch["targets"] = np.pad(targets[real], (0, padding), constant_values=-1)
        return {name: torch.from_numpy(value).to(self.device) for name, value in batch.items()}


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(model, SASRecModel)
    histories, targets = batch["histories"], batch["targets"]
    if process_count() == 1:
        return model.loss(histories, targets, batch.get("positions"))
    return global_mean(model.loss(histories, targets, reduction="sum"), (targets >= 0).sum())


def _sample(cases: Cases, count: int, seed: int) -> Cases:
    """All cases, or a random choice of `count`: user ids can be ordered by activity, so the first mislead."""
    if len(cases) <= count:
        return cases
    return cases.take(np.sort(generator(seed, "validation users").choice(len(cases), count, replace=False)))
