"""images: the addresses of a prepared domain's items -> the domain's ``images.parquet``."""

from __future__ import annotations

from pathlib import Path

from catalex.artifacts import read_parquet
from catalex.data import columns as c
from catalex.data.images import ImageOptions, fetch_images
from catalex.errors import user_error


def fetch_domain_images(folder: Path, *, size: int, allow_local: bool) -> str:
    """Fetch the images that the items of a prepared domain name. Run again, it continues and retries.

    Items without an address are left alone. A domain whose images came with its source
    (``images.parquet#<item_id>``) has nothing to fetch.

    Args:
        folder: The canonical domain folder; ``images.parquet`` and ``failures.jsonl`` are written into it.
        size: Longest side of a stored image in pixels.
        allow_local: Read addresses that are local files too.

    Returns:
        The counts, as a sentence or two for a person.

    Raises:
        CatalexError: When the folder is not a prepared domain, or fetching would overwrite images that came
            with the source.
    """
    options = ImageOptions.parse({"size": size}, "image options")
    addresses, inside, without = _addresses(folder)
    if inside and addresses:
        raise user_error(
            f"{inside:,} items have images of their source and {len(addresses):,} name addresses",
            place=folder / c.ITEMS_FILE,
            remedy="fetching would drop the former: put all images into the source, or none",
        )
    if not addresses:
        return f"nothing to fetch: {inside:,} images came with the source, {without:,} items name none"
    report = fetch_images(addresses.items(), folder, options, allow_local=allow_local)
    counts = (
        f"{report.fetched:,} images fetched, {report.kept:,} kept, {report.failed:,} failed; "
        f"{without:,} items name none"
    )
    return counts + (f"\nreasons of the failures: {report.failures}" if report.failures else "")


def _addresses(folder: Path) -> tuple[dict[int, str], int, int]:
    """Addresses by item, the number of images that came with the source, and of items without an image."""
    table = read_parquet(folder / c.ITEMS_FILE, [c.ITEM_ID, c.IMAGE])
    images = [(int(row[c.ITEM_ID]), str(row[c.IMAGE] or "").strip()) for row in table.to_pylist()]
    named = {item: image for item, image in images if image}
    addresses = {item: a for item, a in named.items() if not a.startswith(f"{c.IMAGES_FILE}#")}
    return addresses, len(named) - len(addresses), len(images) - len(named)
