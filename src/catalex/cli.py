"""The command line: verbs only, each calls one pipeline.

A user's mistake ends in one sentence and exit code 2.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import catalex
from catalex import processes
from catalex.artifacts import explain_os_error
from catalex.errors import EXIT_CODE, CatalexError, require
from catalex.serving.commands import catalogue_app

app = typer.Typer(
    name="catalex",
    help="Catalog to lexicon: one tokenizer for all catalogues, generative recommenders that transfer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Public datasets: where they are, and download.", no_args_is_help=True)
ledger_app = typer.Typer(help="The results ledger.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(ledger_app, name="ledger")
app.add_typer(catalogue_app, name="catalogue")

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells have it."""

HINT = "catalex: interrupted; run the same command again to continue."

GRACE = 5.0
"""Seconds that the program has to end by itself after Ctrl-C."""

USAGE_ERROR: Any = typer.BadParameter.__base__
"""What typer raises for every mistake in the command itself; it has no public name of its own."""

DEFAULT_LEDGER = Path("docs/results/results.jsonl")

STAGES = ("run", "prepare", "embed", "tokenize", "pretrain", "transfer", "evaluate", "report", "bundle")
"""Verbs that several processes run together. All others are left to the main process."""

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file; see recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, e.g. --set recommender.training.epochs=5.",
    ),
]
Record = Annotated[bool, typer.Option("--record", help="Append the results to the ledger.")]
Ledger = Annotated[Path, typer.Option("--ledger", help="Ledger that --record appends to.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Options before any verb."""
    if version:
        print(f"catalex {catalex.__version__}")
        raise typer.Exit()
    if not processes.is_main():
        if context.invoked_subcommand not in STAGES:
            raise typer.Exit()
        nowhere = context.with_resource(Path(os.devnull).open("w"))  # noqa: SIM115 - it is one
        context.with_resource(contextlib.redirect_stdout(nowhere))  # the main process prints


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    record: Record = False,
    ledger: Ledger = DEFAULT_LEDGER,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve the first bundle, as 'catalex serve'.")
    ] = False,
) -> None:
    """Run the whole story: prepare, embed, tokenize, pretrain, transfer, evaluate, bundle, report."""
    from catalex.pipelines.recipe import read_recipe
    from catalex.pipelines.run import print_outcome, run_recipe

    if serve:
        require("fastapi", "serve")
    parsed = read_recipe(recipe, overrides or ())
    print_outcome(parsed, run_recipe(parsed, ledger if record else None))
    if serve and processes.is_main():
        from catalex.serving.run import serve_recipe

        serve_recipe(parsed)


@app.command()
def prepare(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Raw tables to canonical domains, with the statistics that papers print."""
    from catalex.data.statistics import print_statistics
    from catalex.pipelines.prepare import prepare_stage
    from catalex.pipelines.recipe import read_recipe
    from catalex.pipelines.workspace import workspace

    parsed = read_recipe(recipe, overrides or ())
    prepare_stage(parsed)
    print_statistics([workspace(parsed).prepared(name) for name in parsed.domains])


@app.command()
def embed(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Item text and images to content vectors."""
    from catalex.pipelines.embed import embed_stage
    from catalex.pipelines.recipe import read_recipe

    embed_stage(read_recipe(recipe, overrides or ()))


@app.command()
def tokenize(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Train the tokenizer, give every item an identifier, and print the health of the identifiers."""
    from catalex.pipelines.recipe import read_recipe
    from catalex.pipelines.tokenize import print_health, tokenize_stage

    print_health(tokenize_stage(read_recipe(recipe, overrides or ())))


@app.command()
def pretrain(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Train the recommender on the pre-training domains."""
    from catalex.pipelines.pretrain import pretrain_stage
    from catalex.pipelines.recipe import read_recipe

    pretrain_stage(read_recipe(recipe, overrides or ()))


@app.command()
def transfer(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Fine-tune to the target domains."""
    from catalex.pipelines.pretrain import transfer_stage
    from catalex.pipelines.recipe import read_recipe

    transfer_stage(read_recipe(recipe, overrides or ()))


@app.command()
def evaluate(
    recipe: RecipePath, overrides: Overrides = None, record: Record = False, ledger: Ledger = DEFAULT_LEDGER
) -> None:
    """Judge every trained system and the baselines on the test cases, item level."""
    from catalex.pipelines.evaluate import evaluate_stage, print_summary
    from catalex.pipelines.recipe import read_recipe

    print_summary(evaluate_stage(read_recipe(recipe, overrides or ()), ledger if record else None))


@app.command()
def score(
    lists: Annotated[
        Path, typer.Argument(metavar="LISTS", help="Parquet or CSV: user_id and items, best first.")
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="PREPARED", help="Folder of a domain that 'catalex prepare' wrote.")
    ],
    system: Annotated[str, typer.Option(help="Name of the system.")] = "elsewhere",
) -> None:
    """Judge ranked lists that were made elsewhere, on the test cases of a prepared domain."""
    from catalex.data.domain import Domain
    from catalex.evaluation.ranked_lists import judge_lists

    domain = Domain.load(folder)
    result = judge_lists(
        lists,
        domain.sequences.test,
        items=len(domain),
        system=system,
        domain=domain.name,
        split_id=domain.split_id,
    )
    print(f"{system} on {domain.name}: {len(result):,} test users, item level")
    for metric in result.metrics:
        print(f"{metric:10} {result.values(metric).mean():.4f}")


@app.command()
def report(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Write the report of what has been run so far: one HTML page, JSON and Markdown."""
    from catalex.pipelines.recipe import read_recipe
    from catalex.pipelines.report import report_stage

    print(f"report: {report_stage(read_recipe(recipe, overrides or ()))}")


@app.command()
def bundle(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Put everything that recommending needs into one folder for each target domain."""
    from catalex.pipelines.bundle import bundle_stage
    from catalex.pipelines.recipe import read_recipe

    for folder in bundle_stage(read_recipe(recipe, overrides or ())):
        print(f"bundle: {folder}")


@app.command()
def recommend(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that 'catalex bundle' wrote.")],
    history: Annotated[
        str,
        typer.Option(
            help="Items of the history, oldest first, separated by commas: source ids, "
            "or '#12' for item number 12."
        ),
    ],
    k: Annotated[int, typer.Option("-k", help="Items wanted.")] = 10,
    new_only: Annotated[bool, typer.Option("--new-only", help="Leave out the items of the history.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend the next items after a history, with titles and scores (log-probabilities)."""
    from catalex.bundle import Bundle

    opened = Bundle.load(folder)
    items = [opened.item(name.strip()) for name in history.split(",") if name.strip()]
    found = opened.recommend(items, k, exclude_history=new_only)
    if as_json:
        print(
            json.dumps(
                [
                    {"item_id": s.item_id, "title": s.title, "score": s.score, "identifier": s.identifier}
                    for s in found
                ],
                ensure_ascii=False,
            )
        )
        return
    print("after")
    for item in items:
        print(f"          {_line(opened.titles[item])}")
    print("recommended")
    for s in found:
        print(f"{s.score:8.3f}  {_line(s.title)}  <{'-'.join(map(str, s.identifier))}>")


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that 'catalex bundle' wrote.")],
    store: Annotated[
        str | None,
        typer.Option(help="Where changes are kept: a file or postgresql://..; default: BUNDLE.sqlite."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; default 8000.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File of API keys and roles.")] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder of bundles that may be swapped in by name.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, e.g. --set timeout=5."),
    ] = None,
) -> None:
    """Serve a bundle: an HTTP interface with a live catalogue, and a page to look inside."""
    require("fastapi", "serve")
    from catalex.serving.run import serve as serve_bundle
    from catalex.serving.settings import parse_options

    given = {
        "store": store, "host": host, "port": port, "api_key_file": api_key_file, "models": models
    }  # fmt: skip
    serve_bundle(folder, parse_options(given, settings or ()))


@app.command()
def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="A bundle or a prepared domain to check as well.")
    ] = None,
) -> None:
    """Check the environment, and a bundle or a prepared domain."""
    from catalex.pipelines.doctor import examine

    good = True
    for finding in examine(path):
        good = good and finding.good
        print(("ok   " if finding.good else "WRONG") + f" {finding.text}")
    if not good:
        raise typer.Exit(EXIT_CODE)


@data_app.command("list")
def data_list() -> None:
    """Datasets that catalex knows where to find."""
    from catalex.data.datasets import list_datasets

    for dataset in list_datasets():
        print(f"{dataset.name:24} {dataset.title}")


@data_app.command("export")
def data_export(
    folder: Annotated[
        Path, typer.Argument(metavar="PREPARED", help="Folder of a domain that 'catalex prepare' wrote.")
    ],
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; the domain gets a folder in it.")],
    max_history: Annotated[int, typer.Option(min=1, help="Latest items of a history.")] = 20,
) -> None:
    """Write a prepared domain, split and all, as atomic files of RecBole."""
    from catalex.data.domain import Domain
    from catalex.data.recbole import write_recbole

    for path in write_recbole(Domain.load(folder), to, max_history):
        print(path)


@data_app.command("describe")
def data_describe(
    name: Annotated[str, typer.Argument(help="Name of a dataset, or a prepared folder.")],
) -> None:
    """Addresses, terms, citation and recipe of a dataset, or the statistics of a prepared folder."""
    if Path(name).is_dir():
        from catalex.data.statistics import print_statistics

        print_statistics([Path(name)])
        return
    from catalex.data.datasets import describe

    print(describe(name))


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="Name of a dataset.")],
    folder: Annotated[Path, typer.Option(help="Where to put the files.")] = Path("data"),
    category: Annotated[
        str | None, typer.Option(help="Category, for datasets that come in categories.")
    ] = None,
) -> None:
    """Download a dataset from its official address; a broken download continues where it stopped."""
    from catalex.data.datasets import download_dataset

    for path in download_dataset(name, folder, category=category):
        print(path)


@data_app.command("images")
def data_images(
    folder: Annotated[
        Path, typer.Argument(metavar="PREPARED", help="A prepared domain whose items name image addresses.")
    ],
    size: Annotated[int, typer.Option(help="Longest side of a stored image, pixels.")] = 224,
    allow_local: Annotated[
        bool, typer.Option("--allow-local", help="Also read addresses that are local files.")
    ] = False,
) -> None:
    """Download the images of a prepared domain's items; run it again to continue and to retry failures."""
    from catalex.pipelines.images import fetch_domain_images

    print(fetch_domain_images(folder, size=size, allow_local=allow_local))


@ledger_app.command("merge")
def ledger_merge(
    source: Annotated[Path, typer.Argument(help="Ledger measured elsewhere.")],
    target: Annotated[Path, typer.Argument(help="Ledger to append to.")] = DEFAULT_LEDGER,
) -> None:
    """Append the lines of one ledger that another does not have yet."""
    from catalex.reporting.ledger import BenchmarkLine, ResultLine, merge

    kind = BenchmarkLine if "benchmark" in target.name else ResultLine
    print(f"{merge(source, target, kind)} lines added to {target}")


def main() -> None:
    """Entry point of the ``catalex`` command."""
    try:
        with _interruptible():
            code = app(prog_name="catalex", standalone_mode=False)
            processes.end()
    except CatalexError as error:
        _refuse(str(error))
    except USAGE_ERROR as error:
        _refuse(_explain_usage(error))
    except OSError as error:
        explained = explain_os_error(error, Path(error.filename2 or error.filename or Path.cwd()))
        if not isinstance(explained, CatalexError):
            raise
        _refuse(str(explained))
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print(HINT, file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the program even where a library swallows `KeyboardInterrupt`.

    Pressed twice it ends at once, pressed once after `GRACE` seconds at the latest. Writing is atomic and
    stages resume, so that this loses nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    pressed, over = threading.Event(), threading.Event()

    def stop() -> NoReturn:
        os.write(2, f"{HINT}\n".encode())
        os._exit(INTERRUPTED)

    def interrupt(*_: object) -> NoReturn:
        if pressed.is_set():
            stop()
        pressed.set()
        raise KeyboardInterrupt

    def watch() -> None:
        pressed.wait()
        if not over.wait(GRACE):
            stop()

    threading.Thread(target=watch, daemon=True, name="interrupt").start()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        over.set()
        pressed.set()


def _refuse(sentence: str) -> NoReturn:
    if not processes.is_main():  # whose own sentence this usually is; having said it, it ends them all
        time.sleep(processes.GRACE)
    print(f"catalex: {sentence}", file=sys.stderr)
    sys.exit(EXIT_CODE)


def _explain_usage(error: Any) -> str:
    """One sentence for a mistake in the command itself: an unknown verb or option, a missing argument."""
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a verb: the message is its help
        error.show()
        sys.exit(EXIT_CODE)
    message = " ".join(error.format_message().split())
    place = error.ctx.command_path if error.ctx is not None else "catalex"
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} Run '{place} --help' for what it takes."


def _line(title: str) -> str:
    """A title for the eye: one line of at most 100 characters, nothing that moves the cursor."""
    shown = "".join(letter if letter.isprintable() else " " for letter in title[:101])
    return shown if len(shown) <= 100 else shown[:99] + "…"


if __name__ == "__main__":
    main()
