"""Parameters of notebooks: reading of the parameters cell, and checks of given values.

papermill only warns about an unknown parameter, and reads ``-p seed true`` as the text "true". Here names and
types are checked before anything runs.
"""

import ast
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from palimpsest.book.definitions import syntax_tree
from palimpsest.book.formats import nbformat
from palimpsest.errors import NotebookError, ProfileError, UnknownNameError

TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "int | None": int | None,
    "float | None": float | None,
    "str | None": str | None,
    "list[int]": list[int],
    "list[float]": list[float],
    "list[str]": list[str],
}
"""Allowed annotations of parameters -> type."""


UNREADABLE = (
    *(OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError),
    nbformat.ValidationError,
)
"""What nbformat raises for a file that is no notebook."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, for example ``seed: int = 1  # seed of every draw``."""

    name: str
    type: str
    default: Any
    comment: str


def parameters_cell(notebook: Path) -> str:
    """Source of the cell tagged ``parameters``.

    Raises:
        NotebookError: if the file is not a notebook, or does not have exactly one such cell.
    """
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except UNREADABLE as error:
        raise NotebookError(
            f"{notebook} is not a readable notebook ({type(error).__name__}: {str(error)[:200]}); restore "
            "it, or give another"
        ) from error
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise NotebookError(f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; tag exactly one")
    return str(tagged[0].source)


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Parameters that a notebook declares, name -> parameter, in their order.

    Raises:
        NotebookError: if a line is not a typed assignment of a literal, and as `parameters_cell`.
    """
    source = parameters_cell(notebook)
    lines = source.splitlines()
    found: dict[str, Parameter] = {}
    try:
        body = syntax_tree(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotebookError(f"{notebook.name}: the parameters cell is no Python: {error}") from error
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        line = lines[(node.end_lineno or node.lineno) - 1]
        parameter = _parameter(node, line, notebook)
        found[parameter.name] = parameter
    return found


def _parameter(node: ast.stmt, line: str, notebook: Path) -> Parameter:
    where = f"{notebook.name}, parameters cell: {ast.unparse(node)!r}"
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
        raise NotebookError(f"{where}: write each parameter as 'name: type = value  # what it is'")
    annotation = ast.unparse(node.annotation)
    if annotation not in TYPES:
        raise NotebookError(f"{where}: type {annotation!r} is not one of {', '.join(TYPES)}")
    try:
        default = ast.literal_eval(node.value) if node.value else None
    except ValueError as error:
        raise NotebookError(f"{where}: the default must be a literal") from error
    comment = re.search(r"#\s*(\S.*)$", line)
    return Parameter(node.target.id, annotation, default, comment.group(1) if comment else "")


def checked(parameter: Parameter, value: Any, where: str) -> Any:
    """Check a value against the parameter's type and return it; only an int is converted, to a float.

    Args:
        parameter: as declared in the notebook.
        value: the value to check.
        where: origin of the value in error messages, for example ``profile laptop``.

    Raises:
        ProfileError: if the value has another type or is not finite.
    """
    config = ConfigDict(strict=True, allow_inf_nan=False)
    try:
        return TypeAdapter(TYPES[parameter.type], config=config).validate_python(value)
    except ValidationError as error:
        raise ProfileError(
            f"{where}: parameter {parameter.name!r} is {value!r} ({type(value).__name__}), but the "
            f"notebook declares {parameter.name}: {parameter.type} = {parameter.default!r}; "
            f"give {_example(parameter)}"
        ) from error


def _example(parameter: Parameter) -> str:
    if parameter.type.startswith("float"):
        return "a finite number (YAML reads 1e-3 as text, write 1.0e-3)"
    if parameter.type.startswith("bool"):
        return "true or false"
    return f"a value of type {parameter.type}"


def parsed(parameter: Parameter, text: str, where: str = "command line") -> Any:
    """Parse a text such as ``1e-3``, ``true`` or ``[1, 2]`` as a value of a parameter.

    Raises:
        ProfileError: if the text is not a value of the parameter's type.
    """
    if parameter.type == "str":
        return text
    try:
        value = yaml.safe_load(text) if text.strip() else text
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ProfileError(f"{where}: {parameter.name}={text[:40]} cannot be read ({reason})") from error
    if parameter.type.startswith("float") and isinstance(value, str):
        with contextlib.suppress(ValueError):  # reported with the type below
            value = float(text)
    return checked(parameter, value, where)


def merged(declared: Mapping[str, Parameter], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Name of every declared parameter -> given value or default, in the notebook's order.

    Raises:
        UnknownNameError: if a given name is not declared.
        ProfileError: if a value has another type.
    """
    for name in given:
        if name not in declared:
            raise UnknownNameError(f"parameter in {where}", name, list(declared))
    return {
        name: checked(parameter, given[name], where) if name in given else parameter.default
        for name, parameter in declared.items()
    }
