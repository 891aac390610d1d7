"""Settings of UniTok, its presets, and which expert starts from which domain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from catalex.errors import nearest, user_error
from catalex.options import Options, Positive, with_preset
from catalex.quantize.vq import Reduction
from catalex.tokenizers.normalise import Normalisation
from catalex.tokenizers.training_set import Balance

Combination = Literal["sum", "residual", "routed-first"]

DEFAULT_STEPS = 1000
"""Optimizer steps that `epochs: null` aims at."""

PRESETS: dict[str, dict[str, Any]] = {
    "unitok": {},
    "unitok-paper": {
        "hidden": (2048, 1024, 512, 256, 128, 64),
        "normalise": "standardise",
        "reduction": "mean",
        "combination": "sum",
        "expert_token": "last",
        "router_init": "random",
        "autoencoder_init": "random",
        "balanced_init": False,
        "levels": 4,
        "codebook_size": 256,
        "latent": 32,
        "routed": 1,
        "shared": True,
        "renormalise": False,
        "router_input": "latent",
        "quantization": 1.0,
        "commitment": 0.25,
        "load_balancing": 0.0,
        "learning_rate": 1e-3,
        "batch": 1024,
        "epochs": 2000,
        "supervision": 0.0,
        "calibration": 0.03,
        "beta": 1.0,
        "normalised_information": False,
        "weight_decay": 1e-4,
        "balance": "equal",
        "revive_until": 0.0,
    },
}
"""Settings of the paper (arXiv 2511.12922) that differ from the defaults, which are our validated choices."""


class UniTokOptions(Options):
    """Settings of UniTok. A preset fills in what is not given."""

    preset: Literal["unitok", "unitok-paper"] = "unitok"
    """"unitok-paper": the formulas and sizes as printed. "unitok": our validated choices."""
    levels: int = Field(3, ge=1, le=8)
    """L, codes of an expert. UniTok: 4; ours: recommenders learn shorter identifiers better."""
    codebook_size: int = Field(256, ge=2, le=65536)
    """T, codes a level of each expert. UniTok: 256."""
    experts: Positive | dict[str, Positive] | None = None
    """K, routed experts: one a domain (null, UniTok), a total number, or a number for each domain by name."""
    routed: Positive = 1
    """N, routed experts kept for an item. 1 in the released identifiers."""
    shared: bool = True
    """Whether there is a shared expert that is always active (UniTok)."""
    hidden: tuple[int, ...] = ()
    """Hidden widths of the encoder; the decoder mirrors them. None makes both linear (ours). UniTok's code:
    2048 to 64."""
    autoencoder_init: Literal["principal", "random"] | None = None
    """"principal": a linear autoencoder starts from the principal components of the union (ours); "random":
    as usual; null: the first for a linear one, the second otherwise."""
    latent: Positive | None = None
    """d, width of the latent vector. UniTok: 32; null: 32 behind hidden layers, else 256 or as many principal
    components as there are (ours: what is left out is small)."""
    combination: Combination = "sum"
    """"sum": both experts quantize z (UniTok). "residual": the shared expert first, the routed one what is
    left. "routed-first": the routed expert first, the shared one what is left."""
    renormalise: bool = False
    """Let the gates of the N kept experts sum to 1. UniTok's formula has them as the softmax gives them."""
    router_input: Literal["latent", "vector"] = "latent"
    """What the router reads: z, or the (normalised) content vector."""
    router_init: Literal["domains", "random"] = "domains"
    """"domains": the linear discriminant of the domains each expert starts from (ours: ties experts to
    domains from the first step); "random": only the codebooks are tied."""
    balanced_init: bool = True
    """Let the codes of an expert start from clusters of about equal size (ours: fewer collisions, lower
    error); false: plain k-means (UniTok)."""
    expert_token: Literal["last", "first", "none"] = "last"
    """Where the identifier names its experts. UniTok: last. "none" (ours): nowhere; the codes alone are
    written. Within a domain 98 % of the items have one name. On Yelp a T5 stays on the plateau of popularity
    with the name (validation NDCG@10 .0042 after 15 and after 40 epochs; with "first" .0047) and learns with
    the same codes without it (.0110 after 15 epochs)."""
    quantization: float = Field(1.0, ge=0)
    """lambda_RQ. UniTok: 1."""
    commitment: float = Field(0.25, ge=0)
    """mu, weight of the commitment term. UniTok's official code: 0.25."""
    calibration: float = Field(0.03, ge=0)
    """lambda_MI, weight of the calibration. UniTok: 0.03."""
    beta: float = Field(1.0, ge=0)
    """Weight of the mean information within the calibration. UniTok's official code: 1."""
    normalised_information: bool = True
    """Calibrate normalised HSIC (CKA), which no bandwidth can raise; UniTok: HSIC itself."""
    load_balancing: float = Field(0.0, ge=0)
    """Weight of the load-balancing term ``K sum_e share_e gate_e`` (Switch Transformer, 2101.03961)."""
    supervision: float = Field(0.1, ge=0)
    """Weight of the cross-entropy of the gates against the experts of the item's domain (ours)."""
    reduction: Reduction = "sum"
    """"sum": squared norms as the formulas have them; "mean": element-wise means as in the official code."""
    normalise: Normalisation = "centre"
    """Map of the content vectors before the encoder. "centre" keeps all angles."""
    components: Positive | None = None
    """Principal components kept by `normalise: whiten`; null keeps all."""
    balance: Balance = "proportional"
    """Weight of the domains in reconstruction and quantization: "proportional" to their items, or "equal".
    Batches hold equally many items of each domain in either case."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW. UniTok's official code: 1e-3."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW, on the matrices of the MLPs only. UniTok's official code: 1e-4."""
    batch: Positive = 1024
    """Items of a step, over all domains. UniTok's official code: 1024."""
    epochs: Positive | None = None
    """Passes over as many items as all domains have; null takes as many as give about 1,000 steps. UniTok's
    official code: up to 10,000."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps that train the autoencoder alone before the codebooks are placed in its latents (ours); null:
    none from principal components, 200 from a random start."""
    revive_until: float = Field(0.8, ge=0, le=1)
    """After each epoch of this first share of the training, unused codes restart on random residuals (ours,
    against codebook collapse); 0 switches it off."""
    information_every: Positive = 10
    """Epochs between two measurements of each domain's information."""
    checkpoint_every: Positive = 20
    """Epochs between two checkpoints."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        return with_preset(values, PRESETS)

    @model_validator(mode="after")
    def _shared_expert_where_needed(self) -> UniTokOptions:
        if self.combination != "sum" and not self.shared:
            raise ValueError(f"combination {self.combination!r} needs the shared expert (shared: true)")
        if self.autoencoder_init == "principal" and self.hidden:
            raise ValueError("autoencoder_init 'principal' needs a linear autoencoder (hidden: [])")
        return self

    @property
    def principal(self) -> bool:
        """Whether the autoencoder starts from principal components."""
        return not self.hidden if self.autoencoder_init is None else self.autoencoder_init == "principal"

    def latent_for(self, width: int) -> int:
        """d for (normalised) content vectors of `width`."""
        if self.latent is not None:
            return self.latent
        return 32 if self.hidden else min(256, width)

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        default = 0 if self.principal else 200
        return default if self.warmup_steps is None else self.warmup_steps

    def epochs_for(self, items: int) -> int:
        """Epochs of a training on `items` items."""
        return self.epochs or math.ceil(DEFAULT_STEPS / math.ceil(items / self.batch))

    def owners(self, domains: Sequence[str], items: Sequence[int] | None = None) -> list[list[int]]:
        """For each expert the numbers of the domains that it starts from.

        One expert a domain; several of one domain share its items among them; fewer experts than domains are
        dealt out in turn.

        Args:
            domains: Names of the training domains, in order.
            items: Their sizes; additional experts go where there are most items an expert. Only the number of
                experts is right without it.

        Raises:
            CatalexError: When `experts` names an unknown domain, or leaves one without an expert.
        """
        sizes = list(items or [1] * len(domains))
        if isinstance(self.experts, dict):
            _check_names(self.experts, domains)
            counts = [self.experts[name] for name in domains]
        else:
            total = self.experts or len(domains)
            if total < len(domains):
                return [list(range(first, len(domains), total)) for first in range(total)]
            counts = [1] * len(domains)
            for _ in range(total - len(domains)):
                counts[max(range(len(domains)), key=lambda d: (sizes[d] / counts[d], -d))] += 1
        return [[domain] for domain, count in enumerate(counts) for _ in range(count)]


def _check_names(experts: Mapping[str, int], domains: Sequence[str]) -> None:
    for name in experts:
        if name not in domains:
            close = nearest(name, domains)
            raise user_error(
                f"unknown domain {name!r}",
                place="tokenizer.experts",
                allowed=list(domains),
                remedy=f"did you mean {close!r}?" if close else "name domains that the tokenizer learns from",
            )
    for name in domains:
        if name not in experts:
            raise user_error(
                f"domain {name!r} has no expert",
                place="tokenizer.experts",
                value=dict(experts),
                remedy=f"add {name}: 1, or set experts: null for one expert a domain",
            )
