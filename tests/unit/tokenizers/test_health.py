"""The health report holds the numbers of its parts and is plain JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from catalex.data.histories import Cases, Histories
from catalex.quantize import usage as use
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.base import Tokenizer, TokenizerDomain
from catalex.tokenizers.conflicts import Method, resolve
from catalex.tokenizers.health import TokenizedDomain, domain_health, health, relative_error


def tokenized(name: str, tokenizer: Tokenizer, seed: int, method: Method = "reassign") -> TokenizedDomain:
    generator = np.random.default_rng(seed)
    vectors = (generator.normal(size=(60, 6)) + 3 * generator.integers(0, 2, (60, 1))).astype(np.float32)
    training = Histories.from_lists([generator.integers(0, 60, 5).tolist() for _ in range(30)])
    if not getattr(tokenizer, "codebooks", None):
        tokenizer.fit([TokenizerDomain(name, vectors, training, "s")], seed=0, device="cpu")
    codes = tokenizer.encode(vectors)
    after = resolve(tokenizer, vectors, codes, method=method)
    cases = Cases(np.arange(30), training, generator.integers(0, 60, 30))
    return TokenizedDomain(name, vectors, codes, after, [f"{name} {i}" for i in range(60)], training, cases)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return make_tokenizer({"name": "rqkmeans", "codebook_size": 5})


@pytest.mark.parametrize("method", ["reassign", "digit"])
def test_report_of_a_domain(tokenizer: Tokenizer, method: Method) -> None:
    domain = tokenized("toys", tokenizer, 0, method)
    report = domain_health(tokenizer, domain)
    assert json.loads(json.dumps(report)) == report
    assert report["items"] == 60
    assert report["collisions_before"][-1]["rate"] == use.collisions(domain.codes_before).rate > 0
    assert report["collisions_before"][0]["distinct"] == len(np.unique(domain.codes_before[:, 0]))
    assert report["collisions_after"][-1]["icr"] == 1
    assert len(report["collisions_after"]) == domain.codes_after.shape[1]
    assert (report["moved"] > 0) == (method == "reassign")
    assert [level["dead"] for level in report["levels"]] == [0, 0, 0]
    assert report["levels"][0]["conditional_entropy"] == pytest.approx(
        use.entropy(use.shares(domain.codes_before[:, 0], 5))
    )
    assert report["error"] == pytest.approx(
        relative_error(domain.vectors, tokenizer.decode(domain.codes_before))
    )
    assert 0 < report["neighbours"]["prefix"] < 1
    assert report["transitions"]["uniform"] == pytest.approx(-np.log(60))
    assert report["transitions"]["shuffled"] != report["transitions"]["item"]


def test_examples_show_titles_of_the_right_items(tokenizer: Tokenizer) -> None:
    domain = tokenized("toys", tokenizer, 0)
    examples = domain_health(tokenizer, domain)["examples"]
    sizes = [bucket["items"] for bucket in examples["first_code"]]
    assert sizes == sorted(sizes, reverse=True)
    for bucket in [*examples["first_code"], *examples["prefix"]]:
        codes = bucket["codes"]
        rows = [int(title.split()[1]) for title in bucket["titles"]]
        assert (domain.codes_after[rows, : len(codes)] == codes).all()
        assert len(rows) == min(bucket["items"], 8)
    assert all(len(bucket["codes"]) == 2 for bucket in examples["prefix"])


def test_balance_and_sharing_over_domains(tokenizer: Tokenizer) -> None:
    domains = [tokenized("toys", tokenizer, 0), tokenized("office", tokenizer, 1)]
    report = health(tokenizer, [*domains, domains[0]])
    assert json.loads(json.dumps(report)) == report
    errors = [report["domains"][name]["error"] for name in ("toys", "office")]
    two = health(tokenizer, domains)
    assert two["balance"]["error"]["min_max"] == pytest.approx(min(errors) / max(errors))
    assert len(two["sharing"]["toys | office"]["jensen_shannon"]) == 3
    assert report["sharing"]["toys | toys"]["jensen_shannon"] == pytest.approx([0, 0, 0], abs=1e-9)
    assert report["sharing"]["toys | toys"]["shared_identifiers"] == 1


def test_relative_error_is_zero_for_perfect_and_one_for_the_mean() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    assert relative_error(vectors, vectors) == 0
    assert relative_error(vectors, np.broadcast_to(vectors.mean(0), (20, 3))) == pytest.approx(1)
