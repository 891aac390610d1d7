"""Where the stages of a run live, and how a later stage finds what an earlier one made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from catalex import processes
from catalex.artifacts import Stage, outputs_of, read_json, write_json
from catalex.data.domain import Domain
from catalex.errors import CatalexError, user_error
from catalex.pipelines.recipe import Recipe
from catalex.progress import say
from catalex.types import JSON


@dataclass(frozen=True)
class Workspace:
    """Folders of one run."""

    root: Path

    def prepared(self, domain: str) -> Path:
        """Canonical domain folder."""
        return self.root / "prepare" / domain

    def embedded(self, domain: str) -> Path:
        """Content vectors of a domain."""
        return self.root / "embed" / domain

    def image_embedded(self, domain: str) -> Path:
        """Vectors of the images of a domain, for recommenders that read them beside the content vectors."""
        return self.root / "embed-images" / domain

    @property
    def tokenized(self) -> Path:
        """Tokenizer, identifiers of every domain, health."""
        return self.root / "tokenize"

    def pretrained(self, seed: int) -> Path:
        """Recommender trained on the pre-training domains."""
        return self.root / "pretrain" / f"seed-{seed}"

    def transferred(self, domain: str, start: str, seed: int) -> Path:
        """Recommender fine-tuned to a domain."""
        return self.root / "transfer" / domain / start / f"seed-{seed}"

    def evaluated(self, domain: str, system: str, seed: int) -> Path:
        """Ranks and metrics of one system on one domain."""
        return self.root / "evaluate" / domain / system / f"seed-{seed}"

    @property
    def reported(self) -> Path:
        """The report."""
        return self.root / "report"

    def verb_of(self, folder: Path) -> str:
        """The verb to run for a stage of this workspace."""
        first = folder.relative_to(self.root).parts[0]
        return "evaluate" if first == "baselines" else first

    def check_embedded(self, domain: str) -> None:
        """Refuse content vectors that were made before the domain was prepared as it is now.

        Raises:
            CatalexError: When they were, or a stage has not been run.
        """
        outputs_of(self.embedded(domain), "embed")
        seen = _inputs(self.embedded(domain), "embed").get("domain")
        if seen != outputs_of(self.prepared(domain), "prepare"):
            raise user_error(
                "the content vectors belong to an earlier preparation of this domain",
                place=domain,
                remedy="run 'catalex embed' again",
            )

    def check_tokenized(self, domain: str) -> None:
        """Refuse identifiers that were made before the domain was prepared as it is now.

        Raises:
            CatalexError: When they were, or a stage has not been run.
        """
        outputs_of(self.tokenized, "tokenize")
        seen = _inputs(self.tokenized, "tokenize").get("domains", {}).get(domain)
        if seen != outputs_of(self.prepared(domain), "prepare"):
            raise user_error(
                "the identifiers belong to an earlier preparation of this domain",
                place=domain,
                remedy="run 'catalex embed' and 'catalex tokenize' again",
            )

    def check_trained(self, folder: Path, identifiers: str) -> None:
        """Refuse a recommender that learned other identifiers than those with this hash.

        Raises:
            CatalexError: When it did, or its stage has not been run.
        """
        verb = self.verb_of(folder)
        outputs_of(folder, verb)
        if _inputs(folder, verb).get("identifiers") != identifiers:
            raise user_error(
                "the recommender learned identifiers that 'catalex tokenize' has replaced since",
                place=folder,
                remedy=f"run 'catalex {verb}' again",
            )

    def domain(self, name: str) -> Domain:
        """Load a prepared domain.

        Raises:
            CatalexError: When it has not been prepared.
        """
        outputs_of(self.prepared(name), "prepare")
        return Domain.load(self.prepared(name))


def _inputs(folder: Path, verb: str) -> dict[str, JSON]:
    """What a finished stage was made from."""
    inputs: dict[str, JSON] = (Stage(folder, verb, {}).record or {}).get("inputs", {})
    return inputs


def workspace(recipe: Recipe) -> Workspace:
    """The workspace of a recipe."""
    return Workspace(recipe.folder)


def resolve_device(name: str) -> str:
    """ "cpu" or "cuda".

    Raises:
        CatalexError: When the device does not exist here, or there are fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise user_error("unknown device", place="device", value=name, allowed="auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise user_error("there is no CUDA device here", place="device", value=name, remedy="set device: cpu")
    if name == "cuda" and processes.count() > 1:
        own = processes.local_index()
        if own >= torch.cuda.device_count():
            raise user_error(
                "there are fewer CUDA devices than processes",
                place="device",
                value=torch.cuda.device_count(),
                remedy="start one process a device, or set device: cpu",
            )
        torch.cuda.set_device(own)  # "cuda" is this process's own device from now on
    return name


@contextmanager
def running(stage: Stage, title: str, *, together: bool = False) -> Iterator[bool]:
    """Whether the stage has to run; says so, and records its seconds (not part of its outputs' hashes).

    Of several processes the main one decides. It works alone, while the others are told that there is nothing
    to do and wait for the outputs.

    Args:
        together: There is training inside, in which all processes take part: all are told to run. What comes
            after the training is for the main process; the others may leave the block early.
    """
    if not processes.decided(lambda: _begun(stage, title, together)):
        yield False
        return
    with processes.led(together=together) as works:
        if not processes.is_main():
            yield works
            return
        began = time.monotonic()
        try:
            yield True
        except BaseException as error:  # refused input leaves an earlier result as good as it was
            stage.give_up(restore=isinstance(error, CatalexError))
            raise
        timing = stage.folder / "timing.json"
        earlier = read_json(timing).get("seconds_by_run", []) if timing.is_file() else []
        write_json(timing, {"seconds_by_run": [*earlier, round(time.monotonic() - began, 3)]})


def _begun(stage: Stage, title: str, together: bool) -> bool:
    """Begin the stage unless it is done."""
    if stage.done:
        stage.tidy()
        say(f"{title}: unchanged, skipped")
        return False
    say(f"{title}: running")
    stage.begin()
    if together and processes.count() > 1:
        stage.partial  # noqa: B018 - looked at here first, it changes no more when the others look
    return True


def seconds_of(folder: Path) -> float | None:
    """Wall seconds of the latest run of a finished stage."""
    path = folder / "timing.json"
    return float(read_json(path)["seconds_by_run"][-1]) if path.is_file() else None


def read_optional(path: Path) -> JSON:
    """JSON of a file, or None when it is not there."""
    return read_json(path) if path.is_file() else None
