"""The script that draws the losses of UTGRec's tokenizers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "plot_losses.py"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def script() -> ModuleType:
    """The script as a module."""
    pytest.importorskip("matplotlib", reason="figures need the extra 'report'")
    spec = importlib.util.spec_from_file_location("plot_losses", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def curves(folder: Path, **values: list[float]) -> Path:
    """A tokenize stage whose losses are 0 where nothing else is said."""
    names = ("text", "image", "vector", "code", "alignment", "cooccurrence")
    folder.mkdir()
    (folder / "curves.json").write_text(json.dumps({name: values.get(name, [0.0, 0.0]) for name in names}))
    return folder


def titles(path: Path) -> str:
    """All text of a figure; reading it shows that it is a document of its own."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    return " ".join(element.text or "" for element in root.iter(f"{SVG}text"))


def test_a_panel_for_each_loss_that_takes_part(script: ModuleType, tmp_path: Path) -> None:
    one = curves(tmp_path / "one", text=[3.0, 2.0], code=[0.0, 1.0])
    two = curves(tmp_path / "two", text=[4.0, 1.0])
    assert script.main([str(tmp_path / "losses.svg"), f"first={one}", f"second={two}"]) == 0
    said = titles(tmp_path / "losses.svg")
    for word in ("text", "code", "first", "second"):
        assert word in said
    assert "alignment" not in said


@pytest.mark.parametrize(
    ("run", "message"),
    [("nothing", "a run is given as LABEL=FOLDER"), ("a={folder}", "no curves of UTGRec's tokenizer")],
)
def test_bad_input_is_told_in_a_sentence(
    run: str, message: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "curves.json").write_text("{}")
    assert script.main([str(tmp_path / "losses.svg"), run.format(folder=tmp_path)]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "losses.svg").exists()
