"""The folder of a trained tokenizer: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from catalex.artifacts import hash_file, read_arrays, read_json, write_arrays, write_json
from catalex.errors import user_error
from catalex.options import Options
from catalex.tokenizers.base import TokenizerDomain
from catalex.types import JSON

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = 1
"""Version of the folder's layout; a folder of another version is refused."""


@dataclass(frozen=True)
class Training:
    """What a tokenizer learned from: width D of the vectors, and the split of each domain."""

    width: int
    domains: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, domains: Sequence[TokenizerDomain], width: int) -> Training:
        """Note the domains that a tokenizer is about to learn from."""
        return cls(width, tuple((domain.name, domain.split_id) for domain in domains))


def write_tokenizer(
    folder: Path, name: str, options: Options, training: Training, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Write both files, the configuration last."""
    write_arrays(folder / WEIGHTS_FILE, arrays)
    config = {
        "name": name,
        "format": FORMAT,
        "options": options.model_dump(mode="json"),
        "width": training.width,
        "domains": [{"name": domain, "split_id": split} for domain, split in training.domains],
    }
    write_json(folder / CONFIG_FILE, config)


def read_config(folder: Path) -> dict[str, JSON]:
    """The configuration of a tokenizer folder.

    Raises:
        CatalexError: When it is missing, damaged or of another version.
    """
    place = folder / CONFIG_FILE
    config = read_json(place)
    missing = [key for key in ("name", "format", "options", "width", "domains") if key not in config]
    if missing:
        raise user_error(
            f"key {missing[0]!r} is missing", place=place, remedy="check that this is a tokenizer folder"
        )
    if config["format"] != FORMAT:
        raise user_error(
            "the tokenizer folder has another format version",
            place=place,
            value=config["format"],
            allowed=str(FORMAT),
            remedy="train the tokenizer again with this version of catalex",
        )
    found: dict[str, JSON] = config
    return found


def read_tokenizer(
    folder: Path, name: str
) -> tuple[dict[str, JSON], Training, dict[str, np.ndarray[Any, Any]]]:
    """Options, training record and arrays of a folder that holds a tokenizer called `name`.

    Raises:
        CatalexError: When a file is missing or damaged, or the folder holds another tokenizer.
    """
    config = read_config(folder)
    if config["name"] != name:
        raise user_error(
            "the folder holds another tokenizer",
            place=folder / CONFIG_FILE,
            value=config["name"],
            allowed=name,
        )
    domains = tuple((entry["name"], entry["split_id"]) for entry in config["domains"])
    return config["options"], Training(int(config["width"]), domains), read_arrays(folder / WEIGHTS_FILE)


def weights_hash(folder: Path) -> str:
    """Names the trained weights of a tokenizer folder."""
    return hash_file(folder / WEIGHTS_FILE)
