import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_families_is_up_to_date() -> None:
    """After a change to gca/blocks.py: python docs/make_families.py."""
    assert (DOCS / "families.md").read_text() == runpy.run_path(str(DOCS / "make_families.py"))["page"]()
