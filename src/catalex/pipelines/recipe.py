"""A recipe: one YAML file that says what to run. Read, override, check, dump; owns no hyper-parameter.

Blocks that belong to a component stay mappings here and are parsed by the component's own `Options` when its
stage needs them, so that a machine that only trains never imports the data sources.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from catalex import sample
from catalex.errors import nearest, user_error
from catalex.options import Options, Positive
from catalex.types import JSON

VARIABLE = re.compile(r"\$\{(\w+)\}")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
PUBLISHED = "published"
"""Name in place of a tokenizer's where all identifiers are published ones."""


class PretrainBlock(Options):
    """Which domains the recommender is trained on first. With one domain it is simply trained on it."""

    domains: list[str]
    """Domains of the mixture."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the training options of `recommender` for this stage."""


class TransferBlock(Options):
    """Fine-tuning to target domains, one at a time."""

    domains: list[str]
    """Target domains."""
    starts: list[Literal["pretrained", "scratch"]] = Field(default=["pretrained"])
    """Begin from the pre-trained weights, from random ones, or run both for comparison."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the training options of `recommender` for this stage."""
    by_domain: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further overrides for single targets, by name: a small domain wants more epochs than a large one."""

    def training_of(self, domain: str) -> dict[str, Any]:
        """Overrides of `recommender.training` for one target."""
        return {**self.training, **self.by_domain.get(domain, {})}


class EvaluateBlock(Options):
    """What is evaluated on the test cases."""

    domains: list[str] | None = None
    """Domains to evaluate; default: the transfer targets, or without transfer the pre-training domains."""
    ks: list[Positive] = Field(default=[5, 10], min_length=1)
    """Cut-offs K of Recall, NDCG and MRR."""
    baselines: list[str] = Field(default=["popularity", "transitions"])
    """Other systems for the same table: names from the table of recommenders, or labels of blocks under
    `baselines` that name one."""
    lists: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Systems that were trained elsewhere: by label, a file of ranked lists for each domain
    (`evaluation.ranked_lists`), judged on the same cases."""
    exclude_history: bool = False
    """Leave the items that a user already has out of the user's ranking. Off in the papers and in all our
    tables; some public leaderboards have it on, and their numbers are to be compared with no others."""
    zero_shot: bool = False
    """Judge the pre-trained recommender also on the evaluated domains that it never learned from."""
    examples: int = Field(default=6, ge=0)
    """Test users whose recommendations the report shows by title."""


class TokenizeBlock(Options):
    """Which domains the tokenizer learns from, and how equal identifiers are told apart."""

    domains: list[str] | None = None
    """Domains the tokenizer is trained on, jointly, and then frozen; default: the pre-training domains."""
    conflicts: Literal["reassign", "digit", "none"] = "reassign"
    """`reassign` moves all but one item of a group to the nearest free last code (UTGRec); `digit` appends
    TIGER's extra digit; `none` is for published identifiers that are unique already."""
    adapt: dict[str, Literal["rotate", "grow", "projection", "full"]] = Field(default_factory=dict)
    """Domains that the frozen tokenizer is adapted to and the method, typically domains that it did not learn
    from. `rotate` and `grow` work from vectors alone (`tokenizers.adapt`); `projection` and `full` fine-tune
    a
    tokenizer with an encoder of its own (`tokenizers.utgrec`)."""
    published: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Identifiers that others published, in place of a tokenizer: for every domain of the recipe a block of
    `tokenizers.published.PublishedOptions`."""


class Recipe(Options):
    """Everything `catalex run` needs."""

    name: str
    """Name of the run."""
    workspace: str | None = None
    """Folder of the stages; default ``runs/<name>``."""
    cache: str = "runs/cache"
    """Folder of content vectors by content hash, shared by all runs."""
    device: str = "auto"
    """"cpu", "cuda", or "auto": cuda when there is one."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default=[0])
    """Each seed trains and evaluates its own recommenders; the tokenizer uses the first."""
    domains: dict[str, dict[str, Any]]
    """Domains by name, each a block of `data.prepare.PrepareOptions`."""
    text: dict[str, Any] = Field(default_factory=dict)
    """How an item becomes text: `features.text.TextOptions`."""
    encoder: dict[str, Any] = Field(default_factory=lambda: {"name": "minilm"})
    """Content encoder: its name and options."""
    image_encoder: dict[str, Any] | None = None
    """Encoder of images alone, for recommenders that read them beside the vectors of `encoder`; null where
    there are none."""
    tokenizer: dict[str, Any] = Field(default_factory=lambda: {"name": "rqkmeans"})
    """Tokenizer: its name and options."""
    tokenize: TokenizeBlock = Field(default_factory=TokenizeBlock)
    recommender: dict[str, Any] = Field(default_factory=lambda: {"name": "t5"})
    """The recommender of `pretrain` and `transfer`: its name and options."""
    pretrain: PretrainBlock | None = None
    transfer: TransferBlock | None = None
    evaluate: EvaluateBlock = Field(default_factory=EvaluateBlock)
    baselines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of baselines by name or, where a block has a `name`, by a label of your own."""
    note: str = ""
    """Free text for the results ledger."""

    @property
    def folder(self) -> Path:
        """The workspace."""
        return Path(self.workspace or f"runs/{self.name}")

    @property
    def tokenizer_domains(self) -> list[str]:
        """Domains that the tokenizer learns from; none where the identifiers are published ones."""
        if self.tokenize.published:
            return []
        return self.tokenize.domains or self.pretrain_domains or list(self.domains)

    @property
    def pretrain_domains(self) -> list[str]:
        """Domains of the first training."""
        return self.pretrain.domains if self.pretrain else []

    @property
    def evaluate_domains(self) -> list[str]:
        """Domains whose test cases are used."""
        if self.evaluate.domains is not None:
            return self.evaluate.domains
        return self.transfer.domains if self.transfer else self.pretrain_domains


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``key.sub=value`` overrides (values are YAML) and check its names.

    Raises:
        CatalexError: When the file is missing or not YAML, a key is unknown, or a block names an unknown
            domain.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        near = (
            nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else None
        )
        raise user_error(
            "the recipe does not exist",
            place=path,
            remedy=f"did you mean {near!r}?" if near else "check the path",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise user_error(
            f"the recipe is not valid YAML: {reason}", place=path, remedy="mend the line named above"
        ) from None
    except IsADirectoryError:
        raise user_error("this is a folder, not a recipe", place=path, remedy="name a YAML file") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise user_error(
            f"the recipe cannot be read ({reason})", place=path, remedy="check the path"
        ) from None
    if not isinstance(values, dict):
        raise user_error(
            "a recipe is a mapping of keys to values",
            place=path,
            value=values,
            remedy="see recipes/demo.yaml for an example",
        )
    for override in overrides:
        _apply(values, override)
    if isinstance(values.get("tokenize"), dict) and values["tokenize"].get("published"):
        values.setdefault("tokenizer", {"name": PUBLISHED})  # so that no report names one that was not used
    recipe = Recipe.parse(_expand(values, str(path)), str(path))
    _check(recipe, path)
    return recipe


def dump_recipe(recipe: Recipe) -> JSON:
    """The recipe as plain values, defaults included."""
    return recipe.model_dump(mode="json")


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise user_error(
            "an override has the form key.sub=value",
            place="--set",
            value=override,
            remedy="for example --set recommender.training.epochs=5",
        )
    parts = key.split(".")
    block = values
    for part in parts[:-1]:
        inner = block.setdefault(part, {})
        if not isinstance(inner, dict):
            raise user_error(
                f"{part!r} is not a block",
                place="--set",
                value=override,
                remedy="check the key against the recipe",
            )
        block = inner
    try:
        block[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise user_error(
            f"the value is not valid YAML: {' '.join(str(error).split())}",
            place="--set",
            value=override,
            remedy="quote it, for example --set 'note=\"a: b\"'",
        ) from None


def _expand(value: Any, place: str) -> Any:
    """Replace ``${NAME}`` in strings by environment variables; CATALEX_SAMPLE is the packaged sample."""
    if isinstance(value, dict):
        return {key: _expand(inner, f"{place}: {key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, place) for inner in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] == "CATALEX_SAMPLE":
            return str(sample.path())
        if match[1] not in os.environ:
            raise user_error(
                f"the environment variable {match[1]} is not set",
                place=place,
                value=value,
                remedy=f"set it, for example: {match[1]}=/path/to/it catalex run ..",
            )
        return os.environ[match[1]]

    return VARIABLE.sub(replace, value)


def _check(recipe: Recipe, path: Path) -> None:
    """Names that must exist, before anything long begins."""
    if not NAME.fullmatch(recipe.name):
        raise user_error(
            "a run's name uses lower-case letters, digits, '-', '_' and '.'",
            place=f"{path}: name",
            value=recipe.name,
        )
    if not recipe.domains:
        raise user_error("a recipe needs at least one domain", place=f"{path}: domains", remedy="add one")
    for name in recipe.domains:
        if not NAME.fullmatch(name):
            raise user_error(
                "a domain's name uses lower-case letters, digits, '-', '_' and '.'",
                place=f"{path}: domains",
                value=name,
            )
    if not recipe.seeds or len(set(recipe.seeds)) != len(recipe.seeds):
        raise user_error(
            "seeds are distinct integers, at least one", place=f"{path}: seeds", value=recipe.seeds
        )
    lists = {
        "tokenize.domains": recipe.tokenize.domains,
        "pretrain.domains": recipe.pretrain_domains,
        "transfer.domains": recipe.transfer.domains if recipe.transfer else None,
        "evaluate.domains": recipe.evaluate.domains,
        "tokenize.adapt": recipe.tokenize.adapt,
        "transfer.by_domain": recipe.transfer.by_domain if recipe.transfer else None,
        "tokenize.published": recipe.tokenize.published,
        **{f"evaluate.lists.{label}": files for label, files in recipe.evaluate.lists.items()},
    }
    blocks = {"pretrain": recipe.pretrain, "transfer": recipe.transfer}
    for key, block in blocks.items():
        if block is not None and not block.domains:
            raise user_error(
                "no domain is named", place=f"{path}: {key}.domains", allowed=list(recipe.domains)
            )
    for key, names in lists.items():
        for name in names or []:
            if name not in recipe.domains:
                close = nearest(name, recipe.domains)
                raise user_error(
                    f"unknown domain {name!r}",
                    place=f"{path}: {key}",
                    allowed=list(recipe.domains),
                    remedy=f"did you mean {close!r}?" if close else "declare it under 'domains'",
                )
    if recipe.transfer and "pretrained" in recipe.transfer.starts and not recipe.pretrain_domains:
        raise user_error(
            "transfer starts from a pre-trained recommender, but the recipe has no 'pretrain' block",
            place=f"{path}: transfer",
            remedy="add 'pretrain' or set transfer.starts: [scratch]",
        )
    _check_tokenize(recipe, path)


def _check_tokenize(recipe: Recipe, path: Path) -> None:
    """Either a tokenizer is trained, or all identifiers are published ones."""
    block, name = recipe.tokenize, recipe.tokenizer.get("name")
    if not block.published:
        if name == PUBLISHED:
            raise user_error(
                "no published identifiers are named",
                place=f"{path}: tokenizer.name",
                value=name,
                remedy="name a file for every domain under tokenize.published, or name a tokenizer",
            )
        if block.conflicts == "none":
            raise user_error(
                "items that share an identifier cannot be decoded",
                place=f"{path}: tokenize.conflicts",
                value=block.conflicts,
                allowed="reassign, digit",
                remedy="use one of them; 'none' is for published identifiers that are unique",
            )
        return
    missing = [domain for domain in recipe.domains if domain not in block.published]
    if missing:
        raise user_error(
            f"domain {missing[0]!r} has no published identifiers, but others have",
            place=f"{path}: tokenize.published",
            value=list(block.published),
            remedy="name a file for every domain of the recipe, or move the others to a recipe of their own",
        )
    if recipe.tokenizer != {"name": PUBLISHED}:
        raise user_error(
            "published identifiers need no tokenizer, and none is trained",
            place=f"{path}: tokenizer",
            value=recipe.tokenizer,
            allowed=f"name: {PUBLISHED}",
            remedy="remove the block 'tokenizer', or tokenize.published",
        )
    for key, value in (("domains", block.domains), ("adapt", block.adapt)):
        if value:
            raise user_error(
                "published identifiers have no tokenizer that could be trained or adapted",
                place=f"{path}: tokenize.{key}",
                value=value,
                remedy=f"remove tokenize.{key}, or tokenize.published",
            )
    if block.conflicts == "reassign":
        raise user_error(
            "published identifiers come without code vectors, so there is no nearest free identifier",
            place=f"{path}: tokenize.conflicts",
            value=block.conflicts,
            allowed="digit, none",
            remedy="set tokenize.conflicts: digit, or none where they are unique already",
        )
