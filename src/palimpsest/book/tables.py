"""Markdown tables for the generated pages."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells may hold markup, line breaks and bars are made safe."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def plain(text: str) -> str:
    """A text none of whose characters is read as markup; bars are left to ``table``."""
    for mark in ("\\", "*", "_", "$", "<", "`", "[", "~"):
        text = text.replace(mark, f"\\{mark}")
    return text
