"""What a report is made from: one mapping, filled by the pipelines, written as ``report.json``.

Every key may be missing; its section then says that the stage was not run. Values are plain JSON. Further
scalar keys in `DomainFacts`, `Health`, `Cost` and `Training` are shown too, under their own names.
"""

from __future__ import annotations

from typing import Any, TypedDict


class DomainFacts(TypedDict, total=False):
    """Manifest or `catalex.data.statistics` of one domain; nested facts are shown as ``outer.inner``."""

    users: int
    items: int
    interactions: int
    counts: dict[str, int]
    """These three, as the manifest nests them."""
    mean_length: float
    """Mean interactions a user."""
    median_length: float
    longest: int
    density: float
    """interactions / (users x items)."""
    images: Any
    """Items that have an image."""
    split: Any
    """Kind of split, or a mapping with its ``kind``."""
    coverage: dict[str, int]
    """Items by filled text column."""
    warnings: list[str]
    """What the preparation warned of."""


class Collision(TypedDict, total=False):
    """Collisions among the prefixes of one length (`catalex.quantize.usage.Collisions`, plus the depth)."""

    depth: int
    """Codes of the prefix, 1 to L; L is the whole identifier."""
    distinct: int
    rate: float
    """(n - u) / n."""
    colliding: float
    """Share of items that share the prefix with another."""
    largest: int


class Level(TypedDict, total=False):
    """Use of the codes of one level by one domain (`catalex.quantize.usage.Usage` and its source)."""

    size: int
    """K."""
    utilisation: float
    perplexity: float
    dead: int
    max_share: float
    conditional_entropy: float
    """Entropy in nats of the code given the codes before it; 0: the level adds nothing."""
    chosen_entropy: float
    """The same given the codes that were chosen before it, which may be written behind it."""
    usage: list[float]
    """``(K,)`` share of the items on each code, in any order."""


class Bucket(TypedDict):
    """Items that share their first codes."""

    codes: list[int]
    titles: list[str]


class Health(TypedDict, total=False):
    """How well a tokenizer serves one domain."""

    collisions_before: list[Collision]
    """By depth, as the tokenizer gave them."""
    collisions_after: list[Collision]
    """By depth, after conflict handling."""
    floor: float
    """Collision rate that items with identical content vectors force."""
    levels: list[Level]
    empty_levels: list[int]
    """Levels, from 1, that are a function of the codes chosen before them without need."""
    constant_levels: list[int]
    """Levels, from 1, at which all items have one code."""
    experts: dict[str, Any] | None
    """``shares`` by expert, ``largest``, ``entropy``, ``routing_entropy``, ``item_entropy``."""
    information: dict[str, Any] | None
    """``hsic``, ``cka`` and ``items``, the number they were measured at."""
    neighbour_preservation: float
    """Share of the nearest neighbours among vectors that remain nearest among reconstructions."""
    transition_likelihood: float
    """Mean log likelihood (nats) of validation transitions under the interpolated prefix model."""
    moved: float
    """Share of items whose codes conflict handling changed."""
    pooled: dict[str, Any]
    """By codebook that several levels share: its ``levels`` (from 1), and ``size`` to ``max_share`` of
    `Level`."""
    buckets: list[Bucket]


class TokenizerFacts(TypedDict, total=False):
    """The trained tokenizer."""

    name: str
    options: dict[str, Any]
    curves: dict[str, Any]
    """What `Tokenizer.fit` returned: lists of numbers, such as losses by epoch; ``utilisation``, a list of
    shares by level, at the steps ``utilisation_at`` or every epoch; numbers of items and parameters; and
    below ``adapted`` the same for every fine-tuned domain."""
    health: dict[str, Health]
    """By domain."""
    experts: dict[str, Any] | None
    """``mutual_information`` between domain and expert, ``normalised``, ``largest``, ``shares``."""
    information: dict[str, Any] | None
    """``hsic`` and ``cka`` with ``mean``, ``variance``, ``min_max``, ``jain`` over the domains."""


class Alike(TypedDict, total=False):
    """An item that shares the first codes of another."""

    title: str
    picture: str
    """A small JPEG as a data URI; missing when there is none."""
    depth: int
    """First codes that it shares."""


class Prefix(TypedDict, total=False):
    """One item, and the items of its domain that share the longest beginning of its identifier."""

    title: str
    picture: str
    codes: list[int]
    """Its identifier."""
    sharing: list[int]
    """By depth from 1, how many other items share so many of its first codes."""
    items: list[Alike]
    """Longest shared prefix first."""


class Prefixes(TypedDict, total=False):
    """Some items of one domain."""

    queries: list[Prefix]
    unreadable: int
    """Images among them that could not be decoded."""
    left_out: int
    """Pictures that are not shown because the page would grow too large."""


class Training(TypedDict, total=False):
    """One training run of one model."""

    name: str
    """System, with what sets the run apart ("tiger, toys")."""
    seed: int
    curves: dict[str, list[float]]
    """``epoch``, ``loss``, ``valid_ndcg@10``: equally long."""
    parameters: int
    seconds: float
    best_epoch: int


class SystemResult(TypedDict, total=False):
    """Test metrics of one system, one seed, on one domain."""

    domain: str
    system: str
    seed: int
    users: int
    tokenizer: str | None
    """Given for systems that predict identifiers; those are ours unless `Report.ours` says otherwise."""
    metrics: dict[str, float]
    """``recall@5`` and so on."""
    strata: list[dict[str, Any]]
    """Rows of `catalex.evaluation.strata.stratified`: ``popularity``, ``users``, ``partition``, metrics."""
    beyond: dict[str, float]
    """Of `catalex.evaluation.beyond.beyond_accuracy`: ``coverage``, ``gini``, ``popularity_bias``, .."""


class Comparison(TypedDict, total=False):
    """A row of `catalex.evaluation.comparison.compare`, with its domain."""

    domain: str
    metric: str
    system: str
    reference: str
    difference: float
    """Mean of `system` minus mean of `reference`."""
    gain: float | None
    p: float
    p_holm: float
    low: float
    high: float
    seeds_agree: bool
    verdict: str
    """better, worse or no difference: of `system` against `reference`, after Holm's correction."""


class Example(TypedDict, total=False):
    """What one user got. Titles, oldest first in the history."""

    domain: str
    system: str
    history: list[str]
    target: str
    recommended: list[str]
    rank: int
    """Place of the target from 1, 0 for a miss; without it the titles are compared."""


class Cost(TypedDict, total=False):
    """Wall time of a stage."""

    stage: str
    seconds: float


class Report(TypedDict, total=False):
    """The whole report."""

    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    """``machine``, ``commit``, ``command``, ``date``, ``versions``, ``seeds``, ``hashes``: any, and more."""
    domains: dict[str, DomainFacts]
    tokenizer: TokenizerFacts
    prefixes: dict[str, Prefixes]
    """By domain."""
    training: list[Training]
    results: list[SystemResult]
    ours: list[str]
    """Systems this run is about; the others are baselines."""
    comparisons: list[Comparison]
    examples: list[Example]
    cost: list[Cost]
