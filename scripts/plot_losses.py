#!/usr/bin/env python
"""Draw the losses of tokenizers that were trained together by UTGRec's objective, one panel a loss.

    python scripts/plot_losses.py losses.svg "text=runs/a/tokenize" "text and posters=runs/b/tokenize"

Each further argument is a label and the folder of a ``tokenize`` stage, whose ``curves.json`` is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from catalex.artifacts import atomic_path, read_json
from catalex.errors import EXIT_CODE, CatalexError, user_error
from catalex.pipelines.tokenize import CURVES
from catalex.reporting.plots import LinePanel, Series, lines

LOSSES = ("text", "image", "vector", "code", "alignment", "cooccurrence")
"""What UTGRec's objective adds up, before weighting."""


NAMED = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
"""How a figure begins in a file of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figure; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figure", type=Path, help="SVG to write")
    parser.add_argument("runs", nargs="+", metavar="LABEL=FOLDER", help="a tokenize stage and its label")
    options = parser.parse_args(arguments)
    try:
        figure = lines(_panels([_read(run) for run in options.runs]))
        with atomic_path(options.figure) as path:
            # figures are made to stand inside a page; one in a file of its own says what it is
            path.write_text(figure.replace("<svg ", NAMED, 1), encoding="utf-8")
    except CatalexError as error:
        print(error, file=sys.stderr)
        return EXIT_CODE
    return 0


def _read(run: str) -> tuple[str, dict[str, list[float]]]:
    label, equals, folder = run.partition("=")
    if not equals:
        raise user_error("a run is given as LABEL=FOLDER", value=run, remedy="put a label before the folder")
    curves: dict[str, list[float]] = read_json(Path(folder) / CURVES)
    if missing := [name for name in LOSSES if name not in curves]:
        raise user_error(
            "these are no curves of UTGRec's tokenizer",
            place=Path(folder) / CURVES,
            value=f"no {missing[0]!r}",
            remedy="name the tokenize stage of a recipe with the tokenizer utgrec",
        )
    return label, curves


def _panels(runs: Sequence[tuple[str, dict[str, list[float]]]]) -> list[LinePanel]:
    panels = []
    for name in LOSSES:
        # a loss that is 0 throughout is not part of that run
        series = [
            Series(label, range(1, len(curves[name]) + 1), curves[name])
            for label, curves in runs
            if any(curves[name])
        ]
        if series:
            panels.append(LinePanel(name, "epoch", series))
    return panels


if __name__ == "__main__":
    sys.exit(main())
