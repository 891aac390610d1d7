"""The network of UniTok (2511.12922): shared autoencoder, router, routed and shared expert codebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from catalex.quantize import straight_through
from catalex.quantize.dependence import cka, hsic
from catalex.quantize.experts import ExpertCodebooks
from catalex.tokenizers.autoencoder import Autoencoder
from catalex.tokenizers.unitok_options import UniTokOptions

TAKEN = 1e6
"""Put in place of `unlikeliness` for an expert that was chosen before."""
SMALLEST = 8
"""Domains with fewer items are left out of the calibration: the estimate says nothing there."""


class Losses(NamedTuple):
    """Losses of one batch, scalars.

    Attributes:
        total: The weighted sum that is minimised.
        reconstruction: L_Rec.
        quantization: L_RQ, over the kept and the shared experts and all levels.
        calibration: L_MI, variance minus beta times mean of the domains' information.
        balancing: Load-balancing term.
        supervision: Cross-entropy of the gates against the experts of the domains.
    """

    total: Tensor
    reconstruction: Tensor
    quantization: Tensor
    calibration: Tensor
    balancing: Tensor
    supervision: Tensor


class Mixture(NamedTuple):
    """What the experts make of latent vectors ``(B, d)``.

    Attributes:
        vectors: ``(B, d)`` z^, input of the decoder.
        losses: ``(B,)`` quantization loss over all active experts.
        experts: ``(B, N)`` kept experts, the strongest first.
        codes: ``(B, L)`` codes of the strongest.
        shared: ``(B, d)`` contribution of the shared expert.
    """

    vectors: Tensor
    losses: Tensor
    experts: Tensor
    codes: Tensor
    shared: Tensor


class UniTokNetwork(Autoencoder):
    """``z = f(x)``, ``G = softmax(h(z))``, ``z^ = sum_{e in top N} G_e E_e(z) + E_share(z)``, ``x^ = g(z^)``.

    Every expert has a straight-through of its own, ``E(z) <- z + sg(E(z) - z)``, so that the router learns
    from reconstruction too.
    """

    mean_gate: Tensor
    mean_shared: Tensor

    def __init__(self, width: int, experts: int, options: UniTokOptions) -> None:
        latent = options.latent_for(width)
        super().__init__(width, options.hidden, latent)
        self.latent = latent
        o = self.options = options
        self.router = nn.Linear(latent if o.router_input == "latent" else width, experts)
        self.routed = ExpertCodebooks(
            experts, o.levels, o.codebook_size, latent, commitment=o.commitment, reduction=o.reduction
        )
        self.shared = (
            ExpertCodebooks(
                1, o.levels, o.codebook_size, latent, commitment=o.commitment, reduction=o.reduction
            )
            if o.shared
            else None
        )
        # what an identifier does not say: the gate of its expert and the contribution of the shared one
        self.register_buffer("mean_gate", torch.ones(experts))
        self.register_buffer("mean_shared", torch.zeros(experts, latent))

    @property
    def exact_scale(self) -> float:
        """z^ / z that experts without error and with full gates would give: under "sum" each quantizes all of
        z."""
        return 2.0 if self.options.combination == "sum" and self.options.shared else 1.0

    def gates(self, vectors: Tensor, latents: Tensor) -> Tensor:
        """``(B, K)`` softmax of the router, for vectors ``(B, D)`` with latents ``(B, d)``."""
        return self.log_gates(vectors, latents).exp()

    def log_gates(self, vectors: Tensor, latents: Tensor) -> Tensor:
        """``(B, K)`` logarithms of the gates; exact where a gate is too small for a float."""
        scores: Tensor = self.router(latents if self.options.router_input == "latent" else vectors)
        return scores.log_softmax(1)

    def choose(self, gates: Tensor) -> Tensor:
        """``(B, N)`` kept experts, the strongest first; ties to the lowest."""
        left, chosen = unlikeliness(gates.detach()), []
        for _ in range(self.options.routed):
            best = left.argmin(1, keepdim=True)
            chosen.append(best)
            left = left.scatter(1, best, TAKEN)
        return torch.cat(chosen, 1)

    def mix(self, latents: Tensor, gates: Tensor) -> Mixture:
        """Send latents ``(B, d)`` through the kept experts and the shared one and combine them."""
        o, experts = self.options, self.choose(gates)
        weights = gates.gather(1, experts)
        if o.renormalise:
            weights = weights / weights.sum(1, keepdim=True)
        losses = latents.new_zeros(len(latents))
        shared, target = torch.zeros_like(latents), latents
        if self.shared is not None and o.combination == "residual":
            shared, losses = self._share(latents)
            target = latents - shared.detach()
        total, codes = torch.zeros_like(latents), None
        for place in range(o.routed):
            found = self.routed(target, experts[:, place])
            codes = found.codes if codes is None else codes
            losses = losses + found.losses
            total = total + weights[:, place, None] * straight_through(target, found.vectors)
        assert codes is not None
        if self.shared is not None and o.combination != "residual":
            rest = latents if o.combination == "sum" else latents - total.detach()
            shared, more = self._share(rest)
            losses = losses + more
        return Mixture(total + shared, losses, experts, codes, shared.detach())

    def _share(self, target: Tensor, *, count: bool = True) -> tuple[Tensor, Tensor]:
        """Contribution ``(B, d)`` of the shared expert, straight-through, and its losses ``(B,)``."""
        assert self.shared is not None
        found = self.shared(
            target, torch.zeros(len(target), dtype=torch.int64, device=target.device), count=count
        )
        return straight_through(target, found.vectors), found.losses

    def forward(
        self,
        vectors: Tensor,
        domains: Tensor,
        weights: Tensor,
        experts_of: Tensor,
        measured: Tensor | None = None,
    ) -> Losses:
        """Losses of a stratified batch ``(P, n, D)``: n items of each of P domains.

        Args:
            vectors: Normalised content vectors.
            domains: ``(P,)`` numbers of the domains.
            weights: ``(P,)`` weight of each domain's items; they average 1.
            experts_of: ``(domains, K)`` bool, the experts of each domain.
            measured: ``(P,)`` bool, the domains that are large enough for the calibration; None for all.
        """
        o, (present, each, _) = self.options, vectors.shape
        rows = vectors.flatten(0, 1)
        latents = self.encoder(rows)
        log_gates = self.log_gates(rows, latents)
        gates = log_gates.exp()
        mixed = self.mix(latents, gates)
        squares = (rows - self.decoder(mixed.vectors)).square()
        errors = squares.sum(1) if o.reduction == "sum" else squares.mean(1)
        weight = weights.repeat_interleave(each)
        reconstruction, quantization = (errors * weight).mean(), (mixed.losses * weight).mean()
        grouped = latents.view(present, each, -1)
        if measured is not None:
            calibration = calibrate(self.information(vectors[measured], grouped[measured]), o.beta)
        else:
            calibration = calibrate(self.information(vectors, grouped), o.beta)
        share = functional.one_hot(mixed.experts, gates.shape[1]).float().sum(1).mean(0) / o.routed
        balancing = gates.shape[1] * (share * gates.mean(0)).sum()
        own = experts_of[domains].repeat_interleave(each, 0)
        supervision = -log_gates.masked_fill(~own, -torch.inf).logsumexp(1).mean()
        total = reconstruction + o.quantization * quantization + o.calibration * calibration
        total = total + o.load_balancing * balancing + o.supervision * supervision
        return Losses(total, reconstruction, quantization, calibration, balancing, supervision)

    def information(self, vectors: Tensor, latents: Tensor) -> Tensor:
        """``(P,)`` I_k of P domains with n items each, from ``(P, n, D)`` and ``(P, n, d)``; empty when n is
        too small."""
        if vectors.shape[1] < SMALLEST:
            return latents.new_zeros(0)
        return (cka if self.options.normalised_information else hsic)(vectors, latents)

    def warm_up(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """Reconstruction loss of a stratified batch ``(P, n, D)`` without quantization."""
        rows = vectors.flatten(0, 1)
        latents = self.encoder(rows)
        squares = (rows - self.decoder(self.exact_scale * latents)).square()
        errors = squares.sum(1) if self.options.reduction == "sum" else squares.mean(1)
        loss: Tensor = (errors * weights.repeat_interleave(vectors.shape[1])).mean()
        return loss

    @torch.no_grad()
    def target(self, latents: Tensor) -> Tensor:
        """``(B, d)`` what the routed experts quantize."""
        if self.options.combination != "residual":
            return latents
        return latents - self._share(latents, count=False)[0]

    @torch.no_grad()
    def imagine(self, routed: Tensor, experts: Tensor) -> Tensor:
        """``(B, D)`` decoder output for reconstructions ``(B, d)`` of the strongest experts ``(B,)``.

        The identifier carries neither gates nor the shared expert's codes. The gate is replaced by its mean
        over the training items of the expert. Under "sum" the shared expert quantizes the routed
        reconstruction, which stands for z; otherwise its mean contribution is taken.
        """
        total = self.mean_gate[experts][:, None] * routed
        if self.shared is not None and self.options.combination == "sum":
            total = total + self._share(routed, count=False)[0]
        elif self.shared is not None:
            total = total + self.mean_shared[experts]
        decoded: Tensor = self.decoder(total)
        return decoded


def unlikeliness(gates: Tensor) -> Tensor:
    """``-log G`` of gates ``(B, K)``: orders even experts whose gates round to 0 beside that of a sure
    router."""
    return -gates.clamp(min=torch.finfo(gates.dtype).tiny).log().clamp(max=0)


def calibrate(information: Tensor, beta: float) -> Tensor:
    """L_MI = Var_k[I_k] - beta Mean_k[I_k] of ``(P,)``; 0 without any domain."""
    if not len(information):
        return information.sum()
    return information.var(correction=0) - beta * information.mean()


@torch.no_grad()
def discriminant(latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Weights ``(K, d)`` and biases ``(K,)`` of the linear discriminant of K groups of vectors ``(N_k, d)``.

    Equal priors, pooled covariance with a tenth of its mean variance added. Its softmax is the probability of
    each group under Gaussians with a common covariance.
    """
    means = torch.stack([group.mean(0) for group in latents])
    width = means.shape[1]
    spread = torch.stack([((g - m).T @ (g - m)) / len(g) for g, m in zip(latents, means, strict=True)]).mean(
        0
    )
    ridge = 0.1 * spread.diagonal().mean() + 1e-6
    weights = torch.linalg.solve(spread + ridge * torch.eye(width, device=means.device), means.T).T
    return weights, -0.5 * (weights * means).sum(1)
