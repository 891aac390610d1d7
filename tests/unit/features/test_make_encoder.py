"""From a block of a recipe to an encoder: names, options, messages."""

from __future__ import annotations

import pytest

from catalex.errors import CatalexError
from catalex.features import ENCODERS, make_encoder


def test_unknown_name_lists_the_table_and_the_nearest() -> None:
    with pytest.raises(CatalexError, match=r"unknown encoder 'minlm'.*tfidf-svd.*Did you mean 'minilm'"):
        make_encoder({"name": "minlm"}, "embed.encoder")


@pytest.mark.parametrize("settings", [{}, {"name": None}, {"name": 3}])
def test_name_is_required(settings: dict[str, object]) -> None:
    with pytest.raises(
        CatalexError, match=r"embed\.encoder\.name: the name of the encoder.*hf:<id or folder>"
    ):
        make_encoder(settings, "embed.encoder")


def test_wrong_value_names_the_key() -> None:
    with pytest.raises(CatalexError, match=r"embed\.encoder\.width.*found 0"):
        make_encoder({"name": "tfidf-svd", "width": 0}, "embed.encoder")


def test_nested_option_names_the_part() -> None:
    settings = {"name": "fusion", "text": {"name": "tfidf-svd", "widht": 3}}
    with pytest.raises(
        CatalexError, match=r"embed\.encoder\.text: unknown key 'widht'.*Did you mean 'width'"
    ):
        make_encoder(settings, "embed.encoder")


def test_every_entry_declares_options_with_a_documented_default() -> None:
    for kind in ENCODERS.values():
        for name, field in kind.Options.model_fields.items():
            assert not field.is_required(), f"{kind.__name__}.{name} has no default"
