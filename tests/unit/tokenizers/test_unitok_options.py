"""Presets of UniTok, which expert starts from which domain, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.errors import CatalexError
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.unitok_options import UniTokOptions


def test_the_paper_preset_is_the_paper_whatever_the_defaults_are() -> None:
    """Formulas, sizes and weights of arXiv 2511.12922 and, where it is silent, of its official code."""
    paper = UniTokOptions.parse({"preset": "unitok-paper"}, "tokenizer")
    wanted = {
        "levels": 4,
        "codebook_size": 256,
        "experts": None,
        "routed": 1,
        "shared": True,
        "hidden": (2048, 1024, 512, 256, 128, 64),
        "latent": 32,
        "combination": "sum",
        "renormalise": False,
        "router_input": "latent",
        "router_init": "random",
        "expert_token": "last",
        "quantization": 1.0,
        "commitment": 0.25,
        "calibration": 0.03,
        "beta": 1.0,
        "normalised_information": False,
        "load_balancing": 0.0,
        "supervision": 0.0,
        "reduction": "mean",
        "normalise": "standardise",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "batch": 1024,
        "revive_until": 0.0,
    }
    assert {name: getattr(paper, name) for name in wanted} == wanted


def test_a_preset_fills_in_what_is_not_given() -> None:
    options = UniTokOptions.parse({"preset": "unitok-paper", "calibration": 0.5, "hidden": [8]}, "tokenizer")
    assert (options.calibration, options.hidden, options.reduction) == (0.5, (8,), "mean")
    assert UniTokOptions.parse(options.model_dump(mode="json"), "again") == options
    ours = UniTokOptions.parse({}, "tokenizer")
    assert ours == UniTokOptions.parse({"preset": "unitok"}, "tokenizer")
    assert UniTokOptions.parse(ours.model_dump(mode="json"), "again") == ours


def test_epochs_follow_the_items_unless_given() -> None:
    steps = UniTokOptions(batch=100, epochs=None).epochs_for(10_000) * 100
    assert UniTokOptions(batch=100, epochs=None).epochs_for(20_000) * 200 == steps
    assert UniTokOptions(epochs=7).epochs_for(10_000) == 7


# --- experts and their domains ------------------------------------------------------------------------------


def owners(experts: Any, domains: list[str], items: list[int] | None = None) -> list[list[int]]:
    return UniTokOptions.parse({"experts": experts}, "tokenizer").owners(domains, items)


def test_one_expert_a_domain_unless_said_otherwise() -> None:
    assert owners(None, ["a", "b", "c"]) == [[0], [1], [2]]
    assert owners(None, ["a"]) == [[0]]


def test_more_experts_go_where_there_are_most_items_an_expert() -> None:
    assert owners(5, ["a", "b"], [100, 10]) == [[0], [0], [0], [0], [1]]
    assert owners(5, ["a", "b"], [100, 99]) == [[0], [0], [0], [1], [1]]


def test_fewer_experts_share_the_domains() -> None:
    assert owners(2, ["a", "b", "c", "d", "e"]) == [[0, 2, 4], [1, 3]]
    assert owners(1, ["a", "b"]) == [[0, 1]]


def test_experts_can_be_given_by_name() -> None:
    assert owners({"b": 2, "a": 1}, ["a", "b"]) == [[0], [1], [1]]


@given(st.integers(1, 12), st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_no_expert_and_no_domain_is_left_out(experts: int, items: list[int]) -> None:
    names = [f"domain{number}" for number in range(len(items))]
    found = owners(experts, names, items)
    assert len(found) == experts == len(owners(experts, names))
    assert all(found)
    assert {domain for group in found for domain in group} == set(range(len(items)))


# --- what is refused ----------------------------------------------------------------------------------------


def refusal(settings: dict[str, Any], domains: list[str] | None = None) -> str:
    with pytest.raises(CatalexError) as caught:
        make_tokenizer({"name": "unitok", **settings}, "recipe.tokenizer", domains)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_an_unknown_domain_in_a_per_domain_option_is_named_with_the_nearest() -> None:
    sentence = refusal({"experts": {"toys": 1, "ofice": 2}}, ["toys", "office"])
    assert "tokenizer.experts: unknown domain 'ofice'" in sentence
    assert "allowed: toys, office" in sentence
    assert "Did you mean 'office'?" in sentence
    assert "unknown domain 'x'" in refusal({"experts": {"toys": 1, "x": 2}}, ["toys"])


def test_a_domain_without_an_expert_is_named() -> None:
    sentence = refusal({"experts": {"toys": 1}}, ["toys", "office"])
    assert "domain 'office' has no expert" in sentence
    assert "office: 1" in sentence


@pytest.mark.parametrize(("experts", "domains"), [(None, ["a", "b"]), (2, ["a"]), ({"a": 2}, ["a"])])
def test_more_kept_experts_than_there_are_is_refused(experts: Any, domains: list[str]) -> None:
    sentence = refusal({"experts": experts, "routed": 3}, domains)
    assert "more experts are kept for an item than there are (found 3; allowed: 1 to 2)" in sentence
    assert make_tokenizer({"name": "unitok", "experts": experts, "routed": 2}, domains=domains)


@pytest.mark.parametrize("combination", ["residual", "routed-first"])
def test_a_combination_that_needs_the_shared_expert_says_so(combination: str) -> None:
    sentence = refusal({"combination": combination, "shared": False})
    assert "recipe.tokenizer" in sentence
    assert combination in sentence
    assert "needs the shared expert (shared: true)" in sentence


def test_a_principal_start_needs_a_linear_autoencoder() -> None:
    sentence = refusal({"autoencoder_init": "principal", "hidden": [8]})
    assert "needs a linear autoencoder (hidden: [])" in sentence
    assert make_tokenizer({"name": "unitok", "autoencoder_init": "principal", "hidden": []})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"levels": 0}, "levels"),
        ({"codebook_size": 1}, "codebook_size"),
        ({"routed": 0}, "routed"),
        ({"experts": 0}, "experts"),
        ({"experts": {"toys": 0}}, "experts"),
        ({"experts": "two"}, "experts"),
        ({"calibration": -1}, "calibration"),
        ({"revive_until": 2}, "revive_until"),
        ({"preset": "unitok-papers"}, "preset"),
        ({"combination": "product"}, "combination"),
        ({"expert_token": "middle"}, "expert_token"),
        ({"router_input": "label"}, "router_input"),
    ],
)
def test_options_reject_nonsense(settings: dict[str, Any], words: str) -> None:
    assert f"recipe.tokenizer.{words}" in refusal(settings)


def test_the_code_space_is_known_as_soon_as_the_number_of_experts_is() -> None:
    """A number needs no names of domains; null does."""
    small = {"name": "unitok", "levels": 2, "codebook_size": 8, "routed": 1, "expert_token": "last"}
    assert make_tokenizer({**small, "experts": 4}).space.sizes == (8, 8, 4)
    assert make_tokenizer({**small, "experts": None}, domains=["a", "b"]).space.sizes == (8, 8, 2)
    assert make_tokenizer({**small, "experts": {"a": 2, "b": 1}}, domains=["a", "b"]).space.sizes == (8, 8, 3)
    with pytest.raises(CatalexError, match="depends on the training domains"):
        _ = make_tokenizer({**small, "experts": None}).space
    assert make_tokenizer({**small, "experts": None, "expert_token": "none"}).space.sizes == (8, 8)


@pytest.mark.parametrize(
    ("token", "sizes", "groups", "order"),
    [
        ("last", (8, 8, 8, 3, 3), (0, 1, 2, 3, 3), (3, 4, 0, 1, 2)),
        ("first", (3, 3, 8, 8, 8), (0, 0, 1, 2, 3), (0, 1, 2, 3, 4)),
        ("none", (8, 8, 8), (0, 1, 2), (0, 1, 2)),
    ],
)
def test_the_levels_of_an_identifier(
    token: str, sizes: tuple[int, ...], groups: tuple[int, ...], order: tuple[int, ...]
) -> None:
    """L codes and N experts, or none; in both orders the experts are chosen before the codes."""
    settings = {"name": "unitok", "levels": 3, "codebook_size": 8, "routed": 2, "expert_token": token}
    tokenizer = make_tokenizer(settings, domains=["a", "b", "c"])
    assert (tokenizer.space.sizes, tokenizer.space.groups, tokenizer.order) == (sizes, groups, order)
