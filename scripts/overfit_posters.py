"""Can the visual decoder rebuild posters at all? Learn 32 of them by heart and look.

    python scripts/overfit_posters.py runs/nine-domains/prepare/movies --weights FOLDER_OF_TAEF2

The most watched movies with a poster are taken from a prepared domain. In place of an encoder each movie has
its own free vectors (3 x width), trained together with the decoder: whatever is missing in the picture, the
decoder could not express or was not given the steps to learn. Without a GPU try ``--movies 4 --steps 200
--width 64 --denoiser 256``.

Written: a picture, four movies a row, each as original, as reconstruction of the autoencoder, and as drawn by
the decoder. Printed: losses, and the PSNR of drawing against reconstruction; beside it the PSNR against other
movies (about what a decoder that ignores its input would get) and that of the autoencoder itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from catalex.artifacts import atomic_path, read_parquet
from catalex.data.columns import IMAGES_FILE, INTERACTIONS_FILE, ITEM_ID
from catalex.data.images import ImageStore
from catalex.errors import CatalexError, user_error
from catalex.features.latents import ImageTarget, make_image_target
from catalex.models.bidirectional import BlockShape
from catalex.models.content_decoders import VisualDecoder
from catalex.pipelines.workspace import resolve_device
from catalex.progress import say
from catalex.training.optim import adam, learning_rate, set_learning_rate

LEVELS = 3
ACROSS = 4
"""Movies in a row of the picture."""
EDGE = 4
"""White pixels between the movies of a row."""


def main() -> None:
    """Train, draw, compare."""
    o = arguments()
    device = resolve_device(o.device)
    target = make_image_target({"name": "taef2", "folder": o.weights, "size": o.size}, "taef2", device)
    posters = most_watched_posters(o.folder, o.movies)
    index = target.index(posters)
    if index.unreadable:
        raise user_error("a poster cannot be read", place=o.folder, remedy="fetch the images again")
    everyone = np.arange(len(posters))
    latents = index.batch(everyone).to(device)  # upright, always the same: to be learned by heart

    torch.manual_seed(o.seed)
    model = LearnedByHeart(len(posters), target, o).to(device)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}, {len(posters)} posters")
    train(model, latents, o, device)

    generator = torch.Generator(device).manual_seed(o.seed)
    drawn = model.decoder.eval().sample(model.h.detach(), steps=o.draw_steps, generator=generator)
    report(target, posters, latents, drawn.float(), o.output)


class LearnedByHeart(nn.Module):
    """A decoder, and free vectors ``h (B, 3, d_dec)`` of B movies."""

    def __init__(self, movies: int, target: ImageTarget, o: argparse.Namespace) -> None:
        super().__init__()
        self.h = nn.Parameter(torch.randn(movies, LEVELS, o.width))
        self.decoder = VisualDecoder(
            BlockShape.for_width(o.width),
            tokens=target.tokens,
            channels=target.channels,
            seed=o.seed,
            loss=o.loss,
            width=o.denoiser,
            repeats=o.repeats,
        )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="prepared domain with images.parquet and interactions.parquet")
    add("--weights", help="folder of the taef2 weights (default: environment variable CATALEX_TAEF2)")
    add("--output", type=Path, default=Path("runs/overfit-posters.jpg"), help="picture, .png or .jpg")
    add("--movies", type=int, default=32)
    add("--steps", type=int, default=4000, help="optimizer steps, each over all movies")
    add("--width", type=int, default=512, help="d_dec of the decoder; 1536 in the paper")
    add("--denoiser", type=int, default=1024, help="width of the diffusion loss's network; 1024 in the paper")
    add("--repeats", type=int, default=4, help="noise draws a token and step")
    add("--loss", choices=("diffusion", "mse"), default="diffusion")
    add("--draw-steps", type=int, default=100, help="diffusion steps of the drawing")
    add("--rate", type=float, default=1e-3, help="peak learning rate; falls to zero along a cosine")
    add("--size", type=int, default=128, help="pixels along a side")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args()


def most_watched_posters(folder: Path, count: int) -> list[bytes]:
    """Posters of the `count` movies with the most interactions, among those that have one."""
    store = ImageStore(folder / IMAGES_FILE)
    events = read_parquet(folder / INTERACTIONS_FILE, [ITEM_ID])[ITEM_ID].to_numpy()
    watched = np.bincount(events)
    ranked = [int(item) for item in np.argsort(-watched, kind="stable") if int(item) in store][:count]
    found = [data for item in ranked if (data := store.get(item)) is not None]
    if not 2 <= len(found) == count:
        raise user_error(
            "the number of movies does not fit the domain",
            place=folder,
            value=count,
            allowed=f"2 to {len(store)}",
            remedy="set --movies",
        )
    return found


def train(model: LearnedByHeart, latents: Tensor, o: argparse.Namespace, device: str) -> None:
    """All movies in every step; prints the loss about twenty times."""
    optimizer = adam(model, o.rate, weight_decay=0.0, device=device)
    present = torch.ones(len(latents), device=device)
    began, losses = time.monotonic(), []
    for step in range(o.steps):
        rate = learning_rate(step, peak=o.rate, total=o.steps, warmup=o.steps // 50, schedule="cosine")
        set_learning_rate(optimizer, rate)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model.decoder(model.h, latents, present).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % max(1, o.steps // 20) == 0:
            shown = torch.stack(losses).mean().item()
            losses.clear()
            print(f"step {step + 1} loss {shown:.4f} seconds {time.monotonic() - began:.1f}", flush=True)


def report(target: ImageTarget, posters: list[bytes], latents: Tensor, drawn: Tensor, output: Path) -> None:
    """Print the PSNRs and write the picture."""
    original = torch.stack([target.pixels(data) for data in posters])
    rebuilt, ours = target.decode(latents).cpu(), target.decode(drawn).cpu()
    others = rebuilt.roll(1, 0)  # every movie beside another one
    error = (drawn - latents).square().mean().item() / latents.var().item()
    print(f"latents: squared error over variance {error:.4f}")
    print(f"PSNR drawn against reconstruction     {summary(psnr(ours, rebuilt))}")
    print(f"PSNR drawn against another movie's    {summary(psnr(ours, others))}")
    print(f"PSNR reconstruction against original  {summary(psnr(rebuilt, original))}")
    write_picture(output, grid([original, rebuilt, ours]))
    print(f"picture: {output} (each movie: original, reconstruction, drawn)")


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB ``(B,)`` of pixels ``(B, 3, S, S)`` in [0, 1]."""
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)))


def summary(values: Tensor) -> str:
    """Mean and range."""
    return f"mean {values.mean():.2f} dB, from {values.min():.2f} to {values.max():.2f}"


def grid(versions: list[Tensor]) -> Tensor:
    """One picture ``(3, height, width)`` of V versions ``(B, 3, S, S)`` of B movies, side by side."""
    movies = torch.cat(versions, dim=3)  # (B, 3, S, V S)
    movies = nn.functional.pad(movies, (0, EDGE, 0, EDGE), value=1.0)
    missing = -len(movies) % ACROSS
    movies = torch.cat([movies, torch.ones(missing, *movies.shape[1:])])
    rows = movies.unflatten(0, (-1, ACROSS))  # (rows, across, 3, height, width)
    picture: Tensor = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return picture


def write_picture(path: Path, pixels: Tensor) -> None:
    """Write pixels ``(3, height, width)`` in [0, 1] as PNG or JPEG."""
    from PIL import Image

    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, kind, **({"quality": 90} if kind == "JPEG" else {}))


if __name__ == "__main__":
    try:
        main()
    except CatalexError as error:
        sys.exit(str(error))
