"""The parameters cell of a notebook: what it declares, and whether given values fit.

papermill only warns about a parameter that no notebook has, and takes ``-p seed true`` for the text
"true". Here names and types are checked before anything runs.
"""

import ast
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

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
"""Annotations a parameter may have."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, for example ``seed: int = 1  # seed of every draw``."""

    name: str
    type: str
    default: Any
    comment: str


def parameters_cell(notebook: Path) -> str:
    """Source of the one cell tagged ``parameters``.

    Raises:
        NotebookError: if the file is no notebook, or has no such cell or several.
    """
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise NotebookError(f"{notebook} is not a readable notebook: {error}") from error
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise NotebookError(f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; tag exactly one")
    return str(tagged[0].source)


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Parameters a notebook declares, in their order.

    Raises:
        NotebookError: for a line that is no typed assignment of a literal.
    """
    source = parameters_cell(notebook)
    lines = source.splitlines()
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
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
    """The value in the parameter's type; an int is taken for a float, nothing else is converted.

    Args:
        parameter: as the notebook declares it.
        value: the candidate.
        where: named in the message, for example ``profile laptop``.

    Raises:
        ProfileError: if the value is of another type or not finite.
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
    """The value a text such as ``1e-3``, ``true`` or ``[1, 2]`` stands for in a parameter's type.

    Raises:
        ProfileError: if it stands for none.
    """
    if parameter.type == "str":
        return text
    value = yaml.safe_load(text) if text.strip() else text
    if parameter.type.startswith("float") and isinstance(value, str):
        with contextlib.suppress(ValueError):  # reported with the type below
            value = float(text)
    return checked(parameter, value, where)


def merged(declared: Mapping[str, Parameter], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every declared parameter with its given value or default, in the notebook's order.

    Raises:
        UnknownNameError: if a given name is not declared.
        ProfileError: if a value is of another type.
    """
    for name in given:
        if name not in declared:
            raise UnknownNameError(f"parameter in {where}", name, list(declared))
    return {
        name: checked(parameter, given[name], where) if name in given else parameter.default
        for name, parameter in declared.items()
    }
