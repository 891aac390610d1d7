"""LETTER's losses by hand, and that it is an RQ-VAE where they weigh nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.base import TokenizerDomain
from catalex.tokenizers.letter import Letter
from catalex.tokenizers.letter_network import (
    CodeClusters,
    cluster_sizes,
    collaborative_loss,
    diversity_loss,
)
from catalex.types import Floats

TINY: dict[str, Any] = {
    "levels": 3,
    "codebook_size": 8,
    "hidden": [16],
    "latent": 6,
    "batch": 64,
    "epochs": 4,
}


def domain(
    name: str = "toys", items: int = 120, seed: int = 0, collaborative: Floats | None = None
) -> TokenizerDomain:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((items, 10)).astype(np.float32)
    training = Histories.from_lists([[i, (i + 1) % items] for i in range(items)])
    return TokenizerDomain(name, vectors, training, "split", collaborative=collaborative)


def fitted(name: str, **options: Any) -> Any:
    random = np.random.default_rng(5)
    seen = domain(collaborative=random.standard_normal((120, 6)).astype(np.float32))
    tokenizer = make_tokenizer({"name": name, **TINY, **options})
    tokenizer.fit([seen], seed=0, device="cpu")
    return tokenizer


# --- the whole ----------------------------------------------------------------------------------------------


def test_without_its_losses_it_is_an_rq_vae_to_the_bit() -> None:
    off = {"alpha": 0, "diversity": 0, "sinkhorn": None, "constrained_init": False}
    plain, letter = fitted("rqvae", revive_until=0.0, reduction="mean"), fitted("letter", **off)
    assert letter.collaborative is None
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(letter.arrays()[name], array, err_msg=name)


@pytest.mark.parametrize(
    "option", [{"alpha": 0}, {"diversity": 0}, {"sinkhorn": None}, {"constrained_init": False}]
)
def test_each_part_changes_the_result(option: dict[str, Any]) -> None:
    option = {**option, **({"diversity": 0.1} if "diversity" not in option else {})}
    whole, part = fitted("letter", diversity=0.1), fitted("letter", **option)
    assert any(not np.array_equal(array, part.arrays()[name]) for name, array in whole.arrays().items())


def test_alignment_brings_codes_of_items_with_similar_collaborative_vectors_together() -> None:
    """Content is noise; items of one group have one collaborative vector. First codes then tell groups."""
    groups = np.arange(120) % 4
    directions = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    seen = domain(collaborative=directions[groups])

    def agreement(alpha: float) -> float:
        settings = {**TINY, "alpha": alpha, "epochs": 150, "learning_rate": 1e-2, "sinkhorn": None}
        tokenizer = make_tokenizer({"name": "letter", **settings})
        tokenizer.fit([seen], seed=0, device="cpu")
        codes = tokenizer.encode(seen.vectors)[:, 0]
        shares = [np.bincount(groups[codes == code], minlength=4).max() for code in np.unique(codes)]
        return float(np.sum(shares) / 120)

    assert agreement(5.0) > agreement(0.0) + 0.1


def test_the_need_says_the_width_and_the_source() -> None:
    settings = {"latent": 6, "collaborative": {"folders": {"toys": "some/folder"}}}
    tokenizer = Letter(Letter.Options.parse(settings, "x"))  # type: ignore[arg-type]
    assert tokenizer.collaborative is not None
    assert tokenizer.collaborative.width == 6
    assert [str(folder) for folder in tokenizer.collaborative.source.folders.values()] == ["some/folder"]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (None, r"domain 'toys': LETTER needs collaborative vectors.*alpha: 0"),
        (np.zeros((120, 5), np.float32), r"do not fit.*\(120, 6\)"),
        (np.zeros((9, 6), np.float32), r"do not fit.*\(120, 6\)"),
        (np.full((120, 6), np.nan, np.float32), "do not fit"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(vectors: Floats | None, message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        make_tokenizer({"name": "letter", **TINY}).fit([domain(collaborative=vectors)], seed=0, device="cpu")


# --- the collaborative loss ---------------------------------------------------------------------------------


def test_agreement_of_long_one_hot_vectors_costs_nothing() -> None:
    rows = 100 * torch.eye(5)
    assert float(collaborative_loss(rows, rows, torch.zeros(5, dtype=torch.int64))) == pytest.approx(0)


def test_constant_collaborative_vectors_cost_log_b() -> None:
    q = torch.randn(7, 4)
    loss = collaborative_loss(q, torch.ones(7, 4), torch.zeros(7, dtype=torch.int64))
    assert float(loss) == pytest.approx(math.log(7), rel=1e-5)


def test_the_collaborative_loss_by_a_loop_over_items_of_the_own_domain() -> None:
    generator = torch.Generator().manual_seed(0)
    q, h = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    domains = torch.tensor([0, 0, 1, 1, 1, 0])
    slow = []
    for i in range(6):
        others = [math.exp(float(q[i] @ h[j])) for j in range(6) if domains[j] == domains[i]]
        slow.append(-math.log(math.exp(float(q[i] @ h[i])) / sum(others)))
    assert float(collaborative_loss(q, h, domains)) == pytest.approx(sum(slow) / 6, rel=1e-5)


# --- the diversity loss -------------------------------------------------------------------------------------


def test_the_diversity_loss_by_a_loop_that_leaves_out_the_own_code() -> None:
    generator = torch.Generator().manual_seed(0)
    book = torch.randn(5, 4, generator=generator)
    codes, others = torch.tensor([0, 3, 3]), torch.tensor([2, 1, 4])
    slow = []
    for code, other in zip(codes.tolist(), others.tolist(), strict=True):
        scores = {j: math.exp(float(book[code] @ book[j])) for j in range(5) if j != code}
        slow.append(-math.log(scores[other] / sum(scores.values())))
    found = diversity_loss(book[codes], book, codes, others)
    assert float(found) == pytest.approx(sum(slow) / 3, rel=1e-5)


def test_the_own_code_is_never_sampled_and_all_others_of_the_cluster_are() -> None:
    book = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    clusters = CodeClusters.of(book, 4, seed=0)
    draws = torch.linspace(0, 1 - 1e-7, 400)
    for code in range(20):
        found = set(clusters.others(torch.full((400,), code), draws).tolist())
        assert code not in found
        assert found == set(clusters.members[code, : clusters.sizes[code]].tolist())
        assert all(code in clusters.members[other, : clusters.sizes[other]] for other in found)


@pytest.mark.parametrize(("codes", "expected"), [(256, (10, 10, 60)), (8, (4, 2, 24)), (2, (1, 2, 6))])
def test_cluster_sizes_leave_somebody_to_sample(codes: int, expected: tuple[int, int, int]) -> None:
    clusters, smallest, largest = cluster_sizes(codes, 10)
    assert (clusters, smallest, largest) == expected
    assert smallest >= 2
    assert smallest * clusters <= codes <= largest * clusters


# --- the last level -----------------------------------------------------------------------------------------


def test_the_last_level_is_balanced_in_training_and_nearest_afterwards() -> None:
    tokenizer = fitted("letter")
    network = tokenizer.network
    rest = torch.randn(64, 6)
    assert network.assign(2, rest) is None  # evaluation mode
    network.train()
    assert network.assign(0, rest) is None
    counts = torch.bincount(network.assign(2, rest), minlength=8)
    nearest = torch.bincount(torch.cdist(rest, network.weights[2]).argmin(1), minlength=8)
    assert int(counts.max()) < int(nearest.max())
