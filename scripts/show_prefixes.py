"""Which items share the beginning of their identifiers? Print some as Markdown, and draw their posters.

    python scripts/show_prefixes.py runs/nine-domains/prepare/movies runs/unitok/tokenize --picture movies.jpg

The first folder is a prepared domain, the second holds the identifiers of its items. Asked about are the
items with the most interactions in the training part, which a reader is likely to know, save those that an
earlier one has shown already; or with ``--random`` any. With ``--picture`` they have an image. Beside each
stand the items that share most of its first codes; among equals, which the identifiers do not tell apart,
random ones.

The picture has a row for each item asked about: its image, then those of its neighbours in the order of the
Markdown. Where there is no image that can be read stands the title.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from catalex.artifacts import atomic_path
from catalex.data.columns import IMAGES_FILE
from catalex.data.domain import Domain
from catalex.data.images import ImageStore, decode_image
from catalex.errors import CatalexError, require, user_error
from catalex.pipelines.pretrain import IDENTIFIERS
from catalex.progress import say
from catalex.reporting.prefixes import Alike, alike, choose_queries
from catalex.reporting.tables import escape, markdown_table, shortened
from catalex.tokenizers.identifiers import IdentifierTable
from catalex.types import Codes, Ints

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 6
"""White pixels around each image."""
LETTER = 7
"""Pixels of a letter, about."""
LONGEST = 70
"""Characters of a title."""


def main() -> None:
    """Choose, print, draw."""
    o = arguments()
    domain = Domain.load(o.domain)
    codes = IdentifierTable.load(o.tokenized / IDENTIFIERS).of(o.name or domain.name)
    if len(codes) != len(domain):
        raise user_error(
            "the identifiers belong to another preparation of this domain",
            place=o.tokenized,
            value=f"{len(codes)} identifiers",
            allowed=f"{len(domain)} items",
            remedy="run 'catalex tokenize' again",
        )
    store = None
    if o.picture is not None:
        require("PIL", "images")
        store = ImageStore(o.domain / IMAGES_FILE)
    generator = np.random.default_rng(o.seed)
    pictured = None if store is None else store.ids
    if o.random:
        candidates = choose_queries(len(domain), o.queries, generator, pictured)
    else:
        candidates = most_used(domain, pictured)
    found: list[Alike] = []
    shown: set[int] = set()
    for item in candidates.tolist():
        if len(found) < o.queries and (o.random or item not in shown):
            found.append(alike(codes, item, o.neighbours, generator))
            shown.update(found[-1].items)
    print("\n".join(table(found, codes, domain.titles)))
    if store is not None:
        draw(found, domain.titles, store, o)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("domain", type=Path, help="prepared domain, such as runs/NAME/prepare/movies")
    add("tokenized", type=Path, help=f"folder with {IDENTIFIERS}, such as runs/NAME/tokenize")
    add("--name", help="name of the domain among the identifiers (default: its own)")
    add("--queries", type=count, default=8, help="items asked about")
    add("--neighbours", type=count, default=6, help="items beside each")
    add("--random", action="store_true", help="ask about random items instead of the most used ones")
    add("--seed", type=int, default=0)
    add("--picture", type=Path, help="contact sheet of the images, .png or .jpg")
    add("--side", type=count, default=120, help="longest side of an image in pixels")
    return parser.parse_args()


def count(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def most_used(domain: Domain, pictured: Ints | None) -> Ints:
    """Items by the number of their interactions in the training part; of those with an image, if given."""
    used = np.bincount(domain.sequences.training.items, minlength=len(domain))
    ranked: Ints = np.argsort(-used, kind="stable")
    return ranked if pictured is None else ranked[np.isin(ranked, pictured)]


def table(found: Sequence[Alike], codes: Codes, titles: Sequence[str]) -> list[str]:
    """A row for each item asked about, its neighbours by the number of codes they share."""
    rows = []
    for one in found:
        groups = []
        for depth in sorted(set(one.depths), reverse=True):
            items = [item for item, shared in zip(one.items, one.depths, strict=True) if shared == depth]
            told = "; ".join(escape(shortened(titles[item], LONGEST)) for item in items)
            groups.append(f"{depth} of {codes.shape[1]} ({one.sharing[depth - 1]:,} items): {told}")
        title = escape(shortened(titles[one.item], LONGEST))
        rows.append([title, " ".join(map(str, codes[one.item])), "<br>".join(groups) or "none"])
    header = ["item", "identifier", "items that share at least so many of its first codes (how many do)"]
    return markdown_table(header, rows, len(header))


def draw(found: Sequence[Alike], titles: Sequence[str], store: ImageStore, o: argparse.Namespace) -> None:
    """Write the contact sheet, cells of ``side x side`` pixels, the item asked about set apart by a line."""
    from PIL import Image, ImageDraw

    cell = o.side + 2 * GAP
    across = 1 + max((len(one.items) for one in found), default=0)
    sheet = Image.new("RGB", (across * cell + GAP, len(found) * cell), "white")
    pen = ImageDraw.Draw(sheet)
    missing = 0
    for row, one in enumerate(found):
        for column, item in enumerate((one.item, *one.items)):
            left, top = column * cell + GAP + (GAP if column else 0), row * cell + GAP
            image = picture(store, item, o.side)
            if image is None:
                missing += 1
                pen.rectangle((left, top, left + o.side - 1, top + o.side - 1), outline="lightgrey")
                # The font that comes with Pillow may know no other letters.
                title = shortened(titles[item], LONGEST).encode("latin-1", "replace").decode("latin-1")
                lines = textwrap.wrap(title, max(1, o.side // LETTER))
                pen.text((left + GAP, top + GAP), "\n".join(lines), fill="black")
            else:
                sheet.paste(image, (left + (o.side - image.width) // 2, top + (o.side - image.height) // 2))
    pen.line((cell + GAP // 2, 0, cell + GAP // 2, sheet.height), fill="grey", width=2)
    kind = "PNG" if o.picture.suffix.lower() == ".png" else "JPEG"
    with atomic_path(o.picture) as temporary:
        sheet.save(temporary, kind, **({"quality": 88} if kind == "JPEG" else {}))
    say(f"{o.picture}: {sheet.width} x {sheet.height} pixels, {missing} without an image")


def picture(store: ImageStore, item: int, side: int) -> Image | None:
    """An item's image; None when it has none or none that can be read."""
    data = store.get(item)
    if data is None:
        return None
    try:
        return decode_image(data, size=side)
    except CatalexError:
        return None


if __name__ == "__main__":
    try:
        main()
    except CatalexError as error:
        sys.exit(str(error))
