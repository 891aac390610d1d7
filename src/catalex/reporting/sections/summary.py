"""Section "Summary": what was run, who leads in each domain, and where we lose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalex.reporting.blocks import Block, Figure, Paragraph, Points, Section, words
from catalex.reporting.plots import Dot, DotPanel, dots
from catalex.reporting.sections import aggregate
from catalex.reporting.tables import mean_and_deviation, number, spread


def summary(report: Mapping[str, Any]) -> Section:
    """The page in a few sentences."""
    blocks: list[Block] = [Paragraph(_what_was_run(report))]
    domains = aggregate.by_domain(report.get("results") or ())
    if not domains:
        blocks.append(Paragraph("No system was evaluated, so there is no accuracy to report."))
        return Section("summary", "Summary", blocks)
    mine = aggregate.ours(report)
    blocks.append(Points([_leader(report, domain, runs, mine) for domain, runs in domains.items()]))
    if mine:
        blocks.append(Paragraph(_losses(domains, mine), strong=True))
    metric = aggregate.headline_metric(next(iter(domains.values())))
    if metric is not None:
        blocks.append(
            Figure(
                "leaders",
                f"{words(metric)} on the test part, mean over seeds; whiskers: one standard deviation.",
                "; ".join(_spoken(domain, runs, metric) for domain, runs in domains.items()),
                lambda: dots(
                    [_panel(domain, runs, metric, mine) for domain, runs in domains.items()], words(metric)
                ),
            )
        )
    return Section("summary", "Summary", blocks)


def _what_was_run(report: Mapping[str, Any]) -> str:
    """One sentence that counts what the report holds."""
    results, training = report.get("results") or (), report.get("training") or ()
    tokenizer, seconds = (
        report.get("tokenizer") or {},
        sum(row.get("seconds") or 0 for row in report.get("cost") or ()),
    )
    parts = [
        _count(len(report.get("domains") or ()), "domain"),
        f"tokenizer {tokenizer['name']}" if tokenizer.get("name") else "",
        _count(len(training), "training run"),
        _count(len({r.get("system") for r in results}), "evaluated system"),
        _count(len({r.get("seed", 0) for r in results}), "seed"),
        f"{duration(seconds)} in all" if seconds else "",
    ]
    told = ", ".join(part for part in parts if part)
    return f"Recipe “{report.get('name', 'unnamed')}”: {told or 'nothing was run'}."


def _count(amount: int, noun: str) -> str:
    return f"{amount} {noun}{'s' if amount != 1 else ''}" if amount else ""


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _leader(report: Mapping[str, Any], domain: str, runs: aggregate.Runs, mine: set[str]) -> str:
    """Who leads in a domain, by how much, and whether a test confirms it."""
    metric = aggregate.headline_metric(runs)
    ranking = aggregate.means(runs, metric) if metric else {}
    if not ranking or metric is None:
        return f"{domain}: no metric was measured."
    best = next(iter(ranking))
    reached = spread(aggregate.values(runs[best], "metrics", metric))
    lead = f"{domain}: {best} leads with {words(metric)} {reached}"
    # The fair opponent: our best against their best. Without ours, the runner-up.
    rivals = [s for s in ranking if (s in mine) != (best in mine)] if mine else list(ranking)[1:]
    if not rivals:
        return lead + "."
    rival = rivals[0]
    gap = f", {_below(ranking[rival], ranking[best])}" if ranking[best] else ""
    who = "the best baseline is" if best in mine else "the best of ours is" if mine else "next is"
    tested = aggregate.comparison(report.get("comparisons") or (), domain, metric, best, rival)
    return f"{lead}; {who} {rival} with {number(ranking[rival])}{gap} ({_confirmed(tested)})."


def _below(lower: float, higher: float) -> str:
    return "equal" if lower == higher else f"{(1 - lower / higher) * 100:.1f} % lower"


def _confirmed(tested: Mapping[str, Any] | None) -> str:
    if tested is None:
        return "difference not tested"
    parts = ["no significant difference" if tested["verdict"] == "no difference" else "significant"]
    if tested.get("seeds_agree") is False:
        parts.append("seeds disagree in sign")
    if tested.get("p_holm") is not None:
        parts.append(f"Holm-corrected p = {tested['p_holm']:.2g}")
    return ", ".join(parts)


def _losses(domains: Mapping[str, aggregate.Runs], mine: set[str]) -> str:
    """Every metric and domain in which a baseline has the largest mean."""
    lost: dict[str, list[str]] = {}
    for domain, runs in domains.items():
        for metric in aggregate.metric_names(runs):
            ranking = aggregate.means(runs, metric)
            theirs = [value for system, value in ranking.items() if system not in mine]
            own = [value for system, value in ranking.items() if system in mine]
            if theirs and (not own or max(theirs) > max(own)):
                lost.setdefault(domain, []).append(words(metric))
    if not lost:
        return "Where we lose: in no domain and metric of this report."
    told = "; ".join(f"{domain} ({', '.join(metrics)})" for domain, metrics in lost.items())
    return f"Where we lose: a baseline has the higher mean in {told}."


def _panel(domain: str, runs: aggregate.Runs, metric: str, mine: set[str]) -> DotPanel:
    found = []
    for system in aggregate.means(runs, metric):
        mean, deviation = mean_and_deviation(aggregate.values(runs[system], "metrics", metric))
        found.append(Dot(system, mean, deviation, system in mine))
    return DotPanel(domain, found)


def _spoken(domain: str, runs: aggregate.Runs, metric: str) -> str:
    told = ", ".join(f"{system} {number(value)}" for system, value in aggregate.means(runs, metric).items())
    return f"{domain}: {told}"
