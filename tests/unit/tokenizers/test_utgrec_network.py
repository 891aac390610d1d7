"""The objective of UTGRec: which parts there are, what they reach, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch import Tensor

from catalex.errors import CatalexError
from catalex.tokenizers.alignment import alignment_loss
from catalex.tokenizers.utgrec_network import LatentShape, Losses, Step, UTGRecNetwork
from catalex.tokenizers.utgrec_training import Material, _step
from unit.features.tiny import tiny_transformer
from unit.tokenizers.tiny_utgrec import FROZEN, TinyTarget, build, calm, domain, mini

DOMAINS = [domain("toys", images=lambda item: item % 3 == 0), domain("office", 20, 1)]
ROWS = np.array([0, 3, 4, 9, 31, 40, 41, 45])
PICTURED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calm(tiny_transformer(tmp_path_factory.mktemp("mini") / "tiny"))


@pytest.fixture(params=["mini", "frozen"])
def settings(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    return mini(folder) if request.param == "mini" else dict(FROZEN)


def step_of(network: UTGRecNetwork, material: Material, rows: Any = ROWS, number: int = 0) -> Step:
    return _step(network, material, np.asarray(rows), 0, number, "cpu", PartialState(cpu=True))


def made(settings: dict[str, Any], **options: Any) -> tuple[UTGRecNetwork, Step]:
    network, material = build({**settings, **options}, *DOMAINS, images=True)
    return network, step_of(network, material)


def projected(network: UTGRecNetwork, step: Step) -> Tensor:
    """H' of the items, without their positives."""
    every: Tensor = network.projected(network.hidden(step.content), step.frozen)
    return every[: len(step.rows)]


def gradients(network: UTGRecNetwork) -> dict[str, Tensor]:
    """Those that are there and not all zero."""
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.abs().max() > 0}


def of(found: dict[str, Tensor], part: str) -> list[str]:
    return [name for name in found if name.startswith(part)]


# --- the sum ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("image_loss", ["mse", "diffusion"])
def test_the_objective_is_the_weighted_sum_of_its_parts(
    settings: dict[str, Any], image_loss: str, quantize: bool
) -> None:
    weights = {
        "image_weight": 1.7,
        "vector_weight": 0.7,
        "code_weight": 11.0,
        "alignment_weight": 0.6,
        "cooccurrence_weight": 0.3,
    }
    network, step = made(settings, image_loss=image_loss, **weights)
    losses: Losses = network(step, quantize)
    expected = losses.text + 1.7 * losses.image + 0.7 * losses.vector
    expected += 11 * losses.code + 0.6 * losses.alignment
    torch.testing.assert_close(losses.total, expected + 0.3 * losses.cooccurrence)
    assert all(part.dtype == torch.float32 and part.shape == () for part in losses)
    assert (losses.code > 0) == quantize
    assert (losses.text > 0) == (network.text is not None)
    for name in ("image", "vector", "alignment", "cooccurrence"):
        assert getattr(losses, name) > 0, name


def test_without_quantization_the_decoders_read_h_prime(settings: dict[str, Any]) -> None:
    network, step = made(settings)
    with torch.no_grad():
        found: Losses = network(step, False)
        h_prime = projected(network, step)
        expected = network._reconstruct(network.lift(h_prime), h_prime, step.own)
    torch.testing.assert_close((found.text, found.image, found.vector), expected)
    network.codebooks.initialise(torch.randn(200, 3, 4), 0)  # and the codebooks are not looked at
    torch.testing.assert_close(network(step, False).total, found.total)


def test_with_quantization_the_decoders_read_running_sums_of_codes(settings: dict[str, Any]) -> None:
    network, step = made(settings)
    with torch.no_grad():
        found: Losses = network(step, True)
        codes = network.codebooks.encode(projected(network, step))
        restored = network.codebooks.restore(codes)
        expected = network._reconstruct(network.lift(restored), restored, step.own)
    torch.testing.assert_close((found.text, found.image, found.vector), expected)


def test_cooccurring_reconstruction_is_raw_reconstruction_of_another_item(settings: dict[str, Any]) -> None:
    network, step = made(settings, image_weight=2.0, vector_weight=0.5)
    losses: Losses = network(replace(step, positive=step.own), True)
    expected = losses.text + 2 * losses.image + 0.5 * losses.vector
    torch.testing.assert_close(losses.cooccurrence, expected)


@pytest.mark.parametrize("align_on", ["projected", "hidden"])
def test_alignment_reads_h_prime_or_h(settings: dict[str, Any], align_on: str) -> None:
    network, step = made(settings, align_on=align_on)
    with torch.no_grad():
        read = network.hidden(step.content)
        read = network.projected(read, step.frozen) if align_on == "projected" else read
        expected = alignment_loss(
            read[: len(ROWS)], read[len(ROWS) :], step.rows, step.positive_rows, temperature=0.1
        )
    torch.testing.assert_close(network(step, True).alignment, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_codebook_loss_is_that_of_the_items_alone(settings: dict[str, Any], reduction: str) -> None:
    network, step = made(settings, reduction=reduction)
    with torch.no_grad():
        ours = projected(network, step)
        residuals = torch.cat([ours[:, :1], ours[:, 1:] - ours[:, :-1]], 1)
        levels = []
        for level in range(3):
            table = network.codebooks.codebook(level)
            nearest = torch.cdist(residuals[:, level], table).min(1).values
            levels.append(1.25 * nearest.square().mean() / 4)  # 1 + beta, mean over d_c
        expected = (
            sum(levels, torch.zeros(()))
            if reduction == "sum"
            else (levels[0] + (levels[1] + levels[2]) / 2) / 2
        )
    torch.testing.assert_close(network(step, True).code, expected)


# --- what gradients reach -----------------------------------------------------------------------------------


class Listening:
    """The network's H as a leaf, so that its gradient can be read; counts what is encoded."""

    def __init__(self, network: UTGRecNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.hidden = torch.zeros(0)
        encode = network.hidden

        def hidden(content: Any) -> Tensor:
            self.hidden = encode(content).detach().requires_grad_()
            self.rows.append(len(self.hidden))
            return self.hidden

        monkeypatch.setattr(network, "hidden", hidden)

    @property
    def reached(self) -> list[bool]:
        assert self.hidden.grad is not None
        return (self.hidden.grad.abs().sum((1, 2)) > 0).tolist()


def test_cooccurrence_reaches_the_item_and_not_its_positive(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, step = made(settings)
    listening = Listening(network, monkeypatch)
    network(step, True).cooccurrence.backward()
    assert listening.reached == [True] * len(ROWS) + [False] * len(ROWS)
    found = gradients(network)
    assert of(found, "lift")
    assert of(found, "project")
    assert not of(found, "codebooks")
    listening.hidden.grad = None
    network(step, True).alignment.backward()
    assert all(listening.reached)  # there the positives are encoded, and learn


@pytest.mark.parametrize("part", ["vector", "image", "cooccurrence", "alignment"])
def test_codebooks_learn_from_the_codebook_loss_alone(settings: dict[str, Any], part: str) -> None:
    network, step = made(settings)
    getattr(network(step, True), part).backward()
    found = gradients(network)
    assert of(found, "project")
    assert of(found, "encoder")
    assert not of(found, "codebooks")
    network(step, True).code.backward()
    assert sorted(of(gradients(network), "codebooks")) == [
        f"codebooks.books.{book}.{name}" for book in (0, 1) for name in ("base", "projection")
    ]


def test_nothing_of_the_codebooks_learns_during_warm_up(settings: dict[str, Any]) -> None:
    network, step = made(settings)
    network(step, False).total.backward()
    assert all(parameter.grad is None for parameter in network.codebooks.parameters())
    assert of(gradients(network), "encoder")
    network(step, True).total.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.codebooks.parameters())


@pytest.mark.parametrize(
    ("mu", "eta", "encoded", "decoded"),
    [
        (0.0, 0.0, len(ROWS), False),
        (0.0, 0.03, len(ROWS), True),
        (0.01, 0.0, 2 * len(ROWS), False),
        (0.01, 0.03, 2 * len(ROWS), True),
    ],
)
def test_positives_are_encoded_for_alignment_and_decoded_for_cooccurrence_only(
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    mu: float,
    eta: float,
    encoded: int,
    decoded: bool,
) -> None:
    network, step = made(settings, alignment_weight=mu, cooccurrence_weight=eta)
    listening = Listening(network, monkeypatch)
    losses: Losses = network(step, True)
    assert listening.rows == [encoded]
    assert (step.positive is not None) == decoded
    assert (losses.alignment > 0, losses.cooccurrence > 0) == (mu > 0, decoded)
    if not mu and not eta:
        assert torch.equal(step.rows, step.positive_rows)  # none was even drawn


# --- images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_loss", ["mse", "diffusion"])
def test_a_batch_without_image_has_no_image_loss_and_finite_gradients(
    settings: dict[str, Any], image_loss: str
) -> None:
    network, material = build({**settings, "image_loss": image_loss}, *DOMAINS, images=True)
    step = step_of(network, material, [1, 2, 31, 40])
    assert step.own.pictured is not None
    assert step.own.present.tolist() == [0.0]  # one row that does not count: attention wants a row
    losses: Losses = network(step, True)
    assert losses.image == 0
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    network.zero_grad()
    losses = network(step, True)
    losses.image.backward()
    assert not gradients(network)


def test_image_loss_is_the_mean_over_items_that_have_an_image(settings: dict[str, Any]) -> None:
    network, material = build(settings, *DOMAINS, images=True)
    step = step_of(network, material)
    assert step.own.pictured is not None
    assert step.own.pictured.tolist() == [0, 1, 3]
    assert len(step.own.pictured) == PICTURED
    with torch.no_grad():
        mixed: Losses = network(step, True)
        single: list[Losses] = [network(step_of(network, material, [row]), True) for row in ROWS]
    pictured = torch.stack([losses.image for losses in single])[step.own.pictured]
    torch.testing.assert_close(mixed.image, pictured.mean())
    assert sum(losses.image == 0 for losses in single) == len(ROWS) - PICTURED


def test_text_loss_is_the_mean_over_words_of_the_batch(folder: Path) -> None:
    network, material = build(mini(folder), *DOMAINS)
    step = step_of(network, material)
    assert step.own.keep is not None
    with torch.no_grad():
        joint: Losses = network(step, True)
        single: list[Losses] = [network(step_of(network, material, [row]), True) for row in ROWS]
    words = step.own.keep.sum(1)
    torch.testing.assert_close(
        joint.text, (torch.stack([o.text for o in single]) * words).sum() / words.sum()
    )


def test_without_image_weight_there_is_no_visual_decoder(settings: dict[str, Any]) -> None:
    network, step = made(settings, image_weight=0.0)
    assert network.image is None
    assert network(step, True).image == 0


# --- construction -------------------------------------------------------------------------------------------


def test_the_decoders_follow_what_the_encoder_knows(folder: Path) -> None:
    words, _ = build(mini(folder), *DOMAINS)
    assert words.text is not None
    assert words.vector is not None
    words, _ = build(mini(folder, vector_weight=0), *DOMAINS)
    assert words.vector is None
    vectors, _ = build(FROZEN, *DOMAINS)
    assert vectors.text is None
    assert vectors.vector is not None
    wide, _ = build({**FROZEN, "decoder_width": 24}, *DOMAINS)
    assert wide.lift.out_features == 24


def test_a_text_decoder_of_another_width_is_refused(folder: Path) -> None:
    with pytest.raises(
        CatalexError, match=r"tokenizer\.decoder_width: .*encoder's width \(found 48; allowed: 32\)"
    ):
        build(mini(folder, decoder_width=48), *DOMAINS)
    build(mini(folder, decoder_width=32), *DOMAINS)


@pytest.mark.parametrize("max_tokens", [8, 20, 61])
def test_texts_as_long_as_the_encoder_reads_can_be_targets(folder: Path, max_tokens: int) -> None:
    """Padding goes beyond the longest text where that is no multiple of the padding's step."""
    settings = mini(folder)
    settings["encoder"]["max_tokens"] = max_tokens
    long = domain("long", 20)
    assert long.content is not None
    content = [replace(item, text="kite " * 80) for item in long.content]
    network, material = build(settings, replace(long, content=content))
    step = step_of(network, material, [0, 1])
    assert step.own.keep is not None
    assert step.own.keep.sum(1).tolist() == [max_tokens - 2] * 2  # two are the encoder's specials
    assert torch.isfinite(network(step, True).text)


def test_levels_share_the_leaf_unless_told_otherwise() -> None:
    shared, _ = build(FROZEN, *DOMAINS)
    assert shared.codebooks.book(1) is shared.codebooks.book(2)
    apart, _ = build({**FROZEN, "share_leaf": False, "projected": False, "residual": "quantized"}, *DOMAINS)
    assert apart.codebooks.book(1) is not apart.codebooks.book(2)
    assert apart.codebooks.sizes == (6, 8, 8)


def test_weights_go_out_and_in_again(settings: dict[str, Any]) -> None:
    network, step = made(settings)
    other, _ = build(settings, *DOMAINS, images=True, seed=5)
    assert network(step, True).total != other(step, True).total
    other.restore(network.trained())
    assert torch.equal(network(step, True).total, other(step, True).total)


def test_weights_that_do_not_fit_are_named() -> None:
    network, _ = build(FROZEN, *DOMAINS)
    weights = network.trained()
    message = r"do not fit the configuration .*found '{}'"
    with pytest.raises(CatalexError, match=message.format("lift.bias")):
        network.restore({name: value for name, value in weights.items() if name != "lift.bias"})
    with pytest.raises(CatalexError, match=message.format("lift.more")):
        network.restore({**weights, "lift.more": torch.zeros(1)})
    with pytest.raises(CatalexError, match=message.format("lift.bias")):
        network.restore({**weights, "lift.bias": torch.zeros(3)})
    with pytest.raises(CatalexError, match="tensor 'biases' is missing"):
        network.restore({name: value for name, value in weights.items() if name != "encoder.biases"})


def test_an_encoder_without_words_needs_something_to_reconstruct() -> None:
    with pytest.raises(CatalexError, match=r"tokenizer\.vector_weight: .*\(found 0\.0; allowed: more than 0"):
        build({**FROZEN, "vector_weight": 0}, *DOMAINS)
    build({**FROZEN, "vector_weight": 0}, *DOMAINS, images=True)  # images are something


def test_the_visual_decoder_needs_the_shape_of_latents_alone() -> None:
    """So that a tokenizer can be loaded where the autoencoder is not."""
    shape: Any = LatentShape(TinyTarget.tokens, TinyTarget.channels)
    with_target, _ = build(FROZEN, *DOMAINS, images=True)
    torch.manual_seed(0)
    network = UTGRecNetwork(with_target.encoder, with_target.options, seed=0, latents=shape, vectors_width=8)
    assert network.state_dict().keys() == with_target.state_dict().keys()


# --- the shortcut -------------------------------------------------------------------------------------------


def test_the_shortcut_begins_at_principal_components_level_by_level(folder: Path) -> None:
    """The prefix residual of level l is the l-th block of components, whatever the encoder says."""
    network, material = build(mini(folder), *DOMAINS)
    assert network.shortcut is not None
    torch.nn.init.zeros_(network.project[-1].weight)
    network.begin_at_principal_components(material.vectors)
    content, rows = material.index.batch(np.arange(50)), material.vectors
    with torch.no_grad():
        found = network.projected(network.hidden(content), rows)
    residual = torch.cat([found[:, :1], found[:, 1:] - found[:, :-1]], 1)  # (50, 3, 4)
    centred = rows - rows.mean(0)
    components = torch.linalg.svd(centred, full_matrices=False).U * torch.linalg.svdvals(centred)
    places = [[0, 1], [2], [3]]  # 4 = d_c components over three levels
    for level, block in enumerate(places):
        torch.testing.assert_close(
            residual[:, level, block].abs(), components[:, block].abs(), atol=1e-4, rtol=1e-4
        )
        rest = [place for place in range(4) if place not in block]
        assert residual[:, level, rest].abs().max() < 1e-5


def test_the_shortcut_learns_and_the_encoder_begins_as_a_correction_of_nothing(folder: Path) -> None:
    network, step = made(mini(folder))
    torch.nn.init.zeros_(network.project[-1].weight)
    network(step, True).vector.backward()
    found = gradients(network)
    assert of(found, "shortcut")
    assert of(found, "project") == ["project.4.weight", "project.4.bias"]
    assert not of(found, "encoder")  # from the second step on


def test_without_shortcut_the_content_vectors_are_targets_alone() -> None:
    network, step = made(FROZEN)
    assert network.shortcut is None
    assert step.frozen is not None
    other: Losses = network(replace(step, frozen=step.frozen + 1), True)
    assert torch.equal(other.total, network(step, True).total)
