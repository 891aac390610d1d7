"""Unpacking: nothing outside the folder, no links, no bombs, no half files."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path

import pytest

from catalex.data.archives import extract_zip
from catalex.errors import CatalexError
from support.raw_files import zipped


@pytest.mark.parametrize(
    "name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "C:/out.txt", "a\\..\\..\\out.txt"]
)
def test_paths_out_of_the_folder_are_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"fine.txt": b"x", name: b"y"}))
    with pytest.raises(CatalexError, match="leads out of the folder"):
        extract_zip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.txt").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(CatalexError, match="holds a link"):
        extract_zip(archive, tmp_path / "out")


def test_a_link_that_is_already_there_is_not_followed(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"inside/file.txt": b"x"}))
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/inside").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CatalexError, match="through a link"):
        extract_zip(archive, tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_bombs_are_refused_by_their_claim_and_by_their_content(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    honest = zipped({"big.txt": bytes(2_000_000)})
    archive.write_bytes(honest)
    with pytest.raises(CatalexError, match="unpacks to too much"):
        extract_zip(archive, tmp_path / "out", size_limit=1_000_000)
    size = (2_000_000).to_bytes(4, "little")
    archive.write_bytes(honest.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(CatalexError, match=r"unpacks to too much|damaged"):
        extract_zip(archive, tmp_path / "out", size_limit=1_000_000)
    assert not list(tmp_path.glob("out/*"))


def test_damage_gets_a_sentence_and_leaves_no_half_file(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK no archive")
    with pytest.raises(CatalexError, match=r"damaged.*[Dd]elete it"):
        extract_zip(archive, tmp_path / "out")
    whole = bytearray(zipped({"a.txt": json.dumps(list(range(5000))).encode()}))
    whole[300] ^= 0xFF
    archive.write_bytes(whole)
    with pytest.raises(CatalexError, match="damaged"):
        extract_zip(archive, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_unpacking_again_keeps_whole_files_and_mends_cut_ones(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"d/a.txt": b"aaaa", "d/b.txt": b"bbbb"}))
    first = extract_zip(archive, tmp_path / "out")
    stamp = first[0].stat().st_mtime_ns
    first[1].write_bytes(b"b")
    assert extract_zip(archive, tmp_path / "out") == first
    assert first[0].stat().st_mtime_ns == stamp
    assert first[1].read_bytes() == b"bbbb"
