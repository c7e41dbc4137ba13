"""Page of licences: of the code, of each folder of data, of each fetched resource, and of what a book copies.

Rows of resources are made from their pins and rows of data from the section "Licence" that each folder's own
README or PROVENANCE has, so that neither can be added without one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from palimpsest import paths
from palimpsest.errors import BookError
from palimpsest.files import write_atomically
from palimpsest.resources import PINS
from palimpsest.results.prose import plain
from palimpsest.results.tables import table

DESCRIPTIONS = ("PROVENANCE.md", "README.md")
"""Files of a folder of data that say where it comes from."""


@dataclass(frozen=True)
class Material:
    """Something that the project holds or uses, and its licence.

    Attributes:
        what: it is.
        where: it is kept or comes from.
        licence: as its authors name it.
    """

    what: str
    where: str
    licence: str


CARRIED = (
    Material("code, notebooks, texts, settings, claims and regimes", "this repository", "MIT (`LICENSE`)"),
    Material("results: records, tables and executed notebooks", "`results/`", "MIT (`LICENSE`)"),
)
COPIED = (
    Material("MathJax, the file that draws formulas", "`sphinx-mathjax-offline`", "Apache-2.0"),
    Material("look of the pages", "`sphinx-book-theme`, `pydata-sphinx-theme`", "BSD-3-Clause"),
    Material("icons of the pages, Font Awesome Free", "`pydata-sphinx-theme`", "CC BY 4.0, OFL-1.1, MIT"),
    Material(
        "cards, folds and buttons", "`sphinx-design`, `sphinx-togglebutton`, `sphinx-copybutton`", "MIT"
    ),
)
READ = (
    Material(
        "handwritten digits of E. Alpaydin and C. Kaynak (UCI)", "installed with scikit-learn", "CC BY 4.0"
    ),
    Material("CounterFact, with the code of ROME", "a folder of yours", "MIT"),
    Material(
        "ZsRE, AlphaSet, GLUE and MMLU files", "a folder of yours", "of their authors; nothing is copied"
    ),
    Material("GPT-J-6B, Qwen2.5-7B, of profiles for a GPU", "a hub", "Apache-2.0"),
    Material("GPT2-XL, phi-1.5, of profiles for a GPU", "a hub", "MIT"),
    Material("Gemma-2B, of a profile for a GPU", "a hub, once its terms are accepted", "Gemma Terms of Use"),
    Material(
        "LLaMA-3-8B, of a profile for a GPU",
        "a hub, once its terms are accepted",
        "Meta Llama 3 Community License",
    ),
    Material("other models by hub id or folder", "a hub, or a folder of yours", "of the model"),
)


def write_licences(out_path: Path) -> None:
    """Generate the page.

    Raises:
        BookError: as `data_licences`.
    """
    sections = {
        "Carried here": (*CARRIED, *data_licences(paths.checkout() / "data")),
        "Fetched once, verified by hash, kept in the cache": tuple(pinned()),
        "Copied into the HTML of the book": COPIED,
        "Read where it is, never copied": READ,
    }
    parts = [
        "(licences)=\n# Licences",
        "What the project holds, fetches and reads, and under which licence each is. An edited copy of a "
        "model stays under the licence of that model.",
    ]
    for title, materials in sections.items():
        rows = [[one.what, one.where, one.licence] for one in materials]
        parts += [f"## {title}", table(["what", "where", "licence"], rows)]
    write_atomically(out_path, ("\n\n".join(parts) + "\n").encode())


def pinned() -> Iterator[Material]:
    """A row for each fetched resource."""
    for name, resource in PINS.items():
        yield Material(f"`{name}`: {plain(resource.about)}", f"`{resource.requirement}`", resource.licence)


def data_licences(folder: Path) -> list[Material]:
    """A row for each folder of data, with the paragraph that its description has under "Licence".

    Raises:
        BookError: if a folder has no description, or that has no such section.
    """
    found = []
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        texts = [inside / name for name in DESCRIPTIONS if (inside / name).is_file()]
        sections = [text.read_text("utf-8").partition("\n## Licence\n")[2] for text in texts]
        paragraph = next((" ".join(section.split("\n#")[0].split()) for section in sections if section), "")
        if not paragraph:
            raise BookError(
                f"data/{inside.name} has no licence; write one under '## Licence' in its {DESCRIPTIONS[0]}"
            )
        found.append(Material(f"data/{inside.name}", f"`data/{inside.name}/`", paragraph))
    return found
