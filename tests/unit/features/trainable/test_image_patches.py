"""Patches against the image processor of transformers, and sizes that stay within the limits."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.features import ItemContent
from catalex.features.trainable.image_patches import PatchImages, PatchSettings, cut, fitted_size

Image = pytest.importorskip("PIL.Image", reason="needs the package pillow")


def noise(width: int, height: int) -> object:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def file_of(image: object, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)  # type: ignore[attr-defined]
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(224, 224), (300, 500), (31, 900), (20, 20), (1, 1), (700, 700)])
@pytest.mark.parametrize("patch", [14, 16])
def test_patches_equal_those_of_transformers(size: tuple[int, int], patch: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    settings = PatchSettings(patch=patch)
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
    )
    expected = processor(noise(*size), return_tensors="np")
    patches, grid = cut(noise(*size), settings)
    assert [1, *grid] == expected["image_grid_thw"][0].tolist()
    np.testing.assert_allclose(patches, expected["pixel_values"], atol=1e-5)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([28 * 28, 56 * 56, 200_704]))
def test_every_size_fits(width: int, height: int, limit: int) -> None:
    settings = PatchSettings(min_pixels=min(3136, limit), max_pixels=limit)
    across, down = fitted_size((width, height), settings)
    assert across % settings.factor == down % settings.factor == 0
    assert min(across, down) >= settings.factor
    assert across * down <= limit
    if 0.5 < width / height < 2 and limit == 200_704:
        # two tokens a side or more, so rounding moves a side by a half at most
        assert abs(math.log((across / down) / (width / height))) < 2 * math.log(3 / 2)


def test_a_batch_holds_the_patches_of_its_images_in_order() -> None:
    first, second = noise(60, 90), noise(200, 100)
    items = [
        ItemContent("", file_of(first)),
        ItemContent("", b"no image"),
        ItemContent("a"),
        ItemContent("", file_of(second)),
    ]
    done: list[int] = []
    images = PatchImages(items, PatchSettings(), done.append)
    assert images.present.tolist() == [True, False, False, True]
    assert (images.unreadable, sum(done)) == (1, 4)
    batch = images.tensors(np.array([3, 2, 0]))
    parts = [cut(image, PatchSettings()) for image in (second, first)]
    np.testing.assert_array_equal(batch["pixels"], np.concatenate([patches for patches, _ in parts]))
    assert batch["grids"].tolist() == [[1, *grid] for _, grid in parts]
    assert images.grid(3) == (parts[0][1][0] // 2, parts[0][1][1] // 2)
    assert images.tensors(np.array([1, 2])) == {}


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "RGBA"])
def test_any_kind_of_colour_becomes_three_channels(mode: str) -> None:
    image = noise(64, 64).convert(mode)  # type: ignore[attr-defined]
    data = file_of(image, "JPEG" if mode == "CMYK" else "PNG")
    batch = PatchImages([ItemContent("", data)], PatchSettings()).tensors(np.array([0]))
    assert batch["pixels"].shape[1] == 3 * 2 * 14 * 14
