"""``catalex catalogue ..``: the verbs that move a live catalogue in and out of its store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalex.errors import require

if TYPE_CHECKING:
    from catalex.serving.catalogue import LiveCatalogue

catalogue_app = typer.Typer(help="A live catalogue: import, export, snapshot, restore.", no_args_is_help=True)


@catalogue_app.callback()
def needs() -> None:
    """A live catalogue: import, export, snapshot, restore."""
    require("sqlalchemy", "serve")


BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by 'catalex bundle'.")]
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store", metavar="URL", help="A file for SQLite, or postgresql://user:password@host/name."
    ),
]


@catalogue_app.command("import")
def import_command(
    bundle: BundleFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file with a column 'key'.")],
    store: StoreUrl,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Add the items of a Parquet file, and update those that are there; safe to repeat."""
    from catalex.serving.exchange import import_items

    with _opened(bundle, store, device) as live:
        found = import_items(live, file)
        print(
            f"{found.added:,} added, {found.updated:,} updated, {found.unchanged:,} as they were; "
            f"{len(live):,} items at revision {live.revision}"
        )


@catalogue_app.command("export")
def export_command(
    bundle: BundleFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file to write.")],
    store: StoreUrl,
    images: Annotated[bool, typer.Option("--images", help="Also the image files.")] = False,
) -> None:
    """Write every item, with its identifier, to a Parquet file."""
    from catalex.serving.exchange import export_items

    with _opened(bundle, store, "cpu") as live:
        print(f"{export_items(live, file, images=images):,} items at revision {live.revision}: {file}")


@catalogue_app.command("snapshot")
def snapshot_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make.")], store: StoreUrl
) -> None:
    """Copy a store to a folder, as of one moment; the service may go on."""
    from catalex.serving.snapshot import write_snapshot
    from catalex.serving.store import Store

    source = Store.open(store)
    try:
        manifest = write_snapshot(source, folder)
    finally:
        source.close()
    print(f"{manifest['rows']['items']:,} items at revision {manifest['revision']}: {folder}")


@catalogue_app.command("restore")
def restore_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a snapshot.")], store: StoreUrl
) -> None:
    """Fill an empty store from a snapshot."""
    from catalex.serving.snapshot import restore_snapshot
    from catalex.serving.store import Store

    target = Store.open(store)
    try:
        manifest = restore_snapshot(target, folder)
    finally:
        target.close()
    print(f"{manifest['rows']['items']:,} items at revision {manifest['revision']}: {store.split('@')[-1]}")


def _opened(bundle: Path, store: str, device: str) -> closing[LiveCatalogue]:
    """The live catalogue of a bundle and a store, closed at the end of the block."""
    from catalex.bundle import Bundle
    from catalex.pipelines.workspace import resolve_device
    from catalex.serving.catalogue import LiveCatalogue
    from catalex.serving.store import Store

    device = resolve_device(device)
    return closing(LiveCatalogue.open(Bundle.load(bundle), Store.open(store), device=device))
