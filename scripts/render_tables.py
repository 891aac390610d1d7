#!/usr/bin/env python
"""Bring the tables of the documents up to date with the ledgers, or check that they are.

    python scripts/render_tables.py                    README.md and all of docs/
    python scripts/render_tables.py docs/speed.md      one document
    python scripts/render_tables.py --check            change nothing; exit 1 when a table differs

docs/results/README.md describes the ledgers and the query language.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from catalex.errors import EXIT_CODE, CatalexError
from catalex.reporting.markdown import difference, read_ledgers, render_file

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Render or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="documents (default: README.md and docs/**/*.md)")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a table differs")
    parser.add_argument(
        "--ledgers", type=Path, default=ROOT / "docs" / "results", help="folder of the ledgers"
    )
    options = parser.parse_args(arguments)
    documents = options.files or [
        p for p in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if p.is_file()
    ]
    try:
        ledgers = read_ledgers(options.ledgers)
        if options.check:
            differences = [found for path in documents if (found := difference(path, ledgers)) is not None]
            for found in differences:
                print(found, file=sys.stderr)
            return 1 if differences else 0
        for path in documents:
            if render_file(path, ledgers):
                print(f"{path}: tables brought up to date")
    except CatalexError as error:
        print(error, file=sys.stderr)
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
