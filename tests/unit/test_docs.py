"""What the documents say exists: links, pages, commands, paths, and code that runs."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
SNIPPET = re.compile(r'^--8<-- "([^"]+)"\s*$', re.MULTILINE)
PATH = re.compile(r"`((?:src|tests|docs|scripts|recipes|examples|benchmarks)/[\w./-]*)`")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(document: Path, language: str) -> Iterator[str]:
    """Code blocks of one language, with included files in place."""
    for found, code in FENCE.findall(document.read_text(encoding="utf-8")):
        if found == language:
            yield SNIPPET.sub(lambda match: (ROOT / match[1]).read_text(encoding="utf-8"), code)


def _prose(document: Path) -> str:
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def _anchors(document: Path) -> set[str]:
    """The anchors mkdocs makes of the headings."""
    headings = re.findall(r"^#+ +(.+?)\s*$", _prose(document), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_internal_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(_prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{_name(document)} links to {link}, which does not exist"
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{_name(document)} links to {link}, which has no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_paths_in_the_text_exist(document: Path) -> None:
    for path in PATH.findall(_prose(document)):
        target = ROOT / path
        assert target.exists() or target.with_suffix(".py").exists(), f"{_name(document)} names {path}"


def _nav_pages(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for inner in entry.values():
            yield from _nav_pages(inner)
    elif isinstance(entry, list):
        for inner in entry:
            yield from _nav_pages(inner)


def _settings() -> dict[str, object]:
    settings: dict[str, object] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return settings


def test_pages_of_the_navigation_are_the_pages_there_are() -> None:
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert set(_nav_pages(_settings()["nav"])) == pages


def test_the_site_asks_no_other_server() -> None:
    settings = _settings()
    theme = settings["theme"]
    assert isinstance(theme, dict)
    assert theme["font"] is False
    assert not {"extra_css", "extra_javascript"} & set(settings)
    assert not any(
        "mermaid" in block for document in DOCUMENTS for block, _ in FENCE.findall(document.read_text())
    )


def _commands(document: Path, program: str) -> Iterator[list[str]]:
    """Words after `program` in the lines of ```bash blocks that call it."""
    for block in _blocks(document, "bash"):
        for line in block.splitlines():
            words = line.split("#")[0].split()
            if words and Path(words[0]).name == program:
                yield words[1:]


def _catalex_calls(document: Path) -> Iterator[list[str]]:
    """Calls in ```bash blocks, and calls quoted in the text."""
    yield from _commands(document, "catalex")
    for quoted in re.findall(r"`catalex ([a-z][^`]*)`", _prose(document)):
        yield quoted.split()


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_commands_use_verbs_that_exist(document: Path) -> None:
    calls = list(_catalex_calls(document))
    if not calls:
        return
    from typer.main import get_command

    from catalex.cli import app

    for words in calls:
        command = get_command(app)
        for word in words:
            inner = getattr(command, "commands", None)
            if inner is None:
                break
            if word in ("--help", "--version"):
                break
            assert word in inner, (
                f"{_name(document)} calls catalex {' '.join(words)}; the verbs are {sorted(inner)}"
            )
            command = inner[word]


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_options_of_commands_exist(document: Path) -> None:
    from typer.main import get_command

    for words in _commands(document, "catalex"):
        from catalex.cli import app

        command = get_command(app)
        for word in words:
            command = getattr(command, "commands", {}).get(word, command)
        known = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known | {"--help"}, (
            f"{_name(document)}: catalex {' '.join(words)} allows {sorted(known)}"
        )


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_make_targets_exist(document: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [found.split()[:1] for found in re.findall(r"`make ([a-z-]+)`", _prose(document))]
    for words in [*_commands(document, "make"), *quoted]:
        assert {word for word in words if "=" not in word} <= set(targets)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_recipes_in_commands_exist(document: Path) -> None:
    for block in _blocks(document, "bash"):
        for recipe in re.findall(r"\brecipes/[\w./-]+", block):
            assert (ROOT / recipe).is_file(), f"{_name(document)} runs {recipe}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_python_blocks_compile(document: Path) -> None:
    for number, code in enumerate(_blocks(document, "python")):
        compile(code, f"{_name(document)}, block {number}", "exec")


@pytest.mark.parametrize("example", EXAMPLES, ids=_name)
def test_examples_compile(example: Path) -> None:
    compile(example.read_text(encoding="utf-8"), _name(example), "exec")


def test_the_example_of_the_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "look_at_the_sample.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.findall(r"^([\w-]+): ", printed, re.MULTILINE) == ["year-one", "year-two"]
    recalls = [float(value) for value in re.findall(r"Recall@10 (\S+)", printed)]
    assert len(recalls) == 2
    assert all(0.15 < recall < 0.25 for recall in recalls)


def test_the_table_of_unitoks_presets_says_what_the_code_does() -> None:
    from catalex.tokenizers.unitok_options import UniTokOptions

    page = (ROOT / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    section = page.split("### Presets")[1].split("###")[0]
    told = {
        name: [yaml.safe_load(value) for value in values]
        for name, *values in re.findall(r"^\| `(\w+)` \| `(.+?)` \| `(.+?)` \|$", section, re.MULTILINE)
    }
    both = [
        UniTokOptions.parse({"preset": name}, name).model_dump(mode="json")
        for name in ("unitok", "unitok-paper")
    ]
    found = {key: [options[key] for options in both] for key in both[0] if key != "preset"}
    assert told == {key: values for key, values in found.items() if values[0] != values[1]}


def test_every_option_of_unitok_is_explained() -> None:
    from catalex.tokenizers.unitok_options import UniTokOptions

    page = (ROOT / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \|", page.split("### Options")[1].split("###")[0], re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(set(UniTokOptions.model_fields) - {"preset"})


def test_no_document_leaks_where_it_was_written() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"/(work|root|home)/", document.read_text(encoding="utf-8")), _name(document)
