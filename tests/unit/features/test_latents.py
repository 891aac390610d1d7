"""Image targets: bad images never stop, batches draw what they should, and nothing depends on companions."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("PIL", reason="Pillow is not installed")

from PIL import Image

from catalex.errors import CatalexError
from catalex.features.latents import (
    IMAGE_TARGETS,
    ImageTarget,
    LatentIndex,
    LatentOptions,
    Vae,
    make_image_target,
)
from catalex.types import Ints


class Patches(Vae):
    """A "VAE" that can be checked by hand: a latent is the mean colour of its 4 x 4 patch, times 10."""

    channels, factor = 3, 4

    def __init__(self, *, posterior: bool = False, decodes: bool = True) -> None:
        self.parts, self.decodes = 2 if posterior else 1, decodes
        self.calls = 0

    @property
    def fingerprint(self) -> str:
        return f"patches-{self.parts}"

    def encode(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        means = 10 * torch.nn.functional.avg_pool2d(pixels, 4)
        return torch.stack([means, torch.full_like(means, -2.0)][: self.parts], 1)

    def decode(self, maps: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(maps / 10, scale_factor=4)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(width: int = 40, height: int = 40, seed: int = 0) -> Image.Image:
    """Left half red, right half blue, with some noise."""
    pixels = np.random.default_rng(seed).integers(0, 20, (height, width, 3)).astype(np.uint8)
    pixels[:, : width // 2, 0] += 230
    pixels[:, width // 2 :, 2] += 230
    return Image.fromarray(pixels)


def png_claiming(width: int, height: int) -> bytes:
    """A valid header of a huge black PNG, with a tiny body."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")


def patches(size: int = 16, **options: Any) -> ImageTarget:
    return ImageTarget(Patches(), LatentOptions(size=size, **options))


def rows(*values: int) -> Ints:
    return np.array(values, np.int64)


# --- what becomes of image files ----------------------------------------------------------------------------

FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
GOOD = {
    "jpeg": encoded(picture(), "JPEG", quality=95),
    "cmyk": encoded(picture().convert("CMYK"), "JPEG", quality=95),
    "palette": encoded(picture().convert("P")),
    "grey": encoded(picture().convert("L")),
    "transparent": encoded(picture().convert("RGBA")),
    "animated": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "one pixel": encoded(Image.new("RGB", (1, 1), "red")),
    "a strip": encoded(Image.new("RGB", (1, 30_000), "red")),
}
BAD = {
    "no image": b"<html>not found</html>",
    "empty": b"",
    "truncated jpeg": GOOD["jpeg"][: len(GOOD["jpeg"]) // 2],
    "truncated png": encoded(picture())[:-200],
    "100 megapixels": png_claiming(10_000, 10_000),
    "header only": GOOD["jpeg"][:20],
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_kind_of_image_is_read(kind: str) -> None:
    target = patches()
    index = target.index([GOOD[kind]])
    assert (index.present.tolist(), index.unreadable) == ([True], 0)
    latents = index.batch(rows(0)).unflatten(1, (4, 4))  # 4 x 4 patches
    assert torch.isfinite(latents).all()
    left, right = latents[0, :, :2].mean((0, 1)), latents[0, :, 2:].mean((0, 1))
    if kind != "grey":
        assert left[0] > 8
        assert left[2] < 2
    if kind not in ("grey", "animated", "one pixel", "a strip"):
        assert right[2] > 8
        assert right[0] < 2


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_counted_and_never_stops(kind: str) -> None:
    began = time.monotonic()
    index = patches().index([GOOD["jpeg"], BAD[kind], None, GOOD["cmyk"]])
    assert time.monotonic() - began < 5
    assert index.present.tolist() == [True, False, False, True]
    assert (index.unreadable, len(index)) == (1, 4)
    latents = index.batch(rows(0, 1, 2, 3))
    assert (latents[1:3] == 0).all()
    assert (latents[[0, 3]].abs().sum((1, 2)) > 0).all()


def test_all_kinds_together_count_right() -> None:
    index = patches().index([*BAD.values(), *GOOD.values(), None])
    assert index.unreadable == len(BAD)
    assert index.present.sum() == len(GOOD)


@pytest.mark.parametrize("images", [[], [None, None], [b"", None]])
def test_a_catalogue_without_any_readable_image(images: list[bytes | None]) -> None:
    index = patches().index(images)
    assert not index.present.any()
    assert len(index) == len(images)
    everyone = np.arange(len(images))
    latents = index.batch(everyone, torch.Generator().manual_seed(0))
    assert latents.shape == (len(images), 16, 3)
    assert (latents == 0).all()


def test_the_shorter_side_is_resized_and_the_middle_is_taken() -> None:
    wide = Image.new("RGB", (64, 16), "white")
    wide.paste((255, 0, 0), (24, 0, 40, 16))  # the middle square alone is red
    for image in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        pixels = patches().pixels(encoded(image))
        assert pixels.shape == (3, 16, 16)
        torch.testing.assert_close(pixels, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 16, 16))


def test_cropping_first_is_the_same_as_resizing_first() -> None:
    """Against the order of the specification: shorter side to S, then the centre."""
    image = picture(90, 60, seed=3)
    resized = image.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    torch.testing.assert_close(patches().pixels(encoded(image)), expected, atol=1.5 / 255, rtol=0)


# --- latents ------------------------------------------------------------------------------------------------


def test_tokens_run_row_by_row_and_decode_takes_them_back() -> None:
    colours = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    image = Image.fromarray(np.repeat(np.repeat(np.stack([colours] * 3, -1), 4, 0), 4, 1))
    target = patches()
    latents = target.index([encoded(image)]).batch(rows(0))
    assert latents.shape == (1, target.tokens, target.channels) == (1, 16, 3)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(
        latents[0, :, 0], torch.arange(16) * 16 * 10 / 255, atol=5e-3, rtol=0
    )  # stored as float16
    torch.testing.assert_close(target.decode(latents)[0], target.pixels(encoded(image)), atol=1e-3, rtol=0)


def test_decoded_pixels_stay_in_range_and_many_are_decoded_in_parts() -> None:
    latents = torch.randn(37, 16, 3) * 100
    pixels = patches().decode(latents)
    assert pixels.shape == (37, 3, 16, 16)
    assert (pixels.min(), pixels.max()) == (0, 1)
    torch.testing.assert_close(pixels[20:21], patches().decode(latents[20:21]))
    assert patches().decode(latents[:0]).shape == (0, 3, 16, 16)


def test_half_of_the_images_are_mirrored_and_the_generator_decides() -> None:
    target = patches()
    index = target.index([GOOD["jpeg"]])
    upright = index.batch(rows(0)).unflatten(1, (4, 4))
    drawn = index.batch(np.zeros(400, np.int64), torch.Generator().manual_seed(1)).unflatten(1, (4, 4))
    same = (drawn == upright).flatten(1).all(1)
    mirrored = (drawn - upright.flip(2)).abs().flatten(1).amax(1) < 1e-2
    assert (same | mirrored).all()
    assert 150 < same.sum() < 250
    again = index.batch(np.zeros(400, np.int64), torch.Generator().manual_seed(1)).unflatten(1, (4, 4))
    assert torch.equal(drawn, again)


def test_without_flip_nothing_is_mirrored_and_half_the_memory_is_taken() -> None:
    plain, both = patches(flip=False), patches()
    index = plain.index([GOOD["jpeg"]])
    drawn = index.batch(np.zeros(50, np.int64), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, index.batch(rows(0)).expand(50, -1, -1))
    assert 2 * plain.image_bytes == both.image_bytes == 2 * 2 * 16 * 3
    assert plain.fingerprint != both.fingerprint


def test_a_posterior_is_sampled_with_its_mean_and_spread() -> None:
    target = ImageTarget(Patches(posterior=True), LatentOptions(size=16, flip=False))
    index = target.index([None, GOOD["jpeg"]])
    mean = index.batch(rows(1))[0]
    drawn = index.batch(np.ones(3000, np.int64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), mean, atol=5 * np.exp(-1.0) / np.sqrt(3000), rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((16, 3), np.exp(-1.0)), rtol=0.1, atol=0)
    assert (index.batch(rows(0, 0), torch.Generator()) == 0).all()
    assert target.image_bytes == 2 * 2 * 16 * 3


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_batches_agree_with_the_obvious_way(data: st.DataObject) -> None:
    """Any rows, in any order: upright means of the present items, zeros for the others."""
    present = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=9)))
    means = torch.arange(int(present.sum()) * 2 * 2 * 2.0).view(-1, 2, 2, 2).half()
    index = LatentIndex(present, 0, means)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(present) - 1), max_size=8)), np.int64)
    expected = torch.zeros(len(chosen), 2, 2)
    for place, row in enumerate(chosen):
        if present[row]:
            expected[place] = means[int(present[:row].sum()), 0].float()
    assert torch.equal(index.batch(chosen), expected)


def test_what_is_drawn_does_not_depend_on_which_items_have_images() -> None:
    target = ImageTarget(Patches(posterior=True), LatentOptions(size=16))
    some, all_ = target.index([GOOD["jpeg"], None]), target.index([GOOD["jpeg"]] * 2)
    draws = [index.batch(rows(1, 0), torch.Generator().manual_seed(7))[1] for index in (some, all_)]
    assert torch.equal(*draws)


def test_latents_do_not_depend_on_companions() -> None:
    files = [encoded(picture(seed=seed)) for seed in range(6)]
    together = patches().index(files).batch(np.arange(6))
    alone = torch.cat([patches().index([file]).batch(rows(0)) for file in files])
    assert torch.equal(together, alone)


def test_latents_beyond_half_precision_are_kept_finite() -> None:
    class Huge(Patches):
        def encode(self, pixels: Tensor) -> Tensor:
            return super().encode(pixels) * 1e9

    index = ImageTarget(Huge(), LatentOptions(size=16)).index([GOOD["jpeg"]])
    assert torch.isfinite(index.batch(rows(0))).all()


# --- the cache ----------------------------------------------------------------------------------------------


def test_the_cache_gives_the_same_latents_without_encoding(tmp_path: Path) -> None:
    files = [GOOD["jpeg"], None, BAD["empty"], GOOD["cmyk"], GOOD["jpeg"]]
    options = LatentOptions(size=16)
    fresh = ImageTarget(Patches(posterior=True), options)
    expected = fresh.index(files)
    for calls in (6, 0):  # two orientations of three images, then none
        vae = Patches(posterior=True)
        index = ImageTarget(vae, options).index(files, cache=tmp_path)
        assert vae.calls == calls
        assert (index.present == expected.present).all()
        assert index.unreadable == 1
        draws = [one.batch(np.arange(5), torch.Generator().manual_seed(3)) for one in (index, expected)]
        assert torch.equal(*draws)


def test_a_killed_run_encodes_only_the_rest(tmp_path: Path) -> None:
    files = [encoded(picture(8, 8, seed=seed)) for seed in range(300)]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patches(flip=False).index(files, stop, cache=tmp_path)
    vae, counts = Patches(), list[int]()
    index = ImageTarget(vae, LatentOptions(size=16, flip=False)).index(files, counts.append, cache=tmp_path)
    assert vae.calls == 300 - 256
    assert counts == [256, 44]
    assert torch.equal(index.batch(np.arange(300)), patches(flip=False).index(files).batch(np.arange(300)))


def test_other_settings_have_another_cache(tmp_path: Path) -> None:
    names = {patches(size, flip=flip).fingerprint for size in (16, 32) for flip in (True, False)}
    assert len(names) == 4


# --- what users may get wrong -------------------------------------------------------------------------------


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CatalexError, match=r"found 30; allowed: a multiple of 4.*Set size: 32"):
        patches(30)


def test_the_default_size_gives_256_tokens() -> None:
    target = ImageTarget(Patches(), LatentOptions())
    assert (target.size, target.tokens) == (64, 256)


def test_without_a_decoder_decoding_says_so() -> None:
    target = ImageTarget(Patches(decodes=False), LatentOptions())
    assert not target.decodes
    with pytest.raises(CatalexError, match="no decoder"):
        target.decode(torch.zeros(1, 256, 3))


def test_missing_pillow_is_an_error_and_not_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(CatalexError, match=r"pip install 'catalex\[images\]'"):
        patches()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "name of the image target is missing"),
        ({"name": "taef"}, r"unknown image target 'taef'.*Did you mean 'taef2'\?"),
        ({"name": 3}, "unknown image target 3"),
        ({"name": "mar-kl16:"}, "nothing follows 'mar-kl16:'"),
        ({"name": "mar-kl16:x.ckpt", "folder": "y"}, "unknown key 'folder'"),
        ({"name": "taef2", "size": 0}, r"target\.size"),
        ({"name": "taef2", "folder": "no/such/folder"}, r"target\.folder: there is no such folder"),
    ],
)
def test_wrong_blocks_of_a_recipe(block: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        make_image_target(block, "target")


def test_the_table_names_every_target() -> None:
    assert [name.split(":")[0] for name in IMAGE_TARGETS] == ["taef2", "diffusers", "mar-kl16"]
