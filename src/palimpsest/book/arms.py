"""Long runs that are made once and carried: arms of a page, each in several orders of the facts.

A figure over many long runs cannot be one run of a notebook: it would take days, and an interruption would
lose them. So every arm in every order is a run of its own, of one notebook, under a profile of its own
(``arms.<page>.<name>``) that follows from ``config/arms.yaml``. What holds for other results holds for these:
provenance, staleness, confirmation.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palimpsest import paths
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.files import UNREADABLE
from palimpsest.results.long_runs import ARMS as ARMS


class Arm(BaseModel):
    """One long run.

    Attributes:
        page: name of the notebook whose result it belongs to.
        about: why it is made.
        regime: row of ``regimes`` in the model's settings.
        run: sequence, when values are computed, and factor of the penalty.
        changes: settings that replace the regime's.
        order: seed of the order of the facts.
        hours: predicted core-hours.
        priority: 1 first.
        data: file of original facts, looked up as `original_statements` does; empty: the project's own.
        sizes: parameters of the notebook that differ from those of all arms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    page: str
    about: str
    regime: str
    run: str
    changes: tuple[str, ...]
    order: int
    data: str = ""
    hours: float
    priority: int
    sizes: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the arm, unique within its page and fit for a folder."""
        data = [Path(self.data).stem] if self.data else []
        parts = [self.regime, *self.run.split(), *self.changes, *data, f"order {self.order}"]
        return " ".join(parts).replace(" ", "-").replace("=", "_").replace("/", "_")

    @property
    def profile(self) -> str:
        """Name of its profile."""
        return f"{ARMS}.{self.page}.{self.name}"

    def parameters(self) -> dict[str, Any]:
        """Parameters of the notebook that make the run what it is."""
        data = {"data": self.data} if self.data else {}
        return (
            self.sizes
            | data
            | {
                "regime": self.regime,
                "run": self.run,
                "changes": list(self.changes),
                "order": self.order,
            }
        )


class _Block(BaseModel):
    """One row of ``config/arms.yaml``: several arms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    page: str
    about: str = Field(min_length=5)
    regime: str
    runs: tuple[str, ...] = Field(min_length=1)
    changes: tuple[tuple[str, ...], ...] = ((),)
    orders: tuple[int, ...] = Field(min_length=1)
    hours: float = Field(gt=0)
    priority: int = Field(ge=1)
    data: str = ""
    sizes: dict[str, Any] = Field(default_factory=dict)

    def arms(self) -> Iterator[Arm]:
        """One arm for each run, change and order."""
        told = self.model_dump(include={"page", "about", "regime", "hours", "priority", "data", "sizes"})
        for run, changes, order in product(self.runs, self.changes, self.orders):
            yield Arm(**told, run=run, changes=changes, order=order)


class Plan(BaseModel):
    """Contents of ``config/arms.yaml``.

    Attributes:
        notebook: what runs every arm.
        model: name, hub id or folder.
        parameters: of the notebook, for every arm.
        arms: rows of several arms each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    notebook: str
    model: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    blocks: tuple[_Block, ...] = Field(alias="arms")

    def arms(self) -> list[Arm]:
        """All arms, by priority and then in the order of the file.

        Raises:
            ProfileError: if two are the same.
        """
        found = sorted((arm for block in self.blocks for arm in block.arms()), key=lambda arm: arm.priority)
        names = [arm.profile for arm in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ProfileError(f"arms.yaml names {', '.join(twice)} twice; keep one row of each")
        return found

    def arm(self, profile: str) -> Arm:
        """The arm of a profile.

        Raises:
            UnknownNameError: if there is none.
        """
        known = {arm.profile: arm for arm in self.arms()}
        if profile not in known:
            raise UnknownNameError("arm", profile, list(known))
        return known[profile]


def plan() -> Plan:
    """All long runs of the checkout.

    Raises:
        ProfileError: if the file cannot be read or is malformed.
    """
    path = paths.checkout() / "config" / "arms.yaml"
    try:
        return _parsed(path, path.read_bytes())
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error}") from error


@cache
def _parsed(path: Path, content: bytes) -> Plan:
    try:
        return Plan.model_validate(yaml.safe_load(content))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ProfileError(f"{path.name}: {faults}") from error
    except UNREADABLE as error:
        raise ProfileError(f"{path.name} is not YAML: {error}") from error
