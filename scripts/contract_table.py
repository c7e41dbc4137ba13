"""Writes the record and the README's table of editors and families; called by ``make contract``."""

import sys
from pathlib import Path

from palimpsest.book.contract import main
from palimpsest.editors import EDITORS, style_of

if __name__ == "__main__":
    main(Path(sys.argv[1]), {name: style_of(name).name for name in EDITORS})
