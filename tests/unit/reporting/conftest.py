"""A whole report with made-up numbers, for the tests of sections and pages."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

HOSTILE = "<script>alert('x')</script> & \"Brush\" | `set` [a](b)"
SYSTEMS = {"popularity": 0.005, "transitions": 0.043, "sasrec": 0.041, "tiger": 0.034, "catalex": 0.0451}
DOMAINS = ("beauty", "toys", "office")
STRATA = ("[0, 20)", "[20, 40)", "[40, 60)", "[60, inf)", "[0, 0]")


def _result(generator: np.random.Generator, domain: str, system: str, seed: int) -> dict[str, Any]:
    level = SYSTEMS[system] * (1 + 0.03 * generator.standard_normal())
    if (domain, system) == ("office", "sasrec"):
        level *= 1.25  # One domain in which a baseline leads.
    metrics = {"recall@5": level * 1.3, "recall@10": level * 1.9, "ndcg@5": level * 0.8, "ndcg@10": level}
    strata = [
        {
            "popularity": name,
            "users": 4000 - 900 * i,
            "partition": name != "[0, 0]",
            **{metric: value * (0.4 + 0.4 * i) * (name != "[0, 0]") for metric, value in metrics.items()},
        }
        for i, name in enumerate(STRATA)
    ]
    beyond = {"coverage": 0.3, "gini": 0.81, "popularity_bias": 0.12}
    tokenizer = "utgrec" if system == "catalex" else "tiger" if system == "tiger" else None
    return {
        "domain": domain, "system": system, "seed": seed, "users": 22363, "tokenizer": tokenizer,
        "metrics": metrics, "strata": strata, "beyond": beyond,
    }  # fmt: skip


def _health(generator: np.random.Generator) -> dict[str, Any]:
    levels = []
    for level in range(3):
        usage = generator.dirichlet(np.full(256, 0.6 + level))
        perplexity = float(np.exp(-(usage * np.log(usage + 1e-12)).sum()))
        levels.append({
            "size": 256, "utilisation": 1.0, "perplexity": perplexity, "dead": 0,
            "max_share": float(usage.max()), "conditional_entropy": 5.1 - level, "usage": usage.tolist(),
        })  # fmt: skip

    def depths(last: float) -> list[dict[str, Any]]:
        rates = (0.979, 0.41, last)
        return [
            {"depth": d, "distinct": round(12101 * (1 - r)), "rate": r, "colliding": r, "largest": 90 // d**3}
            for d, r in enumerate(rates, start=1)
        ]

    return {
        "items": 12101, "collisions_before": depths(0.085), "collisions_after": depths(0.0), "levels": levels,
        "neighbour_preservation": 0.452, "transition_likelihood": -8.73, "moved": 0.081, "floor": 0.0021,
        "buckets": [
            {"codes": [17, 201], "titles": ["Argan Oil Shampoo", "Argan Oil Conditioner", HOSTILE]},
            {"codes": [17, 9], "titles": ["Nail polish, red", "Nail polish, coral"]},
        ],
    }  # fmt: skip


def build_report() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    epochs = list(range(1, 61))
    training = [
        {
            "name": name, "seed": seed, "parameters": 4_612_345, "seconds": 182.4 + seed, "best_epoch": 52,
            "curves": {
                "epoch": epochs,
                "loss": [6 * np.exp(-e / 15) + 2.4 + 0.01 * generator.standard_normal() for e in epochs],
                "valid_ndcg@10": [height * (1 - np.exp(-e / 12)) for e in epochs],
            },
        }
        for name, height in (("tiger, beauty", 0.036), ("catalex, beauty", 0.047))
        for seed in (0, 1)
    ]  # fmt: skip
    results = [
        _result(generator, domain, system, seed)
        for domain in DOMAINS
        for system in SYSTEMS
        for seed in ((0,) if system in ("popularity", "transitions") else (0, 1, 2))
    ]
    verdicts = {("office", "sasrec"): "better"} | {
        (domain, "transitions"): "no difference" for domain in DOMAINS
    }
    comparisons = [
        {
            "domain": domain, "system": system, "reference": "catalex", "metric": "ndcg@10",
            "difference": -0.0021, "gain": -0.047, "p": 0.0004, "p_holm": 0.0016, "low": -0.004,
            "high": -0.001, "seeds_agree": system != "transitions",
            "verdict": verdicts.get((domain, system), "worse"),
        }
        for domain in DOMAINS
        for system in SYSTEMS
        if system != "catalex"
    ]  # fmt: skip
    return {
        "name": "three domains, one tokenizer",
        "recipe": {"name": "quick", "domains": ["beauty"], "tokenizer": {"name": "utgrec", "levels": 3}},
        "environment": {
            "date": "2026-01-31T12:00:00Z", "commit": "0123abc", "machine": "Some CPU, 2 cores",
            "command": "catalex run quick.yaml", "versions": {"torch": "2.13.0"}, "seeds": [0, 1, 2],
            "hashes": {"beauty": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
        },
        "domains": {
            name: {
                "users": 22363, "items": 12101, "interactions": 198502, "density": 0.000734,
                "mean_length": 8.88, "coverage": {"title": 12000}, "warnings": ["3 items have no text"],
                "split": {"kind": "leave-one-out", "train": 153776},
            }
            for name in DOMAINS
        },
        "tokenizer": {
            "name": "utgrec", "options": {"codes": 256},
            "curves": {"loss": [2 / i for i in range(1, 40)], "commitment": [1 / i for i in range(1, 9)]},
            "health": {name: _health(generator) for name in DOMAINS},
        },
        "prefixes": {
            "beauty": {
                "queries": [{
                    "title": "Hair brush", "codes": [17, 201, 3], "sharing": [41, 1, 0],
                    "items": [{"title": HOSTILE, "depth": 2}, {"title": "Comb", "depth": 1}],
                }],
            },
        },
        "training": training,
        "results": results,
        "comparisons": comparisons,
        "examples": [
            {
                "domain": "beauty", "system": "catalex", "history": ["Shampoo for dry hair", "Hair brush"],
                "target": HOSTILE, "recommended": ["Hair dryer", HOSTILE, "Comb"],
            },
            {
                "domain": "toys", "system": "catalex", "history": ["Wooden train", "Track " + "long " * 40],
                "target": "Bridge", "recommended": ["Tunnel", "Station"],
            },
        ],
        "cost": [
            {"stage": "prepare", "seconds": 3.2}, {"stage": "embed", "seconds": 41.0},
            {"stage": "tokenize", "seconds": 62.5}, {"stage": "pretrain", "seconds": 1835.0},
        ],
    }  # fmt: skip


@pytest.fixture(scope="session")
def shared_report() -> dict[str, Any]:
    """For reading only."""
    return build_report()


@pytest.fixture
def report(shared_report: dict[str, Any]) -> dict[str, Any]:
    """A fresh copy for each test."""
    return copy.deepcopy(shared_report)
