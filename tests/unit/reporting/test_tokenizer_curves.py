"""Curves of a tokenizer that was trained end to end: losses, codes in use, fine-tuning, counts."""

from __future__ import annotations

from typing import Any

import pytest

from catalex.reporting.blocks import Block, Figure, Paragraph, Table
from catalex.reporting.report import render_html, render_markdown
from catalex.reporting.sections.curves import curves
from catalex.reporting.sections.tokenizer import tokenizer
from catalex.reporting.sections.tokenizer_curves import tokenizer_blocks

LOSSES = ("alignment", "code", "cooccurrence", "image", "text", "total", "vector")  # as sorted in a JSON file


def training(epochs: int, height: float, **more: Any) -> dict[str, Any]:
    """Losses that fall to `height` times 1 to 7."""
    losses = {
        name: [height * i * (1 + epochs - e) for e in range(1, epochs + 1)]
        for i, name in enumerate(LOSSES, 1)
    }
    return {**losses, "utilisation": [], "utilisation_at": [], **more}


@pytest.fixture
def facts() -> dict[str, Any]:
    """Pre-training, and fine-tuning to two domains without images."""
    counts = {"items": 1200, "with_text": 1190, "with_image": 0, "unreadable_images": 0}
    nought = {"image": [0.0, 0.0]}
    return {
        "name": "utgrec",
        "curves": training(
            3, 1.0, utilisation=[[0.5, 0.25], [1.0, 0.75]], utilisation_at=[100, 200], parameters=2_000_000,
            trained_parameters=1_500_000, items=54321, steps=636, with_text=54000, with_image=2758,
            unreadable_images=17,
            adapted={
                "office": training(2, 0.1, **counts, **nought), "toys": training(2, 0.2, **counts, **nought),
            },
        ),
    }  # fmt: skip


def figures(blocks: list[Block]) -> dict[str, Figure]:
    return {block.name: block for block in blocks if isinstance(block, Figure)}


def panel(figure: Figure, title: str) -> str:
    """What is said of one panel."""
    return next(part for part in figure.alternative.split("; ") if part.startswith(f"{title} ends"))


def test_all_losses_are_drawn_total_first(facts: dict[str, Any]) -> None:
    figure = figures(tokenizer_blocks(facts))["tokenizer-training"]
    titles = [part.split(" ends at ")[0] for part in figure.alternative.split("; ")]
    assert titles == [
        "total",
        "text reconstruction",
        "image reconstruction",
        "vector reconstruction",
        "codebook loss",
        "co-occurring alignment",
        "co-occurring reconstruction",
    ]
    assert panel(figure, "total") == "total ends at 6.00"
    assert panel(figure, "co-occurring alignment").endswith("ends at 1.00")
    assert "weighted sum" in figure.caption
    assert figure.draw().count(">epoch<") == 7


def test_codes_in_use_by_level_at_the_steps_they_were_counted(facts: dict[str, Any]) -> None:
    figure = figures(tokenizer_blocks(facts))["tokenizer-use"]
    assert figure.alternative == "codes in use ends at 1.00 (level 1), 0.7500 (level 2)"
    svg = figure.draw()
    assert ">step<" in svg
    assert ">level 2<" in svg


def test_fine_tuning_has_a_line_a_domain(facts: dict[str, Any]) -> None:
    figure = figures(tokenizer_blocks(facts))["tokenizer-fine-tuning"]
    assert panel(figure, "total") == "total ends at 0.6000 (office), 1.20 (toys)"
    assert "to office, toys;" in figure.caption
    assert "image" not in figure.alternative, "a loss that is always 0 was not part of the training"
    svg = figure.draw()
    assert ">office<" in svg
    assert ">toys<" in svg


def test_what_had_no_part_is_said(facts: dict[str, Any]) -> None:
    assert not any(isinstance(block, Paragraph) for block in tokenizer_blocks(facts))
    facts["curves"]["image"] = [0.0, 0.0, 0.0]
    blocks = tokenizer_blocks(facts)
    told = [block.text for block in blocks if isinstance(block, Paragraph)]
    assert told == ["Not part of this training: image reconstruction."]
    assert "image" not in figures(blocks)["tokenizer-training"].alternative


def test_counts_of_every_training(facts: dict[str, Any]) -> None:
    table = next(block for block in tokenizer_blocks(facts) if isinstance(block, Table))
    assert list(table.header) == [
        "training", "items in training sequences", "all items with text", "with image", "unreadable images",
        "steps", "parameters", "of these trained",
    ]  # fmt: skip
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0] == ["training", "54,321", "54,000", "2,758", "17", "636", "2,000,000", "1,500,000"]
    assert rows[1] == ["fine-tuning to office", "1,200", "1,190", "0", "0", "–", "–", "–"]


def test_a_single_epoch_is_shown_too(facts: dict[str, Any]) -> None:
    facts["curves"] = training(1, 1.0)
    assert panel(figures(tokenizer_blocks(facts))["tokenizer-training"], "total") == "total ends at 6.00"


def test_a_record_is_called_an_epoch_only_when_it_is_one() -> None:
    """Residual k-means records inertia by iteration; the levels' final use is no curve over epochs."""
    by_iteration = figures(tokenizer_blocks({"curves": {"inertia_0": [3.0, 2.0, 1.0]}}))
    assert ">record<" in by_iteration["tokenizer-training"].draw()
    by_epoch = figures(
        tokenizer_blocks({"curves": {"total": [2.0, 1.0], "utilisation": [[0.5], [1.0]], "parameters": 5}})
    )
    assert by_epoch["tokenizer-training"].alternative == "total ends at 1.00"
    assert by_epoch["tokenizer-use"].alternative == "codes in use ends at 1.00 (level 1)"
    assert all(">epoch<" in figure.draw() for figure in by_epoch.values())


@pytest.mark.parametrize(
    "own",
    [{}, {"adapted": {}}, {"adapted": {"office": None}}, {"utilisation": [[]]}, {"utilisation": [None]},
     {"utilisation": [[0.5]], "utilisation_at": []}, {"total": [None, 1.0]}, {"parameters": None}],
)  # fmt: skip
def test_gaps_are_no_failure(own: dict[str, Any]) -> None:
    assert curves({"tokenizer": {"curves": own}}).missing


def test_on_the_page(facts: dict[str, Any]) -> None:
    page, markdown = render_html({"tokenizer": facts}), render_markdown({"tokenizer": facts})
    assert "plot-tokenizer-fine-tuning" in page
    assert "54,321" in markdown


def test_the_shared_codebook_is_shown_over_its_levels() -> None:
    used = {"utilisation": 0.91, "perplexity": 300.5, "dead": 46, "max_share": 0.02}
    health = {
        "office": {"pooled": {"1": {"levels": [2, 3], "size": 512, **used}}},
        "toys": {"pooled": {"1": used}},  # as reports of earlier versions have it
        "yelp": {"pooled": {}},
    }
    blocks = tokenizer({"tokenizer": {"health": health}}).blocks
    table = next(b for b in blocks if isinstance(b, Table) and b.caption.startswith("Use of the codebooks"))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["office", "2, 3", "512", "0.9100", "300", "46", "0.0200"],
        ["toys", "–", "–", "0.9100", "300", "46", "0.0200"],
    ]
