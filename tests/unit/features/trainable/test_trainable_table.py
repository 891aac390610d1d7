"""The table of trainable encoders: messages about names, and imports that stay light."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from catalex.errors import CatalexError
from catalex.features.trainable import make_trainable_encoder, trainable_encoder_options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"t\.encoder\.name: the name of the encoder is missing \(allowed: frozen, mini, .*name: mini"),
        ({"name": 3}, r"the name of the encoder is not a text \(found 3"),
        ({"name": "minni"}, r"unknown trainable encoder 'minni'.*[Dd]id you mean 'mini'\?"),
        (
            {"name": "mini", "max_token": 3},
            r"t\.encoder: unknown key 'max_token'.*[Dd]id you mean 'max_tokens'",
        ),
        ({"name": "mini", "image_tokens": 2}, r"t\.encoder\.image_tokens: .*1 or 4"),
        ({"name": "frozen", "width": 0}, r"t\.encoder\.width: .*greater than or equal to 1"),
    ],
)
def test_wrong_blocks_are_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        trainable_encoder_options(settings, "t.encoder")
    with pytest.raises(CatalexError, match=message):
        make_trainable_encoder(settings, "t.encoder", levels=3, seed=0)


def test_settings_are_not_changed() -> None:
    settings = {"name": "frozen", "width": 5}
    assert trainable_encoder_options(settings, "t").model_dump() == {"width": 5}
    assert settings == {"name": "frozen", "width": 5}


def test_frozen_without_vectors_is_a_sentence() -> None:
    with pytest.raises(
        CatalexError, match=r"t: encoder 'frozen' reads content vectors, and this run has none"
    ):
        make_trainable_encoder({"name": "frozen"}, "t", levels=3, seed=0)
    made = make_trainable_encoder({"name": "frozen"}, "t", levels=2, seed=0, vectors_width=7)
    assert (made.levels, made.width) == (2, 384)


def test_options_of_a_missing_folder_can_be_checked() -> None:
    """No weights are looked for before the encoder is built."""
    assert (
        trainable_encoder_options({"name": "mini", "folder": "/nowhere"}, "t").model_dump()["folder"]
        == "/nowhere"
    )


def test_importing_the_table_imports_no_language_model() -> None:
    code = (
        "import sys; import catalex.features.trainable; "
        "print([m for m in ('transformers', 'peft', 'PIL', 'polars', 'catalex.features.trainable.qwen2_vl', "
        "'catalex.features.trainable.smolvl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
