"""Check every block of a recipe with the options of its component, before anything long begins."""

from __future__ import annotations

from catalex.errors import user_error
from catalex.features import make_encoder
from catalex.features.text import TextOptions
from catalex.pipelines.content import baseline_block, training_block
from catalex.pipelines.recipe import NAME, Recipe
from catalex.pipelines.workspace import resolve_device
from catalex.recommenders import RECOMMENDERS, make_recommender, recommender_kind, recommender_name
from catalex.tokenizers import (
    TOKENIZERS,
    CodeSpace,
    ContentTokenizer,
    LatentTokenizer,
    Tokenizer,
    make_tokenizer,
)
from catalex.tokenizers.conflicts import space_after
from catalex.tokenizers.experts import Routed
from catalex.tokenizers.published import PublishedOptions, read_rows

ABLE: dict[str, type] = {
    "rotate": LatentTokenizer,
    "grow": Routed,
    "projection": ContentTokenizer,
    "full": ContentTokenizer,
}
"""What a tokenizer must be for each method of adaptation."""


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
    if recipe.image_encoder is not None:
        make_encoder(recipe.image_encoder, "image_encoder")
    space = _space(recipe, with_data=with_data)
    overrides = [recipe.pretrain.training] if recipe.pretrain else []
    if recipe.transfer is not None:
        overrides += [recipe.transfer.training_of(name) for name in recipe.transfer.domains]
    for training in overrides:
        make_recommender(training_block(recipe, training), "recommender", space)
    check_transfer(recipe)
    check_zero_shot(recipe)
    check_baselines(recipe)
    for name in recipe.evaluate.baselines:
        make_recommender(baseline_block(recipe, name), f"baselines.{name}", space)
    if with_data:
        from catalex.data.prepare import PrepareOptions, input_hashes

        for name, block in recipe.domains.items():
            input_hashes(PrepareOptions.parse(block, f"domains.{name}"), name)


def _space(recipe: Recipe, *, with_data: bool) -> CodeSpace:
    """The code space to try the recommenders' options with, after checking what gives the identifiers."""
    published = published_options(recipe)
    if published:
        for options in published.values() if with_data else ():
            read_rows(options)
        return CodeSpace.of(1, 1)  # the real one depends on the files, and no option depends on it
    tokenizer = make_tokenizer(recipe.tokenizer, "tokenizer", recipe.tokenizer_domains)
    check_adaptable(recipe, tokenizer)
    return space_after(tokenizer.space, recipe.tokenize.conflicts)


def published_options(recipe: Recipe) -> dict[str, PublishedOptions]:
    """The file of published identifiers of each domain; empty where a tokenizer makes them.

    Raises:
        CatalexError: When a block under ``tokenize.published`` is wrong.
    """
    return {
        name: PublishedOptions.parse(block, f"tokenize.published.{name}")
        for name, block in recipe.tokenize.published.items()
    }


def check_adaptable(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Refuse a method of adaptation that the tokenizer has no means for, before it is trained.

    Raises:
        CatalexError: When the recipe adapts a tokenizer without latent vectors, or grows one without experts.
    """
    for domain, method in recipe.tokenize.adapt.items():
        needed: type = ABLE[method]
        if not isinstance(tokenizer, needed):
            latent = [key for key, kind in TOKENIZERS.items() if issubclass(kind, LatentTokenizer)]
            trained = [key for key, kind in TOKENIZERS.items() if issubclass(kind, ContentTokenizer)]
            able = {
                "rotate": latent,
                "grow": [key for key, kind in TOKENIZERS.items() if hasattr(kind, "expert_position")],
                "projection": trained,
                "full": trained,
            }
            raise user_error(
                f"this tokenizer cannot be adapted by {method!r}",
                place=f"tokenize.adapt.{domain}",
                value=recipe.tokenizer.get("name"),
                allowed=able[method],
                remedy="choose one of these tokenizers, or leave out tokenize.adapt",
            )
        if isinstance(tokenizer, LatentTokenizer):
            tokenizer.check_adaptable(method)


def check_transfer(recipe: Recipe) -> None:
    """Refuse a transfer whose recommender cannot start from another domain's weights.

    Raises:
        CatalexError: When it knows only the item ids of one catalogue.
    """
    if recipe.transfer is None or recommender_kind(recipe.recommender).transfers:
        return
    if "pretrained" in recipe.transfer.starts:
        raise user_error(
            "this recommender knows the item ids of one catalogue only, so it cannot be transferred",
            place="recommender.name",
            value=recommender_name(recipe.recommender),
            allowed=[key for key, kind in RECOMMENDERS.items() if kind.transfers],
            remedy="choose a recommender that transfers, or set transfer.starts: [scratch]",
        )


def check_zero_shot(recipe: Recipe) -> None:
    """Refuse zero-shot evaluation of what cannot be applied to a domain that it never saw.

    Raises:
        CatalexError: When there is no pre-training, or the recommender knows one catalogue only.
    """
    if not recipe.evaluate.zero_shot:
        return
    if recipe.pretrain is None or not recommender_kind(recipe.recommender).transfers:
        raise user_error(
            "there is no recommender that could be applied to a domain it never saw",
            place="evaluate.zero_shot",
            value=recommender_name(recipe.recommender),
            allowed=[key for key, kind in RECOMMENDERS.items() if kind.transfers],
            remedy="add 'pretrain' with one of these, or remove zero_shot",
        )


def check_baselines(recipe: Recipe) -> None:
    """Refuse baselines that are not in the table of recommenders, or that need identifiers.

    A block under ``baselines`` may name another recommender than its own label.

    Raises:
        CatalexError: The first that is wrong.
    """
    for name in [*recipe.baselines, *recipe.evaluate.baselines]:
        if not NAME.fullmatch(name):
            raise user_error(
                "a label uses lower-case letters, digits, '-', '_' and '.'",
                place="evaluate.baselines",
                value=name,
            )
        if "identifiers" in recommender_kind(baseline_block(recipe, name)).needs:
            raise user_error(
                "a generative recommender is no baseline",
                place="evaluate.baselines",
                value=name,
                allowed=[key for key, kind in RECOMMENDERS.items() if "identifiers" not in kind.needs],
                remedy="train it with 'pretrain' or 'transfer' and leave it out of the baselines",
            )
