"""Settings of UTGRec: the paper's values, what they allow, and what is refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from catalex.errors import CatalexError
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.utgrec import UTGRec
from catalex.tokenizers.utgrec_options import UTGRecOptions

PAPER: dict[str, Any] = {
    "encoder": {"name": "qwen2-vl"},
    "levels": 3,
    "root": 256,
    "leaf_size": 512,
    "code_width": 128,
    "decoder_width": None,  # the encoder's 1536
    "projection_hidden": 768,
    "dropout": 0.1,
    "shortcut": False,
    "fine_tune_start": "kept",
    "vector_weight": 0,
    "residual": "prefix",
    "share_leaf": True,
    "projected": True,
    "beta": 0.25,
    "reduction": "mean",
    "code_weight": 200,
    "image_weight": 3,
    "alignment_weight": 0.01,
    "cooccurrence_weight": 0.03,
    "temperature": 0.1,
    "align_on": "projected",
    "image_loss": "diffusion",
    "kmeans_init": False,
    "revive_every": 0,
    "learning_rate": 3e-4,
    "decoder_ratio": 1,
    "fine_tune_rate": 1e-4,
    "fine_tune_warmup": 0.0,
    "weight_decay": 0.01,
    "warmup": 0.03,
    "clip_norm": 1,
    "batch": 256,
    "epochs": 3,
    "fine_tune_epochs": 20,
}
"""Table 5 of the specification; quantization begins after steps 0 to 300."""


def made(**options: Any) -> UTGRec:
    found = make_tokenizer({"name": "utgrec", **options})
    assert isinstance(found, UTGRec)
    return found


def test_the_paper_preset_has_the_papers_values() -> None:
    options = UTGRecOptions.parse({"preset": "utgrec-paper"}, "tokenizer")
    assert {name: getattr(options, name) for name in PAPER} == PAPER
    assert options.quantizer_warmup == 301


def test_what_is_given_wins_over_the_preset() -> None:
    options = UTGRecOptions.parse({"preset": "utgrec-paper", "epochs": 7, "revive_every": 5}, "tokenizer")
    assert (options.epochs, options.revive_every, options.kmeans_init) == (7, 5, False)


@pytest.mark.parametrize(
    ("options", "space"),
    [
        ({}, CodeSpace((256, 512, 512), (0, 1, 1))),
        ({"levels": 4}, CodeSpace((256, 768, 768, 768), (0, 1, 1, 1))),
        ({"levels": 1}, CodeSpace((256,), (0,))),
        ({"leaf": 64, "root": 16}, CodeSpace((16, 64, 64), (0, 1, 1))),
        ({"leaf": 256, "share_leaf": False}, CodeSpace((256, 256, 256), (0, 1, 2))),
    ],
)
def test_the_code_space(options: dict[str, Any], space: CodeSpace) -> None:
    assert made(**options).space == space


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({}, False),
        ({"encoder": {"name": "mini", "images": "efficientnet-lite0"}}, True),
        ({"encoder": {"name": "frozen"}}, False),
        ({"encoder": {"name": "qwen2-vl"}}, True),
        ({"preset": "utgrec-paper"}, True),
        ({"encoder": {"name": "smolvl"}}, True),
        ({"encoder": {"name": "smolvl", "images": "none"}}, False),
        ({"image_target": {"name": "taef2"}}, True),
        ({"image_target": {"name": "taef2"}, "image_weight": 0}, False),
        ({"image_target": {"name": "mar-kl16:/no/such/file"}}, True),  # looked for when training begins
    ],
)
def test_images_are_asked_for_where_something_looks_at_them(options: dict[str, Any], reads: bool) -> None:
    assert made(**options).reads_images == reads


def test_positives_are_needed_by_two_losses() -> None:
    off = {"alignment_weight": 0, "cooccurrence_weight": 0}
    for change, needed in (({}, False), ({"alignment_weight": 1}, True), ({"cooccurrence_weight": 1}, True)):
        assert UTGRecOptions.parse({**off, **change}, "tokenizer").needs_positives == needed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "utgrec-papers"}, r"tokenizer\.preset: .*utgrec-papers"),
        ({"levels": 0}, r"tokenizer\.levels: .*found 0"),
        ({"root": 1}, r"tokenizer\.root: .*found 1"),
        ({"temperature": 0}, r"tokenizer\.temperature: .*found 0"),
        ({"dropout": 1.0}, r"tokenizer\.dropout: .*found 1"),
        ({"code_weight": -1}, r"tokenizer\.code_weight: .*found -1"),
        ({"residual": "prefixed"}, r"tokenizer\.residual: .*prefixed"),
        ({"cooccurence_weight": 1}, r"unknown key 'cooccurence_weight'.*'cooccurrence_weight'"),
        ({"encoder": {}}, r"tokenizer\.encoder\.name: the name of the encoder is missing"),
        ({"encoder": {"name": "minilm"}}, r"unknown trainable encoder 'minilm'"),
        ({"encoder": {"name": "mini", "layers": 2}}, r"tokenizer\.encoder: unknown key 'layers'"),
        (
            {"image_target": {"name": "taef"}},
            r"image_target\.name: .*'taef'.*Did you mean 'taef2'",
        ),
        ({"image_target": {}}, r"tokenizer\.image_target\.name: the name of the image target is missing"),
        ({"image_target": {"name": "taef2", "sise": 64}}, r"tokenizer\.image_target: unknown key 'sise'"),
        ({"image_target": {"name": "diffusers:"}}, r"nothing follows 'diffusers:'"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        made(**options)
