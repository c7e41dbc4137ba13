"""Build of the HTML book, in which every warning is an error."""

import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from palimpsest import paths
from palimpsest.book.assemble import assemble
from palimpsest.errors import BookError, PalimpsestError
from palimpsest.files import locked

STRICT = ("-W", "-n", "--keep-going", "-q")


def html_dir(profile: str) -> Path:
    """Folder of the built pages of a profile."""
    return paths.build_dir() / "book" / profile / "_build" / "html"


def build(profile: str) -> Path:
    """Assemble and build the book of a profile, one process at a time; returns the path of its front page.

    Raises:
        BookError: if the build fails or gives a warning; the messages are printed.
    """
    with locked(paths.book_dir() / "_pages"):
        return _built(profile)


def _built(profile: str) -> Path:
    try:
        assemble(profile)
    except PalimpsestError:
        raise
    except OSError as error:
        raise BookError(
            f"the pages were not written: {error}; free some space, or make {paths.book_dir()} writable"
        ) from error
    root = paths.checkout()
    command = [
        *(str(Path(sys.executable).with_name("jupyter-book")), "build", str(root)),
        *("--config", str(root / "_config.yml"), "--toc", str(root / "book" / "_toc.yml")),
        *("--path-output", str(html_dir(profile).parents[1]), *STRICT),
    ]
    with tqdm(total=1, desc="building the book, about a minute", disable=None, leave=False):
        done = subprocess.run(command, capture_output=True, text=True)
    index = html_dir(profile) / "index.html"
    if done.returncode != 0 or not index.is_file():
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise BookError(
            "the book was not built: the warnings above count as errors; correct the pages they name"
        )
    return index
