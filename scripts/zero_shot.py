"""How well a frozen tokenizer serves domains that it has not seen, as it is and adapted in several ways.

    python scripts/zero_shot.py recipes/multi-domain.yaml [key=value ...]

The tokenizer of the recipe is trained on its ``tokenize.domains``; every other domain of the recipe is
tokenized with it frozen, adapted to the domain, and with a tokenizer of the domain's own. One row each, as
Markdown. The domains must have been prepared and embedded; nothing is written.

kept: neighbours kept by prefix after conflict handling. likelihood: of validation transitions, in nats;
compare it only between codes that are about equally fine, since fewer codes raise it. index kept: share of
items whose code at each position is the one that the frozen codebooks give, once the item is moved as the
adapted tokenizer moves it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from catalex.errors import CatalexError, user_error
from catalex.pipelines.embed import load_vectors
from catalex.pipelines.recipe import Recipe, read_recipe
from catalex.pipelines.workspace import resolve_device, workspace
from catalex.quantize.usage import collisions, shares, usage
from catalex.tokenizers import LatentTokenizer, Tokenizer, TokenizerDomain, make_tokenizer
from catalex.tokenizers.adapt import AdaptedTokenizer, AdaptOptions, adapt, kept_codes
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.health import relative_error
from catalex.tokenizers.neighbours import kept_by_prefix, nearest_by_cosine, sample_queries
from catalex.tokenizers.transitions import transition_likelihood
from catalex.types import Codes

VARIANTS = {
    "centred only": {"rounds": 0, "balance": 0, "lloyd": 0},
    "centred + Lloyd": {"rounds": 0, "balance": 0},
    "rotated only, unbalanced": {"balance": 0, "lloyd": 0},
    "rotated + Lloyd, unbalanced": {"balance": 0},
    "rotated only": {"lloyd": 0},
    "rotated + Lloyd (default)": {},
}
HEADER = "| unseen domain | tokenizer | error | collisions | kept | likelihood | perplexity | index kept |"


def main(recipe_path: str, *overrides: str) -> None:
    """Print the table."""
    recipe = read_recipe(Path(recipe_path), overrides)
    unseen = [name for name in recipe.domains if name not in recipe.tokenizer_domains]
    if not unseen:
        raise user_error(
            "the tokenizer learns from every domain of the recipe",
            place=f"{recipe_path}: tokenize.domains",
            remedy="name the domains it learns from, and leave out those to be served unseen",
        )
    frozen = _fitted(recipe, recipe.tokenizer_domains)
    if not isinstance(frozen, LatentTokenizer):
        raise user_error("this tokenizer cannot be adapted", place="tokenizer", value=recipe.tokenizer)
    print(f"{HEADER}\n|{'---|' * HEADER.count(' | ')}---|")
    for name in unseen:
        own = _domain(recipe, name)
        for label, tokenizer, index in [
            *_adapted(frozen, own, recipe.seeds[0]),
            ("own", _fitted(recipe, [name]), None),
        ]:
            print(f"| {name} | {label} | {_row(recipe, name, own, tokenizer, index)} |", flush=True)


def _adapted(
    frozen: LatentTokenizer, domain: TokenizerDomain, seed: int
) -> Iterator[tuple[str, Tokenizer, Codes | None]]:
    """Label, tokenizer, and the codes of the frozen codebooks to compare with."""
    yield "frozen", frozen, None
    for label, settings in VARIANTS.items():
        found = adapt(frozen, domain, seed=seed, options=AdaptOptions.parse(settings, label))
        part = frozen.part_for(frozen.latents(domain.vectors))
        before = AdaptedTokenizer(frozen, found.options, found.training, part.codebooks, found.motion)
        yield label, found, before.encode(domain.vectors)
    if any(code is not None for code in frozen.part_for(frozen.latents(domain.vectors)).fixed):
        yield "grown", adapt(frozen, domain, "grow", seed=seed), None


def _row(
    recipe: Recipe, name: str, domain: TokenizerDomain, tokenizer: Tokenizer, index: Codes | None
) -> str:
    """The numbers of one tokenizer on one domain."""
    codes = tokenizer.encode(domain.vectors)
    identifiers = resolve(tokenizer, domain.vectors, codes)
    queries = sample_queries(len(codes))
    truth = nearest_by_cosine(domain.vectors, queries)
    cases = workspace(recipe).domain(name).sequences.validation
    uses = [usage(shares(codes[:, level], size)) for level, size in enumerate(tokenizer.space.sizes)]
    cells = [
        f"{relative_error(domain.vectors, tokenizer.decode(codes)):.3f}",
        f"{collisions(codes).rate:.3f}",
        f"{kept_by_prefix(truth, identifiers, queries):.3f}",
        f"{transition_likelihood(identifiers, domain.training, cases).item:.3f}",
        " ".join(f"{use.perplexity:.0f}" for use in uses),
        "" if index is None else " ".join(f"{share:.2f}" for share in kept_codes(index, codes)),
    ]
    return " | ".join(cells)


def _fitted(recipe: Recipe, names: list[str]) -> Tokenizer:
    tokenizer = make_tokenizer(recipe.tokenizer, "tokenizer", names)
    domains = [_domain(recipe, name) for name in names]
    tokenizer.fit(domains, seed=recipe.seeds[0], device=resolve_device(recipe.device))
    return tokenizer


def _domain(recipe: Recipe, name: str) -> TokenizerDomain:
    place = workspace(recipe)
    domain = place.domain(name)
    return TokenizerDomain(name, load_vectors(place, name), domain.sequences.training, domain.split_id)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except CatalexError as error:
        sys.exit(f"zero_shot: {error}")
