"""A prepared domain as RecBole's atomic files, so that any model of that library can be trained on our split.

Written are the benchmark files of RecBole: every case with its history is a row, so nothing is split again::

    <name>.train.inter   every prefix of every training sequence, and the item after it
    <name>.valid.inter   the validation cases
    <name>.test.inter    the test cases
    <name>.inter         all interactions in order, for models that read them (not needed otherwise)
    <name>.item          title, brand and categories of every item
    <name>.yaml          the settings that read all this as it is meant

Users and items carry the numbers of the domain, so that ranked lists of the other library can be judged here
as they are (`catalex score`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from catalex.artifacts import write_text
from catalex.data import columns as c
from catalex.data.domain import Domain
from catalex.data.histories import Cases, Histories

SEQUENCE_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"
SETTINGS = """\
# Read with: run_recbole(model=.., dataset={name!r}, config_file_list=[this file])
data_path: .
benchmark_filename: [train, valid, test]
alias_of_item_id: [item_id_list]
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
ITEM_LIST_LENGTH_FIELD: item_length
LIST_SUFFIX: _list
MAX_ITEM_LIST_LENGTH: {length}
load_col: {{inter: [user_id, item_id, item_id_list], item: [item_id, title, brand, categories]}}
train_neg_sample_args: null
eval_args: {{order: TO, mode: full}}
metrics: [Recall, NDCG, MRR]
topk: [5, 10]
valid_metric: NDCG@10
"""


def write_recbole(domain: Domain, folder: Path, max_history: int = 20) -> list[Path]:
    """Write the files into ``folder/<name>/``; returns their paths.

    Args:
        domain: Prepared.
        folder: What RecBole calls ``data_path``.
        max_history: Latest items of a history to write (protocol here: 20).
    """
    target = folder / domain.name
    sequences = domain.sequences
    tables = {
        "train.inter": _table(SEQUENCE_HEADER, _prefixes(sequences.training, max_history)),
        "valid.inter": _table(SEQUENCE_HEADER, _cases(sequences.validation, max_history)),
        "test.inter": _table(SEQUENCE_HEADER, _cases(sequences.test, max_history)),
        "inter": _table("user_id:token\titem_id:token\ttimestamp:float", _events(sequences.all)),
        "item": _table("item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq", _items(domain)),
        "yaml": SETTINGS.format(name=domain.name, length=max_history),
    }
    written = []
    for ending, text in tables.items():
        path = target / f"{domain.name}.{ending}"
        write_text(path, text)
        written.append(path)
    return written


def _table(header: str, rows: Iterable[Iterable[object]]) -> str:
    lines = ["\t".join(str(cell) for cell in row) for row in rows]
    return "\n".join([header, *lines]) + "\n"


def _prefixes(training: Histories, length: int) -> Iterator[tuple[int, str, int]]:
    for user in range(len(training)):
        row = training[user].tolist()
        for end in range(1, len(row)):
            yield user, _joined(row[max(0, end - length) : end]), row[end]


def _cases(cases: Cases, length: int) -> Iterator[tuple[int, str, int]]:
    latest = cases.histories.latest(length)
    for place, (user, target) in enumerate(zip(cases.users.tolist(), cases.targets.tolist(), strict=True)):
        yield user, _joined(latest[place].tolist()), target


def _events(everything: Histories) -> Iterator[tuple[int, int, int]]:
    """The position stands for the time: it orders a user's interactions without ties."""
    for user in range(len(everything)):
        for position, item in enumerate(everything[user].tolist()):
            yield user, item, position


def _items(domain: Domain) -> Iterator[tuple[int, str, str, str]]:
    rows = domain.items.select([c.TITLE, c.BRAND, c.CATEGORIES]).to_pylist()
    for number, row in enumerate(rows):
        categories = [str(name).replace(" ", "_") for name in row[c.CATEGORIES] or ()]
        yield (
            number,
            _words(row[c.TITLE]),
            _words(row[c.BRAND]).replace(" ", "_"),
            _joined(map(_words, categories)),
        )


def _joined(values: Iterable[object]) -> str:
    return " ".join(str(value) for value in values)


def _words(text: str | None) -> str:
    """Text without tabs and line ends, which separate cells and rows."""
    return " ".join((text or "").split())
