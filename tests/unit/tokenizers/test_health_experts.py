"""The health report of tokenizers with experts, of adapted ones, and of identifiers without a tokenizer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pytest

from catalex.data.histories import Cases, Histories
from catalex.options import Options
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.base import CodeSpace, Tokenizer, TokenizerDomain
from catalex.tokenizers.experts import Routed, domain_expert_facts, expert_facts, mutual_information
from catalex.tokenizers.health import TokenizedDomain, domain_health, health
from catalex.types import JSON, Codes, Floats


class Signs(Tokenizer):
    """Sends a vector ``(3,)`` to expert 0 or 1 by the sign of its first number, and then writes the signs of
    the other two, and the expert last."""

    Options: ClassVar[type[Options]] = Options
    experts = 2
    expert_position = 2

    @property
    def space(self) -> CodeSpace:
        return CodeSpace((2, 2, 2), (0, 1, 2))

    @property
    def order(self) -> tuple[int, ...]:
        return (2, 0, 1)

    def routing(self, vectors: Floats) -> Floats:
        gates: Floats = np.where(vectors[:, :1] > 0, [[0.25, 0.75]], [[1.0, 0.0]]).astype(np.float32)
        return gates

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        raise NotImplementedError

    def encode(self, vectors: Floats) -> Codes:
        return (vectors[:, [1, 2, 0]] > 0).astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        raise NotImplementedError

    def decode(self, codes: Codes) -> Floats:
        return (2 * codes[:, [2, 0, 1]] - 1).astype(np.float32)

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Self:
        raise NotImplementedError


def domain_of(name: str, vectors: Floats, tokenizer: Tokenizer) -> TokenizedDomain:
    """A domain with a few arbitrary histories, tokenized without conflict handling."""
    n = len(vectors)
    generator = np.random.default_rng(0)
    training = Histories.from_lists([generator.integers(0, n, 4).tolist() for _ in range(10)])
    cases = Cases(np.arange(10), training, generator.integers(0, n, 10))
    codes = tokenizer.encode(vectors)
    return TokenizedDomain(name, vectors, codes, codes, [str(i) for i in range(n)], training, cases)


def signs(first: Sequence[float], repeat: int = 4) -> Floats:
    """Vectors with the given first numbers and every pair of signs behind them."""
    pairs = [[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    rows = [[f, *pair] for f in first for pair in pairs] * repeat
    return np.array(rows, np.float32)


@pytest.fixture
def routed() -> Signs:
    return Signs()


# --- experts ------------------------------------------------------------------------------------------------


def test_who_has_experts() -> None:
    assert isinstance(Signs(), Routed)
    assert not isinstance(make_tokenizer({"name": "rqkmeans"}), Routed)


def test_histogram_and_entropies_of_a_domain(routed: Signs) -> None:
    report = domain_health(routed, domain_of("d", signs([-1, 1, 1, 1]), routed))
    facts = report["experts"]
    assert facts["shares"] == [0.25, 0.75]
    assert facts["largest"] == 0.75
    undecided = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert facts["entropy"] == pytest.approx(undecided)
    assert facts["item_entropy"] == pytest.approx(0.75 * undecided)
    mean = 0.75 * 0.25 + 0.25
    expected = -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean))
    assert facts["routing_entropy"] == pytest.approx(expected)
    assert report["information"] is None, "no latent vectors"


def test_the_domain_tells_the_expert_or_does_not(routed: Signs) -> None:
    low, high = domain_of("low", signs([-1]), routed), domain_of("high", signs([1]), routed)
    both = domain_of("both", signs([-1, 1], 2), routed)
    apart = health(routed, [low, high])["experts"]
    assert apart["shares"] == {"low": [1, 0], "high": [0, 1]}
    assert apart["mutual_information"] == pytest.approx(math.log(2))
    assert apart["normalised"] == pytest.approx(1)
    assert apart["largest"] == 0.5
    mixed = health(routed, [both, replace(both, name="again")])["experts"]
    assert mixed["mutual_information"] == pytest.approx(0, abs=1e-12)
    assert health(routed, [low])["experts"]["normalised"] is None


def test_every_item_counts_once() -> None:
    shares = {"small": np.array([1.0, 0.0]), "large": np.array([0.0, 0.0, 1.0])}
    facts = domain_expert_facts(shares, {"small": 1, "large": 9})
    assert facts["largest"] == pytest.approx(0.9)
    assert facts["mutual_information"] == pytest.approx(-(0.1 * math.log(0.1) + 0.9 * math.log(0.9)))


def test_mutual_information_by_its_other_formula() -> None:
    joint = np.random.default_rng(0).dirichlet(np.ones(12)).reshape(3, 4)
    product = np.outer(joint.sum(1), joint.sum(0))
    assert mutual_information(joint) == pytest.approx((joint * np.log(joint / product)).sum())
    assert mutual_information(product) == pytest.approx(0, abs=1e-12)


def test_the_mean_routing_is_never_more_certain_than_that_of_the_items() -> None:
    gates = np.random.default_rng(0).dirichlet(np.full(5, 0.3), 50).astype(np.float32)
    facts = expert_facts(np.full(5, 0.2), gates)
    assert facts["routing_entropy"] > facts["item_entropy"] > 0
    without = expert_facts(np.full(5, 0.2), None)
    assert without["routing_entropy"] is without["item_entropy"] is None
    assert expert_facts(np.full(5, 0.2), gates[:0])["item_entropy"] is None


# --- levels under an order of their own ---------------------------------------------------------------------


def test_levels_are_reported_as_written_and_judged_as_chosen(routed: Signs) -> None:
    vectors = signs([-1, 1])
    report = domain_health(routed, domain_of("d", vectors, routed))
    assert [level["chosen_entropy"] for level in report["levels"]] == pytest.approx([math.log(2)] * 3)
    assert report["moved"] == 0
    vectors[:, 1] = vectors[:, 0]  # the first code follows the expert
    report = domain_health(routed, domain_of("d", vectors, routed))
    assert report["levels"][0]["conditional_entropy"] == pytest.approx(math.log(2))
    assert report["levels"][0]["chosen_entropy"] == pytest.approx(0, abs=1e-12)
    assert report["levels"][2]["conditional_entropy"] == pytest.approx(0, abs=1e-12)
    assert report["empty_levels"] == [1], "that the expert follows the first code is no fault"


def test_a_domain_of_one_expert_is_no_fault(routed: Signs) -> None:
    report = domain_health(routed, domain_of("d", signs([1]), routed))
    assert report["constant_levels"] == [3]
    assert report["empty_levels"] == []


def test_neighbours_are_told_in_both_orders(routed: Signs) -> None:
    # Nearness is decided by the first number alone, which is chosen first and written last.
    generator = np.random.default_rng(0)
    vectors = np.concatenate([8 * np.repeat([[1.0], [-1.0]], 20, 0), generator.normal(size=(40, 2))], 1)
    found = domain_health(routed, domain_of("d", vectors.astype(np.float32), routed))["neighbours"]
    assert found["prefix_chosen"] > found["prefix"] + 0.1
    plain = make_tokenizer({"name": "rqkmeans", "codebook_size": 4})
    training = Histories.from_lists([[0, 1]])
    plain.fit([TokenizerDomain("d", vectors.astype(np.float32), training, "s")], seed=0, device="cpu")
    found = domain_health(plain, domain_of("d", vectors.astype(np.float32), plain))["neighbours"]
    assert found["prefix_chosen"] == found["prefix"]


# --- adapted, and none --------------------------------------------------------------------------------------


class Grown(Signs):
    """Everything goes to a third expert; the router is undecided."""

    experts = 3

    @property
    def space(self) -> CodeSpace:
        return CodeSpace((2, 2, 3), (0, 1, 2))

    def encode(self, vectors: Floats) -> Codes:
        codes = super().encode(vectors)
        codes[:, 2] = 2
        return codes

    def decode(self, codes: Codes) -> Floats:
        return np.zeros((len(codes), 3), np.float32)

    def routing(self, vectors: Floats) -> Floats:
        return np.full((len(vectors), 3), 1 / 3, np.float32)


def test_a_domain_with_a_tokenizer_of_its_own(routed: Signs) -> None:
    common = domain_of("common", signs([-1, 1]), routed)
    grown = replace(domain_of("grown", signs([-1, 1]), Grown()), tokenizer=Grown())
    report = health(routed, [common, grown])
    assert json.loads(json.dumps(report)) == report
    assert report["experts"]["shares"] == {"common": [0.5, 0.5, 0], "grown": [0, 0, 1]}
    assert report["domains"]["grown"]["error"] == pytest.approx(1), "decoded by its own tokenizer"
    assert report["domains"]["common"]["error"] == pytest.approx(0)
    assert report["domains"]["grown"]["experts"]["routing_entropy"] == pytest.approx(math.log(3))
    assert report["sharing"]["common | grown"]["jensen_shannon"][2] == pytest.approx(1)
    assert [level["size"] for level in report["domains"]["common"]["levels"]] == [2, 2, 3]


class Unnamed(Signs):
    """As `Signs`, but the expert is not written."""

    expert_position = None  # type: ignore[assignment]

    @property
    def space(self) -> CodeSpace:
        return CodeSpace((2, 2), (0, 1))

    @property
    def order(self) -> tuple[int, ...]:
        return (0, 1)

    def encode(self, vectors: Floats) -> Codes:
        return super().encode(vectors)[:, :2]

    def decode(self, codes: Codes) -> Floats:
        return super().decode(np.concatenate([codes, np.zeros((len(codes), 1), np.int32)], axis=1))


class Alone(Unnamed):
    """A tokenizer of one domain that asks no router."""

    routing = None  # type: ignore[assignment]


def test_experts_that_are_not_named_are_asked_of_the_router(routed: Signs) -> None:
    """All that is said of experts is as with names; no level is one of theirs."""
    low, high = signs([-1, -1, -1, 1]), signs([1])
    named = health(routed, [domain_of("low", low, routed), domain_of("high", high, routed)])
    found = health(Unnamed(), [domain_of("low", low, Unnamed()), domain_of("high", high, Unnamed())])
    assert json.loads(json.dumps(found)) == found
    assert isinstance(Unnamed(), Routed)
    assert found["experts"] == named["experts"]
    for name in ("low", "high"):
        assert found["domains"][name]["experts"] == named["domains"][name]["experts"]
        assert len(found["domains"][name]["levels"]) == 2
        assert found["domains"][name]["constant_levels"] == []
    assert found["domains"]["low"]["experts"]["shares"] == [0.75, 0.25]


def test_a_domain_with_codebooks_of_its_own_and_no_names_has_no_experts() -> None:
    """Nobody routes there, and the codes do not say; over the domains, only the others count."""
    vectors = signs([-1, 1])
    common = domain_of("common", vectors, Unnamed())
    alone = replace(domain_of("alone", vectors, Unnamed()), tokenizer=Alone())
    assert not isinstance(Alone(), Routed)
    report = health(Unnamed(), [common, alone])
    assert report["domains"]["alone"]["experts"] is None
    assert report["experts"]["shares"] == {"common": [0.5, 0.5]}
    assert health(Unnamed(), [alone])["experts"]["shares"] == {}


def test_identifiers_without_a_tokenizer(routed: Signs) -> None:
    domains = [domain_of("a", signs([-1, 1]), routed), domain_of("b", signs([1]), routed)]
    report = health(None, domains, space=routed.space)
    assert json.loads(json.dumps(report)) == report
    assert report["information"] is report["experts"] is report["balance"]["error"] is None
    row = report["domains"]["a"]
    assert row["error"] is row["neighbours"]["reconstruction"] is row["information"] is row["experts"] is None
    assert row["collisions_before"] == health(routed, domains)["domains"]["a"]["collisions_before"]
    assert report["balance"]["collision_rate"]["jain"] <= 1
    with pytest.raises(ValueError, match="need their code space"):
        health(None, domains)


def test_no_domain_at_all(routed: Signs) -> None:
    assert health(routed, [])["domains"] == {}
