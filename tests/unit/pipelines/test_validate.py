"""Every block is checked before anything long begins: published identifiers and adaptation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from catalex.artifacts import write_json, write_parquet
from catalex.errors import CatalexError
from catalex.pipelines.evaluate import _tokenizer_name
from catalex.pipelines.recipe import Recipe, read_recipe
from catalex.pipelines.validate import validate_blocks
from catalex.pipelines.workspace import Workspace


def recipe(folder: Path, **blocks: Any) -> Recipe:
    domain = {"source": "canonical", "options": {"folder": "x"}}
    values = {"name": "mini", "device": "cpu", "domains": {"toys": domain, "games": domain}, **blocks}
    (folder / "mini.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return read_recipe(folder / "mini.yaml")


def published(folder: Path, **more: Any) -> Recipe:
    block = {"file": str(folder / "codes.parquet"), **more}
    files = {"toys": block, "games": block}
    return recipe(folder, tokenize={"conflicts": "digit", "published": files}, pretrain={"domains": ["toys"]})


def test_published_identifiers_are_looked_at_only_with_the_data(tmp_path: Path) -> None:
    validate_blocks(published(tmp_path), with_data=False)
    with pytest.raises(CatalexError, match=r"codes\.parquet: the file does not exist"):
        validate_blocks(published(tmp_path))
    rows = [{"method": "theirs", "item_id": 0, "codes": ["<a_1>"]}]
    write_parquet(tmp_path / "codes.parquet", pa.Table.from_pylist(rows))
    with pytest.raises(CatalexError, match=r"no identifiers of method 'ours' \(allowed: theirs\)"):
        validate_blocks(published(tmp_path, method="ours"))
    with pytest.raises(CatalexError, match=r"published\.games: unknown key 'methods'.*Did you mean 'method'"):
        validate_blocks(published(tmp_path, methods="theirs"), with_data=False)


def test_the_ledger_names_the_method_that_tokenize_found(tmp_path: Path) -> None:
    """The file itself may be gone where recommenders are trained and judged."""
    place = Workspace(tmp_path)
    write_json(place.tokenized / "health.json", {"published": {"toys": "theirs"}})
    assert _tokenizer_name(published(tmp_path), place, "toys") == "published:theirs"


def test_options_that_rule_adaptation_out_are_refused_before_training(tmp_path: Path) -> None:
    pretrain = {"domains": ["toys"]}
    residual = {"name": "unitok", "combination": "residual"}
    with pytest.raises(CatalexError, match="do not quantize the latent vector"):
        validate_blocks(
            recipe(tmp_path, tokenizer=residual, pretrain=pretrain, tokenize={"adapt": {"games": "rotate"}}),
            with_data=False,
        )
    several = {"name": "unitok", "experts": 3, "routed": 2}
    grown = {"pretrain": pretrain, "tokenize": {"adapt": {"games": "grow"}}}
    with pytest.raises(CatalexError, match=r"tokenizer\.routed: .*\(found 2; allowed: 1\)"):
        validate_blocks(recipe(tmp_path, tokenizer=several, **grown), with_data=False)
    unnamed = {**several, "expert_token": "none"}
    validate_blocks(recipe(tmp_path, tokenizer=unnamed, **grown), with_data=False)


def test_the_options_of_the_recommender_are_still_checked(tmp_path: Path) -> None:
    changed = published(tmp_path).model_copy(update={"recommender": {"name": "t5", "beem": 3}})
    with pytest.raises(CatalexError, match=r"unknown key 'beem'.*Did you mean 'beam'"):
        validate_blocks(changed, with_data=False)


@pytest.mark.parametrize("name", ["rqkmeans", "rqvae", "unitok"])
def test_only_tokenizers_with_experts_are_grown(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"tokenizer": {"name": name}, "pretrain": {"domains": ["toys"]}}
    validate_blocks(recipe(tmp_path, **changes, tokenize={"adapt": {"games": "rotate"}}), with_data=False)
    grown = recipe(tmp_path, **changes, tokenize={"adapt": {"games": "grow"}})
    if name == "unitok":
        validate_blocks(grown, with_data=False)
        return
    with pytest.raises(CatalexError, match=rf"adapt\.games: .*'grow' \(found '{name}'; allowed: unitok\)"):
        validate_blocks(grown, with_data=False)


def test_tokenizers_are_named_with_their_domains_and_adaptation(tmp_path: Path) -> None:
    block = {"domains": ["toys"], "adapt": {"games": "rotate"}}
    found = recipe(tmp_path, tokenizer={"name": "rqvae"}, tokenize=block)
    assert _tokenizer_name(found, Workspace(tmp_path), "toys") == "rqvae"
    assert _tokenizer_name(found, Workspace(tmp_path), "games") == "rqvae(toys)+rotate"
