"""The generative recommender: a T5 writes the identifier of the next item, decoded over a trie of valid ones.

Architecture and training of TIGER (arXiv 2305.05065) and its lineage; several domains share one model,
because they share one vocabulary of codes. `start_from` gives the weights of a pre-trained model to a fresh
optimiser (UTGRec, arXiv 2504.04405, section 2.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from catalex.artifacts import read_arrays, read_json, write_arrays, write_json
from catalex.data.histories import Histories
from catalex.decoding.engine import Engine
from catalex.decoding.trie import Trie
from catalex.errors import user_error
from catalex.evaluation.metrics import ndcg_at
from catalex.models.packed_triton import runs
from catalex.models.t5 import IGNORE, T5, T5Options
from catalex.models.t5_folder import load_state_from_transformers, load_t5, save_t5
from catalex.models.t5_packed import packed_loss
from catalex.options import Options, Positive
from catalex.recommenders.base import (
    ABSENT,
    Ranking,
    Recommender,
    RecommenderDomain,
    identifier_tokens,
    latest_items,
    sampled,
)
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.vocabulary import Vocabulary
from catalex.training.distributed import global_mean, process_count
from catalex.training.examples import PrefixExamples, TokenTable
from catalex.training.loop import Batch, TrainingOptions, train
from catalex.training.optim import Schedule
from catalex.training.packed_examples import PackedExamples
from catalex.training.packing import row_length
from catalex.training.seeds import generator, seed_torch
from catalex.types import JSON, Codes, Ints

FORMAT = 1


class GenerativeTraining(TrainingOptions):
    """Optimisation of the generative recommender; defaults measured on four Amazon domains of 2014."""

    epochs: Positive = 60
    batch_size: Positive = 1024
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_steps: int = Field(default=300, ge=0)
    schedule: Schedule = "cosine"
    clip_norm: float | None = Field(default=1.0, gt=0)
    patience: Positive = 10
    evaluate_every: Positive = 4
    batching: Literal["auto", "packed", "length-classes"] = "auto"
    """How examples of different lengths share a batch. `packed`: side by side without padding, batches
    stratified by length, fused operations (`catalex.models.t5_packed`). `length-classes`: padded to a
    quarter, half or all of `max_history` and computed by the plain modules. `auto` packs on a CPU, and
    on CUDA where the fused kernels run in bf16 (`catalex.models.packed_triton.runs`): whole trainings there
    take a third of the time and reach the same accuracy. Elsewhere on CUDA it takes length classes."""
    loss_temperature: float = Field(default=1.0, gt=0)
    """LETTER's ranking-guided generation loss (arXiv 2405.07314): the logits of the training loss are divided
    by this; below 1 hard negatives weigh more. 1 is plain cross-entropy, as in LETTER's run script; the paper
    sweeps 1.2 to 0.7. Recommending is not affected."""


class GenerativeOptions(Options):
    """Settings of the generative recommender."""

    model: T5Options = Field(default_factory=lambda: T5Options(preset="tiger"))
    """Sizes of the T5."""
    training: GenerativeTraining = GenerativeTraining()
    """Optimisation."""
    max_history: Positive = 20
    """S, latest items of a history that the model reads (TIGER: 20)."""
    beam: Positive = 50
    """W, partial identifiers kept by the search (UTGRec: 50)."""
    validation_beam: Positive = 20
    """Beam of the validations during training; 20 selects as well as 50 and costs less."""
    validation_users: Positive | None = 4096
    """Validation cases a domain, drawn at random, since user ids may be ordered; null for all."""
    temperature: float = Field(default=1.0, gt=0)
    """Mixture of several domains: 1 in proportion to their examples, larger values more equal."""
    decode_batch: Positive = 256
    """Histories decoded at a time; has no influence on results."""


class Generative(Recommender):
    """T5 over item codes. One catalogue (identifiers, trie) is bound at a time; `bind` switches it."""

    Options: ClassVar[type[Options]] = GenerativeOptions
    needs = frozenset({"identifiers"})
    transfers = True

    def __init__(self, options: GenerativeOptions, space: CodeSpace) -> None:
        self.options = options
        self.space = space
        self.vocabulary = Vocabulary(space)
        self.model = T5(self.vocabulary.size, options.model)
        self.split_ids = {}
        self.device = "cpu"
        self._started_from: Path | None = None
        self._codes: Codes = np.zeros((0, space.levels), np.int32)
        self._trie: Trie | None = None
        self._resident: Engine | None = None
        self._bound_on = ""
        self._table: TokenTable | None = None

    # --- training -------------------------------------------------------------------------------------------

    def start_from(self, folder: Path) -> None:
        """Begin the next `fit` from the weights of a saved recommender instead of random ones.

        Raises:
            CatalexError: When that recommender was trained over another code space or with other sizes.
        """
        other = _read_config(folder)
        if _space(other["space"]) != self.space:
            raise user_error(
                "the pre-trained recommender writes other codes",
                place=folder,
                value=other["space"],
                allowed=str(_space_json(self.space)),
                remedy="use the tokenizer that it was pre-trained with",
            )
        load_state_from_transformers(self.model, read_arrays(folder / "model" / "model.safetensors"), folder)
        self._started_from = folder
        self.split_ids = dict(other["splits"])

    def fit(
        self, domains: Sequence[RecommenderDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        o = self.options
        if not domains:
            raise user_error("the generative recommender needs at least one domain", remedy="name one")
        if self._started_from is None:
            seed_torch(seed, "weights")
            self.model.reset()
        self.device = device
        self.split_ids = {**self.split_ids, **{d.name: d.split_id for d in domains}}
        tokens = [identifier_tokens(d, self.vocabulary) for d in domains]
        table = TokenTable(tokens, self.vocabulary.eos, device)
        examples = PrefixExamples.build(
            table,
            [d.training for d in domains],
            max_history=o.max_history,
            batch_size=o.training.batch_size,
            seed=seed,
            temperature=o.temperature,
        )
        if not len(examples):
            raise user_error(
                "no training sequence has two items",
                place=", ".join(d.name for d in domains),
                remedy="use a larger domain",
            )
        chosen = [
            sampled(d.validation, o.validation_users, generator(seed, "validation", d.name)) for d in domains
        ]

        def validate(model: torch.nn.Module) -> float:
            found = []
            for domain, cases in zip(domains, chosen, strict=True):
                self.bind(domain)
                ranks = self._search(cases.histories, 10, o.validation_beam).ranks(cases.targets)
                found.append(float(ndcg_at(ranks, 10).mean()) if len(ranks) else 0.0)
            return float(np.mean(found))

        report = train(
            self.model,
            plan=PackedExamples(examples).plan if self._packs() else examples.plan,
            loss=lambda model, batch: _loss(model, batch, o.training.loss_temperature),
            validate=validate,
            options=o.training,
            seed=seed,
            device=device,
            partial=partial,
            name="+".join(d.name for d in domains),
        )
        self.bind(domains[-1])
        return {
            "curves": report.curves,
            "valid_ndcg@10": report.best_metric,
            "best_epoch": report.best_epoch,
            "steps": report.steps,
            "seconds": report.seconds,
            "examples": len(examples),
            "parameters": self.model.parameter_count,
        }

    def _packs(self) -> bool:
        """Whether batches are packed; does not depend on the number of processes, whose results are equal."""
        o = self.options
        if o.training.batching != "auto" or not self.device.startswith("cuda"):
            return o.training.batching != "length-classes"
        longest = o.max_history * self.space.levels + 1
        fused = runs(self.model.options, row_length(longest), torch.device(self.device))
        return fused and o.training.precision != "fp32"

    # --- recommending ---------------------------------------------------------------------------------------

    def bind(self, domain: RecommenderDomain) -> None:
        tokens = identifier_tokens(domain, self.vocabulary)
        assert domain.identifiers is not None
        self._bind(domain.identifiers, tokens)

    def _bind(self, codes: Codes, tokens: Ints) -> None:
        if self._trie is not None and self._bound_on == self.device and np.array_equal(codes, self._codes):
            return  # the engine of this catalogue, and what it captured, stay
        self._codes, self._bound_on, self._resident = codes, self.device, None
        self._trie = Trie(tokens)
        # on the CPU also for a card: a copy from memory that is not page-locked waits for the search before
        self._table = TokenTable([tokens], self.vocabulary.eos, "cpu")

    def to(self, device: str) -> Self:
        """Move model and catalogue to a device."""
        self.device = device
        self.model.to(device)
        if len(self._codes):
            self._bind(self._codes, self.vocabulary.tokens(self._codes))
        return self

    def recommend(self, histories: Histories, k: int, excluded: Histories | None = None) -> Ranking:
        return self._search(histories, k, max(self.options.beam, k), excluded)

    def _search(self, histories: Histories, k: int, beam: int, excluded: Histories | None = None) -> Ranking:
        assert self._table is not None, "no catalogue is bound"
        latest = latest_items(histories, self.options.max_history)
        ranking = Ranking.empty(len(latest), k)
        order = np.argsort(latest.lengths, kind="stable")
        self.model.eval()
        size, table = self.options.decode_batch, self._table
        chosen = [order[begin : begin + size] for begin in range(0, len(order), size)]

        def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
            for rows in chosen:
                closed = None if excluded is None else torch.from_numpy(excluded.take(rows).padded(ABSENT))
                yield table.write(*_padded(latest.take(rows), table.pad)), closed

        for rows, found in zip(chosen, self._engine(k, beam).search_each(batches()), strict=True):
            ranking.items[rows], ranking.scores[rows] = found.items.numpy(), found.scores.numpy()
        return ranking

    def _engine(self, k: int, beam: int) -> Engine:
        """The search of the bound catalogue and the present weights, in float32: metrics are exact."""
        assert self._trie is not None, "no catalogue is bound"
        engine = self._resident
        wanted = (self.model, k, beam, self.model.embedding.weight.device)
        if engine is None or (engine.model, engine.k, engine.beam, engine.device) != wanted:
            self._resident = engine = Engine(self.model, self._trie, beam=beam, k=k)
        else:
            engine.refresh()
        return engine

    # --- files ----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        save_t5(self.model, folder / "model")
        write_arrays(folder / "catalogue.safetensors", {"codes": self._codes})
        write_json(
            folder / "config.json",
            {
                "name": "t5",
                "format": FORMAT,
                "options": self.options.model_dump(mode="json"),
                "space": _space_json(self.space),
                "splits": self.split_ids,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        config = _read_config(folder)
        recommender = cls(
            GenerativeOptions.parse(config["options"], str(folder / "config.json")), _space(config["space"])
        )
        recommender.model = load_t5(folder / "model")
        recommender.split_ids = dict(config["splits"])
        codes = read_arrays(folder / "catalogue.safetensors")["codes"].astype(np.int32)
        recommender._bind(codes, recommender.vocabulary.tokens(codes))
        return recommender


def _loss(model: torch.nn.Module, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    assert isinstance(model, T5)
    labels = batch["labels"]
    reduction: Literal["mean", "sum"] = "mean" if process_count() == 1 else "sum"
    if "widths" in batch or "segments" in batch:
        found = packed_loss(model, batch, reduction, temperature=temperature)
    else:
        found = model.loss(batch["tokens"], labels, reduction, temperature)
    return found if process_count() == 1 else global_mean(found, (labels != IGNORE).sum())


def _padded(histories: Histories, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Item numbers ``(B, S)`` right-padded with `pad`, and lengths ``(B,)``."""
    return torch.from_numpy(histories.padded(pad)), torch.from_numpy(histories.lengths)


def _read_config(folder: Path) -> dict[str, JSON]:
    config: dict[str, JSON] = read_json(folder / "config.json")
    if config.get("name") != "t5" or config.get("format") != FORMAT:
        raise user_error(
            "this is not a generative recommender of this version",
            place=folder / "config.json",
            value=[config.get("name"), config.get("format")],
            allowed=f"['t5', {FORMAT}]",
            remedy="train it again with this version",
        )
    return config


def _space_json(space: CodeSpace) -> dict[str, list[int]]:
    return {"sizes": list(space.sizes), "groups": list(space.groups)}


def _space(values: Mapping[str, Sequence[int]]) -> CodeSpace:
    return CodeSpace(tuple(values["sizes"]), tuple(values["groups"]))
