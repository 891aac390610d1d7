"""evaluate: every trained system and baseline on the test cases, item level, with tests of significance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from catalex import processes
from catalex.artifacts import Stage, drop_half_written, hash_file, outputs_of, read_json, write_json
from catalex.data.domain import Domain
from catalex.data.histories import popularity
from catalex.evaluation.comparison import aggregate, compare
from catalex.evaluation.protocol import evaluate
from catalex.evaluation.ranked_lists import judge_lists
from catalex.evaluation.results import RANKS_FILE, Result, summary
from catalex.pipelines.content import IDENTIFIERS, baseline_block, load_domains
from catalex.pipelines.pretrain import FACTS, RECOMMENDER, fit_block, training_stage
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.validate import check_baselines
from catalex.pipelines.workspace import Workspace, read_optional, resolve_device, running, workspace
from catalex.progress import say
from catalex.recommenders import load_recommender, recommender_kind, recommender_name
from catalex.reporting.ledger import ResultLine, append
from catalex.reporting.provenance import command_line, commit_id, machine_name, now
from catalex.types import JSON

HEALTH = "health.json"
LISTED = "ranked lists"
"""In place of a recommender's name where a system was trained elsewhere."""
HISTORY = "history"
"""Ledger word for rankings without the items that a user already has."""
METRICS = "metrics.json"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class System:
    """One trained recommender to be judged on one domain.

    Attributes:
        label: Name in tables: "t5", "t5-transferred", "sasrec", ..
        folder: The stage that trained it.
        name: Of the recommender in its table.
        pretrained_on: Domains of its pre-training, joined by ``+``; empty when there was none.
        lists: File of ranked lists of a system that was trained elsewhere; `folder` then is that of its
            result.
    """

    label: str
    domain: str
    seed: int
    folder: Path
    name: str
    pretrained_on: str = ""
    lists: Path | None = None

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of a domain beside the sequences."""
        return recommender_kind({"name": self.name}).needs if self.lists is None else frozenset()


def evaluate_stage(recipe: Recipe, record: Path | None = None) -> JSON:
    """Judge all systems; returns the summary that also stands in ``evaluate/summary.json``.

    Args:
        record: Results ledger to append to, one line for each system, domain and seed that is judged now and
            was not before; None to leave it alone.
    """
    check_baselines(recipe)
    place = workspace(recipe)
    for name in recipe.evaluate_domains:  # a missing system is told before the first is judged
        for system in _trained(recipe, place, name):
            outputs_of(system.folder, place.verb_of(system.folder))
    results: list[Result] = []
    rows: list[dict[str, Any]] = []
    for name in recipe.evaluate_domains:
        domain = place.domain(name)
        systems = (_trained, _baselines, _listed)
        for system in chain.from_iterable(found(recipe, place, name) for found in systems):
            result, metrics = _judge(recipe, place, domain, system, record)
            results.append(result)
            rows.append(
                {
                    "system": system.label,
                    "pretrained_on": system.pretrained_on,
                    "name": system.name,
                    **metrics,
                }
            )
    if not results:
        say("evaluate: nothing to judge; add 'pretrain' or 'transfer' to the recipe")
        return {"results": [], "means": [], "comparisons": []}
    found = {
        "excluded": HISTORY if recipe.evaluate.exclude_history else None,
        "results": rows,
        "means": aggregate(results),
        "comparisons": [
            row for name in recipe.evaluate_domains for row in _comparisons(recipe, results, name)
        ],
    }
    with processes.led() as mine:
        if mine:
            drop_half_written(place.root / "evaluate")  # the summary belongs to no stage that would do so
            write_json(place.root / "evaluate" / SUMMARY, found)
    return found


def _trained(recipe: Recipe, place: Workspace, domain: str) -> Iterator[System]:
    """Systems of the pretrain and transfer stages for one domain, as far as they are in the recipe."""
    kind = recommender_name(recipe.recommender)
    several = len(recipe.pretrain_domains) > 1
    targets = recipe.transfer.domains if recipe.transfer else []
    for seed in recipe.seeds:
        if domain in recipe.pretrain_domains:
            together = "+".join(recipe.pretrain_domains) if several else ""
            yield System(
                f"{kind}-joint" if several else kind, domain, seed, place.pretrained(seed), kind, together
            )
        if recipe.transfer and domain in targets:
            for start in recipe.transfer.starts:
                source = "+".join(recipe.pretrain_domains) if start == "pretrained" else ""
                label = f"{kind}-transferred" if start == "pretrained" else kind
                yield System(label, domain, seed, place.transferred(domain, start, seed), kind, source)
        if recipe.evaluate.zero_shot and recipe.pretrain and domain not in recipe.pretrain_domains:
            source = "+".join(recipe.pretrain_domains)
            yield System(f"{kind}-zero-shot", domain, seed, place.pretrained(seed), kind, source)


def _baselines(recipe: Recipe, place: Workspace, domain: str) -> Iterator[System]:
    """Fit every baseline that is not there yet. Those without randomness run once, whatever the seeds."""
    for label in recipe.evaluate.baselines:
        block = baseline_block(recipe, label)
        seeds = recipe.seeds if recommender_kind(block).seeded else recipe.seeds[:1]
        for seed in seeds:
            folder = place.root / "baselines" / domain / label / f"seed-{seed}"
            stage = training_stage(place, "baseline", folder, [domain], block, seed)
            with running(stage, f"baseline {label} on {domain}, seed {seed}", together=True) as needed:
                if needed:
                    fit_block(stage, place, block, f"baselines.{label}", [domain], seed, recipe.device)
            yield System(label, domain, seed, folder, recommender_name(block))


def _listed(recipe: Recipe, place: Workspace, domain: str) -> Iterator[System]:
    """Systems that were trained elsewhere, by their ranked lists."""
    for label, files in recipe.evaluate.lists.items():
        if domain in files:
            folder = place.evaluated(domain, label, 0)
            yield System(label, domain, 0, folder, LISTED, lists=Path(files[domain]))


def _judge(
    recipe: Recipe, place: Workspace, domain: Domain, system: System, record: Path | None
) -> tuple[Result, dict[str, Any]]:
    """Ranks and metrics of one system; a line for the ledger if they are computed just now."""
    identifiers = None
    if "identifiers" in system.needs:
        identifiers = outputs_of(place.tokenized, "tokenize")[IDENTIFIERS]
        place.check_trained(system.folder, identifiers)
    inputs = {
        "domain": outputs_of(place.prepared(domain.name), "prepare"),
        "recommender": outputs_of(system.folder, place.verb_of(system.folder))
        if system.lists is None
        else hash_file(system.lists),
        "identifiers": identifiers,
        "ks": recipe.evaluate.ks,
    }
    if recipe.evaluate.exclude_history:
        inputs["excluded"] = HISTORY
    stage = Stage(place.evaluated(domain.name, system.label, system.seed), "evaluate", inputs)
    with running(stage, f"evaluate {system.label} on {domain.name}, seed {system.seed}") as needed:
        if needed:
            result = _ranked(recipe, place, domain, system)
            result.write(stage.folder / RANKS_FILE)
            metrics = summary(result, popularity(domain.sequences.training, len(domain)))
            write_json(stage.folder / METRICS, metrics)
            if record is not None:  # before the end: killed in between, a line stands twice, but none is lost
                append(record, _line(recipe, place, system, metrics))
            stage.finish([RANKS_FILE, METRICS])
        elif record is not None:
            say(f"evaluate {system.label} on {domain.name}: judged earlier, so {record} gets no line")
    return Result.read(stage.folder / RANKS_FILE), read_json(stage.folder / METRICS)


def _ranked(recipe: Recipe, place: Workspace, domain: Domain, system: System) -> Result:
    """The system's ranks of the test cases."""
    cases, ks = domain.sequences.test, recipe.evaluate.ks
    if system.lists is not None:
        return judge_lists(
            system.lists,
            cases,
            items=len(domain),
            system=system.label,
            domain=domain.name,
            split_id=domain.split_id,
            ks=ks,
            exclude_history=recipe.evaluate.exclude_history,
        )
    recommender = load_recommender(system.folder / RECOMMENDER)
    if system.needs:
        recommender.bind(load_domains(place, [domain.name], system.needs)[0])
    return evaluate(
        recommender.to(resolve_device(recipe.device)),
        cases,
        system=system.label,
        domain=domain.name,
        split_id=domain.split_id,
        seed=system.seed,
        ks=ks,
        exclude_history=recipe.evaluate.exclude_history,
    )


def _comparisons(recipe: Recipe, results: list[Result], domain: str) -> list[dict[str, Any]]:
    """Every system of a domain against our own first one."""
    own = [r for r in results if r.domain == domain]
    if len({r.system for r in own}) < 2:
        return []
    return [{"domain": domain, **row} for row in compare(own, own[0].system)]


def _line(recipe: Recipe, place: Workspace, system: System, metrics: dict[str, Any]) -> ResultLine:
    """The ledger line of one judged system."""
    facts = read_optional(system.folder / FACTS) or {}
    seconds = read_optional(system.folder / "training_time.json") or {}
    generative = "identifiers" in system.needs
    encoded = generative or "vectors" in system.needs
    health = read_json(place.tokenized / HEALTH)["domains"][system.domain] if generative else None
    config = read_optional(system.folder / RECOMMENDER / "config.json") or {}
    options = config.get("options", {})
    split = place.domain(system.domain).manifest.get("split")
    return ResultLine.model_validate(
        {
            "date": now(),
            "commit": commit_id(),
            "machine": machine_name(),
            "command": command_line(),
            "domain": system.domain,
            "split": split if isinstance(split, str) else str((split or {}).get("kind", "leave-one-out")),
            "system": system.label,
            "tokenizer": _tokenizer_name(recipe, place, system.domain) if generative else None,
            "encoder": str(recipe.encoder.get("name")) if encoded else None,
            "pretrained_on": system.pretrained_on or None,
            "beam": options.get("beam") if generative else None,
            "history": options.get("max_history"),
            "excluded": HISTORY if recipe.evaluate.exclude_history else None,
            "seed": system.seed,
            "users": metrics["users"],
            **{key: metrics[key] for key in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")},
            "valid_ndcg@10": facts.get("valid_ndcg@10"),
            "collision_before": health["collisions_before"][-1]["rate"] if health else None,
            "collision_after": health["collisions_after"][-1]["rate"] if health else None,
            "parameters": facts.get("parameters"),
            "train_seconds": seconds.get("seconds"),
            "note": recipe.note,
        }
    )


def _tokenizer_name(recipe: Recipe, place: Workspace, domain: str) -> str:
    """The name alone when trained on this domain alone, else with its domains: "rqkmeans(beauty+toys)"; how
    it was adapted: "rqkmeans(beauty+toys)+rotate"; or whose identifiers they are: "published:letter"."""
    if recipe.tokenize.published:
        return f"published:{read_json(place.tokenized / HEALTH)['published'][domain]}"
    name = str(recipe.tokenizer.get("name"))
    if recipe.tokenizer_domains != [domain]:
        name += f"({'+'.join(recipe.tokenizer_domains)})"
    adapted = recipe.tokenize.adapt.get(domain)
    return f"{name}+{adapted}" if adapted else name


def print_summary(found: JSON) -> None:
    """Print the means over seeds as a table, and where the differences are significant."""
    excluded = found.get("excluded")
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for domain in dict.fromkeys(row["domain"] for row in found["means"]):
        rows = [row for row in found["means"] if row["domain"] == domain]
        metrics = [key for key in rows[0] if "@" in key]
        table = Table(
            "system",
            "seeds",
            *metrics,
            title=f"{domain}: {rows[0]['users']:,} test users, all items "
            f"{'but those of the history ' if excluded else ''}ranked, item level",
        )
        for row in rows:
            cells = [
                f"{row[m]['mean']:.4f}" + (f" ±{row[m]['sd']:.4f}" if row[m]["sd"] is not None else "")
                for m in metrics
            ]
            table.add_row(row["system"], str(len(row["seeds"])), *cells)
        console.print(table)
        for row in found["comparisons"]:
            if row["domain"] == domain and row["metric"] == "ndcg@10":
                console.print(
                    f"  {row['system']} against {row['reference']}: {row['verdict']} "
                    f"(NDCG@10 {row['difference']:+.4f}, p = {row['p_holm']:.3g} after Holm)"
                )
