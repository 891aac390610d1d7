"""RecGPT: one decoder-only model over finite-scalar tokens of many domains, used on unseen ones as it is.

arXiv 2506.06270. Nothing in it belongs to a catalogue: tokens come from the tokenizer `recgpt-fsq`, shared by
all domains, and the content vectors of the history's items are read beside them. `bind` gives it an unseen
domain's identifiers and vectors, and it recommends there without training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from catalex.artifacts import read_arrays, read_json, write_arrays, write_json
from catalex.data.histories import Histories
from catalex.decoding.parallel import parallel_search
from catalex.decoding.trie import Trie
from catalex.errors import user_error
from catalex.evaluation.metrics import ndcg_at
from catalex.models.recgpt import RecGPTModel
from catalex.options import Options, Positive, Rate
from catalex.recommenders.base import (
    ABSENT,
    Ranking,
    Recommender,
    RecommenderDomain,
    identifier_tokens,
    latest_items,
    sampled,
)
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import check_weights
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.vocabulary import PAD, Vocabulary
from catalex.training.distributed import global_mean, process_count
from catalex.training.loop import Batch, TrainingOptions, train
from catalex.training.moving import moved
from catalex.training.seeds import generator, seed_torch
from catalex.training.sequences import WindowPlan, training_windows
from catalex.types import JSON, Codes, Floats, Ints

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
FORMAT = 1


class RecGPTTraining(TrainingOptions):
    """Optimisation. Published: AdamW 1e-4, batch 40 a GPU, 5 epochs over 12.5 million users; ours is for
    domains a hundred times smaller."""

    epochs: Positive = 60
    """Passes at most."""
    batch_size: Positive = 256
    """Windows a step."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Between the published 1e-4 and the 1e-3 of our T5."""
    weight_decay: float = Field(default=0.05, ge=0)
    """As our T5."""
    warmup_steps: int = Field(default=300, ge=0)
    """As our T5."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """As our T5."""


class RecGPTOptions(Options):
    """Settings of RecGPT."""

    hidden: Positive = 768
    """H, width. RecGPT: 768."""
    layers: Positive = 3
    """Blocks. RecGPT: 3."""
    heads: Positive = 12
    """Attention heads; divides `hidden`. RecGPT: 12."""
    dropout: Rate = 0.1
    """Dropout (GPT-2)."""
    bidirectional: bool = True
    """Whether the tokens of an item see each other; false is the paper's ablation."""
    auxiliary: bool = True
    """Whether content vectors are read beside the tokens; false is the paper's ablation."""
    grid: tuple[int, ...] | None = None
    """n_j, the `levels` of the tokenizer `recgpt-fsq`. With it tokens are read and predicted by the numbers
    that their codes are, so that codes which training never saw mean something [ours]. Levels with another
    codebook than the first, such as a digit for conflicts, stay as they are. None: each token has weights of
    its own. RecGPT: None."""
    tied: bool = False
    """Whether tokens are predicted with the weights that they are read with [ours]: what a history holds is
    then likely to come again before anything has been learned. RecGPT: no."""
    max_history: Positive = 20
    """S, latest items read. RecGPT: 256; 20 is the protocol of our other systems."""
    beam: Positive = 50
    """W, partial identifiers kept by the search. RecGPT: 20."""
    validation_users: Positive = 4096
    """Validation cases a domain, drawn at random."""
    decode_batch: Positive = 256
    """Histories decoded at a time; has no influence on results."""
    training: RecGPTTraining = RecGPTTraining()
    """Optimisation."""


@dataclass(frozen=True)
class Content:
    """Tokens and vector slices of N items on a device; the last row of each is padding.

    Attributes:
        tokens: ``(N + 1, L)``.
        slices: ``(N + 1, L, w)``.
    """

    tokens: Tensor
    slices: Tensor

    @classmethod
    def of(cls, tokens: Ints, vectors: Floats, device: str) -> Self:
        """From tokens ``(N, L)`` and vectors ``(N, D)``, zeros filling D up to a multiple of L."""
        levels = tokens.shape[1]
        width = -(-vectors.shape[1] // levels)
        padded = np.zeros((len(vectors) + 1, levels * width), np.float32)
        padded[:-1, : vectors.shape[1]] = vectors
        text = np.concatenate([tokens, np.full((1, levels), PAD, np.int64)])
        slices = torch.from_numpy(padded.reshape(-1, levels, width))
        return cls(torch.from_numpy(text).to(device), slices.to(device))


class RecGPT(Recommender):
    """A `RecGPTModel` and the catalogue it answers from; `bind` switches the catalogue."""

    Options: ClassVar[type[Options]] = RecGPTOptions
    name: ClassVar[str] = "recgpt"
    needs: ClassVar[frozenset[str]] = frozenset({"identifiers", "vectors"})
    transfers: ClassVar[bool] = True

    def __init__(self, options: RecGPTOptions, space: CodeSpace) -> None:
        if options.hidden % options.heads:
            raise user_error(
                "hidden is not divisible by heads",
                place="recgpt",
                value=(options.hidden, options.heads),
                remedy="choose a width that is a multiple of the number of heads",
            )
        if options.grid is not None and prod(options.grid) != space.sizes[0]:
            raise user_error(
                "grid has another number of codes than the identifiers",
                place="recgpt.grid",
                value=list(options.grid),
                allowed=f"numbers whose product is {space.sizes[0]}",
                remedy="give the option `levels` of the tokenizer",
            )
        self.options, self.space = options, space
        self.vocabulary = Vocabulary(space)
        self.model: RecGPTModel | None = None
        self.split_ids: dict[str, str] = {}
        self.device = "cpu"
        self._start: dict[str, Tensor] | None = None
        self._codes: Codes = np.zeros((0, space.levels), np.int32)
        self._vectors: Floats = np.zeros((0, 0), np.float32)
        self._trie: Trie | None = None
        self._content: Content | None = None

    # --- training -------------------------------------------------------------------------------------------

    def start_from(self, folder: Path) -> None:
        """Take the weights of a RecGPT over the same code space."""
        other = type(self).load(folder)
        if other.space != self.space:
            raise user_error(
                "the pre-trained recommender reads other codes",
                place=folder,
                value=list(other.space.sizes),
                allowed=str(list(self.space.sizes)),
                remedy="use the tokenizer that it was pre-trained with",
            )
        if other.options.tied != self.options.tied:
            raise user_error(
                "the pre-trained recommender has another head",
                place=f"{folder}: tied",
                value=other.options.tied,
                allowed=str(self.options.tied),
                remedy="use the value of `tied` of the pre-training",
            )
        self._start = {name: value.clone() for name, value in other._fitted().state_dict().items()}
        self.split_ids = dict(other.split_ids)

    def fit(
        self, domains: Sequence[RecommenderDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        o = self.options
        if not domains:
            raise user_error("recommender 'recgpt' needs at least one domain", remedy="name one")
        catalogue, training, _ = Catalogue.join(domains, self.needs)
        tokens = np.concatenate([identifier_tokens(domain, self.vocabulary) for domain in domains])
        if not (training.lengths > 1).any():
            raise user_error(
                "no training sequence has two items",
                place=", ".join(d.name for d in domains),
                remedy="use a larger domain",
            )
        assert catalogue.vectors is not None
        content = Content.of(tokens, catalogue.vectors, device)
        seed_torch(seed, "recgpt", "initial weights")
        self.model = self._build(content.slices.shape[-1])
        if self._start is not None:
            check_weights(self.model.state_dict(), self._start, self.name)
            self.model.load_state_dict(self._start)
        self.device = device
        self.split_ids = {**self.split_ids, **{d.name: d.split_id for d in domains}}
        windows = training_windows(training, o.max_history, catalogue.items)
        most = o.validation_users
        chosen = [sampled(d.validation, most, generator(seed, "validation", d.name)) for d in domains]

        def validate(_: nn.Module) -> float:
            means = []
            for domain, cases in zip(domains, chosen, strict=True):
                self.bind(domain)
                ranks = self.recommend(cases.histories, 10).ranks(cases.targets)
                means.append(float(ndcg_at(ranks, 10).mean()) if len(ranks) else 0.0)
            return float(np.mean(means))

        report = train(
            self.model,
            plan=lambda epoch: WindowPlan(windows, o.training.batch_size, seed, epoch, device),
            loss=lambda model, batch: _loss(model, batch, content),
            validate=validate,
            options=o.training,
            seed=seed,
            device=device,
            partial=partial,
            name="recgpt on " + "+".join(d.name for d in domains),
        )
        self.bind(domains[-1])
        return {
            "curves": report.curves,
            "valid_ndcg@10": report.best_metric,
            "best_epoch": report.best_epoch,
            "steps": report.steps,
            "seconds": report.seconds,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def _build(self, slice_width: int) -> RecGPTModel:
        o = self.options
        return RecGPTModel(
            self.vocabulary.size,
            self.space.levels,
            o.max_history,
            slice_width,
            hidden=o.hidden,
            layers=o.layers,
            heads=o.heads,
            dropout=o.dropout,
            bidirectional=o.bidirectional,
            auxiliary=o.auxiliary,
            grid=o.grid,
            first=self.vocabulary.level_range(0).start,
            tied=o.tied,
        )

    # --- recommending ---------------------------------------------------------------------------------------

    def bind(self, domain: RecommenderDomain) -> None:
        """Answer from `domain`, seen in training or not. Nothing is learned."""
        Catalogue.join([domain], self.needs)
        assert domain.identifiers is not None
        assert domain.vectors is not None
        identifier_tokens(domain, self.vocabulary)
        self._bind(domain.identifiers, np.asarray(domain.vectors, np.float32))

    def _bind(self, codes: Codes, vectors: Floats) -> None:
        tokens = self.vocabulary.tokens(codes)
        if self._trie is None or not np.array_equal(codes, self._codes):
            self._trie = Trie(tokens)
        self._codes, self._vectors = codes, vectors
        self._content = Content.of(tokens, vectors, self.device)
        wanted = self._content.slices.shape[-1]
        auxiliary = self.model.auxiliary if self.model is not None else None
        if auxiliary is not None and auxiliary.in_features != wanted:
            raise user_error(
                "the content vectors have another width than those of the training",
                place="recgpt",
                value=vectors.shape[1],
                allowed=f"about {auxiliary.in_features * self.space.levels}",
                remedy="embed all domains with one content encoder",
            )

    def to(self, device: str) -> Self:
        """Move model and catalogue to a device."""
        self.device = device
        self._fitted().to(device)
        if len(self._codes):
            self._bind(self._codes, self._vectors)
        return self

    @torch.inference_mode()
    def recommend(self, histories: Histories, k: int, excluded: Histories | None = None) -> Ranking:
        content, trie, model = self._content, self._trie, self._fitted().eval()
        assert content is not None
        assert trie is not None
        latest = latest_items(histories, self.options.max_history)
        lengths, ranking = latest.lengths, Ranking.empty(len(latest), k)
        padded = latest.padded(len(content.tokens) - 1, self.options.max_history)
        size = self.options.decode_batch
        for begin in range(0, len(latest), size):
            rows = slice(begin, begin + size)
            numbers = moved(padded[rows], self.device)
            own = moved(lengths[rows], self.device)
            logits = model.last(content.tokens[numbers], content.slices[numbers], own)
            closed = None if excluded is None else excluded.take(np.arange(begin, begin + len(numbers)))
            found = parallel_search(
                logits.log_softmax(-1),
                trie,
                beam=max(self.options.beam, k),
                k=k,
                excluded=None if closed is None else torch.from_numpy(closed.padded(ABSENT)),
            )
            ranking.items[rows], ranking.scores[rows] = found.items.cpu().numpy(), found.scores.cpu().numpy()
        return ranking

    def _fitted(self) -> RecGPTModel:
        if self.model is None:
            raise user_error("recgpt has not been trained", remedy="fit or load it first")
        return self.model

    # --- files ----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        weights = {
            f"model.{name}": value.cpu().numpy() for name, value in self._fitted().state_dict().items()
        }
        write_arrays(folder / MODEL_FILE, {**weights, "codes": self._codes, "vectors": self._vectors})
        write_json(
            folder / CONFIG_FILE,
            {
                "name": self.name,
                "format": FORMAT,
                "options": self.options.model_dump(mode="json"),
                "space": {"sizes": list(self.space.sizes), "groups": list(self.space.groups)},
                "splits": self.split_ids,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        config = read_json(folder / CONFIG_FILE)
        if config.get("name") != cls.name or config.get("format") != FORMAT:
            raise user_error(
                "this is not a RecGPT of this version",
                place=folder / CONFIG_FILE,
                value=[config.get("name"), config.get("format")],
                allowed=f"['{cls.name}', {FORMAT}]",
                remedy="train it again with this version",
            )
        space = CodeSpace(tuple(config["space"]["sizes"]), tuple(config["space"]["groups"]))
        own = cls(RecGPTOptions.parse(config["options"], str(folder / CONFIG_FILE)), space)
        arrays = read_arrays(folder / MODEL_FILE)
        codes, vectors = arrays.pop("codes").astype(np.int32), arrays.pop("vectors")
        own.split_ids = dict(config["splits"])
        own.model = own._build(-(-vectors.shape[1] // space.levels))
        own.model.load_state_dict(
            {name.removeprefix("model."): torch.from_numpy(array) for name, array in arrays.items()}
        )
        own.model.eval()
        own._bind(codes, vectors)
        return own


def _loss(model: nn.Module, batch: Batch, content: Content) -> Tensor:
    """Mean cross-entropy of all tokens to predict, over all processes."""
    assert isinstance(model, RecGPTModel)
    histories, targets = batch["histories"], batch["targets"].flatten()
    positions = batch.get("positions")
    if positions is None:
        positions = torch.arange(len(targets), device=targets.device)
    keep = targets >= 0
    total, count = model.loss(
        content.tokens[histories],
        content.slices[histories],
        positions,
        content.tokens[targets.clamp(min=0)],
        keep,
    )
    return total / count.clamp(min=1) if process_count() == 1 else global_mean(total, count)
