"""Information that latent vectors keep, as the health report tells it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catalex.data.histories import Cases, Histories
from catalex.quantize.dependence import cka, hsic
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.base import LatentTokenizer, TokenizerDomain
from catalex.tokenizers.health import TokenizedDomain, health
from catalex.tokenizers.information import common_size, information, spread


@pytest.fixture(scope="module")
def tokenizer() -> LatentTokenizer:
    found = make_tokenizer({"name": "rqkmeans", "codebook_size": 4, "normalise": "whiten", "components": 2})
    vectors = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    found.fit([TokenizerDomain("d", vectors, Histories.from_lists([[0, 1]]), "s")], seed=0, device="cpu")
    assert isinstance(found, LatentTokenizer)
    return found


def test_all_domains_are_measured_at_one_size() -> None:
    assert common_size([10_000, 600]) == 512
    assert common_size([10_000, 100, 7]) == 100, "one item more and it would be measured"
    assert common_size([10_000, 8]) == 8
    assert common_size([]) == 512


def test_information_of_a_domain(tokenizer: LatentTokenizer) -> None:
    vectors = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    found = information(tokenizer, vectors, 512, 0)
    x, z = torch.from_numpy(vectors), tokenizer.latents(vectors)
    assert found["hsic"] == pytest.approx(float(hsic(x, z)))
    assert found["cka"] == pytest.approx(float(cka(x, z)))
    assert found["items"] == 60
    assert 0 < found["cka"] < 1
    assert information(tokenizer, vectors, 20, 0)["items"] == 20
    assert information(tokenizer, vectors[:7], 512, 0) == {"hsic": None, "cka": None, "items": 7}


def test_spread_over_domains() -> None:
    found = spread({"a": {"hsic": 1.0, "cka": None}, "b": {"hsic": 3.0, "cka": None}})
    assert found["cka"] is None
    assert found["hsic"]["mean"] == 2
    assert found["hsic"]["variance"] == 1
    assert found["hsic"]["min_max"] == pytest.approx(1 / 3)
    assert found["hsic"]["jain"] == pytest.approx(16 / 20)


def test_the_report_holds_it(tokenizer: LatentTokenizer) -> None:
    domains = []
    for number, items in enumerate((60, 30, 5)):
        vectors = np.random.default_rng(number).normal(size=(items, 5)).astype(np.float32)
        codes = tokenizer.encode(vectors)
        histories = Histories.from_lists([[0, 1, 2], [3, 4]])
        cases = Cases(np.arange(2), histories, np.array([3, 2]))
        titles = [str(i) for i in range(items)]
        domains.append(TokenizedDomain(f"d{number}", vectors, codes, codes, titles, histories, cases))
    report = health(tokenizer, domains)
    rows = [report["domains"][domain.name]["information"] for domain in domains]
    assert [row["items"] for row in rows] == [30, 30, 5]
    assert rows[2]["hsic"] is None
    assert report["information"]["hsic"]["mean"] == pytest.approx((rows[0]["hsic"] + rows[1]["hsic"]) / 2)
    assert report == health(tokenizer, domains)
