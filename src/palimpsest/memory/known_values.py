"""Values of many facts for one model, computed once and reused in any grouping.

Values are otherwise cached per batch, because values optimised in one batch differ by rounding from values
optimised alone. A study that writes the same facts in many orders, subsets and sets computes them all at once
instead, and uses the same columns in every run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from palimpsest.errors import RequestError
from palimpsest.memory.settings import TargetSettings
from palimpsest.memory.values import Targets, optimise_targets
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.types import EditRequest


@dataclass(frozen=True)
class KnownValues:
    """Optimised values by fact.

    Attributes:
        targets: one column per fact.
        columns: (prompt, subject, new object) -> column.
        made: fingerprint of the model, layer, settings and contexts they were computed for.
    """

    targets: Targets
    columns: dict[tuple[str, str, str], int] = field(repr=False)
    made: tuple[str, int, TargetSettings, tuple[str, ...]]

    def of(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layer: int,
        settings: TargetSettings,
        contexts: Sequence[str],
    ) -> Targets:
        """Columns of some facts, in their order.

        Args:
            model: model that the values must belong to.
            requests: facts to look up.
            layer: layer that they must belong to.
            settings: settings that they must belong to.
            contexts: contexts that they must belong to.

        Raises:
            RequestError: if they were made for another model, layer, settings or contexts, or lack a fact.
        """
        asked = (fingerprint(model), layer, settings, tuple(contexts))
        names = ("the model's weights", "the layer", "the settings of values", "the contexts")
        other = [n for n, mine, theirs in zip(names, self.made, asked, strict=True) if mine != theirs]
        if other:
            raise RequestError(
                f"the known values belong to other {', '.join(other)}; compute them anew for these"
            )
        missing = [request.text for request in requests if _name(request) not in self.columns]
        if missing:
            raise RequestError(
                f"{len(missing)} of {len(requests)} facts have no known value, for example {missing[0]!r}; "
                "give them to known_values with the others"
            )
        return self.targets.of([self.columns[_name(request)] for request in requests])


def known_values(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    settings: TargetSettings,
    contexts: Sequence[str] = ("",),
    beside: KnownValues | None = None,
) -> KnownValues:
    """Optimise the values of many facts together; a repeated fact is computed once.

    Args:
        model: the model as it is now; the unedited one, for sequences.
        requests: facts, in any order.
        layer: layer whose output is optimised: the last edited one.
        settings: losses and steps.
        contexts: prefixes, the empty one first.
        beside: earlier values to extend; they are kept, and only missing facts are computed.

    Raises:
        NonFiniteError, SiteError: as `palimpsest.memory.values.optimise_targets`.
        RequestError: if ``beside`` was made for another model, layer, settings or contexts.
    """
    if beside is not None:
        beside.of(model, (), layer, settings, contexts)
    columns = dict(beside.columns) if beside is not None else {}
    missing = list(
        {_name(request): request for request in requests if _name(request) not in columns}.values()
    )
    if beside is not None and not missing:
        return beside
    found = optimise_targets(model, missing, layer, settings, contexts)
    columns |= {_name(request): len(columns) + place for place, request in enumerate(missing)}
    targets = found if beside is None else _joined(beside.targets, found)
    return KnownValues(targets, columns, (fingerprint(model), layer, settings, tuple(contexts)))


def _joined(first: Targets, then: Targets) -> Targets:
    values, deltas = ([getattr(one, name) for one in (first, then)] for name in ("values", "deltas"))
    terms = {name: torch.cat([trace, then.terms[name]]) for name, trace in first.terms.items()}
    # (d_v, n₁ + n₂) twice; losses and terms (n₁ + n₂, steps)
    return Targets(torch.cat(values, 1), torch.cat(deltas, 1), torch.cat([first.losses, then.losses]), terms)


def _name(request: EditRequest) -> tuple[str, str, str]:
    return request.prompt, request.subject, request.target
