"""Training of UniTok: warm-up, k-means start of every expert, stratified epochs, and what is measured on the
way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from catalex.progress import Track, say
from catalex.quantize import kmeans
from catalex.quantize.dependence import domain_information
from catalex.quantize.distances import passes
from catalex.tokenizers.base import TokenizerDomain
from catalex.tokenizers.checkpoint import Curves, epoch_seed, load_checkpoint, save_checkpoint
from catalex.tokenizers.information import common_size
from catalex.tokenizers.stratified import StratifiedBatches
from catalex.tokenizers.unitok_network import SMALLEST, Losses, UniTokNetwork, discriminant

ROWS = 1024
"""Items encoded at once when all of them are looked at; the cache of a processor holds their distances."""
PLACING_ITEMS = 256
"""Items at most for each code that an expert's codebooks are placed by; more change k-means little (default
`max_points_per_centroid` of Faiss). With 256 codes, all items of domains up to 65,536 are looked at."""
SPARE_ITEMS = 16
"""Items at most for each code that the codes of an expert with few items are drawn from."""


@dataclass(frozen=True)
class UnionOfDomains:
    """All training items, one domain after the other.

    Attributes:
        inputs: ``(N, D)`` normalised content vectors, on the device.
        names: P names.
        sizes: P numbers of items.
        weights: ``(P,)`` weight of an item of each domain in a stratified batch; they average 1.
        owners: For each expert the numbers of the domains it starts from.
    """

    inputs: Tensor
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: Tensor
    owners: list[list[int]]

    @classmethod
    def of(
        cls, inputs: Tensor, domains: Sequence[TokenizerDomain], item_weights: Tensor, owners: list[list[int]]
    ) -> UnionOfDomains:
        """Join what `training_set.pooled` gave with the owners of the experts."""
        sizes = tuple(len(domain.vectors) for domain in domains)
        mass = torch.stack([part.sum() for part in torch.split(item_weights, list(sizes))])
        weights = (mass / mass.mean()).to(inputs)
        return cls(inputs, tuple(domain.name for domain in domains), sizes, weights, owners)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows ``(N, ..)`` cut into the P domains."""
        return torch.split(rows, list(self.sizes))

    def experts_of(self, experts: int) -> Tensor:
        """``(P, K)`` bool: which experts belong to which domain."""
        found = torch.zeros(len(self.names), experts, dtype=torch.bool, device=self.inputs.device)
        for expert, owners in enumerate(self.owners):
            found[owners, expert] = True
        return found


def train_unitok(network: UniTokNetwork, union: UnionOfDomains, *, seed: int, partial: Path | None) -> Curves:
    """Train `network` in place; returns the curves and facts of `UniTok.fit`."""
    o = network.options
    batches = StratifiedBatches(union.sizes, o.batch, seed)
    if o.calibration and batches.each < SMALLEST:
        say(
            f"UniTok: no calibration, because a batch of {o.batch} holds {batches.each} items of each of "
            f"{len(union.names)} domains; tokenizer.batch: {SMALLEST * len(union.names)} would do"
        )
    optimizer = _optimizer(network)
    names = ("total", "reconstruction", "quantization", "calibration", "balancing", "supervision")
    curves: Curves = {name: [] for name in (*names, "utilisation", "evaluated_at", "information_variance")}
    information: dict[str, list[float | None]] = {name: [] for name in union.names}
    epochs, began = o.epochs_for(len(union.inputs)), 0
    restored = load_checkpoint(partial, network, optimizer) if partial is not None else None
    if restored is not None:
        began, curves = restored
        information = curves.pop("information")
    else:
        if o.principal:
            _principal(network, union)
        _warm_up(network, union, batches)
        initialise(network, union, seed)
    network.train()
    own = union.experts_of(len(network.mean_gate))
    with Track("train UniTok", epochs, "epochs", start=began) as track:
        for epoch in range(began, epochs):
            means = _epoch(network, optimizer, union, own, batches.epoch(epoch))
            for name, value in zip(names, means, strict=True):
                curves[name].append(value)
            revive = epoch + 1 <= o.revive_until * epochs
            used = _revive(network, union, batches, epoch, seed) if revive else network.routed.utilisation()
            curves["utilisation"].append(used.mean(0).tolist())
            if (epoch + 1) % o.information_every == 0 or epoch + 1 == epochs:
                _measure(network, union, information, curves)
                curves["evaluated_at"].append(epoch + 1)
            track.advance(note=f"loss {means[0]:.4f}, codes used {float(used.mean()):.0%}")
            if partial is not None and ((epoch + 1) % o.checkpoint_every == 0 or epoch + 1 == epochs):
                save_checkpoint(
                    partial, epoch + 1, network, optimizer, {**curves, "information": information}
                )
    network.eval()
    errors = _settle(network, union)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {**curves, "information": information, "errors": errors, "parameters": parameters}


def _optimizer(network: UniTokNetwork) -> torch.optim.Optimizer:
    """AdamW; weight decay pulls at the matrices of the MLPs only."""
    matrices = [p for m in (network.encoder, network.decoder) for p in m.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in chosen]
    o = network.options
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.learning_rate)


@torch.no_grad()
def _principal(network: UniTokNetwork, union: UnionOfDomains) -> None:
    """Set the linear encoder to the leading principal axes of the inputs, the decoder to their transpose."""
    x, sizes = union.inputs, torch.tensor(union.sizes, device=union.inputs.device)
    mass = (union.weights.double() / sizes).repeat_interleave(sizes)[:, None]
    mass = mass / mass.sum()
    mean = torch.stack([(part.double() * share).sum(0) for part, share in passes(x, mass)]).sum(0)
    spread = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part, share in passes(
        x, mass
    ):  # piece by piece: in float64 all at once would take six times the inputs
        centred = part.double() - mean
        spread += (centred * share).T @ centred
    _, axes = torch.linalg.eigh(spread)
    axes = axes.flip(1)[:, : network.latent].float()
    encoder, decoder = network.encoder[0], network.decoder[0]
    assert isinstance(encoder, torch.nn.Linear)
    assert isinstance(decoder, torch.nn.Linear)
    encoder.weight.copy_(axes.T)
    encoder.bias.copy_(-(mean.float() @ axes))
    decoder.weight.copy_(axes / network.exact_scale)
    decoder.bias.copy_(mean.float())


def _warm_up(network: UniTokNetwork, union: UnionOfDomains, batches: StratifiedBatches) -> None:
    """Train the autoencoder alone, so that the codebooks are placed among latents that mean something."""
    o = network.options
    optimizer = torch.optim.AdamW(
        [*network.encoder.parameters(), *network.decoder.parameters()],
        lr=o.learning_rate,
        weight_decay=o.weight_decay,
    )
    done = 0
    for turn in range(math.ceil(o.warmup / batches.steps)):
        for rows in batches.epoch(-1 - turn):
            if done == o.warmup:
                return
            loss = network.warm_up(union.inputs[rows.to(union.inputs.device)], union.weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1


@torch.no_grad()
def initialise(network: UniTokNetwork, union: UnionOfDomains, seed: int) -> None:
    """Place every expert's codebooks by k-means on its domains, the shared one's on the union; tie the
    router.

    Experts of one domain share it among them: each starts on one cluster of the domain. Of a large domain a
    random sample of `PLACING_ITEMS` items a code is looked at.
    """
    o, everything = network.options, torch.arange(len(union.inputs))
    if network.shared is not None:
        placing_seed = epoch_seed(seed, 0, "shared expert")
        sample = _some(everything, PLACING_ITEMS * o.codebook_size, placing_seed)
        latents = _encode(network, union.inputs, sample)
        network.shared.initialise(0, latents, latents, placing_seed, balanced=o.balanced_init)
    spare = _encode(network, union.inputs, _some(everything, SPARE_ITEMS * o.codebook_size, seed))
    read = []
    for expert, rows in enumerate(_groups(network, union, seed)):
        latents = _encode(network, union.inputs, rows)
        network.routed.initialise(
            expert,
            _targets(network, latents),
            _targets(network, spare),
            epoch_seed(seed, 0, f"expert {expert}"),
            balanced=o.balanced_init,
        )
        read.append(latents if o.router_input == "latent" else union.inputs[rows.to(union.inputs.device)])
    if o.router_init == "domains":
        weights, biases = discriminant(read)
        network.router.weight.data.copy_(weights)
        network.router.bias.data.copy_(biases)


def _groups(network: UniTokNetwork, union: UnionOfDomains, seed: int) -> list[Tensor]:
    """For each expert the rows that it starts from, at most `PLACING_ITEMS` a code on average over a domain's
    experts."""
    first = torch.tensor([0, *union.sizes]).cumsum(0).tolist()
    found: list[Tensor] = [torch.zeros(0, dtype=torch.int64)] * len(union.owners)
    limit = PLACING_ITEMS * network.options.codebook_size
    for owners in {tuple(owners) for owners in union.owners}:
        experts = [expert for expert, own in enumerate(union.owners) if tuple(own) == owners]
        rows = torch.cat([torch.arange(first[d], first[d + 1]) for d in owners])
        rows = _some(rows, limit * len(experts), epoch_seed(seed, 0, f"sample {owners}"))
        if len(experts) == 1 or len(rows) < len(experts):
            parts = [rows] * len(experts)
        else:
            targets = _targets(network, _encode(network, union.inputs, rows))
            clusters = kmeans(targets, len(experts), seed=epoch_seed(seed, 0, f"groups {owners}"))
            parts = [rows[clusters.assignment.cpu() == number] for number in range(len(experts))]
        for expert, part in zip(experts, parts, strict=True):
            found[expert] = part if len(part) else rows
    return found


def _some(rows: Tensor, limit: int, seed: int) -> Tensor:
    """All of the rows ``(N,)``, or a random sample of `limit` of them, ascending."""
    if len(rows) <= limit:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:limit]
    return rows[chosen.sort().values]


def _epoch(
    network: UniTokNetwork,
    optimizer: torch.optim.Optimizer,
    union: UnionOfDomains,
    own: Tensor,
    batches: Iterable[Tensor],
) -> list[float]:
    """One pass; returns the means of all losses over its steps."""
    device = union.inputs.device
    domains = torch.arange(len(union.names), device=device)
    large = [size >= SMALLEST for size in union.sizes]
    measured = None if all(large) else torch.tensor(large, device=device)
    sums, steps = torch.zeros(len(Losses._fields), dtype=torch.float64, device=device), 0
    for rows in batches:
        losses = network(union.inputs[rows.to(device)], domains, union.weights, own, measured)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        optimizer.step()
        sums += torch.stack(losses).detach().double()
        steps += 1
    means: list[float] = (sums / steps).tolist()
    return means


@torch.no_grad()
def _revive(
    network: UniTokNetwork, union: UnionOfDomains, batches: StratifiedBatches, epoch: int, seed: int
) -> Tensor:
    """Restart the unused codes of all experts on the first batches of the epoch; ``(K, L)`` use before."""
    wanted = max(network.options.codebook_size // batches.each, 1)
    rows = torch.cat([r.flatten() for _, r in zip(range(wanted), batches.epoch(epoch), strict=False)])
    x = union.inputs[rows.to(union.inputs.device)]
    latents = network.encoder(x)
    if network.shared is not None:
        everywhere = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        network.shared.revive(latents, everywhere, epoch_seed(seed, epoch, "revive shared"))
    experts = network.choose(network.gates(x, latents))[:, 0]
    return network.routed.revive(network.target(latents), experts, epoch_seed(seed, epoch, "revive"))


@torch.no_grad()
def _encode(network: UniTokNetwork, inputs: Tensor, rows: Tensor) -> Tensor:
    """``(N, d)`` latents of the items ``(N,)``."""
    return torch.cat([network.encoder(inputs[part.to(inputs.device)]) for part in torch.split(rows, ROWS)])


def _targets(network: UniTokNetwork, latents: Tensor) -> Tensor:
    """``(N, d)`` what the routed experts quantize of latents ``(N, d)``."""
    return torch.cat([network.target(part) for part in torch.split(latents, ROWS)])


@torch.no_grad()
def _measure(
    network: UniTokNetwork, union: UnionOfDomains, information: dict[str, list[float | None]], curves: Curves
) -> None:
    """I_k of every domain at equal n, and their variance."""
    everything = torch.arange(len(union.inputs))
    latents = union.split(_encode(network, union.inputs, everything))
    found = [
        domain_information(
            x, z, size=common_size(union.sizes), normalised=network.options.normalised_information
        )
        for x, z in zip(union.split(union.inputs), latents, strict=True)
    ]
    for name, value in zip(union.names, found, strict=True):
        information[name].append(value)
    known = torch.tensor([value for value in found if value is not None], dtype=torch.float64)
    curves["information_variance"].append(float(known.var(correction=0)) if len(known) else None)


@torch.no_grad()
def _settle(network: UniTokNetwork, union: UnionOfDomains) -> dict[str, float]:
    """Note each expert's mean gate and mean shared contribution; relative squared error of x^ by domain."""
    experts = len(network.mean_gate)
    gates = torch.zeros(experts, dtype=torch.float64, device=union.inputs.device)
    shared = torch.zeros(experts, network.latent, dtype=torch.float64, device=union.inputs.device)
    counts, squares = torch.zeros_like(gates), []
    for part in torch.split(union.inputs, ROWS):
        latents = network.encoder(part)
        routing = network.gates(part, latents)
        mixed = network.mix(latents, routing)
        # a product, because scattered additions have no fixed order on a GPU
        member = torch.nn.functional.one_hot(mixed.experts[:, 0], experts).double().T
        counts += member.sum(1)
        kept = routing.gather(1, mixed.experts).sum(1).double()
        gates += member @ (torch.ones_like(kept) if network.options.renormalise else kept)
        shared += member @ mixed.shared.double()
        squares.append((part - network.decoder(mixed.vectors)).square().sum(1))
    seen = counts.clamp(min=1)
    network.mean_gate.copy_(torch.where(counts > 0, gates / seen, 1.0))
    network.mean_shared.copy_(shared / seen[:, None])
    domains = zip(union.names, union.split(union.inputs), union.split(torch.cat(squares)), strict=True)
    return {
        name: float(error.double().sum() / (x - x.mean(0)).double().square().sum().clamp(min=1e-30))
        for name, x, error in domains
    }
