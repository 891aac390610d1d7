"""tokenize: content vectors -> a tokenizer, then a unique identifier for every item of every domain.

A domain named under ``tokenize.adapt`` gets a tokenizer of its own, adapted from the common one; with
``tokenize.published`` there is no tokenizer at all. The folder of the stage::

    tokenizer/            the common tokenizer
    adapted/<domain>/     those of single domains
    identifiers.parquet   identifiers of all domains, over one code space
    health.json           what they are worth
    curves.json           training of the tokenizer
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from catalex import processes
from catalex.artifacts import Stage, hash_file, outputs_of, read_json, write_json
from catalex.data import columns as c
from catalex.data.domain import Domain
from catalex.features.base import ItemContent
from catalex.features.embed import CatalogueContent
from catalex.features.text import TextOptions, domain_texts
from catalex.pipelines.collaborative import check_collaborative, collaborative_vectors
from catalex.pipelines.content import IDENTIFIERS
from catalex.pipelines.embed import load_vectors
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.validate import check_adaptable, published_options
from catalex.pipelines.workspace import Workspace, resolve_device, running, workspace
from catalex.progress import say
from catalex.tokenizers import (
    CodeSpace,
    ContentTokenizer,
    LatentTokenizer,
    Tokenizer,
    TokenizerDomain,
    make_tokenizer,
)
from catalex.tokenizers.adapt import adapt
from catalex.tokenizers.conflicts import check_room, resolve, space_after
from catalex.tokenizers.health import TokenizedDomain, health
from catalex.tokenizers.identifiers import IdentifierTable, identifier_version
from catalex.tokenizers.published import make_unique, read_published
from catalex.tokenizers.streaming import encode_in_pieces
from catalex.types import JSON, Codes, Floats

CURVES = "curves.json"
HEALTH = "health.json"
TOKENIZER = "tokenizer"
ADAPTED = "adapted"


def tokenize_stage(recipe: Recipe) -> dict[str, Any]:
    """Train the tokenizer on its domains, freeze it, tokenize all domains; returns the health report."""
    place = workspace(recipe)
    for name in recipe.domains:
        place.check_embedded(name)
    inputs = {
        "vectors": {name: outputs_of(place.embedded(name), "embed") for name in recipe.domains},
        "domains": {name: outputs_of(place.prepared(name), "prepare") for name in recipe.domains},
        "trained_on": recipe.tokenizer_domains,
        "tokenizer": recipe.tokenizer,
        "conflicts": recipe.tokenize.conflicts,
        "seed": recipe.seeds[0],
    }
    if (folders := _collaborative_hashes(recipe)) is not None:
        inputs["collaborative"] = folders
    if (seen := _content_hashes(recipe, place)) is not None:
        inputs["content"] = seen
    title = f"tokenize with {recipe.tokenizer.get('name')} trained on {', '.join(recipe.tokenizer_domains)}"
    if recipe.tokenize.adapt:
        inputs["adapt"] = recipe.tokenize.adapt
        title += f", adapted to {', '.join(recipe.tokenize.adapt)}"
    if recipe.tokenize.published:
        chosen = published_options(recipe)
        inputs["published"] = {name: [hash_file(o.file), o.method] for name, o in chosen.items()}
        title = f"tokenize with published identifiers of {', '.join(recipe.domains)}"
    stage = Stage(place.tokenized, "tokenize", inputs)
    with running(stage, title, together=_reads_content(recipe)) as needed:
        if needed:
            _tokenize(recipe, stage)
    found: dict[str, Any] = read_json(stage.folder / HEALTH)
    return found


def tokenizer_folder(recipe: Recipe, place: Workspace, domain: str) -> Path | None:
    """Folder of the tokenizer that made the identifiers of a domain; None where they are published ones."""
    if recipe.tokenize.published:
        return None
    return place.tokenized / (f"{ADAPTED}/{domain}" if domain in recipe.tokenize.adapt else TOKENIZER)


def join_spaces(spaces: Sequence[CodeSpace]) -> CodeSpace:
    """One code space that holds the codes of all `spaces`, which differ at most in their sizes.

    Levels that share a codebook stay of one size.
    """
    groups = spaces[0].groups
    assert all(space.groups == groups for space in spaces)
    needed: dict[int, int] = {}
    for space in spaces:
        for size, group in zip(space.sizes, groups, strict=True):
            needed[group] = max(size, needed.get(group, 0))
    return CodeSpace(tuple(needed[group] for group in groups), groups)


def _tokenize(recipe: Recipe, stage: Stage) -> None:
    place, method = workspace(recipe), recipe.tokenize.conflicts
    domains = {name: place.domain(name) for name in recipe.domains}
    vectors = {name: load_vectors(place, name) for name in recipe.domains}
    read = vectors
    tokenizer: Tokenizer | None = None
    adapted: dict[str, Tokenizer] = {}
    curves: dict[str, JSON] = {}
    facts: dict[str, JSON] = {}
    after: dict[str, Codes] = {}
    if recipe.tokenize.published:
        sources = {name: domain.items[c.SOURCE_ID].to_pylist() for name, domain in domains.items()}
        published = read_published(published_options(recipe), sources)
        before, common = dict(published.codes), published.space
        after, space = make_unique(published, method)
        versions = {name: published.version(name, method) for name in domains}
        facts = {"published": dict(published.methods)}  # a later stage may run where the file is not
    else:
        tokenizer = make_tokenizer(recipe.tokenizer, "tokenizer", recipe.tokenizer_domains)
        check_adaptable(recipe, tokenizer)
        for name, domain in domains.items():
            check_room(tokenizer.space, len(domain), method, f"tokenize {name}")
        content = _contents(recipe, place, domains, tokenizer)
        seen = {n: _seen(domains[n], vectors[n], content.get(n)) for n in domains}
        device = resolve_device(recipe.device)
        if (need := tokenizer.collaborative) is not None:
            check_collaborative(need, recipe.tokenizer_domains)
            for name in recipe.tokenizer_domains:
                partial = stage.partial / "collaborative" / name
                made = collaborative_vectors(
                    need, domains[name], seed=recipe.seeds[0], device=device, partial=partial
                )
                seen[name] = replace(seen[name], collaborative=made)
        learned_from = [seen[name] for name in recipe.tokenizer_domains]
        fitted = tokenizer.fit(learned_from, seed=recipe.seeds[0], device=device, partial=stage.partial)
        curves.update(fitted)
        adapted = _adapt(recipe, stage, tokenizer, seen, curves)
        if not processes.is_main():
            return  # others help in training only
        made_by = {name: adapted.get(name, tokenizer) for name in domains}
        read = {name: _read_by(made_by[name], seen[name], device) for name in domains}
        before = {name: encode_in_pieces(made_by[name], read[name], name=name) for name in domains}
        for name, own in made_by.items():
            after[name] = resolve(own, read[name], before[name], method=method)
        common = join_spaces([own.space for own in made_by.values()])
        space = join_spaces([space_after(own.space, method) for own in made_by.values()])
    saved = _save(stage.folder, tokenizer, adapted)  # from here on nothing is refused any more
    if tokenizer is not None:
        folders = {name: tokenizer_folder(recipe, place, name) for name in domains}
        versions = {name: identifier_version(f, method) for name, f in folders.items() if f is not None}
    table = IdentifierTable(space)
    tokenized = []
    for name, domain in domains.items():
        table = table.add(name, after[name], versions[name])
        tokenized.append(
            TokenizedDomain(
                name,
                vectors[name],
                before[name],
                after[name],
                domain.titles,
                domain.sequences.training,
                domain.sequences.validation,
                tokenizer=adapted.get(name),
                read=read[name],
            )
        )
        say(f"tokenize {name}: {len(after[name]):,} identifiers")
    table.save(stage.folder / IDENTIFIERS)
    write_json(stage.folder / CURVES, curves)
    write_json(
        stage.folder / HEALTH, {**health(tokenizer, tokenized, recipe.seeds[0], space=common), **facts}
    )
    stage.finish([IDENTIFIERS, CURVES, HEALTH, *saved])


def _reads_content(recipe: Recipe) -> bool:
    """Whether there is a tokenizer with an encoder of its own: all processes train these together."""
    if recipe.tokenize.published:
        return False
    tokenizer = make_tokenizer(recipe.tokenizer, "tokenizer", recipe.tokenizer_domains)
    return isinstance(tokenizer, ContentTokenizer)


def _content_hashes(recipe: Recipe, place: Workspace) -> dict[str, JSON] | None:
    """What the tokenizer reads beside the vectors, for tokenizers with an encoder of their own."""
    if not _reads_content(recipe):
        return None
    tokenizer = make_tokenizer(recipe.tokenizer, "tokenizer", recipe.tokenizer_domains)
    assert isinstance(tokenizer, ContentTokenizer)
    images = {name: place.prepared(name) / c.IMAGES_FILE for name in recipe.domains}
    return {
        "text": TextOptions.parse(recipe.text, "text").model_dump(mode="json"),
        "images": {
            name: hash_file(path)
            for name, path in images.items()
            if tokenizer.reads_images and path.is_file()
        },
    }


def _collaborative_hashes(recipe: Recipe) -> dict[str, JSON] | None:
    """The trained recommenders that the tokenizer takes collaborative vectors from."""
    if recipe.tokenize.published:
        return None
    tokenizer = make_tokenizer(recipe.tokenizer, "tokenizer", recipe.tokenizer_domains)
    if (need := tokenizer.collaborative) is None:
        return None
    return {name: hash_file(folder / "model.safetensors") for name, folder in need.source.folders.items()}


def _contents(
    recipe: Recipe, place: Workspace, domains: Mapping[str, Domain], tokenizer: Tokenizer
) -> dict[str, Sequence[ItemContent]]:
    """Texts and images of the domains, for tokenizers that read them."""
    if not isinstance(tokenizer, ContentTokenizer):
        return {}
    from catalex.data.images import ImageStore

    text = TextOptions.parse(recipe.text, "text")
    found: dict[str, Sequence[ItemContent]] = {}
    for name, domain in domains.items():
        path = place.prepared(name) / c.IMAGES_FILE
        images = ImageStore(path) if tokenizer.reads_images and path.is_file() else None
        found[name] = CatalogueContent(domain_texts(domain, text), images)
    return found


def _read_by(tokenizer: Tokenizer, seen: TokenizerDomain, device: str) -> Floats:
    """The rows that the tokenizer quantizes: content vectors, or what its own encoder makes of the
    content."""
    if isinstance(tokenizer, ContentTokenizer):
        assert seen.content is not None
        return tokenizer.represent(seen.content, seen.vectors, name=seen.name, device=device)
    return seen.vectors


def _adapt(
    recipe: Recipe,
    stage: Stage,
    tokenizer: Tokenizer,
    seen: Mapping[str, TokenizerDomain],
    curves: dict[str, JSON],
) -> dict[str, Tokenizer]:
    """A tokenizer for each domain of ``tokenize.adapt``; those with new experts have different ones.

    Fine-tuning adds its curves to `curves`, below ``adapted``.
    """
    found: dict[str, Tokenizer] = {}
    expert: int | None = None
    own: Tokenizer
    for name, method in recipe.tokenize.adapt.items():
        if isinstance(tokenizer, ContentTokenizer):
            own, learned = tokenizer.fine_tune(
                seen[name],
                method,
                seed=recipe.seeds[0],
                device=resolve_device(recipe.device),
                partial=stage.partial / name,
            )
            curves.setdefault("adapted", {})[name] = dict(learned)
        else:
            assert isinstance(tokenizer, LatentTokenizer)
            own = adapt(tokenizer, seen[name], method, seed=recipe.seeds[0], expert=expert)
            sizes = zip(own.space.sizes, tokenizer.space.sizes, strict=True)
            grown = [new for new, old in sizes if new > old]
            expert = max(grown, default=expert)  # the first number that is free after this one
        found[name] = own
        say(f"tokenize {name}: tokenizer adapted ({method})")
    return found


def _seen(domain: Domain, vectors: Floats, content: Sequence[ItemContent] | None) -> TokenizerDomain:
    return TokenizerDomain(domain.name, vectors, domain.sequences.training, domain.split_id, content)


def _save(folder: Path, tokenizer: Tokenizer | None, adapted: Mapping[str, Tokenizer]) -> list[str]:
    """Write all tokenizers of the stage; returns their files, which become outputs."""
    for name in (TOKENIZER, ADAPTED):  # nothing of an earlier run may stay among them
        shutil.rmtree(folder / name, ignore_errors=True)
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
    for name, own in adapted.items():
        own.save(folder / ADAPTED / name)
    files = [path for name in (TOKENIZER, ADAPTED) for path in (folder / name).rglob("*") if path.is_file()]
    return [path.relative_to(folder).as_posix() for path in files]


def print_health(found: dict[str, Any]) -> None:
    """Print the numbers by which identifiers are judged, one row a domain."""
    from rich.console import Console
    from rich.table import Table

    routed, latent = bool(found.get("experts")), bool(found.get("information"))
    table = Table(
        "domain", "items", "floor", "collisions before", "after", "moved", "utilisation", "perplexity",
        "conditional entropy", "error", "neighbours kept", "transition likelihood", "(shuffled)",
        *(["largest expert"] if routed else []), *(["HSIC", "CKA"] if latent else []),
        title="identifiers",
    )  # fmt: skip
    for name, row in found["domains"].items():
        levels = row["levels"]
        table.add_row(
            name,
            f"{row['items']:,}",
            _shown(row, "floor", 4),
            f"{row['collisions_before'][-1]['rate']:.4f}",
            f"{row['collisions_after'][-1]['rate']:.4f}",
            f"{row['moved']:,}",
            *(
                " ".join(f"{level[key]:.{digits}f}" for level in levels)
                for key, digits in (("utilisation", 2), ("perplexity", 0), ("conditional_entropy", 2))
            ),
            "none" if row.get("error") is None else f"{row['error']:.3f}",
            f"{row['neighbours']['prefix']:.3f}",
            f"{row['transitions']['item']:.3f}",
            f"{row['transitions']['shuffled']:.3f}",
            *([_shown(row["experts"], "largest", 2)] if routed else []),
            *([_shown(row["information"], key, 4) for key in ("hsic", "cka")] if latent else []),
        )
    Console(width=200).print(table)


def _shown(facts: Any, key: str, digits: int) -> str:
    """A number that not every domain has."""
    value = (facts or {}).get(key)
    return "none" if value is None else f"{value:.{digits}f}"
