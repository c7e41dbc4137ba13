"""The facts written into one weight, each of which can be replaced, re-weighted or forgotten exactly.

A ledger holds the unedited weight W₀ (d_v, d_k) and facts i with key k_i, value v_i and weight w_i > 0.
Whatever the order of operations, its weight is W₀ + D, where D is the one-time solution over the facts
that are left,

    minimise over D = DP:   Σ w_i ‖(W₀ + D) k_i − v_i‖² + tr(D M Dᵀ) + λ‖D‖²,

and D = 0 without facts. Each operation returns the ΔW that takes the weight from the old D to the new.
`palimpsest.algebra.one_time` finds the solution; its docstring states what a step costs, and when it is
refactored.

A fact is removed at the key it was stored with. The Labyrinth's Prop. 3.5 subtracts the resolved value at the
new key instead; as printed that leaves the old fact in place.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.algebra.ledger_facts import Facts, check, unique
from palimpsest.algebra.ledger_file import content_hash, read, write
from palimpsest.algebra.one_time import Problem, Step
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares
from palimpsest.errors import LedgerError

PROJECTOR = ("basis", "complement", "spectrum")
Resolve = Literal["new", "old", "mean"] | Callable[[Tensor, Tensor], Tensor]
RESOLVE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "new": lambda old, new: new,
    "old": lambda old, new: old,
    "mean": lambda old, new: (old + new) / 2,
}


class EditLedger:
    """Facts at one site, and the weight that holds exactly them.

    Args:
        weight: W₀ (d_v, d_k) in any floating dtype; copied, because a model's weight is edited in place.
        preserve: M (d_k, d_k), symmetric positive semidefinite; None for zero. Not copied.
        ridge: λ ≥ 0.
        projector: P; None for the identity.
        site: a label of the weight, checked when a saved ledger is opened.

    Raises:
        ShapeError: if shapes do not fit, or λ is negative or infinite.
        NonFiniteError: if a tensor holds NaN or infinity.

    No tensor of a ledger is ever changed in place, and a failed operation changes nothing. With N facts held
    and n of them entering or leaving, a step costs O(N² n + d_k N n + d_v d_k n), and a ledger takes
    O((d_k + d_v + N) N) of memory. Rounding of ΔW in a narrow ``dtype`` adds up in the model that takes it,
    not in the ledger: `weight` stays exact.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d_v d_k"],
        preserve: Float[Tensor, "d_k d_k"] | None = None,
        ridge: float = 0.0,
        projector: Projector | None = None,
        *,
        site: str = "",
    ) -> None:
        self.base = weight.detach().clone()
        self.site = site
        check("weight", self.base, ("d_v", "d_k"))
        d_v, d_k = self.base.shape
        nothing = self.base.new_zeros(d_k, 0), self.base.new_zeros(d_v, 0)
        LeastSquares(*nothing, preserve, ridge, projector)  # refuses what does not fit
        self._problem = Problem(
            preserve, float(ridge), projector or Projector.identity(d_k, self.base.device)
        )
        self._solved = self._problem.solve(self._facts((), *nothing, None))

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the facts held, in the order of the columns of `keys` and `values`."""
        return self._solved.facts.ids

    @property
    def keys(self) -> Float64[Tensor, "d_k n"]:
        """K, one column per fact."""
        return self._solved.facts.keys

    @property
    def values(self) -> Float64[Tensor, "d_v n"]:
        """V, one column per fact."""
        return self._solved.facts.values

    @property
    def weights(self) -> Float64[Tensor, " n"]:
        """w, one number above 0 per fact."""
        return self._solved.facts.weights

    @property
    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """D, the one-time solution over the facts held."""
        return self._solved.total()

    @property
    def weight(self) -> Float64[Tensor, "d_v d_k"]:
        """W₀ + D."""
        return self.base.double() + self.total

    @property
    def condition(self) -> float:
        """Estimated condition number of what was factorised."""
        return self._solved.condition

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        d_v, d_k = self.base.shape
        return f"EditLedger({d_v} × {d_k}, {len(self)} facts, site {self.site!r})"

    def insert(
        self,
        keys: Float[Tensor, "d_k n"],
        values: Float[Tensor, "d_v n"],
        ids: Sequence[str],
        weights: Float[Tensor, " n"] | None = None,
        *,
        resolve: Resolve | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "d_v d_k"]:
        """Add facts.

        Args:
            keys: one column per fact.
            values: what W should give for each key.
            ids: a name per fact, each once.
            weights: above 0; default 1.
            resolve: what happens to an id that is held already. None refuses it; ``"new"`` puts the new
                key and value in place of the stored pair, ``"old"`` keeps the stored pair, ``"mean"`` puts
                the mean of both values at the new key, and a function of (old values, new values), both
                (d_v, m), says which values to put there.
            dtype: precision of the returned product; its factors are found in float64.

        Returns:
            ΔW to add to the weight.

        Raises:
            LedgerError: for repeated or held ids, a wrong number of ids, or a weight that is not above 0.
            ShapeError, NonFiniteError: if a tensor has the wrong shape, or holds NaN or infinity.
            SingularProblemError: if the one-time problem has no unique solution.

        Source: Labyrinth, Prop. 3.2 and, for ``resolve``, the corrected form of Prop. 3.5.
        """
        if not (resolve is None or callable(resolve) or resolve in RESOLVE):
            raise LedgerError(f"resolve must be one of {', '.join(RESOLVE)} or a function, got {resolve!r}")
        fresh = self._facts(ids, keys, values, weights)
        held = set(self.ids)
        met = [i for i, name in enumerate(fresh.ids) if name in held]
        if met and resolve is None:
            raise LedgerError(
                f"id {fresh.ids[met[0]]!r} is held already; replace or forget it first, or say with resolve= "
                "which of the two values to keep"
            )
        if resolve == "old":
            return self._move(self._solved.change([], fresh.without(met)), dtype)
        stale = self._columns([fresh.ids[i] for i in met])
        if met and resolve is not None:
            fresh = self._resolved(fresh, met, self.values[:, stale], resolve)
        return self._move(self._solved.change(stale, fresh), dtype)

    def replace(
        self, ids: Sequence[str], values: Float[Tensor, "d_v n"], *, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "d_v d_k"]:
        """Give facts that are held other values at their stored keys.

        Raises:
            LedgerError: for repeated or unknown ids.
            ShapeError, NonFiniteError: if ``values`` has the wrong shape, or holds NaN or infinity.
        """
        columns = self._columns(ids)
        check("values", values, (len(self.base), len(columns)))
        return self._move(self._solved.put(columns, values.detach().to(self.values)), dtype)

    def forget(self, ids: Sequence[str], *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "d_v d_k"]:
        """Remove facts, as if they had never been inserted.

        Raises:
            LedgerError: for repeated or unknown ids.
            SingularProblemError: if the one-time problem over the rest has no unique solution.

        Source: Labyrinth, Eq. 31.
        """
        none = self._solved.facts.take([])
        return self._move(self._solved.change(self._columns(ids), none), dtype)

    def reweight(
        self, ids: Sequence[str], weights: Float[Tensor, " n"], *, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "d_v d_k"]:
        """Give facts that are held other weights; they move to the end of `ids`.

        Raises:
            LedgerError: for repeated or unknown ids, or a weight that is not above 0.
            ShapeError, NonFiniteError: if ``weights`` has the wrong shape, or holds NaN or infinity.
        """
        columns = self._columns(ids)
        chosen = self._solved.facts.take(columns)
        fresh = dataclasses.replace(chosen, weights=self._weights(chosen.ids, weights))
        return self._move(self._solved.change(columns, fresh), dtype)

    def copy(self) -> "EditLedger":
        """A ledger of its own; tensors are shared, because none is ever changed in place."""
        return copy.copy(self)

    def _facts(self, ids: Sequence[str], keys: Tensor, values: Tensor, weights: Tensor | None) -> Facts:
        """Facts from what a caller gave, checked, in float64."""
        names = unique(ids)
        d_v, d_k = self.base.shape
        check("keys", keys, (d_k, len(names)))
        check("values", values, (d_v, len(names)))
        k, v = (t.detach().to(self.base.device, torch.float64) for t in (keys, values))
        return Facts(names, k, v, self._weights(names, weights), self._outputs(k))

    def _weights(self, names: Sequence[str], weights: Tensor | None) -> Tensor:
        """Weights from what a caller gave, checked, in float64."""
        if weights is None:
            return torch.ones(len(names), dtype=torch.float64, device=self.base.device)
        check("weights", weights, (len(names),))
        for name, weight in zip(names, weights.tolist(), strict=True):
            if not weight > 0:
                raise LedgerError(
                    f"the weight of {name!r} is {weight:g}; weights must be above 0, and forget "
                    "removes a fact"
                )
        return weights.detach().to(self.base.device, torch.float64)

    def _outputs(self, keys: Tensor) -> Tensor:
        """W₀K in float64, some rows at a time, because W₀ may be large and of half precision."""
        return torch.cat([rows.double() @ keys for rows in self.base.split(1024)])

    def _columns(self, ids: Sequence[str]) -> list[int]:
        """Columns of facts that are held."""
        where = {name: i for i, name in enumerate(self.ids)}
        for name in (names := unique(ids)):
            if name not in where:
                raise LedgerError(
                    f"no fact {name!r} at site {self.site!r}, where {len(where)} facts are held; see .ids"
                )
        return [where[name] for name in names]

    def _resolved(self, fresh: Facts, met: Sequence[int], old: Tensor, resolve: Resolve) -> Facts:
        """The new facts with resolved values where an id was held already."""
        new = fresh.values[:, list(met)]
        chosen = RESOLVE[resolve](old, new) if isinstance(resolve, str) else resolve(old, new)
        check("resolved values", chosen, tuple(new.shape))
        return fresh.put(met, chosen.detach().to(new))

    def _move(self, step: Step, dtype: torch.dtype) -> Tensor:
        """Multiply out what a step adds, then take it."""
        delta = step.delta(dtype)
        self._solved = step.after
        return delta

    def save(self, path: str | Path) -> None:
        """Write the ledger to one safetensors file, under a temporary name first.

        Raises:
            ResourceError: if it cannot be written; what was there before is unchanged.
        """
        parts = {name: getattr(self._problem.projector, name) for name in PROJECTOR}
        facts = {name: getattr(self, name) for name in ("keys", "values", "weights")}
        tensors = {"base": self.base, "preserve": self._problem.preserve} | parts | facts
        about = {"site": self.site, "ridge": self._problem.ridge, "ids": self.ids}
        write(Path(path), tensors, about)

    @classmethod
    def load(
        cls,
        path: str | Path,
        weight: Float[Tensor, "d_v d_k"] | None = None,
        site: str = "",
        device: torch.device | str = "cpu",
    ) -> "EditLedger":
        """Read what `save` wrote, and solve its one-time problem anew.

        Args:
            path: the file.
            weight: the unedited weight it should belong to; not checked if absent.
            site: the site it should belong to; not checked if empty.
            device: where its tensors are to be.

        Raises:
            ResourceError: if the file is missing or damaged.
            LedgerError: if it holds no ledger, or one of another weight or site.
        """
        tensors, about = read(Path(path))
        if weight is not None and content_hash(weight) != about["sha256"]["base"]:
            raise LedgerError(
                f"{path} is a ledger of another model: its unedited weight differs from the one given; pass "
                "the weight as it was before any edit"
            )
        if site and site != about["site"]:
            raise LedgerError(
                f"{path} is a ledger of site {about['site']!r}, not of {site!r}; open that one's"
            )
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        basis, complement, spectrum = (tensors.get(name) for name in PROJECTOR)
        projector = Projector(basis, complement, spectrum)
        ledger = cls(tensors["base"], tensors.get("preserve"), about["ridge"], projector, site=about["site"])
        ledger.insert(tensors["keys"], tensors["values"], about["ids"], tensors["weights"])
        return ledger
