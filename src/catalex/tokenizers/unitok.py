"""UniTok: one tokenizer for many domains, with a shared autoencoder and a mixture of expert codebooks.

"Tokenize Once, Recommend Anywhere", arXiv 2511.12922. An identifier is ``(c_1, .., c_L, e_1, .., e_N)``:
the codes of the strongest routed expert e_1, and the names of the N kept experts from the strongest on; with
``expert_token: first`` it is ``(e_1, .., e_N, c_1, .., c_L)``, with ``none`` ``(c_1, .., c_L)``. The experts
are always chosen first. Codes of all experts share the tokens of their level: code 17 means something else
under another expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from catalex.errors import user_error
from catalex.options import Options
from catalex.quantize import in_blocks
from catalex.quantize.distances import squared_distances
from catalex.tokenizers.autoencoder import AutoencoderTokenizer
from catalex.tokenizers.base import CodeSpace, ResidualPart, TokenizerDomain
from catalex.tokenizers.expert_memory import ExpertMemory
from catalex.tokenizers.folder import Training
from catalex.tokenizers.normalise import Normaliser
from catalex.tokenizers.training_set import check_domains, pooled
from catalex.tokenizers.unitok_network import TAKEN, UniTokNetwork, unlikeliness
from catalex.tokenizers.unitok_options import UniTokOptions
from catalex.tokenizers.unitok_training import UnionOfDomains, train_unitok
from catalex.types import JSON, Codes, Floats, Ints

MEMORY = "expert_memory"
"""Array of `ExpertMemory.rows` in the tokenizer's file."""


class UniTok(AutoencoderTokenizer[UniTokNetwork]):
    """Codes of a routed expert, and the expert's name unless `UniTokOptions.expert_token` leaves it out."""

    Options: ClassVar[type[Options]] = UniTokOptions
    name: ClassVar[str] = "unitok"

    def __init__(self, options: UniTokOptions) -> None:
        super().__init__(options)
        self.options: UniTokOptions = options
        self.experts = options.experts if isinstance(options.experts, int) else 0
        self.memory: ExpertMemory | None = None

    # --- the code space -------------------------------------------------------------------------------------

    def expect(self, domains: Sequence[str]) -> None:
        """Settle the number of experts; see `UniTokOptions.owners`."""
        self.experts = len(self.options.owners(domains))
        if self.options.routed > self.experts:
            raise user_error(
                "more experts are kept for an item than there are",
                place="tokenizer.routed",
                value=self.options.routed,
                allowed=f"1 to {self.experts}",
            )

    @property
    def space(self) -> CodeSpace:
        """L levels of T codes and N of K experts, if named; the experts share one range of tokens.

        Raises:
            CatalexError: When the number of named experts depends on domains that nobody has named yet.
        """
        o = self.options
        if self._names and not self.experts:
            raise user_error(
                "the number of experts depends on the training domains",
                place=self.name,
                remedy="set tokenizer.experts to a number, or call expect with their names first",
            )
        codes, names = (o.codebook_size,) * o.levels, (self.experts,) * self._names
        if o.expert_token == "first":
            return CodeSpace(names + codes, (*(0,) * o.routed, *range(1, o.levels + 1)))
        return CodeSpace(codes + names, (*range(o.levels), *(o.levels,) * self._names))

    @property
    def expert_position(self) -> int | None:
        """Position of the strongest expert's name in the identifier; None where it is not written."""
        return {"last": self.options.levels, "first": 0, "none": None}[self.options.expert_token]

    @property
    def order(self) -> tuple[int, ...]:
        """Experts first, if named, then codes."""
        return (*self._name_positions, *self._code_positions)

    @property
    def _names(self) -> int:
        """Experts that an identifier names."""
        return 0 if self.options.expert_token == "none" else self.options.routed

    @property
    def _name_positions(self) -> tuple[int, ...]:
        first = self.expert_position or 0
        return tuple(range(first, first + self._names))

    @property
    def _code_positions(self) -> tuple[int, ...]:
        first = self._names if self.options.expert_token == "first" else 0
        return tuple(range(first, first + self.options.levels))

    # --- training -------------------------------------------------------------------------------------------

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Train autoencoder, router and codebooks together, as section 4 of the paper has it.

        A domain with fewer items than codes is served: its items become code vectors, and the codes left
        over start on residuals of other domains. A domain with fewer than 8 items does not count in the
        variance of the information that is reported.

        Returns:
            Curves, a value an epoch: ``total``, ``reconstruction``, ``quantization``, ``calibration``,
            ``balancing``, ``supervision``, ``utilisation`` (share of the routed codes in use, by level);
            every few epochs ``evaluated_at``, ``information`` (I_k by domain, at equal n) and
            ``information_variance``; at the end ``errors`` (relative squared error of x^ by domain, all
            experts active) and ``parameters``.
        """
        options = self.options
        width = check_domains(domains, options.codebook_size)
        self.expect([domain.name for domain in domains])
        vectors, weights = pooled(domains, options.balance)
        self.training = Training.of(domains, width)
        self.normaliser = Normaliser.fit(options.normalise, vectors, weights, options.components)
        if options.principal and options.latent_for(self.normaliser.width) > self.normaliser.width:
            raise user_error(
                "there are fewer principal components than entries of the latent vector",
                place="tokenizer.latent",
                value=options.latent,
                allowed=f"at most {self.normaliser.width}",
            )
        network = self._build(self.normaliser.width, seed).to(device)
        inputs = self.normaliser(vectors).to(device)
        owners = options.owners([d.name for d in domains], [len(d.vectors) for d in domains])
        union = UnionOfDomains.of(inputs, domains, weights, owners)
        facts = train_unitok(network, union, seed=seed, partial=partial)
        self.network = network.cpu().eval()
        if not self._names:
            chosen = self._choose(vectors)
            self.memory = ExpertMemory.of(chosen[:, options.routed :], chosen[:, 0], options.codebook_size)
        return facts

    def _build(self, width: int, seed: int) -> UniTokNetwork:
        """An untrained network; the seed acts on nothing outside."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UniTokNetwork(width, self.experts, self.options)

    # --- codes ----------------------------------------------------------------------------------------------

    def encode(self, vectors: Floats) -> Codes:
        """Codes and experts ``(N, L + N_routed)``, or codes alone ``(N, L)``, of vectors ``(N, D)``; needs no
        label of the domain."""
        written = self._choose(self._rows(vectors))[:, self.options.routed - self._names :]
        return np.ascontiguousarray(written[:, np.argsort(self.order)])

    def _choose(self, rows: Tensor) -> Codes:
        """``(N, N_routed + L)`` kept experts, the strongest first, and codes of the strongest, for content
        vectors ``(N, D)``."""
        network, normaliser = self._trained()

        def codes(block: Tensor) -> Tensor:
            x = normaliser(block)
            latents = network.encoder(x)
            experts = network.choose(network.gates(x, latents))
            rest, found = network.target(latents), [*experts.unbind(1)]
            for level in range(self.options.levels):
                chosen = network.routed.nearest(rest, experts[:, 0], level)
                rest = rest - network.routed.look_up(experts[:, 0], chosen, level)
                found.append(chosen)
            return torch.stack(found, 1)

        with torch.no_grad():
            return in_blocks(codes, rows).numpy().astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K or T)`` at the next step of `order`.

        For the name of an expert ``-log G``, and `TAKEN` for one that was chosen before; for a code the
        squared distance in the latent space, under the expert that the prefix names, or else the one that the
        router chooses for the item.
        """
        rows, network, normaliser = self._rows(vectors), *self._trained()
        before = torch.from_numpy(np.array(prefix, dtype=np.int64))
        names, step = self._names, before.shape[1]

        def measure(block: Tensor, chosen: Tensor) -> Tensor:
            x = normaliser(block)
            latents = network.encoder(x)
            if step < names:
                return unlikeliness(network.gates(x, latents)).scatter(1, chosen, TAKEN)
            expert = chosen[:, 0] if names else network.choose(network.gates(x, latents))[:, 0]
            rest = network.routed.residual(network.target(latents), expert, chosen[:, names:])
            return network.routed.distances(rest, expert, step - names)

        with torch.no_grad():
            distances: Floats = in_blocks(measure, rows, before).numpy()
        return distances

    def decode(self, codes: Codes) -> Floats:
        """``(N, D)`` reconstruction from the identifier alone; see `UniTokNetwork.imagine`.

        Where the identifier names no expert, the one that most training items with these codes chose is
        taken (`ExpertMemory.guess`). Codes that items of two domains share are decoded alike, so for one of
        them the vector may be wrong.
        """
        network, normaliser = self._trained()
        chosen = torch.from_numpy(np.array(codes, dtype=np.int64))
        position = self.expert_position
        named = chosen[:, position] if position is not None else torch.from_numpy(self._guess(codes))

        def vectors(block: Tensor, experts: Tensor) -> Tensor:
            routed = network.routed.sums(experts, block[:, self._code_positions])
            return normaliser.invert(network.imagine(routed, experts))

        with torch.no_grad():
            found: Floats = in_blocks(vectors, chosen, named).numpy()
        return found

    def _guess(self, codes: Codes) -> Ints:
        """``(N,)`` likely experts of codes ``(N, L)`` that come without a name."""
        if self.memory is None:
            raise user_error(
                "nobody noted which experts the training items chose, so codes alone cannot be decoded",
                place=self.name,
                remedy="train the tokenizer with expert_token: none",
            )
        return self.memory.guess(codes)

    # --- files ----------------------------------------------------------------------------------------------

    def _more_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        return {} if self.memory is None else {MEMORY: self.memory.rows}

    def _take_more(self, arrays: Mapping[str, np.ndarray[Any, Any]], place: Path) -> None:
        if self._names:
            return
        if MEMORY not in arrays:
            raise user_error(
                f"array {MEMORY!r} is missing, which a tokenizer with expert_token 'none' needs",
                place=place,
                remedy="train the tokenizer again instead of changing its configuration",
            )
        self.memory = ExpertMemory(arrays[MEMORY], self.options.codebook_size)

    # --- what adaptation and health look at -----------------------------------------------------------------

    def routing(self, vectors: Floats) -> Floats:
        """``(N, K)`` gates of vectors ``(N, D)``; rows sum to 1."""
        rows, network, normaliser = self._rows(vectors), *self._trained()

        def gates(block: Tensor) -> Tensor:
            x = normaliser(block)
            return network.gates(x, network.encoder(x))

        with torch.no_grad():
            found: Floats = in_blocks(gates, rows).numpy()
        return found

    def from_latents(self, latents: Tensor) -> Tensor:
        """``(N, D)`` vectors, decoded as if the strongest routed expert had given ``(N, d)``."""
        network, normaliser = self._trained()

        def vectors(block: Tensor) -> Tensor:
            return normaliser.invert(network.imagine(block, self._expert_of(block)))

        with torch.no_grad():
            return in_blocks(vectors, latents)

    def part_for(self, latents: Tensor) -> ResidualPart:
        """Codebooks of the expert that most of the latents ``(N, d)`` are sent to, with its name if written.

        Raises:
            CatalexError: When the routed experts quantize only what the shared one leaves over.
        """
        self.check_adaptable("rotate")
        network, _ = self._trained()
        with torch.no_grad():
            votes = torch.bincount(in_blocks(self._expert_of, latents), minlength=self.experts)
        expert = int(votes.argmax())
        fixed: list[int | None] = [None] * self.space.levels
        strongest = votes.argsort(descending=True, stable=True).tolist()
        for position, name in zip(self._name_positions, strongest, strict=False):
            fixed[position] = name
        return ResidualPart(tuple(network.routed.weight.detach()[expert]), tuple(fixed))

    def check_adaptable(self, method: str) -> None:
        """Refuse adaptation where an expert alone does not quantize the latent vector, or would have to be
        named beside others."""
        if self.options.combination == "residual":
            raise user_error(
                "with combination 'residual' the routed experts do not quantize the latent vector",
                place=self.name,
                remedy="adapt a tokenizer with combination 'sum' or 'routed-first'",
            )
        if method == "grow" and self._names > 1:
            raise user_error(
                "method 'grow' adds one expert, and this tokenizer keeps several for an item",
                place="tokenizer.routed",
                value=self.options.routed,
                allowed="1",
                remedy="use method 'rotate'",
            )

    def _expert_of(self, latents: Tensor) -> Tensor:
        """``(B,)`` strongest expert of latents ``(B, d)``; where the router reads the content vector, the
        expert that quantizes them best."""
        network, _ = self._trained()
        if self.options.router_input == "latent":
            found: Tensor = network.router(latents).argmax(1)
            return found
        first = network.routed.weight[:, 0].reshape(-1, network.latent)
        return squared_distances(latents, first).argmin(1) // self.options.codebook_size
