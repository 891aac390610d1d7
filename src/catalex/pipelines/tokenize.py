"""tokenize: content vectors -> a tokenizer, then a unique identifier for every item of every domain."""

from __future__ import annotations

from typing import Any

from catalex.artifacts import Stage, outputs_of, read_json, write_json
from catalex.pipelines.embed import load_vectors
from catalex.pipelines.pretrain import IDENTIFIERS
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.workspace import resolve_device, running, workspace
from catalex.progress import say
from catalex.tokenizers import TokenizerDomain, make_tokenizer
from catalex.tokenizers.conflicts import resolve, space_after
from catalex.tokenizers.health import health
from catalex.tokenizers.identifiers import IdentifierTable, identifier_version

CURVES = "curves.json"
HEALTH = "health.json"
TOKENIZER = "tokenizer"


def tokenize_stage(recipe: Recipe) -> dict[str, Any]:
    """Train the tokenizer on its domains, freeze it, tokenize all domains; returns the health report."""
    place = workspace(recipe)
    inputs = {
        "vectors": {name: outputs_of(place.embedded(name), "embed") for name in recipe.domains},
        "domains": {name: outputs_of(place.prepared(name), "prepare") for name in recipe.domains},
        "trained_on": recipe.tokenizer_domains,
        "tokenizer": recipe.tokenizer,
        "conflicts": recipe.tokenize.conflicts,
        "seed": recipe.seeds[0],
    }
    stage = Stage(place.tokenized, "tokenize", inputs)
    with running(stage, f"tokenize with {recipe.tokenizer.get('name')} trained on {', '.join(recipe.tokenizer_domains)}") as needed:
        if needed:
            _tokenize(recipe, stage)
    found: dict[str, Any] = read_json(stage.folder / HEALTH)
    return found


def _tokenize(recipe: Recipe, stage: Stage) -> None:
    place = workspace(recipe)
    tokenizer = make_tokenizer(recipe.tokenizer, "tokenizer")
    domains = {name: place.domain(name) for name in recipe.domains}
    vectors = {name: load_vectors(place, name) for name in recipe.domains}
    learned_from = [
        TokenizerDomain(name, vectors[name], domains[name].sequences.training, domains[name].split_id) for name in recipe.tokenizer_domains
    ]
    curves = tokenizer.fit(learned_from, seed=recipe.seeds[0], device=resolve_device(recipe.device), partial=stage.partial)
    folder = stage.folder / TOKENIZER
    tokenizer.save(folder)
    method = recipe.tokenize.conflicts
    version = identifier_version(folder, method)
    table = IdentifierTable(space_after(tokenizer.space, method))
    report: dict[str, Any] = {}
    for name, domain in domains.items():
        before = tokenizer.encode(vectors[name])
        after = resolve(tokenizer, vectors[name], before, method=method)
        table = table.add(name, after, version)
        report[name] = health(
            tokenizer,
            vectors[name],
            before,
            after,
            titles=domain.titles,
            training=domain.sequences.training,
            validation=domain.sequences.validation,
        )
        say(f"tokenize {name}: {len(after):,} identifiers")
    table.save(stage.folder / IDENTIFIERS)
    write_json(stage.folder / CURVES, dict(curves))
    write_json(stage.folder / HEALTH, report)
    saved = [str(p.relative_to(stage.folder)) for p in folder.rglob("*") if p.is_file()]
    stage.finish([IDENTIFIERS, CURVES, HEALTH, *saved])
