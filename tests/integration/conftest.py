"""One finished tiny story for all integration tests that only look at it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from catalex.pipelines.recipe import read_recipe
from catalex.pipelines.run import run_recipe
from support.tiny_story import write_story

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits are promised for one number of threads; processes that tests start use one as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kill_resume() -> ModuleType:
    """The tool scripts/kill_resume.py as a module: its `compare` is the judge of equality here too."""
    name = "kill_resume"
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the tiny story, with its data beside it."""
    return write_story(tmp_path_factory.mktemp("story"))


@pytest.fixture(scope="session")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder (with ``run`` in it) of an undisturbed run. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("finished")
    run_in(folder, recipe)
    return folder


def run_in(folder: Path, recipe: Path, *overrides: str) -> None:
    """Run the recipe with `folder` as the current one, in this process."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        run_recipe(read_recipe(recipe, overrides))
    finally:
        os.chdir(before)


@pytest.fixture
def run_story(recipe: Path):
    """`run_in` for the tiny recipe: ``run_story(folder, "seeds=[1]")``."""

    def run(folder: Path, *overrides: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        run_in(folder, recipe, *overrides)
        return folder

    return run
