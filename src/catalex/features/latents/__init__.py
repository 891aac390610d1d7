"""Frozen image targets: what the visual decoder of UTGRec has to reconstruct. One table of autoencoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalex.errors import nearest, user_error
from catalex.features.latents.base import ImageTarget, LatentOptions, Vae
from catalex.features.latents.external import DIFFUSERS, MAR_KL16, DiffusersVae, MarKl16
from catalex.features.latents.index import LatentIndex
from catalex.features.latents.taef2 import Taef2, Taef2Options

IMAGE_TARGETS: dict[str, type[LatentOptions]] = {
    "taef2": Taef2Options,
    f"{DIFFUSERS}<id or folder>": LatentOptions,
    f"{MAR_KL16}<path>": LatentOptions,
}
"""Image targets by the name that recipes use, with the options of each."""


def make_image_target(settings: Mapping[str, Any], place: str, device: str = "cpu") -> ImageTarget:
    """The image target that a block of a recipe describes: its `name`, and the options of that target.

    Args:
        settings: For example ``{"name": "taef2", "folder": "weights/taef2"}``.
        place: Where the block stands in the recipe, for messages.
        device: Where the autoencoder computes, as torch names it.

    Raises:
        CatalexError: When the name or an option is unknown, or weights or a package are missing or wrong.
    """
    options = image_target_options(settings, place)
    if isinstance(options, Taef2Options):
        return ImageTarget(Taef2(options, place, device), options, device)
    name = str(settings["name"])
    reference = name.split(":", 1)[1]
    vae: Vae
    if name.startswith(DIFFUSERS):
        vae = DiffusersVae(reference, f"{place}.name", device)
    else:
        vae = MarKl16(Path(reference).expanduser(), device)
    return ImageTarget(vae, options, device)


def image_target_options(settings: Mapping[str, Any], place: str) -> LatentOptions:
    """The checked options of the image target that a block of a recipe describes; no weights are looked for.

    Raises:
        CatalexError: When the name or an option is unknown.
    """
    name = settings.get("name")
    values = {key: value for key, value in settings.items() if key != "name"}
    if name == "taef2":
        return Taef2Options.parse(values, place)
    if isinstance(name, str) and name.startswith((DIFFUSERS, MAR_KL16)):
        prefix, reference = name.split(":", 1)
        if not reference:
            raise user_error(
                f"nothing follows '{prefix}:'", place=f"{place}.name", allowed=list(IMAGE_TARGETS)
            )
        return LatentOptions.parse(values, place)
    close = nearest(str(name), ["taef2"])
    raise user_error(
        "the name of the image target is missing" if name is None else f"unknown image target {name!r}",
        place=f"{place}.name",
        allowed=list(IMAGE_TARGETS),
        remedy=f"did you mean {close!r}?" if close else "use one of the listed targets",
    )


__all__ = [
    "IMAGE_TARGETS",
    "ImageTarget",
    "LatentIndex",
    "LatentOptions",
    "Vae",
    "image_target_options",
    "make_image_target",
]
