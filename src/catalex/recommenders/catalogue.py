"""`Catalogue`: what a scoring recommender knows of its items, of one domain or of several joined."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from catalex.data.histories import Cases, Histories
from catalex.data.histories import popularity as count_interactions
from catalex.errors import user_error
from catalex.recommenders.base import RecommenderDomain
from catalex.types import JSON, Floats, Ints

REMEDIES = {
    "identifiers": "run 'catalex tokenize' first",
    "vectors": "run 'catalex embed' first",
    "image_vectors": "choose an encoder of images, fetch them and run 'catalex embed'",
    "attributes": "use a domain whose items have categories",
}


@dataclass(frozen=True)
class Catalogue:
    """Items of one domain, or of several one after the other in one numbering.

    Attributes:
        domains: Names of the domains.
        starts: ``(domains + 1,)`` domain d owns the items ``starts[d]`` up to ``starts[d + 1]``.
        popularity: ``(N,)`` training interactions of each item.
        vectors, image_vectors, attributes: As in `RecommenderDomain`; None where the system needs none.
    """

    domains: tuple[str, ...]
    starts: Ints
    popularity: Ints
    vectors: Floats | None = None
    image_vectors: Floats | None = None
    attributes: Histories | None = None

    @property
    def items(self) -> int:
        """N, items of all domains."""
        return len(self.popularity)

    @property
    def attribute_count(self) -> int:
        """Different attributes, 0 without any."""
        return int(self.attributes.items.max(initial=-1)) + 1 if self.attributes is not None else 0

    def range_of(self, number: int) -> tuple[int, int]:
        """First item of a domain and the one after its last."""
        return int(self.starts[number]), int(self.starts[number + 1])

    def is_of(self, domain: RecommenderDomain) -> bool:
        """Whether these are the items of that one domain."""
        return self.domains == (domain.name,) and self.items == domain.items

    @classmethod
    def empty(cls) -> Self:
        """No items, before anything is fitted."""
        return cls((), np.zeros(1, np.int64), np.zeros(0, np.int64))

    @classmethod
    def join(
        cls, domains: Sequence[RecommenderDomain], needs: Collection[str]
    ) -> tuple[Self, Histories, list[Cases]]:
        """The catalogue of all domains, and their training histories and validation cases in its numbering.

        Raises:
            CatalexError: When a domain lacks something of `needs`, or vectors of different widths meet.
        """
        for domain in domains:
            for need in sorted(needs):
                if getattr(domain, need) is None:
                    raise user_error(
                        f"the recommender needs {need.replace('_', ' ')}",
                        place=domain.name,
                        remedy=REMEDIES[need],
                    )
        starts = np.cumsum([0, *(d.items for d in domains)]).astype(np.int64)
        catalogue = cls(
            tuple(d.name for d in domains),
            starts,
            np.concatenate([count_interactions(d.training, d.items) for d in domains]),
            _stack(domains, "vectors") if "vectors" in needs else None,
            _stack(domains, "image_vectors") if "image_vectors" in needs else None,
            _chain([d.attributes for d in domains if d.attributes is not None], [0] * len(domains))
            if "attributes" in needs
            else None,
        )
        shifts = [int(start) for start in starts[:-1]]
        cases = [
            Cases(
                d.validation.users,
                Histories(d.validation.histories.offsets, d.validation.histories.items + shift),
                d.validation.targets + shift,
            )
            for d, shift in zip(domains, shifts, strict=True)
        ]
        return catalogue, _chain([d.training for d in domains], shifts), cases

    # --- files ----------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """For the file of weights."""
        found: dict[str, np.ndarray[Any, Any]] = {"popularity": self.popularity}
        if self.vectors is not None:
            found["vectors"] = self.vectors
        if self.image_vectors is not None:
            found["image_vectors"] = self.image_vectors
        if self.attributes is not None:
            found["attributes.offsets"] = self.attributes.offsets
            found["attributes.items"] = self.attributes.items
        return found

    def facts(self) -> dict[str, JSON]:
        """For the configuration."""
        return {"domains": list(self.domains), "starts": self.starts.tolist()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]], facts: Mapping[str, JSON]) -> Self:
        """What `arrays` and `facts` wrote."""
        popularity = arrays["popularity"]
        attributes = None
        if "attributes.offsets" in arrays:
            attributes = Histories(arrays["attributes.offsets"], arrays["attributes.items"])
        return cls(
            tuple(facts["domains"]),
            np.asarray(facts.get("starts", [0, len(popularity)]), np.int64),
            popularity,
            arrays.get("vectors"),
            arrays.get("image_vectors"),
            attributes,
        )


def _stack(domains: Sequence[RecommenderDomain], name: str) -> Floats:
    """Vectors of all domains below each other."""
    found = [np.asarray(getattr(domain, name), np.float32) for domain in domains]
    for domain, vectors in zip(domains, found, strict=True):
        if vectors.ndim != 2 or len(vectors) != domain.items or vectors.shape[1] != found[0].shape[1]:
            raise user_error(
                "the vectors have another shape",
                place=f"{domain.name}: {name}",
                value=list(vectors.shape),
                allowed=str([domain.items, found[0].shape[-1]]),
                remedy="embed all domains with the same encoder",
            )
    return np.concatenate(found)


def _chain(parts: Sequence[Histories], shifts: Sequence[int]) -> Histories:
    """All users one after the other, items renumbered by the shift of their part."""
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    items = [
        part.items[int(part.offsets[0]) : int(part.offsets[-1])] + shift
        for part, shift in zip(parts, shifts, strict=True)
    ]
    return Histories(offsets, np.concatenate(items))
