"""The recommender around every sequence model: fit, score, recommend, save and load are written here, once.

A system is a small subclass: its name, its options and `build`, which makes the network for a catalogue.
Systems that train otherwise replace `plan` or `prepare`; systems that move between domains say `transfers`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from catalex.artifacts import read_arrays, read_json, write_arrays, write_json
from catalex.data.histories import Cases, Histories
from catalex.errors import user_error
from catalex.evaluation.metrics import ndcg_at
from catalex.models.sequential.base import SequenceModel
from catalex.options import Options, Positive
from catalex.recommenders.base import (
    ABSENT,
    Ranking,
    RecommenderDomain,
    ScoringRecommender,
    cells,
    sampled,
)
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.popularity import CONFIG_FILE, MODEL_FILE, only_domain
from catalex.training.distributed import global_mean, process_count
from catalex.training.loop import Batch, EpochPlan, TrainingOptions, TrainingReport, train
from catalex.training.moving import moved
from catalex.training.seeds import generator, seed_torch
from catalex.training.sequences import Negatives, Prefixes, PrefixPlan, WindowPlan, training_windows
from catalex.types import JSON, Floats, Ints

WEIGHTS = "model."
"""What the names of weights begin with in the file, beside the facts of the catalogue."""


class SequentialOptions(TrainingOptions):
    """What all sequential recommenders choose; defaults without a source come from development runs."""

    max_history: int = Field(default=20, ge=1)
    """S, latest items read (protocol of TIGER and UTGRec)."""
    loss: Literal["ce", "bce"] = "ce"
    """`ce`: the full softmax over all items. `bce`: one item sampled for each that came next, told apart by
    binary cross-entropy, as SASRec and its successors were published; for systems that offer it."""
    validation_users: int = Field(default=50_000, ge=1)
    """Users of a validation; a random choice of this many where there are more, never the first."""

    epochs: Positive = 200
    """Passes at most; early stopping usually ends sooner."""
    batch_size: Positive = 256
    """Training windows or prefixes a step."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """These models are small: nothing is gained by bf16."""


class SequentialRecommender(ScoringRecommender):
    """Trains a `SequenceModel` on the next items of one domain, or of several if it `transfers`.

    A history longer than `max_history` is cut to its latest items; a user without history gets popularity.

    Attributes:
        name: In the table, in recipes and in saved files.
        examples: "windows" trains every position of a window (causal models); "prefixes" trains the end of
            every prefix (models that look both ways); "masks" trains masked positions, by its
            own `plan`.
        losses: Values of the option `loss` that make sense.
        earlier: What options were before they were there, where that is not their default: saved files
            without them are read so.
        model: The network, None before `fit` or `load`.
        catalogue: The items that `score` ranks.
        split_ids: The splits that training saw, by domain.
        device: Where it scores; change it with `to`.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]] = SequentialOptions
    examples: ClassVar[Literal["windows", "prefixes", "masks"]] = "windows"
    losses: ClassVar[tuple[str, ...]] = ("ce",)
    earlier: ClassVar[Mapping[str, JSON]] = {}

    options: Any
    """Of the class in `Options`; the class of each system says what is in it."""

    def __init__(self, options: SequentialOptions | None = None) -> None:
        self.options = type(self).Options() if options is None else options
        _check(self.name, self.options, self.losses)
        self.model: SequenceModel | None = None
        self.catalogue = Catalogue.empty()
        self.split_ids: dict[str, str] = {}
        self.device = "cpu"
        self._start: dict[str, Tensor] | None = None

    # --- what systems differ in -----------------------------------------------------------------------------

    @abstractmethod
    def build(self, catalogue: Catalogue) -> SequenceModel:
        """The network for a catalogue, with random weights (torch's generator is seeded)."""

    def plan(
        self, catalogue: Catalogue, training: Histories, seed: int, device: str
    ) -> Callable[[int], EpochPlan]:
        """Batches by epoch; a function of the seed and the epoch alone.

        Args:
            catalogue: The items.
            training: Training histories in the numbering of `catalogue`.
            seed: Of the run.
            device: Of the batches.
        """
        o = self.options
        negatives = Negatives(training, catalogue.items) if o.loss == "bce" else None
        if self.examples == "windows":
            windows = training_windows(training, o.max_history, catalogue.items)
            return lambda epoch: WindowPlan(windows, o.batch_size, seed, epoch, device, negatives)
        prefixes = Prefixes.build(training, o.max_history, catalogue.items, device)
        return lambda epoch: PrefixPlan(prefixes, o.batch_size, seed, epoch, negatives)

    def prepare(
        self,
        model: SequenceModel,
        catalogue: Catalogue,
        training: Histories,
        *,
        seed: int,
        device: str,
        partial: Path | None,
    ) -> Mapping[str, JSON]:
        """What comes before the training on next items, such as a pre-training on other tasks or freezing.

        Returns:
            Facts for the report.
        """
        return {}

    def train_before(
        self,
        module: nn.Module,
        plan: Callable[[int], EpochPlan],
        loss: Callable[[nn.Module, Batch], Tensor],
        *,
        name: str,
        seed: int,
        device: str,
        partial: Path | None,
        **changed: Any,
    ) -> TrainingReport:
        """A training within `prepare`, to its end: nothing is chosen by validation.

        Args:
            name: Of the training and of its checkpoint.
            changed: Options of the training, ``epochs`` among them, that differ from this recommender's.
        """
        return train(
            module,
            plan=plan,
            loss=loss,
            validate=lambda _: 0.0,  # once, at the end
            options=self.options.model_copy(update={**changed, "evaluate_every": changed["epochs"]}),
            seed=seed,
            device=device,
            partial=partial / name if partial is not None else None,
            name=f"{self.name}, {name}",
        )

    def loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Mean loss of a batch over all processes."""
        if process_count() == 1:
            return model.loss(batch)
        return global_mean(model.loss(batch, "sum"), (batch["targets"] >= 0).sum())

    # --- training -------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether `start_from` gave weights for the next `fit`."""
        return self._start is not None

    def start_from(self, folder: Path) -> None:
        """Take all weights but those that belong to the other catalogue (`SequenceModel.own`)."""
        if not self.transfers:
            super().start_from(folder)
        name = read_json(folder / CONFIG_FILE).get("name")
        if name != self.name:
            raise user_error(
                "the saved recommender is of another kind", place=folder, value=name, allowed=self.name
            )
        other = type(self).load(folder)
        self._start = _shared(other._fitted())
        self.split_ids = dict(other.split_ids)

    def fit(
        self,
        domains: Sequence[RecommenderDomain],
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> Mapping[str, JSON]:
        if not self.transfers:
            only_domain(domains, self.name)
        elif not domains:
            raise user_error(f"recommender {self.name!r} needs at least one domain", remedy="name one")
        catalogue, training, validation = Catalogue.join(domains, self.needs)
        together = ", ".join(d.name for d in domains)
        if not (training.lengths > 1).any():
            raise user_error(
                "no user has two training interactions, so there is no next item to learn",
                place=together,
                remedy="check the split of the domain",
            )
        seed_torch(seed, self.name, "initial weights")
        model = self.build(catalogue)
        if self._start is not None:
            _adopt(model, self._start, self.name)
        self.catalogue, self.model = catalogue, model
        self.split_ids = {**self.split_ids, **{d.name: d.split_id for d in domains}}
        self.to(device)
        most = self.options.validation_users
        chosen = [sampled(cases, most, generator(seed, "validation users")) for cases in validation]
        facts = self.prepare(model, catalogue, training, seed=seed, device=device, partial=partial)
        report = train(
            model,
            plan=self.plan(catalogue, training, seed, device),
            loss=self._loss,
            validate=lambda _: self._validation_ndcg(chosen),
            options=self.options,
            seed=seed,
            device=device,
            partial=partial,
            name=f"{self.name} on {together}",
        )
        return {
            **facts,
            "valid_ndcg@10": report.best_metric,
            "parameters": sum(p.numel() for p in model.parameters()),
            "best_epoch": report.best_epoch,
            "steps": report.steps,
            "seconds": report.seconds,
            "curves": report.curves,
        }

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, SequenceModel)
        return self.loss(model, batch)

    def _validation_ndcg(self, cases: Sequence[Cases]) -> float:
        """NDCG@10 averaged over domains; the items of a domain compete with each other only."""
        means = []
        for number, own in enumerate(cases):
            values = ndcg_at(self._ranks(own, *self.catalogue.range_of(number)), 10)
            means.append(float(values.mean()) if len(values) else 0.0)
        return float(np.mean(means))

    # --- recommending ---------------------------------------------------------------------------------------

    def bind(self, domain: RecommenderDomain) -> None:
        """Rank the items of `domain` from now on, with the weights that do not belong to one catalogue."""
        if not self.transfers or self.catalogue.is_of(domain):
            return
        shared = _shared(self._fitted())
        catalogue, _, _ = Catalogue.join([domain], self.needs)
        seed_torch(0, self.name, "bind", domain.name)
        model = self.build(catalogue)
        _adopt(model, shared, self.name)
        self.catalogue, self.model = catalogue, model.eval()
        self.to(self.device)

    def score(self, histories: Histories) -> Floats:
        blocks = [scores.cpu().numpy() for _, scores in self._scores(histories)]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.catalogue.items), np.float32)

    def recommend(self, histories: Histories, k: int, excluded: Histories | None = None) -> Ranking:
        """As in the base class, but only the scores that can be among the best `k` leave the device."""
        ranking = Ranking.empty(len(histories), k)
        for start, scores in self._scores(histories, excluded):
            count = min(k, scores.shape[1])
            # Sorting is stable, topk is not: equal scores have to come out in the order of item ids.
            threshold = scores.topk(count, dim=1).values[:, -1:]
            width = int((scores >= threshold).sum(dim=1).max())
            near = scores.topk(width, dim=1).indices.sort(dim=1).values
            values, order = scores.gather(1, near).sort(dim=1, descending=True, stable=True)
            rows = slice(start, start + len(scores))
            ranking.items[rows, :count] = near.gather(1, order)[:, :count].cpu().numpy()
            ranking.scores[rows, :count] = values[:, :count].cpu().numpy()
        ranking.items[ranking.scores == -np.inf] = ABSENT
        return ranking

    def ranks(self, cases: Cases, k: int, excluded: Histories | None = None) -> Ints:
        """As in the base class, counted on the device."""
        return self._ranks(cases, 0, self.catalogue.items, excluded)

    def _ranks(self, cases: Cases, first: int, end: int, excluded: Histories | None = None) -> Ints:
        """Ranks of the targets among the items from `first` up to `end`, pessimistic in ties; 0 where the
        target is excluded."""
        found = np.zeros(len(cases), np.int64)
        for start, scores in self._scores(cases.histories, excluded):
            rows = slice(start, start + len(scores))
            own = scores.gather(1, torch.from_numpy(cases.targets[rows, None]).to(scores.device))
            ranks = (scores[:, first:end] >= own).sum(dim=1) * (own[:, 0] > -torch.inf)
            found[rows] = ranks.cpu().numpy()
            if bool(scores.isnan().any()):
                raise FloatingPointError(f"{self.name} returned NaN scores")
        return found

    @torch.inference_mode()
    def _scores(
        self, histories: Histories, excluded: Histories | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """First row and scores ``(b, N)`` on the device of each block of histories; ``-inf`` for what is
        excluded."""
        model = self._fitted().eval()
        length = self.options.max_history
        latest = histories.latest(length)
        padded, lengths = latest.padded(self.catalogue.items, length), latest.lengths
        popular = torch.from_numpy(self.catalogue.popularity).to(self.device, torch.float32)
        candidates = model.candidates()
        for start in range(0, len(histories), self.BLOCK):
            block = moved(padded[start : start + self.BLOCK], self.device)
            sizes = moved(lengths[start : start + self.BLOCK], self.device)
            scores = model.logits(model.last(block, sizes.clamp(min=1)), candidates)
            scores = torch.where(sizes[:, None] > 0, scores.float(), popular)
            if excluded is not None:
                rows, items = cells(excluded.take(np.arange(start, start + len(scores))))
                scores[torch.from_numpy(rows), torch.from_numpy(items)] = -torch.inf
            yield start, scores

    def to(self, device: str) -> Self:
        """Move to "cpu" or "cuda"."""
        self._fitted().to(device)
        self.device = device
        return self

    def _fitted(self) -> SequenceModel:
        if self.model is None:
            raise user_error(f"{self.name} has not been trained", remedy="fit or load it first")
        return self.model

    # --- files ----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        state = self._fitted().state_dict()
        weights = {f"{WEIGHTS}{name}": value.cpu().numpy() for name, value in state.items()}
        write_arrays(folder / MODEL_FILE, {**self.catalogue.arrays(), **weights})
        config = {
            "name": self.name,
            "split_ids": self.split_ids,
            "catalogue": self.catalogue.facts(),
            "options": self.options.model_dump(mode="json"),
        }
        write_json(folder / CONFIG_FILE, config)

    @classmethod
    def load(cls, folder: Path) -> Self:
        config = read_json(folder / CONFIG_FILE)
        arrays = read_arrays(folder / MODEL_FILE)
        saved = {**cls.earlier, **config["options"]}
        options: Any = cls.Options.parse(saved, str(folder / CONFIG_FILE))
        recommender = cls(options)
        recommender.split_ids = config["split_ids"]
        facts = config.get("catalogue") or {"domains": list(config["split_ids"])}
        recommender.catalogue = Catalogue.of_arrays(arrays, facts)
        model = recommender.build(recommender.catalogue)
        weights = {
            name.removeprefix(WEIGHTS): torch.from_numpy(value)
            for name, value in arrays.items()
            if name.startswith(WEIGHTS)
        }
        model.load_state_dict(weights)
        recommender.model = model.eval()
        return recommender


def _check(name: str, options: Any, losses: Collection[str]) -> None:
    """Refuse what cannot be built or trained."""
    if options.loss not in losses:
        raise user_error(
            "this recommender is not trained with that loss",
            place=f"{name}.loss",
            value=options.loss,
            allowed=list(losses),
        )
    hidden, heads = getattr(options, "hidden", 0), getattr(options, "heads", 1)
    if hidden % heads:
        raise user_error(
            "hidden is not divisible by heads",
            place=name,
            value=(hidden, heads),
            remedy="choose a width that is a multiple of the number of heads",
        )


def _shared(model: SequenceModel) -> dict[str, Tensor]:
    """Weights that mean something in other catalogues too."""
    state = model.state_dict()
    return {name: value.cpu() for name, value in state.items() if name.split(".")[0] not in model.own}


def _adopt(model: SequenceModel, weights: Mapping[str, Tensor], name: str) -> None:
    """Put weights of another domain's model into `model`."""
    check_weights(_shared(model), weights, name)
    model.load_state_dict(dict(weights), strict=False)


def check_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse earlier weights that are not those of a model with the weights `own`.

    Raises:
        CatalexError: Names the first tensor that is missing, unknown or of another shape.
    """
    for key in sorted(own.keys() | weights.keys()):
        if key not in own or key not in weights or own[key].shape != weights[key].shape:
            raise user_error(
                "the earlier weights do not fit: options or content vectors have other sizes",
                place=f"{name}: {key}",
                value=list(weights[key].shape) if key in weights else None,
                allowed=str(list(own[key].shape)) if key in own else "absent",
                remedy="use the options and the encoder of the pre-training",
            )
