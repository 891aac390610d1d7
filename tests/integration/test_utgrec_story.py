"""The tiny story with a tokenizer that is trained from texts and images, and fine-tuned to its target."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from catalex.artifacts import hash_file, read_arrays, read_json
from catalex.bundle import Bundle
from catalex.data import columns as c
from catalex.errors import CatalexError
from catalex.pipelines.embed import embed_stage, load_vectors
from catalex.pipelines.prepare import prepare_stage
from catalex.pipelines.recipe import Recipe, read_recipe
from catalex.pipelines.run import run_recipe
from catalex.pipelines.tokenize import _contents, tokenize_stage
from catalex.pipelines.validate import validate_blocks
from catalex.pipelines.workspace import Workspace
from catalex.tokenizers import ContentTokenizer, load_tokenizer, utgrec
from catalex.tokenizers.identifiers import IdentifierTable
from support.tiny_story import DOMAINS, ITEMS, write_story
from unit.features.tiny import tiny_transformer
from unit.tokenizers.tiny_utgrec import TinyTarget

ONE, TWO = DOMAINS
TOKENIZER: dict[str, Any] = {
    "name": "utgrec",
    "image_target": {"name": "taef2"},
    "root": 16,
    "leaf": 40,
    "code_width": 8,
    "projection_hidden": 16,
    "learning_rate": 3e-3,
    "fine_tune_rate": 3e-3,
    "fine_tune_warmup": 0.0,
    "image_loss": "mse",
    "batch": 32,
    "epochs": 4,
    "fine_tune_epochs": 2,
    "quantizer_warmup": 2,
    "revive_every": 2,
}
LOSSES = ("total", "text", "image", "code", "alignment", "cooccurrence")


@pytest.fixture(scope="module", autouse=True)
def tiny_target() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utgrec, "make_image_target", lambda *parts: TinyTarget())
        yield


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of which every third item has an image, a transformer, and the recipe ``tiny.yaml``."""
    folder = tmp_path_factory.mktemp("utgrec-story")
    path = write_story(folder)
    for year in DOMAINS:
        write_images(folder / "data" / year)
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    encoder = {"name": "mini", "folder": str(tiny_transformer(folder / "bert")), "max_tokens": 24}
    recipe["tokenizer"] = {**TOKENIZER, "encoder": encoder}
    recipe["tokenize"] = {"domains": [ONE], "adapt": {TWO: "projection"}}
    recipe["evaluate"] = {"baselines": ["popularity"], "examples": 1}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def write_images(folder: Path) -> None:
    rows = [{c.ITEM_ID: item, c.IMAGE: bytes([item + 1, 3])} for item in range(0, ITEMS, 3)]
    schema = pa.schema([(c.ITEM_ID, pa.int32()), (c.IMAGE, pa.binary())])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / c.IMAGES_FILE)


def in_folder(folder: Path, work: Callable[[], Any]) -> Any:
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        return work()
    finally:
        os.chdir(before)


def tokenized(folder: Path, story: Path, *overrides: str) -> Path:
    """The folder of the stage `tokenize`, and whatever comes before it."""
    recipe = read_recipe(story, overrides)

    def work() -> None:
        for stage in (prepare_stage, embed_stage, tokenize_stage):
            stage(recipe)

    in_folder(folder, work)
    return folder / "run/tokenize"


@pytest.fixture(scope="module")
def finished(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    in_folder(folder, lambda: run_recipe(read_recipe(story)))
    return folder


def test_the_story_ends_with_a_report_and_a_bundle(finished: Path) -> None:
    summary = read_json(finished / "run/evaluate/summary.json")
    systems = {row["system"]: row for row in summary["results"]}
    assert set(systems) == {"t5-transferred", "t5", "popularity"}
    assert systems["t5-transferred"]["users"] > 60
    assert "utgrec" in (finished / "run/report/report.html").read_text(encoding="utf-8")
    shown = read_json(finished / "run/report/report.json")["tokenizer"]
    assert shown["curves"] == read_json(finished / "run/tokenize/curves.json")
    assert set(LOSSES) <= set(shown["curves"])
    bundle = Bundle.load(finished / "run/bundle" / TWO)
    assert len({found.item_id for found in bundle.recommend([3, 1, 4], 10)}) == 10


def test_curves_of_training_and_of_fine_tuning(finished: Path) -> None:
    curves = read_json(finished / "run/tokenize/curves.json")
    own = curves["adapted"][TWO]
    for name in LOSSES:
        assert len(curves[name]) == 4
        assert len(own[name]) == 2
        assert all(value > 0 for value in [*curves[name][1:], *own[name]]), name
    assert curves["with_image"] == own["with_image"] == ITEMS / 3
    assert curves["with_text"] == ITEMS
    assert curves["trained_parameters"] == curves["parameters"]
    assert own["trained_parameters"] == own["parameters"] - (16 + 40) * 8  # without C of root and leaf


def test_the_target_has_a_tokenizer_of_its_own_over_the_same_code_vectors(finished: Path) -> None:
    folder = finished / "run/tokenize"
    common, own = (read_arrays(folder / f / "model.safetensors") for f in ("tokenizer", f"adapted/{TWO}"))
    for book in (0, 1):
        name = f"codebooks.books.{book}"
        np.testing.assert_array_equal(common[f"{name}.base"], own[f"{name}.base"])
        assert not np.array_equal(common[f"{name}.projection"], own[f"{name}.projection"])
    table = IdentifierTable.load(folder / "identifiers.parquet")
    assert table.space.groups == (0, 1, 1)
    for year in DOMAINS:
        assert len(np.unique(table.of(year), axis=0)) == ITEMS
    assert table.versions[ONE][0] != table.versions[TWO][0]
    health = read_json(folder / "health.json")["domains"]
    for year in DOMAINS:
        assert health[year]["collisions_after"][-1]["rate"] == 0
        assert health[year]["error"] > 0
        assert health[year]["pooled"]  # the leaf, over both of its levels


def test_the_saved_tokenizer_makes_the_identifiers_again(finished: Path) -> None:
    """From texts, without the autoencoder: codes as in the health report, all but the last kept."""
    folder = finished / "run/tokenize"
    table = IdentifierTable.load(folder / "identifiers.parquet")
    tokenizer = load_tokenizer(folder / "adapted" / TWO)
    assert isinstance(tokenizer, ContentTokenizer)
    recipe = Recipe.model_validate(read_json(finished / "run/report/report.json")["recipe"])
    place = Workspace(finished / "run")
    content = _contents(recipe, place, {TWO: place.domain(TWO)}, tokenizer)[TWO]
    assert sum(item.image is not None for item in content) == ITEMS / 3
    read = tokenizer.represent(content, load_vectors(place, TWO), name=TWO, device="cpu")
    codes = tokenizer.encode(read)
    np.testing.assert_array_equal(codes[:, :-1], table.of(TWO)[:, :-1])
    moved = (codes != table.of(TWO)).any(axis=1).sum()
    assert read_json(folder / "health.json")["domains"][TWO]["moved"] == moved


def test_a_second_run_trains_nothing(finished: Path, story: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = hash_file(finished / "run/tokenize/tokenizer/model.safetensors")
    tokenized(finished, story)
    said = capfd.readouterr().err
    assert "train " not in said
    assert said.count("unchanged, skipped") == 5
    assert hash_file(finished / "run/tokenize/tokenizer/model.safetensors") == before


def test_held_out_interactions_change_nothing_that_is_learned(
    story: Path, finished: Path, tmp_path: Path
) -> None:
    """Every user's last two items are replaced by others: tokenizers and identifiers stay bit for bit."""
    data = tmp_path / "data"
    for year in DOMAINS:
        source = story.parent / "data" / year
        (data / year).mkdir(parents=True)
        for name in (c.ITEMS_FILE, c.IMAGES_FILE):
            (data / year / name).write_bytes((source / name).read_bytes())
        events = pq.read_table(source / c.INTERACTIONS_FILE)
        users, items = events[c.USER_ID].to_numpy(), events[c.ITEM_ID].to_numpy().copy()
        held_out = np.append(users[2:] != users[:-2], [True, True])
        items[held_out] = (items[held_out] + 7) % ITEMS
        place = events.schema.get_field_index(c.ITEM_ID)
        changed = events.set_column(place, events.schema.field(place), pa.array(items, pa.int32()))
        pq.write_table(changed, data / year / c.INTERACTIONS_FILE)
    options = [f"domains.{year}.options.folder={data / year}" for year in DOMAINS]
    again, first = tokenized(tmp_path, story, *options), finished / "run/tokenize"
    for name in ("tokenizer", f"adapted/{TWO}"):
        assert hash_file(again / name / "model.safetensors") == hash_file(first / name / "model.safetensors")
    tables = [IdentifierTable.load(folder / "identifiers.parquet") for folder in (first, again)]
    for year in DOMAINS:
        np.testing.assert_array_equal(tables[0].of(year), tables[1].of(year))


def test_a_recipe_without_image_target_reads_no_images(story: Path, tmp_path: Path) -> None:
    one = ("tokenizer.image_target=null", "tokenizer.epochs=1", "tokenize.adapt={}")
    curves = read_json(tokenized(tmp_path, story, *one) / "curves.json")
    assert curves["with_image"] == 0
    assert curves["image"] == [0.0]


@pytest.mark.parametrize(
    ("tokenizer", "method", "message"),
    [
        ("{name: rqkmeans}", "projection", r"'projection' \(found 'rqkmeans'; allowed: lamia, utgrec\)"),
        ("{name: unitok}", "full", r"'full' \(found 'unitok'; allowed: lamia, utgrec\)"),
        (
            "{name: utgrec}",
            "rotate",
            r"'rotate' \(found 'utgrec'; allowed: letter, rqkmeans, rqvae, unitok\)",
        ),
        ("{name: utgrec}", "grow", r"'grow' \(found 'utgrec'; allowed: unitok\)"),
        ("{name: utgrec}", "projected", r"tokenize\.adapt\..*projected"),
    ],
)
def test_a_method_that_the_tokenizer_cannot_do_is_refused(
    story: Path, tokenizer: str, method: str, message: str
) -> None:
    with pytest.raises(CatalexError, match=message):
        validate_blocks(
            read_recipe(story, [f"tokenizer={tokenizer}", f"tokenize.adapt.{TWO}={method}"]), with_data=False
        )


def test_weights_are_not_looked_for_when_a_recipe_is_checked(story: Path) -> None:
    missing = "tokenizer.image_target={name: taef2, folder: /no/such/folder}"
    validate_blocks(
        read_recipe(story, [missing, "tokenizer.encoder.folder=/no/such/folder"]), with_data=False
    )
    with pytest.raises(CatalexError, match=r"tokenizer\.image_target: unknown key 'foldr'"):
        validate_blocks(read_recipe(story, ["tokenizer.image_target={name: taef2, foldr: x}"]))
