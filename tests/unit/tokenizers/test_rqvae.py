"""What is particular to the RQ-VAE: presets, gradients, collapse."""

from __future__ import annotations

import pytest
import torch

from catalex.errors import CatalexError
from catalex.tokenizers.rqvae import RQVAEOptions
from catalex.tokenizers.rqvae_network import RQVAENetwork


def network(**options: object) -> RQVAENetwork:
    torch.manual_seed(0)
    settings = {"beta": 0.25, "decay": None, "reduction": "sum", **options}
    return RQVAENetwork(6, (8,), 4, 3, 5, **settings)  # type: ignore[arg-type]


def test_the_tiger_preset_is_the_paper() -> None:
    options = RQVAEOptions.parse({}, "tokenizer")
    assert (options.levels, options.codebook_size, options.latent, options.beta) == (3, 256, 32, 0.25)
    assert (options.hidden, options.batch, options.reduction) == ((512, 256, 128), 1024, "sum")


def test_presets_fill_in_what_is_not_given() -> None:
    lcrec = RQVAEOptions.parse({"preset": "lcrec", "levels": 3}, "tokenizer")
    assert (lcrec.levels, lcrec.hidden[0], lcrec.latent, lcrec.reduction) == (3, 2048, 32, "mean")
    mtgrec = RQVAEOptions.parse({"preset": "mtgrec"}, "tokenizer")
    assert (mtgrec.decay, mtgrec.optimizer, mtgrec.components, mtgrec.latent) == (0.99, "adagrad", 128, 128)
    assert RQVAEOptions.parse(mtgrec.model_dump(mode="json"), "again") == mtgrec
    with pytest.raises(CatalexError, match=r"tokenizer\.preset.*found 'tigr'"):
        RQVAEOptions.parse({"preset": "tigr"}, "tokenizer")


def test_epochs_follow_the_catalogue_unless_given() -> None:
    assert RQVAEOptions().epochs_for(12_101) == 334  # 12 steps an epoch, 4,000 steps
    assert RQVAEOptions(epochs=7).epochs_for(12_101) == 7


def by_the_formula(net: RQVAENetwork, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction and quantization loss written out, differentiable."""
    rest = latent = net.encoder(vectors)
    total, quantization = torch.zeros_like(latent), vectors.new_zeros(())
    for level in range(3):
        weight = net.codebook(level).weight
        chosen = weight[torch.cdist(rest.detach(), weight.detach()).argmin(1)]
        quantization = quantization + (rest.detach() - chosen).square().sum(1).mean()
        quantization = quantization + 0.25 * (rest - chosen.detach()).square().sum(1).mean()
        rest, total = rest - chosen, total + chosen
    decoded = net.decoder(latent + (total - latent).detach())
    return (vectors - decoded).square().sum(1).mean(), quantization


def test_losses_and_gradients_are_those_of_the_formula() -> None:
    net, vectors = network(), torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    reconstruction, quantization = by_the_formula(net, vectors)
    losses = net(vectors)
    torch.testing.assert_close(losses.reconstruction, reconstruction)
    torch.testing.assert_close(losses.quantization, quantization)
    torch.testing.assert_close(losses.total, reconstruction + quantization)
    parameters = list(net.parameters())
    wanted = torch.autograd.grad(reconstruction + quantization, parameters)
    for ours, formula in zip(torch.autograd.grad(losses.total, parameters), wanted, strict=True):
        torch.testing.assert_close(ours, formula)


def test_the_decoder_teaches_the_encoder_and_not_the_codebooks() -> None:
    net, vectors = network(), torch.randn(9, 6)
    net(vectors).reconstruction.backward()
    assert all(p.grad is not None for p in net.encoder.parameters())
    assert all(p.grad is None for p in net.codebooks.parameters())


@pytest.mark.parametrize("decay", [None, 0.99])
def test_k_means_start_uses_all_codes(decay: float | None) -> None:
    net = network(decay=decay)
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    net.initialise(vectors, seed=0)
    net.train()
    net(vectors)
    assert net.utilisation() == [1.0, 1.0, 1.0]


def test_revival_reports_use_and_then_all_codes_are_chosen() -> None:
    net = network()
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    net.initialise(vectors, seed=0)
    with torch.no_grad():
        net.codebook(1).weight[:2] = 50.0
    net.train()
    net(vectors)
    assert net.revive(vectors, seed=0)[1] == pytest.approx(0.6)
    net(vectors)
    assert min(net.utilisation()[:2]) == 1.0


def test_options_reject_nonsense() -> None:
    for values in ({"levels": 0}, {"decay": 1.5}, {"epochs": 0}, {"learning_rate": -1}):
        with pytest.raises(CatalexError):
            RQVAEOptions.parse(values, "tokenizer")
