"""Tests of the pages: generated ones are current, links resolve, and no line is too long to read."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from service.api.problems import STATUS, problem_name

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
PAGES = sorted(
    [*map(ROOT.joinpath, TOP_LEVEL), *ROOT.glob("docs/**/*.md"), *ROOT.glob("model/checkpoints/*/README.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SOURCE_FILE = re.compile(r"`((?:model|service|benchmarks|tests|docs|deploy)/[\w./-]+\.\w+)`")
TEST_FILE = re.compile(r"`([\w/]*test_\w+\.py)`")
DOCUMENT_IN_CODE = re.compile(r"docs/[\w/-]+\.md")
MAX_LINE = 400
"""Most characters in a line of Markdown; most lines are wrapped at 120, but table rows cannot be."""
MAX_README_LINES = 150
NO_ENTRIES = ("index.md", "shortfalls.md")


def load_generator() -> ModuleType:
    """Import docs/generate.py, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load_generator()
GENERATED: dict[Path, str] = generate.pages()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """Text of a page without its code blocks."""
    return CODE_BLOCK.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    return {generate.slug(heading) for heading in HEADING.findall(prose(page))}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page to a missing file or anchor."""
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", GENERATED, ids=name)
def test_generated_page_is_current(page: Path):
    assert page.read_text("utf-8") == GENERATED[page], "run `make tables`"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_links_lead_somewhere(page: Path):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "results.md"], ids=name)
def test_page_has_no_line_that_is_a_wall(page: Path):
    assert [line for line in page.read_text("utf-8").splitlines() if len(line) > MAX_LINE] == []


def test_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/log/*.md")), ids=name)
def test_log_entries_have_date_and_verdict(page: Path):
    if page.name in NO_ENTRIES:
        return
    headings = re.findall(r"^## .+$", prose(page), re.MULTILINE)
    assert len(generate.ENTRY.findall(page.read_text("utf-8"))) == len(headings)


def test_documents_named_in_code_exist():
    sources = [*ROOT.glob("model/**/*.py"), *ROOT.glob("service/**/*.py"), *ROOT.glob("model/**/*.toml")]
    named = {(name(path), doc) for path in sources for doc in DOCUMENT_IN_CODE.findall(path.read_text("utf-8"))}
    assert sorted(pair for pair in named if not (ROOT / pair[1]).exists()) == []


def test_shipped_checkpoint_terms_are_said_where_it_is_named():
    pages = [
        ROOT / "README.md",
        ROOT / "NOTICE",
        *ROOT.glob("model/checkpoints/*/README.md"),
        ROOT / "docs" / "index.md",
    ]
    assert [name(page) for page in pages if "commercial use" not in page.read_text("utf-8")] == []


def test_api_page_has_every_problem():
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert [error.__name__ for error in STATUS if f"| `{problem_name(error)}` |" not in page] == []


def test_menu_has_every_page():
    """`make docs` checks this too, but needs packages that the tests do without."""
    named = set(re.findall(r"[\w/.-]+\.md\b", (ROOT / "mkdocs.yml").read_text("utf-8")))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}


@pytest.mark.parametrize("page", ["consistency.md", "security.md"])
def test_tests_that_a_page_names_exist(page: str):
    named = set(TEST_FILE.findall((ROOT / "docs" / page).read_text("utf-8")))
    assert named
    assert [test for test in sorted(named) if not (ROOT / "tests" / "service" / test).is_file()] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "log" not in page.parts and "CHANGELOG" not in page.name], ids=name
)
def test_files_that_a_page_names_exist(page: Path):
    """The log and the changelog are excluded: they name files of earlier versions."""
    named = set(SOURCE_FILE.findall(prose(page)))
    assert [file for file in sorted(named) if not (ROOT / file).exists()] == []
