"""Check every block of a recipe with the options of its component, before anything long begins."""

from __future__ import annotations

from catalex.errors import lookup, user_error
from catalex.features import make_encoder
from catalex.features.text import TextOptions
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.workspace import resolve_device
from catalex.recommenders import RECOMMENDERS, make_recommender
from catalex.recommenders.generative import Generative
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.conflicts import space_after


def validate_blocks(recipe: Recipe, *, with_data: bool = True) -> None:
    """Parse all blocks; a typing error anywhere is told now and not after hours of training.

    Args:
        with_data: Also parse the data sources (which need polars) and look whether their files exist.

    Raises:
        CatalexError: The first thing that is wrong.
    """
    resolve_device(recipe.device)
    TextOptions.parse(recipe.text, "text")
    make_encoder(recipe.encoder, "encoder")
    space = space_after(
        make_tokenizer(recipe.tokenizer, "tokenizer", recipe.tokenizer_domains).space,
        recipe.tokenize.conflicts,
    )
    for stage in (recipe.pretrain, recipe.transfer):
        if stage is not None:
            make_recommender(recipe.component(recipe.recommender, stage.training), "recommender", space)
    check_transfer(recipe)
    check_baselines(recipe)
    for name in recipe.evaluate.baselines:
        make_recommender({"name": name, **recipe.baselines.get(name, {})}, f"baselines.{name}", space)
    if with_data:
        from catalex.data.prepare import PrepareOptions, input_hashes

        for name, block in recipe.domains.items():
            input_hashes(PrepareOptions.parse(block, f"domains.{name}"), name)


def check_transfer(recipe: Recipe) -> None:
    """Refuse a transfer whose recommender cannot start from another domain's weights.

    Raises:
        CatalexError: When it knows only the item ids of one catalogue.
    """
    name = str(recipe.recommender.get("name", "t5"))
    if lookup(RECOMMENDERS, name, "recommender") is Generative or recipe.transfer is None:
        return
    if "pretrained" in recipe.transfer.starts:
        raise user_error(
            "this recommender knows the item ids of one catalogue only, so it cannot be transferred",
            place="recommender.name",
            value=name,
            allowed=[key for key, kind in RECOMMENDERS.items() if kind is Generative],
            remedy="choose a generative recommender, or set transfer.starts: [scratch]",
        )


def check_baselines(recipe: Recipe) -> None:
    """Refuse baselines that are not in the table of recommenders, or that need identifiers.

    Raises:
        CatalexError: The first that is wrong.
    """
    for name in [*recipe.baselines, *recipe.evaluate.baselines]:
        if lookup(RECOMMENDERS, name, "recommender") is Generative:
            raise user_error(
                "a generative recommender is no baseline",
                place="evaluate.baselines",
                value=name,
                allowed=[key for key, kind in RECOMMENDERS.items() if kind is not Generative],
                remedy="train it with 'pretrain' or 'transfer' and leave it out of the baselines",
            )
