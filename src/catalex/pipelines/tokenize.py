"""tokenize: content vectors -> a tokenizer, then a unique identifier for every item of every domain."""

from __future__ import annotations

import shutil
from typing import Any

from catalex.artifacts import Stage, outputs_of, read_json, write_json
from catalex.pipelines.embed import load_vectors
from catalex.pipelines.pretrain import IDENTIFIERS
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.workspace import resolve_device, running, workspace
from catalex.progress import say
from catalex.tokenizers import TokenizerDomain, make_tokenizer
from catalex.tokenizers.conflicts import check_room, resolve, space_after
from catalex.tokenizers.health import TokenizedDomain, health
from catalex.tokenizers.identifiers import IdentifierTable, identifier_version

CURVES = "curves.json"
HEALTH = "health.json"
TOKENIZER = "tokenizer"


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
    stage = Stage(place.tokenized, "tokenize", inputs)
    with running(
        stage,
        f"tokenize with {recipe.tokenizer.get('name')} trained on {', '.join(recipe.tokenizer_domains)}",
    ) as needed:
        if needed:
            _tokenize(recipe, stage)
    found: dict[str, Any] = read_json(stage.folder / HEALTH)
    return found


def _tokenize(recipe: Recipe, stage: Stage) -> None:
    place = workspace(recipe)
    tokenizer = make_tokenizer(recipe.tokenizer, "tokenizer", recipe.tokenizer_domains)
    domains = {name: place.domain(name) for name in recipe.domains}
    for name, domain in domains.items():
        check_room(tokenizer.space, len(domain), recipe.tokenize.conflicts, f"tokenize {name}")
    vectors = {name: load_vectors(place, name) for name in recipe.domains}
    learned_from = [
        TokenizerDomain(name, vectors[name], domains[name].sequences.training, domains[name].split_id)
        for name in recipe.tokenizer_domains
    ]
    curves = tokenizer.fit(
        learned_from, seed=recipe.seeds[0], device=resolve_device(recipe.device), partial=stage.partial
    )
    folder = stage.folder / TOKENIZER
    shutil.rmtree(folder, ignore_errors=True)  # all of its files become outputs
    tokenizer.save(folder)
    method = recipe.tokenize.conflicts
    version = identifier_version(folder, method)
    table = IdentifierTable(space_after(tokenizer.space, method))
    tokenized = []
    for name, domain in domains.items():
        before = tokenizer.encode(vectors[name])
        after = resolve(tokenizer, vectors[name], before, method=method)
        table = table.add(name, after, version)
        tokenized.append(
            TokenizedDomain(
                name,
                vectors[name],
                before,
                after,
                domain.titles,
                domain.sequences.training,
                domain.sequences.validation,
            )
        )
        say(f"tokenize {name}: {len(after):,} identifiers")
    table.save(stage.folder / IDENTIFIERS)
    write_json(stage.folder / CURVES, dict(curves))
    write_json(stage.folder / HEALTH, health(tokenizer, tokenized, recipe.seeds[0]))
    saved = [str(p.relative_to(stage.folder)) for p in folder.rglob("*") if p.is_file()]
    stage.finish([IDENTIFIERS, CURVES, HEALTH, *saved])


def print_health(found: dict[str, Any]) -> None:
    """Print the numbers by which identifiers are judged, one row a domain."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "domain", "items", "collisions before", "after", "moved", "utilisation", "perplexity",
        "conditional entropy", "error", "neighbours kept", "transition likelihood", "(shuffled)",
        title="identifiers",
    )  # fmt: skip
    for name, row in found["domains"].items():
        levels = row["levels"]
        table.add_row(
            name,
            f"{row['items']:,}",
            f"{row['collisions_before'][-1]['rate']:.4f}",
            f"{row['collisions_after'][-1]['rate']:.4f}",
            f"{row['moved']:,}",
            *(
                " ".join(f"{level[key]:.{digits}f}" for level in levels)
                for key, digits in (("utilisation", 2), ("perplexity", 0), ("conditional_entropy", 2))
            ),
            f"{row['error']:.3f}",
            f"{row['neighbours']['prefix']:.3f}",
            f"{row['transitions']['item']:.3f}",
            f"{row['transitions']['shuffled']:.3f}",
        )
    Console(width=200).print(table)
