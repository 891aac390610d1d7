"""The tokenizer's section: experts, information, empty levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from catalex.reporting.blocks import Figure, Paragraph, Section, Table
from catalex.reporting.report import render_html, render_markdown
from catalex.reporting.sections.curves import curves
from catalex.reporting.sections.tokenizer import tokenizer


@pytest.fixture
def facts() -> dict[str, Any]:
    """A tokenizer with two experts, one more grown for "office", and one domain too small to be measured."""
    entropies = {"largest": 0.75, "entropy": 0.5623, "routing_entropy": 0.6, "item_entropy": 0.2}
    measured = {"hsic": 0.004738, "cka": 0.8495, "items": 512}
    spread = {"mean": 0.0031, "variance": 1.36e-06, "min_max": 0.43, "variation": 0.37, "jain": 0.87}
    return {
        "name": "unitok",
        "health": {
            "beauty": {
                "empty_levels": [2, 3], "floor": 0.01, "information": measured,
                "experts": {"shares": [0.25, 0.75], **entropies},
            },
            "office": {
                "empty_levels": [],
                "information": {"hsic": None, "cka": None, "items": 5},
                "experts": {"shares": [0.0, 0.0, 1.0], **entropies, "routing_entropy": None},
            },
        },
        "experts": {"mutual_information": 0.4123, "normalised": 0.5948, "largest": 0.6},
        "information": {"hsic": spread, "cka": None},
        "curves": {
            "total": [3.0, 2.0],
            "evaluated_at": [10, 20, 30],
            "information": {"beauty": [0.001, 0.002, 0.003], "office": [None, None, None]},
            "information_variance": [None, 4e-06, 2e-06],
        },
    }  # fmt: skip


def tables(section: Section) -> Mapping[str, Table]:
    return {block.caption: block for block in section.blocks if isinstance(block, Table)}


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def prose(section: Section) -> str:
    return " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))


def test_experts_by_domain(facts: dict[str, Any]) -> None:
    section = tokenizer({"tokenizer": facts})
    table = tables(section)["Share of the items on each expert, before conflict handling"]
    assert table.header == ["domain", "expert 0", "expert 1", "expert 2"]
    assert texts(table) == [
        ["beauty", "0.2500", "0.7500", "0.0000"],
        ["office", "0.0000", "0.0000", "1.00"],
    ]
    routing = texts(tables(section)["How the router spreads the items"])
    assert routing == [
        ["beauty", "0.7500", "0.5623", "0.6000", "0.2000"],
        ["office", "0.7500", "0.5623", "–", "0.2000"],
    ]
    assert f"at most {math.log(3):.2f} for 3 experts" in prose(section)
    assert "domain and expert: 0.4123 nats, 0.5948 of the entropy" in prose(section)


def test_information_by_domain_and_its_spread(facts: dict[str, Any]) -> None:
    found = tables(tokenizer({"tokenizer": facts}))
    assert texts(found["Information that the latent vectors keep (I_k)"]) == [
        ["beauty", "0.004738", "0.8495", "512"],
        ["office", "–", "–", "5"],
    ]
    assert texts(found["Information over the domains"]) == [
        ["HSIC", "0.003100", "1.4e-06", "0.4300", "0.8700"]
    ]


def test_information_over_the_training(facts: dict[str, Any]) -> None:
    figure = next(
        b for b in tokenizer({"tokenizer": facts}).blocks if isinstance(b, Figure) and b.name == "information"
    )
    assert figure.alternative == (
        "beauty goes from 0.001000 to 0.003000; variance goes from 4.0e-06 to 2.0e-06"
    )
    svg = figure.draw()
    assert "information by domain" in svg
    assert "variance over domains" in svg
    assert "office" not in svg, "a domain without a value has no line"


def test_the_curves_of_information_are_drawn_once(facts: dict[str, Any]) -> None:
    figure = next(b for b in curves({"tokenizer": facts}).blocks if isinstance(b, Figure))
    assert figure.alternative == "total ends at 2.00"


def test_the_order_of_choice_gets_a_column_where_it_matters(facts: dict[str, Any]) -> None:
    def header() -> list[str]:
        table = next(t for c, t in tables(tokenizer({"tokenizer": facts})).items() if c.startswith("Use of"))
        assert all(len(row) == len(table.header) for row in table.rows)
        return list(table.header)

    level = {"size": 4, "conditional_entropy": 0.5}
    facts["health"]["beauty"]["levels"] = [level, level | {"chosen_entropy": 0.5}]
    assert header()[-1] == "entropy given prefix"
    facts["health"]["office"]["levels"] = [level | {"chosen_entropy": 0.4}]
    assert header()[-1] == "given the codes chosen before"


def test_empty_levels_are_said_aloud(facts: dict[str, Any]) -> None:
    blocks = tokenizer({"tokenizer": facts}).blocks
    strong = [b.text for b in blocks if isinstance(b, Paragraph) and b.strong]
    assert len(strong) == 1
    assert strong[0].endswith("beauty: level 2, 3.")
    facts["health"]["beauty"]["empty_levels"] = []
    blocks = tokenizer({"tokenizer": facts}).blocks
    assert not any(b.strong for b in blocks if isinstance(b, Paragraph))


def test_the_floor_stands_beside_the_collisions(facts: dict[str, Any]) -> None:
    table = tables(tokenizer({"tokenizer": facts}))["Tokenizer health by domain"]
    column = list(table.header).index("floor")
    assert [row[column] for row in texts(table)] == ["0.0100", "–"]


def test_a_tokenizer_without_any_of_it_says_nothing_of_it(shared_report: dict[str, Any]) -> None:
    captions = tables(tokenizer(shared_report))
    assert not any("expert" in caption or "nformation" in caption for caption in captions)


@pytest.mark.parametrize("key", ["experts", "information", "curves"])
def test_any_part_may_be_missing(facts: dict[str, Any], key: str) -> None:
    del facts[key]
    assert tokenizer({"tokenizer": facts}).blocks
    facts["health"]["beauty"][key] = None
    assert tokenizer({"tokenizer": facts}).blocks


def test_on_the_page(facts: dict[str, Any]) -> None:
    assert "plot-information" in render_html({"tokenizer": facts})
    assert "| expert 2 |" in render_markdown({"tokenizer": facts})
