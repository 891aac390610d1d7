"""Tree-structured codebooks of UTGRec (arXiv 2504.04405, section 2.2): L vectors of an item to L codes.

The L continuous vectors h'_1..h'_L of an item run from coarse to fine. What a level adds to the level before
it, ``r_1 = h'_1``, ``r_l = h'_l - h'_{l-1}`` (eq. 3), is quantized by the nearest code (eq. 4): level 1 by
the root codebook, all further levels by one leaf codebook that they share. The running sum of the chosen code
vectors restores the vectors. Unlike residual quantization this subtracts the continuous vector, so that no
level has to wait for the codes of another.

A codebook is a product ``E = C W`` of base vectors C ``(K, d_c)`` and a projection W ``(d_c, d_c)`` (SimVQ,
arXiv 2411.02038): a gradient at the few chosen codes moves W and with it every code, and a codebook is
carried to another domain by learning W alone.

Shapes: B or N items, L levels, K codes of a codebook, d_c width of vectors and codes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from catalex.quantize.distances import in_blocks, nearest, squared_distances
from catalex.quantize.kmeans import kmeans
from catalex.quantize.procrustes import Motion, rotate_onto
from catalex.quantize.vq import Reduction, straight_through

Residual = Literal["prefix", "quantized", "none"]

WEAKEST_DIRECTION = 0.01
"""Singular values of W below this share of the largest are not inverted when a code restarts (ours). A new
square W of width 128 has one or two such directions; inverting them would make a base vector many times
longer than the others, and its code would leap at every step of W."""


def prefix_residual(h: Tensor) -> Tensor:
    """``(..., L, d)`` what each level adds to the level before it: ``r_1 = h_1``, ``r_l = h_l - h_{l-1}``
    (eq. 3)."""
    return torch.cat([h[..., :1, :], h[..., 1:, :] - h[..., :-1, :]], dim=-2)


def inverse_prefix_residual(q: Tensor) -> Tensor:
    """``(..., L, d)`` running sum over the levels, the inverse of `prefix_residual`."""
    return q.cumsum(-2)


RIDGE = 1e-2
"""Pull of W towards where it was in `TreeCodebooks.settle`, as a share of the codes' mean square."""
FLAT = 1e-10
"""Directions with less than this share of the largest variance count as not taken up by code vectors."""
SPARE = 0.3
"""Size of C's random part in each direction that code vectors do not take up, in units of their typical size
in the others (ours; 0.3, 1 and 3 serve alike)."""


class TreeQuantized(NamedTuple):
    """What the codebooks make of vectors ``(B, L, d_c)``.

    Attributes:
        codes: ``(B, L)`` int64, nearest code at every level, ties to the lowest.
        restored: ``(B, L, d_c)`` float32, the restored vectors h^ with the gradient of the input (straight
            through); the codebooks get no gradient from it.
        losses: ``(L,)`` float32, codebook and commitment loss of each level (eqs. 6 and 7), means over
            batch and width as in the official code; 0 for an empty batch.
    """

    codes: Tensor
    restored: Tensor
    losses: Tensor


class ProjectedCodebook(nn.Module):
    """K code vectors ``E = C W``, or plainly C.

    Args:
        size: K.
        width: d_c.
        projected: With W; without it the code vectors themselves are learned.
        generator: Draws ``C ~ N(0, 1/d_c)`` and W as a linear layer starts, ``U(-1/sqrt(d_c), 1/sqrt(d_c))``.
    """

    def __init__(self, size: int, width: int, *, projected: bool, generator: torch.Generator) -> None:
        super().__init__()
        bound = width**-0.5
        self.base = nn.Parameter(torch.randn(size, width, generator=generator) * bound)
        self.projection: nn.Parameter | None = None
        if projected:
            start = torch.empty(width, width).uniform_(-bound, bound, generator=generator)
            self.projection = nn.Parameter(start)

    def forward(self) -> Tensor:
        """E: ``(K, d_c)`` float32."""
        if self.projection is None:
            return self.base.float()
        with torch.autocast(self.base.device.type, enabled=False):
            return self.base.float() @ self.projection.float()

    @torch.no_grad()
    def place(self, vectors: Tensor, seed: int) -> None:
        """Make all K code vectors equal to ``(K, d_c)``.

        W becomes the orthogonal projection onto the directions that the vectors take up, and C gets a random
        part in all others (ours). Nothing of it shows in C W; but when W alone is tuned later, it can move
        codes apart that it otherwise could only turn and stretch together: with d_c >= K every one freely.
        """
        if self.projection is None:
            self.base.copy_(vectors)
            return
        if not vectors.isfinite().all():  # training will say so; eigenvectors would fail first
            self.base.copy_(vectors)
            return
        values, axes = torch.linalg.eigh(vectors.double().T @ vectors.double())
        taken = axes[:, values > FLAT * values.max().clamp(min=1e-30)]
        full = taken.shape[1] == len(self.projection)
        onto = torch.eye(len(self.projection)).to(taken) if full else taken @ taken.T
        spare = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed)).to(onto)
        typical = vectors.double().square().sum() / max(len(vectors) * taken.shape[1], 1)
        self.base.copy_(vectors + SPARE * typical.sqrt() * (spare - spare @ onto))
        self.projection.copy_(onto)

    @torch.no_grad()
    def move(self, codes: Tensor, vectors: Tensor) -> None:
        """Move codes ``(m,)`` to ``(m, d_c)`` by their base vectors alone; W and with it all other codes
        stay.

        The base vector changes as little as solves ``c W = v`` by least squares, see `WEAKEST_DIRECTION`:
        exact for a W of condition number up to 100 within the directions that codes take up, otherwise the
        nearest code that needs no long base vector.
        """
        if self.projection is None:
            self.base[codes] = vectors.to(self.base)
            return
        before, projection = self.base[codes].double(), self.projection.double()
        inverse = torch.linalg.pinv(projection, rtol=WEAKEST_DIRECTION)
        self.base[codes] = (before + (vectors.double() - before @ projection) @ inverse).to(self.base)


class TreeCodebooks(nn.Module):
    """Root and leaf codebooks with their lookup, loss and start; the defaults are UTGRec, the rest ablations.

    Args:
        levels: L.
        root: K of level 1 (256 in the paper).
        leaf: K of the levels 2..L (256 (L - 1) in the paper).
        width: d_c (128 in the official code).
        seed: Fixes the start.
        beta: Weight of the commitment term (0.25 in the paper).
        share_leaf: One codebook for the levels 2..L; otherwise each has its own of size `leaf`.
        projected: Codebooks are products C W; otherwise plain code vectors.
        residual: What a level quantizes. "prefix": h'_l less the continuous vector before it (eq. 3).
            "quantized": h'_l less the *restored* vector before it, as residual quantization does. "none":
            h'_l itself, and the restored vector is the chosen code alone.
    """

    def __init__(
        self,
        levels: int,
        root: int,
        leaf: int,
        width: int,
        *,
        seed: int,
        beta: float = 0.25,
        share_leaf: bool = True,
        projected: bool = True,
        residual: Residual = "prefix",
    ) -> None:
        super().__init__()
        self.levels, self.width, self.beta, self.residual = levels, width, beta, residual
        self._groups = tuple(min(level, 1) if share_leaf else level for level in range(levels))
        generator = torch.Generator().manual_seed(seed)
        self.books = nn.ModuleList(
            ProjectedCodebook(leaf if group else root, width, projected=projected, generator=generator)
            for group in range(max(self._groups) + 1)
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """K of each level."""
        return tuple(len(self.book(level).base) for level in range(self.levels))

    @property
    def groups(self) -> tuple[int, ...]:
        """Codebook of each level: (0, 1, 1) with a shared leaf, (0, 1, 2) without."""
        return self._groups

    def book(self, level: int) -> ProjectedCodebook:
        """The codebook of a level counted from 0; levels that share one get the same object."""
        found = self.books[self._groups[level]]
        assert isinstance(found, ProjectedCodebook)
        return found

    def codebook(self, level: int) -> Tensor:
        """E of a level counted from 0: ``(K, d_c)`` float32, with gradient."""
        found: Tensor = self.book(level)()
        return found

    def forward(self, h: Tensor) -> TreeQuantized:
        """Quantize ``(B, L, d_c)`` in float32, whatever the autocast.

        The codebooks learn from the losses alone, each level's from its own: with "quantized" the restored
        vector counts as a constant.
        """
        h = h.float()
        codes, rest, chosen, restored = self._walk(h, self._tables())
        count = max(len(h) * self.width, 1)
        codebook = (rest.detach() - chosen).square().sum((0, 2)) / count
        commitment = (rest - chosen.detach()).square().sum((0, 2)) / count
        return TreeQuantized(codes, straight_through(h, restored), codebook + self.beta * commitment)

    def codebook_loss(self, losses: Tensor, reduction: Reduction) -> Tensor:
        """L_code of the losses by level ``(L,)``, a scalar.

        "mean" is ``(l_1 + mean of l_2..l_L) / 2`` as in the official code, to which the weight 200 belongs;
        "sum" adds all levels, eq. 5. With L = 1 both are l_1.
        """
        if reduction == "sum" or len(losses) == 1:
            return losses.sum()
        return (losses[0] + losses[1:].mean()) / 2

    @torch.no_grad()
    def encode(self, h: Tensor) -> Tensor:
        """Codes ``(N, L)`` of vectors ``(N, L, d_c)``, independent of how items are batched; equals the
        argmin of `distances`, level after level."""
        tables = self._tables()
        return in_blocks(lambda part: self._walk(part, tables)[0], h.float())

    @torch.no_grad()
    def distances(self, h: Tensor, prefix: Tensor) -> Tensor:
        """``(N, K)`` squared distances of items ``(N, L, d_c)`` to the codes of level l = width of `prefix`
        ``(N, l)``, the codes chosen before; independent of how items are batched.

        Only with "quantized" do the codes chosen before matter.
        """
        level, tables = prefix.shape[1], self._tables()

        def block(part: Tensor, before: Tensor) -> Tensor:
            restored = part.new_zeros(len(part), self.width)
            for index in range(level):
                restored = self._add(restored, functional.embedding(before[:, index], tables[index]))
            return squared_distances(self._rest(part, restored, level), tables[level])

        return in_blocks(block, h.float(), prefix)

    @torch.no_grad()
    def restore(self, codes: Tensor) -> Tensor:
        """h^ ``(N, L, d_c)`` float32 of codes ``(N, L)``; may stop at any level l >= 1."""
        tables, levels = self._tables(), []
        restored = tables[0].new_zeros(len(codes), self.width)
        for level in range(codes.shape[1]):
            restored = self._add(restored, functional.embedding(codes[:, level], tables[level]))
            levels.append(restored)
        return torch.stack(levels, 1)

    @torch.no_grad()
    def initialise(self, h: Tensor, seed: int) -> None:
        """Place the codes by k-means on the residuals of ``(N, L, d_c)`` (ours; see
        `ProjectedCodebook.place`): level 1 by itself, levels that share a codebook pooled.

        With fewer residuals than codes every residual becomes a code and the others start near one. With
        "quantized" the codebooks follow each other, since a residual depends on the codes before it; a shared
        leaf is placed on the residuals of level 2 first and then, to know those behind it, once more on all.

        Raises:
            ValueError: When there are no vectors, or the code vectors are frozen.
        """
        if not len(h):
            raise ValueError("k-means needs at least one vector, found none")
        if self.frozen:
            raise ValueError("the code vectors are frozen and cannot be placed anew")
        for group in range(len(self.books)):
            own = self._levels_of(group)
            stages = [own[:1], own] if self.residual == "quantized" and len(own) > 1 else [own]
            for levels in stages:
                rest = self._walk(h.float(), self._tables())[1][:, levels].flatten(0, 1)
                book = self.book(own[0])
                book.place(_start(rest, len(book.base), seed + group), seed + group)

    @torch.no_grad()
    def turn_onto(self, h: Tensor, seed: int, sample: int = 4096, rounds: int = 20) -> None:
        """Turn every W so that the codes come to lie where the residuals of another domain are (ours), C as
        it is. Without `follows` nothing happens.

        By `rotate_onto`: assignment, shared out evenly, alternates with the rotation and translation that
        bring codes and residuals together; levels that share a codebook share its turn. W becomes the least
        squares solution for the moved codes: exact where C has spare directions for it.

        Args:
            h: ``(N, L, d_c)`` vectors of the domain.
            seed: Draws the items it is fitted on.
            sample: Largest number of them.
            rounds: Largest number of rounds.
        """
        if not self.follows:
            return
        rests = self._residuals(h, seed, sample)
        for group in range(len(self.books)):
            levels = self._levels_of(group)
            book = self.book(levels[0])
            assert book.projection is not None
            table = book().cpu()
            own = rests[:, levels].flatten(0, 1)
            mean = own.double().mean(0).float()
            start = Motion(torch.zeros(self.width), torch.eye(self.width), table.mean(0))
            motion = rotate_onto(own - mean, [table], start, rounds=rounds).motion
            moved = (table - motion.target) @ motion.rotation.T + mean
            base = book.base.detach().cpu().double()
            before = book.projection.detach().cpu().double() @ motion.rotation.T.double()
            added = torch.linalg.pinv(base, rtol=WEAKEST_DIRECTION) @ (moved.double() - base @ before)
            book.projection.copy_((before + added).to(book.projection))

    @torch.no_grad()
    def settle(self, h: Tensor, seed: int, sample: int = 16384, rounds: int = 20) -> None:
        """Let every W follow the residuals of another domain, C as it is (ours): nearest codes alternate with
        the W of least squares, as Lloyd's iteration does for free codes. Without `follows` nothing happens.

        Args:
            h: ``(N, L, d_c)`` vectors of the domain.
            seed: Draws the items it is fitted on.
            sample: Largest number of them.
            rounds: Rounds of it.
        """
        if not self.follows:
            return
        rests = self._residuals(h, seed, sample)
        for group in range(len(self.books)):
            levels = self._levels_of(group)
            book = self.book(levels[0])
            assert book.projection is not None
            base, projection = book.base.detach().cpu(), book.projection.detach().cpu()
            settled = _settle(rests[:, levels].flatten(0, 1), base, projection, rounds)
            book.projection.copy_(settled.to(book.projection))

    @property
    def follows(self) -> bool:
        """Whether W alone can follow another domain: not where codes are no products C W, or where a level's
        residual depends on the codes before it."""
        books = [book for book in self.books if isinstance(book, ProjectedCodebook)]
        return self.residual != "quantized" and all(book.projection is not None for book in books)

    def _residuals(self, h: Tensor, seed: int, sample: int) -> Tensor:
        """Residuals ``(n, L, d_c)`` of at most `sample` random ones of ``(N, L, d_c)``, on the CPU."""
        drawn = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))[:sample].sort().values
        return self._walk(h.float()[drawn.to(h.device)], self._tables())[1].cpu()

    def freeze_bases(self, frozen: bool = True) -> None:
        """Exclude all C from learning (UTGRec's fine-tuning, where only W adapts), or include them again."""
        for level in range(self.levels):
            base = self.book(level).base
            base.requires_grad_(not frozen)
            if frozen:
                base.grad = None  # an optimizer would still apply a gradient that is already there

    @property
    def frozen(self) -> bool:
        """Whether C is excluded from learning."""
        return not self.book(0).base.requires_grad

    @torch.no_grad()
    def revive(self, h: Tensor, seed: int) -> Tensor:
        """Move every code that no residual of ``(N, L, d_c)`` chooses onto a random one of them (ours,
        against dead codes); a shared leaf code is moved when no level chooses it. Frozen codes stay.

        Use is judged by `h` alone, not by a count kept since the last call: nothing has to be stored for a
        resumed run or agreed on between processes. N should therefore be several times K, or codes in rare
        use move too. The moments of an optimizer are left as they are.

        Returns:
            ``(L,)`` share of a level's codes that the level used before.
        """
        h = h.float()
        codes, rest, _, _ = self._walk(h, self._tables())
        shares = [_used(codes[:, level], size).float().mean() for level, size in enumerate(self.sizes)]
        for group in range(0 if self.frozen or not len(h) else len(self.books)):
            levels = self._levels_of(group)
            book = self.book(levels[0])
            if self.residual == "quantized" and group:
                # the codes moved before have changed what is left over
                codes, rest, _, _ = self._walk(h, self._tables())
            dead = torch.nonzero(~_used(codes[:, levels].flatten(), len(book.base))).squeeze(1)
            if len(dead):
                pool = rest[:, levels].flatten(0, 1)
                drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + group))
                rows = drawn[torch.arange(len(dead)) % len(drawn)].to(pool.device)
                book.move(dead, pool[rows])
        return torch.stack(shares)

    def _tables(self) -> list[Tensor]:
        """E of each level; one tensor for levels that share it."""
        found: list[Tensor] = [book() for book in self.books]
        return [found[group] for group in self._groups]

    def _levels_of(self, group: int) -> list[int]:
        return [level for level, other in enumerate(self._groups) if other == group]

    def _rest(self, h: Tensor, restored: Tensor, level: int) -> Tensor:
        """``(B, d_c)`` what `level` quantizes of ``(B, L, d_c)``, the levels before it restored as
        ``(B, d_c)``."""
        if level == 0 or self.residual == "none":
            return h[:, level]
        return h[:, level] - (h[:, level - 1] if self.residual == "prefix" else restored)

    def _add(self, restored: Tensor, chosen: Tensor) -> Tensor:
        """The restored vector of a level from that of the level before and the chosen code, ``(B, d_c)``
        each."""
        return chosen if self.residual == "none" else restored + chosen

    def _walk(self, h: Tensor, tables: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes ``(B, L)``, and residuals, chosen code vectors and restored vectors, ``(B, L, d_c)`` each;
        the chosen vectors carry gradient to the codebooks, the restored ones none."""
        codes, rests, vectors, levels = [], [], [], []
        restored = h.new_zeros(len(h), self.width)
        for level, table in enumerate(tables):
            rest = self._rest(h, restored, level)
            index = nearest(rest.detach(), table.detach())
            # not table[index]: its gradient is added up by threads in the order in which they arrive
            chosen = functional.embedding(index, table)
            restored = self._add(restored, chosen.detach())
            codes.append(index)
            rests.append(rest)
            vectors.append(chosen)
            levels.append(restored)
        return torch.stack(codes, 1), torch.stack(rests, 1), torch.stack(vectors, 1), torch.stack(levels, 1)


def _start(vectors: Tensor, size: int, seed: int) -> Tensor:
    """``(K, d)`` k-means centroids of vectors ``(N, d)``; with N < K the vectors themselves and noisy copies
    of them, noise of standard deviation 0.1/sqrt(d)."""
    if len(vectors) >= size:
        return kmeans(vectors, size, seed=seed).centroids
    width = vectors.shape[1]
    copies = vectors[torch.arange(len(vectors), size, device=vectors.device) % len(vectors)]
    noise = torch.randn(copies.shape, generator=torch.Generator().manual_seed(seed)) * 0.1 / width**0.5
    return torch.cat([vectors, copies + noise.to(vectors)])


def _settle(vectors: Tensor, base: Tensor, projection: Tensor, rounds: int) -> Tensor:
    """W ``(d, d)`` after rounds of nearest codes and least squares ``|v - c W|^2`` over vectors ``(N, d)``, C
    ``(K, d)`` as it is: Lloyd's iteration, as far as one linear map can follow it."""
    c, w, identity = base.double(), projection.double(), torch.eye(len(projection), dtype=torch.float64)
    for _ in range(rounds):
        chosen = nearest(vectors, (c @ w).float())
        counts = torch.bincount(chosen, minlength=len(c)).double()
        sums = torch.zeros(len(c), vectors.shape[1], dtype=torch.float64)
        sums.index_add_(0, chosen, vectors.double())
        gram = c.T @ (counts[:, None] * c)
        pull = RIDGE * gram.diagonal().mean() * identity  # directions that no chosen code has stay
        w = torch.linalg.solve(gram + pull, c.T @ sums + pull @ w)
    return w.float()


def _used(codes: Tensor, size: int) -> Tensor:
    """``(K,)`` bool, which of K codes occur."""
    return torch.bincount(codes, minlength=size) > 0
