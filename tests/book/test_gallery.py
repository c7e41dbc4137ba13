"""The gallery shows every figure of the executed pages once."""

from pathlib import Path

import nbformat
import pytest

from palimpsest.book.gallery import figures, first_sentence, write_gallery
from palimpsest.book.profiles import known_notebooks, results_of


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("Left: one\nthing. Right: another.", "Left: one thing."),
        ("As in Fig. 3 of the paper. More.", "As in Fig. 3 of the paper."),
        ("Means over facts", "Means over facts."),
        ("Of 12 facts. More.", "Of 12 facts."),
        ("\n\n", ""),
    ],
)
def test_the_first_sentence_of_a_caption(caption: str, sentence: str) -> None:
    assert first_sentence(caption) == sentence


def test_the_gallery_holds_every_figure_of_every_page(tmp_path: Path) -> None:
    write_gallery("laptop", tmp_path / "figures.md")
    text = (tmp_path / "figures.md").read_text("utf-8")
    pictures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    drawn = {
        name: len(list(figures(nbformat.read(results_of("laptop") / f"{name}.ipynb", as_version=4))))
        for name in known_notebooks()
    }
    assert text.count("```{figure} figures/") == len(pictures) == sum(drawn.values())
    for name, count in drawn.items():
        assert count >= 1
        assert text.count(f":target: ../_pages/{name}.html") == count
