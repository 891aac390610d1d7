"""Item texts: order of columns, fallback for items without a title, limits."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.data.columns import ITEMS_SCHEMA
from catalex.data.domain import Domain
from catalex.data.histories import Histories, SplitHistories
from catalex.errors import CatalexError
from catalex.features.text import TextOptions, domain_texts, item_text

FULL = {
    "title": "Red  kite.",
    "brand": "Aero",
    "categories": ["Toys", "Kites"],
    "description": "Flies\nwell",
    "keywords": "kite red",
    "extra": json.dumps({"material": "nylon", "colors": ["red", "blue"]}),
}


def test_columns_in_order_without_keywords_when_there_is_a_title() -> None:
    assert item_text(FULL, TextOptions()) == "Red kite. Aero. Toys, Kites. Flies well"


def test_keywords_stand_in_for_a_missing_title() -> None:
    row = {**FULL, "title": None, "description": None}
    assert item_text(row, TextOptions()) == "Aero. Toys, Kites. kite red"
    assert item_text({**row, "title": "  "}, TextOptions()) == "Aero. Toys, Kites. kite red"
    assert item_text(row, TextOptions(fallback=())) == "Aero. Toys, Kites"


def test_chosen_columns_and_fields_of_extra() -> None:
    options = TextOptions(columns=("keywords", "extra.material", "extra.colors", "extra.none"))
    assert item_text(FULL, options) == "kite red. nylon. red, blue"
    assert item_text({**FULL, "title": None}, options) == "kite red. nylon. red, blue"  # keywords only once


def test_nothing_to_say_is_an_empty_text() -> None:
    assert item_text({}, TextOptions()) == ""
    assert item_text({"title": None, "categories": [], "brand": ""}, TextOptions()) == ""


def test_a_megabyte_is_clipped() -> None:
    text = item_text({"title": "x" * 1_000_000, "brand": "y"}, TextOptions())
    assert len(text) == 2000
    assert len(item_text({"title": "ab " * 400_000}, TextOptions(max_characters=10))) <= 10


@given(st.dictionaries(st.sampled_from(["title", "brand", "description", "keywords"]), st.text(max_size=50)))
def test_text_is_one_clean_line_that_utf8_can_hold(row: dict[str, str]) -> None:
    text = item_text(row, TextOptions(max_characters=40))
    assert len(text) <= 40
    assert text == " ".join(text.split())
    text.encode("utf-8")


def test_unknown_column_is_named_with_the_choices() -> None:
    with pytest.raises(
        CatalexError, match=r"embed\.text\.columns.*unknown text column 'titel'.*title, brand"
    ):
        TextOptions.parse({"columns": ["titel"]}, "embed.text")


def test_domain_texts_in_item_order(tmp_path: Path) -> None:
    rows = [{"item_id": 0, **FULL}, {"item_id": 1}, {"item_id": 2, "brand": "Aero", "keywords": "pan"}]
    items = pa.Table.from_pylist(rows, schema=ITEMS_SCHEMA)
    nothing = SplitHistories(Histories.from_lists([]), Histories.from_lists([]).items)
    domain = Domain("kites", tmp_path, items, nothing, {})
    assert domain_texts(domain, TextOptions()) == ["Red kite. Aero. Toys, Kites. Flies well", "", "Aero. pan"]
