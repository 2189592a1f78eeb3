"""Citations of docs/decisions.md in the code name entries that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "decisions.md"
PACKAGES = ("pruning", "envs", "agents", "scripts")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEADINGS = re.findall(r"^#+ (D\d+):", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def prose(path):
    """The text of a module on one line, without comment signs, so that a citation may be wrapped."""
    return " ".join(re.sub(r"^\s*#", " ", path.read_text(encoding="utf-8"), flags=re.MULTILINE).split())


def citations(text):
    """What stands behind each mention of the page: the numbers cited, as in `D3` or `D3 and D4`."""
    after = re.findall(r"docs/decisions\.md((?:,? (?:and )?D\d+)*)", text)
    return [re.findall(r"D\d+", numbers) for numbers in after]


def test_entries_are_numbered_once_and_in_order():
    numbers = [int(heading[1:]) for heading in HEADINGS]
    assert numbers == sorted(set(numbers))
    assert numbers[:11] == list(range(1, 12))


def test_wrapped_and_joined_citations_are_seen():
    assert citations("see docs/decisions.md, D3 and D4; docs/decisions.md, D5") == [["D3", "D4"], ["D5"]]
    assert citations("see docs/decisions.md.") == [[]]


def test_the_code_cites_decisions():
    assert sum(len(citations(prose(path))) for path in MODULES) >= 15


@pytest.mark.parametrize("package", PACKAGES)
def test_every_citation_names_an_entry(package):
    for path in MODULES:
        if path.is_relative_to(ROOT / package):
            for numbers in citations(prose(path)):
                assert numbers, f"{path} cites the page without a number"
                assert set(numbers) <= set(HEADINGS), f"{path} cites {numbers}"


def test_no_decision_is_cited_that_only_its_authors_can_find():
    for path in MODULES:
        assert "architecture decision" not in prose(path).lower(), path
