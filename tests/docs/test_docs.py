"""The documentation builds without a warning, and what is made from the code and from results is up to date."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(DOCS / name))


def test_the_page_of_families_is_up_to_date() -> None:
    """After a change to gca/families.py: python docs/make_families.py."""
    assert (DOCS / "families.md").read_text() == script("make_families.py")["page"]()


def test_the_figures_are_up_to_date() -> None:
    """After a change to docs/make_figures.py or to an import in gca: python docs/make_figures.py."""
    for name, draw in script("make_figures.py")["FIGURES"].items():
        assert (DOCS / "images" / name).read_text() == str(draw()), name


def test_the_tables_of_costs_are_up_to_date() -> None:
    """After a change to a layer, or new measurements: python docs/make_costs.py."""
    for name, table in script("make_costs.py")["tables"]().items():
        assert (DOCS / "costs" / name).read_text() == table, name


def test_contributors_find_every_module_of_the_examples() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| (.*) \|$", (DOCS.parent / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    medseg = DOCS.parent / "examples" / "medseg"
    for folder in (path for path in medseg.iterdir() if (path / "__init__.py").is_file()):
        named = sorted(re.findall(r"`(\w+)`", dict(rows)[folder.name]))
        assert named == sorted(path.stem for path in folder.glob("[a-z]*.py")), folder.name


def test_links_of_the_readme_say_where_they_lead() -> None:
    """A package index shows README alone: there a relative link is dead, and its text has to name the path."""
    readme = (DOCS.parent / "README.md").read_text()
    links = [link for link in re.findall(r"(?<!!)\[([^]]+)\]\(([^)]+)\)", readme) if "://" not in link[1]]
    assert len(links) > 10
    for text, target in links:
        assert text.strip("`") == target
        assert (DOCS.parent / target).exists(), target


def test_every_link_has_a_text() -> None:
    """Sphinx would put in the title of the page; where Markdown is shown as it is, such a link cannot be seen."""
    pages = [page for suffix in ("md", "ipynb") for page in DOCS.rglob(f"*.{suffix}")]
    assert len(pages) > 15
    assert not [page.name for page in pages if "[](" in page.read_text()]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(package, reason='needs pip install "gca-attn[docs]"')
    options = ("-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees")
    command = [sys.executable, "-m", "sphinx", *options, DOCS, tmp_path / "site"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<math" in (tmp_path / "site" / "layers.html").read_text()
    for page in (tmp_path / "site").glob("*.html"):  # it can be read offline
        assert not re.findall(r"<(?:script|link|img)[^>]*=\"https?://[^>]*>", page.read_text()), page.name
