"""report: what has been run so far -> one HTML page, JSON and Markdown."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import catalex
from catalex import processes
from catalex.artifacts import STAGE_FILE, read_json
from catalex.data import columns as c
from catalex.data.domain import Domain
from catalex.errors import CatalexError
from catalex.evaluation.results import RANKS_FILE, Result
from catalex.pipelines.content import IDENTIFIERS
from catalex.pipelines.evaluate import SUMMARY
from catalex.pipelines.pretrain import FACTS
from catalex.pipelines.recipe import Recipe, dump_recipe
from catalex.pipelines.workspace import Workspace, read_optional, seconds_of, workspace
from catalex.progress import say
from catalex.recommenders import RECOMMENDERS, recommender_name
from catalex.recommenders.base import ABSENT
from catalex.reporting.prefixes import MOST, QUERIES, alike, choose_queries, show
from catalex.reporting.provenance import command_line, commit_id, machine_name, now
from catalex.reporting.report import write_report
from catalex.reporting.thumbnails import open_pictures
from catalex.tokenizers.identifiers import IdentifierTable
from catalex.training.seeds import generator

SHOWN_HISTORY = 6
"""Latest history items shown in an example."""


def report_stage(recipe: Recipe) -> Path:
    """Gather the facts of all finished stages and write the report; returns its folder."""
    place = workspace(recipe)
    with processes.led() as mine:
        if mine:
            write_report(_facts(recipe, place), place.reported)
    return place.reported


def _facts(recipe: Recipe, place: Workspace) -> dict[str, Any]:
    """What the report is written from."""
    folders = sorted(p.parent for p in place.root.rglob(STAGE_FILE))
    found: dict[str, Any] = {
        "name": recipe.name,
        "recipe": dump_recipe(recipe),
        "environment": _environment(recipe, place, folders),
        "domains": {
            name: _statistics(place, name)
            for name in recipe.domains
            if (place.prepared(name) / STAGE_FILE).is_file()
        },
        "training": [
            _training(place, folder)
            for folder in folders
            if (folder / FACTS).is_file() and "curves" in read_json(folder / FACTS)
        ],
        "cost": [
            {"stage": str(folder.relative_to(place.root)), "seconds": seconds}
            for folder in folders
            if (seconds := seconds_of(folder)) is not None
        ],
    }
    health = read_optional(place.tokenized / "health.json")
    if health is not None:
        curves = read_optional(place.tokenized / "curves.json") or {}
        options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
        found["tokenizer"] = {
            "name": recipe.tokenizer.get("name"),
            "options": options,
            "curves": curves,
            "health": {name: _health(row) for name, row in health["domains"].items()},
            "experts": health.get("experts"),
            "information": health.get("information"),
        }
        found["prefixes"] = _prefixes(recipe, place)
    judged = read_optional(place.root / "evaluate" / SUMMARY)
    if judged:
        found["results"] = [_result(recipe, row) for row in judged["results"]]
        found["comparisons"] = judged["comparisons"]
        found["ours"] = sorted(
            {
                row["system"]
                for row in judged["results"]
                if row["name"] == recommender_name(recipe.recommender)
            }
        )
        found["examples"] = [
            e for name in recipe.evaluate_domains for e in _examples(recipe, place, name, found["ours"])
        ]
    return found


def _health(row: dict[str, Any]) -> dict[str, Any]:
    """One domain of the health report in the words of `reporting.structure.Health`."""
    return {
        "collisions_before": row["collisions_before"],
        "collisions_after": row["collisions_after"],
        "floor": row.get("floor"),
        "levels": row["levels"],
        "pooled": row.get("pooled"),
        "empty_levels": row.get("empty_levels"),
        "constant_levels": row.get("constant_levels"),
        "experts": row.get("experts"),
        "information": row.get("information"),
        "error": row["error"],
        "neighbour_preservation": row["neighbours"]["prefix"],
        "neighbours_by_reconstruction": row["neighbours"]["reconstruction"],
        "transition_likelihood": row["transitions"]["item"],
        "transition_likelihood_of_shuffled_identifiers": row["transitions"]["shuffled"],
        "moved": row["moved"] / max(row["items"], 1),
        "buckets": [*row["examples"]["first_code"], *row["examples"]["prefix"]],
    }


def _environment(recipe: Recipe, place: Workspace, folders: list[Path]) -> dict[str, Any]:
    return {
        "machine": machine_name(),
        "commit": commit_id(),
        "command": command_line(),
        "date": now(),
        "seeds": recipe.seeds,
        "versions": {
            "catalex": catalex.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
        },
        "hashes": {
            str(folder.relative_to(place.root)): read_json(folder / STAGE_FILE)["fingerprint"][:16]
            for folder in folders
        },
    }


def _statistics(place: Workspace, name: str) -> dict[str, Any]:
    # imported here: machines that only train have no polars
    from catalex.data.statistics import statistics

    return statistics(place.domain(name))


def _training(place: Workspace, folder: Path) -> dict[str, Any]:
    facts = read_json(folder / FACTS)
    parts = folder.relative_to(place.root).parts
    seconds = (read_optional(folder / "training_time.json") or {}).get("seconds")
    return {
        "name": " ".join(parts[:-1]),
        "seed": int(parts[-1].removeprefix("seed-")),
        "curves": facts["curves"],
        "parameters": facts.get("parameters"),
        "best_epoch": facts.get("best_epoch"),
        "seconds": seconds,
    }


def _result(recipe: Recipe, row: dict[str, Any]) -> dict[str, Any]:
    own = row["name"] in RECOMMENDERS and "identifiers" in RECOMMENDERS[row["name"]].needs
    return {
        "domain": row["domain"],
        "system": row["system"],
        "seed": row["seed"],
        "users": row["users"],
        "tokenizer": recipe.tokenizer.get("name") if own else None,
        "metrics": {key: value for key, value in row.items() if "@" in key},
        "strata": row["strata"],
        "beyond": row["beyond"],
    }


def _prefixes(recipe: Recipe, place: Workspace) -> dict[str, Any]:
    """Some random items of each domain with those that share the beginning of their identifiers."""
    current = []
    for name in recipe.domains:
        try:
            place.check_tokenized(name)
            current.append(name)
        except CatalexError as error:  # titles and pictures would be those of other items
            say(f"report without items by prefix of {name}: {error}")
    if not current:
        return {}
    table = IdentifierTable.load(place.tokenized / IDENTIFIERS)
    pictures = open_pictures({name: place.prepared(name) / c.IMAGES_FILE for name in current})
    found = {}
    for name in current:
        own, codes, titles = pictures.get(name), table.of(name), place.domain(name).titles
        draws = generator(recipe.seeds[0], f"prefixes of {name}")
        queries = choose_queries(len(codes), QUERIES, draws, None if own is None else own.items)
        shown = [show(alike(codes, int(item), MOST, draws), codes, titles, own) for item in queries]
        lost = {} if own is None else {"unreadable": own.unreadable, "left_out": own.left_out}
        found[name] = {"queries": shown, **lost}
    return found


def _examples(recipe: Recipe, place: Workspace, name: str, ours: list[str]) -> list[dict[str, Any]]:
    """Some random test users with the recommendations of our last system (the transferred one if any)."""
    if not recipe.evaluate.examples:
        return []
    folders = [place.evaluated(name, system, recipe.seeds[0]) for system in ours]
    present = [folder for folder in folders if (folder / RANKS_FILE).is_file()]
    if not present:
        return []
    result = Result.read(present[-1] / RANKS_FILE)
    domain: Domain = place.domain(name)
    cases, titles = domain.sequences.test, domain.titles
    count = min(recipe.evaluate.examples, len(result))
    rows = np.sort(generator(recipe.seeds[0], "examples").choice(len(result), count, replace=False))
    return [
        {
            "domain": name,
            "system": result.system,
            "history": [titles[i] for i in cases.histories[int(row)][-SHOWN_HISTORY:]],
            "target": titles[result.targets[row]],
            "recommended": [titles[i] for i in result.top[row] if i != ABSENT],
            "rank": int(result.ranks[row]),
        }
        for row in rows
    ]
