"""The five named results stand on one page each, and the landing page and the README lead to them."""

import re

import pytest
import yaml

from palimpsest.paths import root
from palimpsest.results.claims import load_claims

NAMED = {
    "03_alphaedit_plus_lemmas": "P01",
    "05_memorize_the_latest": "L01",
    "08_norm_inflation": "U03b",
    "02_null_space": "U06",
    "12_alphaset_tables": "P10",
    "11_building_alphaset": "",
}
"""Page -> a claim that is judged there and named on the landing page; none for one that only leads up."""

ROOT = root()
INTRO, README = ((ROOT / name).read_text("utf-8") for name in ("book/intro.md", "README.md"))


@pytest.mark.parametrize("page", NAMED)
def test_a_named_result_is_linked(page: str) -> None:
    listed = INTRO.partition("Five results")[2].partition("\n## ")[0]
    assert re.search(rf"\{{doc\}}`[^`]+ <_pages/{page}>`", listed)
    assert f"](results/laptop/{page}.ipynb)" in README
    chapters = [
        chapter["file"]
        for part in yaml.safe_load((ROOT / "book/_toc.yml").read_text("utf-8"))["parts"]
        for chapter in part["chapters"]
    ]
    assert f"book/_pages/{page}" in chapters
    assert (ROOT / f"notebooks/{page}.ipynb").is_file()


@pytest.mark.parametrize("page", [page for page, claim in NAMED.items() if claim])
def test_its_verdict_is_linked(page: str) -> None:
    names = re.findall(r"<claim-(\w+)>", INTRO)
    where = {claim.id: claim.notebook for claim in load_claims().claims}
    assert NAMED[page] in names
    assert where[NAMED[page]] == page
    assert set(names) <= set(where)


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target
