"""Recipes: overrides, variables, names that must exist, and a dump that reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from catalex import sample
from catalex.errors import CatalexError
from catalex.pipelines.content import training_block
from catalex.pipelines.recipe import Recipe, dump_recipe, read_recipe

SMALLEST = """
name: mini
domains:
  toys: {source: canonical, options: {folder: data/toys}}
  games: {source: canonical, options: {folder: data/games}}
"""

PUBLISHED = """
tokenize: {conflicts: digit, published: {toys: {file: t.parquet, method: theirs}, games: {file: g.parquet}}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, "")


def written(folder: Path, more: str, base: str = SMALLEST) -> Path:
    (folder / "mini.yaml").write_text(base + more, encoding="utf-8")
    return folder / "mini.yaml"


def test_defaults(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.folder == Path("runs/mini")
    assert recipe.seeds == [0]
    assert recipe.tokenizer_domains == ["toys", "games"]
    assert recipe.pretrain_domains == recipe.evaluate_domains == []


def test_what_is_evaluated_and_tokenized_follows_the_training(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, "pretrain: {domains: [toys]}\n"))
    assert recipe.tokenizer_domains == recipe.evaluate_domains == ["toys"]
    more = "pretrain: {domains: [toys]}\ntransfer: {domains: [games]}\n"
    assert read_recipe(written(tmp_path, more)).evaluate_domains == ["games"]
    more += "evaluate: {domains: [toys]}\ntokenize: {domains: [toys, games]}\n"
    recipe = read_recipe(written(tmp_path, more))
    assert recipe.evaluate_domains == ["toys"]
    assert recipe.tokenizer_domains == ["toys", "games"]


def test_two_recipes_share_no_defaults(path: Path) -> None:
    read_recipe(path).seeds.append(7)
    read_recipe(path).evaluate.ks.append(100)
    assert read_recipe(path).seeds == [0]
    assert read_recipe(path).evaluate.ks == [5, 10]


def test_published_identifiers_stand_in_place_of_a_tokenizer(tmp_path: Path) -> None:
    more = PUBLISHED + "pretrain: {domains: [toys]}\n"
    recipe = read_recipe(written(tmp_path, more))
    assert recipe.tokenizer == {"name": "published"}
    assert recipe.tokenizer_domains == []
    assert recipe.tokenize.published["toys"] == {"file": "t.parquet", "method": "theirs"}
    assert read_recipe(written(tmp_path, more + "tokenizer: {name: published}\n")) == recipe
    assert Recipe.parse(dump_recipe(recipe), "dump") == recipe


# --- overrides ----------------------------------------------------------------------------------------------


def test_overrides_are_yaml_values_and_make_missing_blocks(path: Path) -> None:
    recipe = read_recipe(
        path,
        [
            "seeds=[0, 1]",
            "recommender.training.epochs=5",
            "recommender.name=t5",
            "pretrain.domains=[toys]",
            "note=a=b",
            "workspace=null",
        ],
    )
    assert recipe.seeds == [0, 1]
    assert recipe.recommender == {"name": "t5", "training": {"epochs": 5}}
    assert recipe.pretrain_domains == ["toys"]
    assert recipe.note == "a=b"
    assert recipe.workspace is None


def test_the_last_override_wins_and_other_keys_stay(tmp_path: Path) -> None:
    path = written(tmp_path, "recommender: {name: t5, beam: 30, training: {epochs: 9, patience: 2}}\n")
    recipe = read_recipe(path, ["recommender.training.epochs=5", "recommender.training.epochs=6"])
    assert recipe.recommender == {"name": "t5", "beam": 30, "training": {"epochs": 6, "patience": 2}}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seeds", r"--set: an override has the form key\.sub=value \(found 'seeds'\)"),
        ("name.first=x", r"--set: 'name' is not a block"),
        ("sedes=[1]", r"unknown key 'sedes'.*Did you mean 'seeds'"),
    ],
)
def test_wrong_overrides_are_refused(path: Path, override: str, sentence: str) -> None:
    with pytest.raises(CatalexError, match=sentence):
        read_recipe(path, [override])


def test_training_of_a_stage_is_laid_over_that_of_the_recommender(path: Path) -> None:
    block = {"name": "t5", "training": {"epochs": 9, "patience": 2}}
    recipe = read_recipe(path).model_copy(update={"recommender": block})
    assert training_block(recipe, {"epochs": 3}) == {"name": "t5", "training": {"epochs": 3, "patience": 2}}
    assert block["training"] == {"epochs": 9, "patience": 2}
    bare = recipe.model_copy(update={"recommender": {"name": "t5"}})
    assert training_block(bare, {}) == {"name": "t5"}
    flat = recipe.model_copy(update={"recommender": {"name": "gru4rec", "epochs": 9, "hidden": 32}})
    assert training_block(flat, {"epochs": 3}) == {"name": "gru4rec", "epochs": 3, "hidden": 32}


# --- variables ----------------------------------------------------------------------------------------------


def test_variables_of_the_environment_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PLACE", "/elsewhere")
    text = "cache: ${SOME_PLACE}/cache\nnote: ${CATALEX_SAMPLE} costs $5\n"
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.cache == "/elsewhere/cache"
    assert recipe.note == f"{sample.path()} costs $5"


def test_a_missing_variable_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_PLACE", raising=False)
    path = written(tmp_path, "encoder: {name: minilm, folder: '${SOME_PLACE}/x'}\n")
    with pytest.raises(CatalexError, match=r"encoder: folder: .*SOME_PLACE is not set.*SOME_PLACE=/path"):
        read_recipe(path)


# --- mistakes -----------------------------------------------------------------------------------------------


def test_a_misspelt_file_is_told_with_the_nearest(path: Path) -> None:
    with pytest.raises(
        CatalexError, match=r"minni\.yaml: the recipe does not exist\. Did you mean 'mini\.yaml'"
    ):
        read_recipe(path.with_name("minni.yaml"))
    with pytest.raises(CatalexError, match="does not exist"):
        read_recipe(path.parent / "none/mini.yaml")
    with pytest.raises(CatalexError, match="this is a folder"):
        read_recipe(path.parent)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [", "not valid YAML"),
        ("", "a recipe is a mapping"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("name: x\n", "key 'domains' is missing"),
        ("name: x\ndomains: {}\n", "at least one domain"),
        (SMALLEST.replace("mini", "My Run"), r"a run's name uses lower-case.*found 'My Run'"),
        (SMALLEST.replace("toys:", "To/ys:"), r"a domain's name uses lower-case.*found 'To/ys'"),
        (SMALLEST + "seeds: []\n", "at least one"),
        (SMALLEST + "seeds: [1, 1]\n", "distinct"),
        (SMALLEST + "recomender: {}\n", "unknown key 'recomender'.*Did you mean 'recommender'"),
        (SMALLEST + "pretrain: {domains: [toyz]}\n", "pretrain.domains: unknown domain 'toyz'.*mean 'toys'"),
        (SMALLEST + "pretrain: {domains: []}\n", "pretrain.domains: no domain is named"),
        (SMALLEST + "tokenize: {domains: [toyz]}\n", "tokenize.domains: unknown domain"),
        (SMALLEST + "evaluate: {domains: [zzz]}\n", "evaluate.domains: unknown domain.*eclare it"),
        (SMALLEST + "transfer: {domains: [toys]}\n", "no 'pretrain' block"),
        (SMALLEST + "transfer: {domains: [toys], starts: [best]}\n", "'pretrained' or 'scratch'"),
        (SMALLEST + "tokenize: {adapt: {toyz: rotate}}\n", "tokenize.adapt: unknown domain 'toyz'.*'toys'"),
        (
            SMALLEST + "tokenize: {adapt: {toys: turn}}\n",
            "adapt.toys: input should be 'rotate', 'grow', 'projection' or 'full'",
        ),
        (SMALLEST + "tokenize: {conflicts: none}\n", "conflicts: items that share.*reassign, digit"),
        (SMALLEST + "tokenizer: {name: published}\n", "no published identifiers are named"),
        (SMALLEST + "tokenize: {published: {toyz: {}}}\n", "published: unknown domain 'toyz'"),
        (SMALLEST + "tokenize: {published: {toys: {}}}\n", "'games' has no published identifiers"),
        (SMALLEST + PUBLISHED.replace("digit", "reassign"), "no nearest free identifier.*digit, none"),
        (SMALLEST + PUBLISHED + "tokenizer: {name: rqvae}\n", "tokenizer: .*need no tokenizer.*'rqvae'"),
        (SMALLEST + PUBLISHED.replace("{con", "{domains: [toys], con"), "tokenize.domains: .*no tokenizer"),
        (SMALLEST + PUBLISHED.replace("{con", "{adapt: {toys: rotate}, con"), "tokenize.adapt: .*no token"),
    ],
)
def test_mistakes_get_a_sentence_with_the_file(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=sentence) as caught:
        read_recipe(written(tmp_path, "", base=text))
    assert "mini.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- dump ---------------------------------------------------------------------------------------------------


def test_a_dump_reads_back_as_the_same_recipe(tmp_path: Path) -> None:
    more = "pretrain: {domains: [toys], training: {epochs: 2}}\nseeds: [3, 1]\nevaluate: {ks: [1, 20]}\n"
    recipe = read_recipe(written(tmp_path, more))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(dump_recipe(recipe)), encoding="utf-8")
    assert read_recipe(again) == recipe
    assert Recipe.parse(dump_recipe(recipe), "dump") == recipe
