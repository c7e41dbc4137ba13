"""Ledger of the facts written into one weight; each can be replaced, re-weighted or forgotten exactly.

A ledger holds the unedited weight W₀ (d_v, d_k) and facts i with key k_i, value v_i and weight w_i > 0.
Whatever the order of operations, its weight is W₀ + D, where D is the one-time solution over the facts
currently held,

    minimise over D = DP:   Σ w_i ‖(W₀ + D) k_i − v_i‖² + tr(D M Dᵀ) + λ‖D‖²,

and D = 0 without facts. Each operation returns the ΔW that changes the weight from the old D to the new.
`palimpsest.algebra.one_time` computes the solution; its docstring says which form it takes, and when a system
is factorised again.

A fact is removed at the key it was stored with. The Labyrinth's Prop. 3.5 subtracts the resolved value at the
new key instead; as printed, "resolve to new" then keeps the old fact in the weight.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.algebra.ledger_facts import Facts, check, unique
from palimpsest.algebra.ledger_file import FACTS, Saved, append, read, tensor_sha256, write
from palimpsest.algebra.one_time import Step, change, put, solve
from palimpsest.algebra.problem import Problem
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import check_terms
from palimpsest.errors import LedgerError

PROJECTOR = ("basis", "complement", "spectrum", "energy")
Resolve = Literal["new", "old", "mean"] | Callable[[Tensor, Tensor], Tensor]
RESOLVE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "new": lambda old, new: new,
    "old": lambda old, new: old,
    "mean": lambda old, new: (old + new) / 2,
}


class EditLedger:
    """Facts of one site, and the weight W₀ + D that holds exactly these.

    Args:
        weight: W₀ (d_v, d_k) in any floating dtype; copied, because a model's weight is edited in place.
        preserve: M (d_k, d_k), symmetric positive semidefinite; None for zero. Not copied.
        ridge: λ ≥ 0.
        projector: P; None for the identity.
        site: label of the weight, checked when a saved ledger is opened.

    Raises:
        ShapeError: if shapes do not fit, or λ is negative or infinite.
        NonFiniteError: if a tensor holds NaN or infinity.

    No tensor of a ledger is changed in place, and a failed operation changes nothing. With N facts held and n
    of them entering or leaving, a step costs O(N² n + d_k N n + d_v d_k n), and a ledger needs
    O((d_k + d_v + N) N) of memory, up to as many facts as there are free directions. With more, a step costs
    O(d_k² n + d_v d_k n), the facts stand in a temporary file, and the ledger needs O((d_k + d_v) d_k) of
    memory, whatever N. If ΔW is returned in a narrow ``dtype``, its rounding accumulates in the model it is
    added to, not in the ledger: `weight` keeps float64 accuracy.
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
        check_terms(d_k, preserve, ridge, projector)
        self._problem = Problem(
            preserve, float(ridge), projector or Projector.identity(d_k, self.base.device)
        )
        self._solved = solve(self._problem, self._facts((), *nothing, None))
        self._saved: Saved | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the facts held, in the column order of `keys` and `values`."""
        return self._solved.facts.ids

    @property
    def keys(self) -> Float64[Tensor, "d_k n"]:
        """Keys K, one column per fact."""
        return self._solved.facts.keys

    @property
    def values(self) -> Float64[Tensor, "d_v n"]:
        """Values V, one column per fact."""
        return self._solved.facts.values

    @property
    def weights(self) -> Float64[Tensor, " n"]:
        """Weights w > 0, one per fact."""
        return self._solved.facts.weights

    @cached_property
    def base_sha256(self) -> str:
        """Sha256 of W₀, see `palimpsest.cache.tensor_sha256`."""
        return tensor_sha256(self.base)

    @property
    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """Total update D, the one-time solution over the facts held."""
        return self._solved.total()

    @property
    def weight(self) -> Float64[Tensor, "d_v d_k"]:
        """Edited weight W₀ + D."""
        return self.base.double() + self.total

    def outputs(self, keys: Float[Tensor, "d_k n"]) -> Float64[Tensor, "d_v n"]:
        """(W₀ + D) K, outputs of the edited weight; they cost less than the weight.

        Raises:
            ShapeError, NonFiniteError: if ``keys`` has the wrong shape, or holds NaN or infinity.
        """
        check("keys", keys, (self.base.shape[1], "n"))
        k = keys.detach().to(self.base.device, torch.float64)
        return self._outputs(k) + self._solved.times(k)

    @property
    def condition(self) -> float:
        """Estimated condition number of the factorised systems."""
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
            values: wanted output of W for each key.
            ids: one name per fact, each given once.
            weights: above 0; default 1.
            resolve: what to do with an id that is already held. None refuses it; ``"new"`` replaces the
                stored key and value by the new ones; ``"old"`` keeps the stored pair; ``"mean"`` stores the
                mean of both values at the new key; a function of (old values, new values), both (d_v, m),
                returns the values to store at the new keys.
            dtype: dtype in which ΔW is multiplied out; its factors are computed in float64.

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
            fresh, met = fresh.without(met), []
        stale = self._columns([fresh.ids[i] for i in met])
        if met and resolve is not None:
            fresh = self._resolved(fresh, met, self._solved.facts.take(stale).values, resolve)
        return self._move(change(self._solved, stale, fresh), dtype, fresh.ids)

    def replace(
        self, ids: Sequence[str], values: Float[Tensor, "d_v n"], *, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "d_v d_k"]:
        """Change the values of held facts at their stored keys; returns ΔW as `insert`.

        Raises:
            LedgerError: for repeated or unknown ids.
            ShapeError, NonFiniteError: if ``values`` has the wrong shape, or holds NaN or infinity.
        """
        columns = self._columns(ids)
        check("values", values, (len(self.base), len(columns)))
        wanted = values.detach().to(self.base.device, torch.float64)
        return self._move(put(self._solved, columns, wanted), dtype, ids)

    def forget(self, ids: Sequence[str], *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "d_v d_k"]:
        """Remove facts, as if they had never been inserted; returns ΔW as `insert`.

        Raises:
            LedgerError: for repeated or unknown ids.
            SingularProblemError: if the one-time problem over the rest has no unique solution.

        Source: Labyrinth, Eq. 31.
        """
        none = self._solved.facts.take([])
        return self._move(change(self._solved, self._columns(ids), none), dtype)

    def reweight(
        self, ids: Sequence[str], weights: Float[Tensor, " n"], *, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "d_v d_k"]:
        """Change the weights of held facts, which move to the end of `ids`; returns ΔW as `insert`.

        Raises:
            LedgerError: for repeated or unknown ids, or a weight that is not above 0.
            ShapeError, NonFiniteError: if ``weights`` has the wrong shape, or holds NaN or infinity.
            SingularProblemError: if the re-weighted problem has no unique solution.
        """
        columns = self._columns(ids)
        chosen = self._solved.facts.take(columns)
        fresh = dataclasses.replace(chosen, weights=self._weights(chosen.ids, weights))
        return self._move(change(self._solved, columns, fresh), dtype, fresh.ids)

    def copy(self) -> "EditLedger":
        """Independent copy; tensors are shared, because none is changed in place."""
        return copy.copy(self)

    def _facts(self, ids: Sequence[str], keys: Tensor, values: Tensor, weights: Tensor | None) -> Facts:
        """Checked facts in float64, from a caller's tensors."""
        names = unique(ids)
        d_v, d_k = self.base.shape
        check("keys", keys, (d_k, len(names)))
        check("values", values, (d_v, len(names)))
        # In one order in memory, so that products have the same bits wherever the tensors come from.
        k, v = (t.detach().to(self.base.device, torch.float64).contiguous() for t in (keys, values))
        return Facts(names, k, v, self._weights(names, weights), self._outputs(k))

    def _weights(self, names: Sequence[str], weights: Tensor | None) -> Tensor:
        """Checked weights (n,) in float64, from a caller's tensor; ones for None."""
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
        """W₀K (d_v, n) in float64, by blocks of rows: W₀ may be large and in half precision."""
        return torch.cat([rows.double() @ keys for rows in self.base.split(1024)])

    def _columns(self, ids: Sequence[str]) -> list[int]:
        """Column indices of held facts."""
        where = {name: i for i, name in enumerate(self.ids)}
        for name in (names := unique(ids)):
            if name not in where:
                raise LedgerError(
                    f"no fact {name!r} at site {self.site!r}, where {len(where)} facts are held; see .ids"
                )
        return [where[name] for name in names]

    def _resolved(self, fresh: Facts, met: Sequence[int], old: Tensor, resolve: Resolve) -> Facts:
        """The new facts, with resolved values where an id is already held."""
        new = fresh.values[:, list(met)]
        chosen = RESOLVE[resolve](old, new) if isinstance(resolve, str) else resolve(old, new)
        check("resolved values", chosen, tuple(new.shape))
        return fresh.put(met, chosen.detach().to(new))

    def _move(self, step: Step, dtype: torch.dtype, names: Sequence[str] = ()) -> Tensor:
        """Multiply out the step's ΔW, then adopt its solution, in which these facts are new or changed."""
        delta = step.delta(dtype)
        self._solved = step.after
        if self._saved is not None:
            self._saved = dataclasses.replace(self._saved, changed=self._saved.changed.union(names))
        return delta

    def save(self, path: str | Path) -> None:
        """Write the ledger to one file; only what changed, if it was last saved to this file or read from it.

        Raises:
            LedgerError: if the file holds a ledger of another weight or site.
            ResourceError: if it cannot be written; what was there before is unchanged.
        """
        step = self._saved.step(Path(path), self.ids) if self._saved is not None else None
        if self._saved is not None and step is not None:
            self._saved = append(self._saved, step[0], self._solved.facts.take(step[1]), self.ids)
            return
        parts = {name: getattr(self._problem.projector, name) for name in PROJECTOR}
        parts |= {name: getattr(self, name) for name in FACTS}
        tensors = {"base": self.base, "preserve": self._problem.preserve, **parts}
        about = {"site": self.site, "ridge": self._problem.ridge, "ids": self.ids}
        self._saved = write(Path(path), tensors, about)
        self.spill()

    def spill(self) -> None:
        """Keep M in a temporary file, so that it takes memory only while it is read; nothing else changes."""
        self._problem.spill()

    @classmethod
    def load(
        cls,
        path: str | Path,
        weight: Float[Tensor, "d_v d_k"] | None = None,
        site: str = "",
        device: torch.device | str = "cpu",
    ) -> "EditLedger":
        """Read a file from `save`, and solve its one-time problem again.

        Args:
            path: file to read.
            weight: unedited weight that the file must belong to; not checked if None.
            site: site that the file must belong to; not checked if empty.
            device: device for its tensors.

        Raises:
            ResourceError: if the file is missing or damaged.
            LedgerError: if it holds no ledger, or one of another weight or site.
        """
        tensors, about, saved = read(Path(path))
        if weight is not None and tensor_sha256(weight) != about["sha256"]["base"]:
            raise LedgerError(
                f"{path} is a ledger of another model: its unedited weight differs from the one given; pass "
                "the weight as it was before any edit"
            )
        if site and site != about["site"]:
            raise LedgerError(
                f"{path} is a ledger of site {about['site']!r}, not of {site!r}; open that one's"
            )
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        basis, complement, spectrum, energy = (tensors.get(name) for name in PROJECTOR)
        projector = Projector(basis, complement, spectrum, energy=energy)
        ledger = cls(tensors["base"], tensors.get("preserve"), about["ridge"], projector, site=about["site"])
        ledger.insert(tensors["keys"], tensors["values"], about["ids"], tensors["weights"])
        ledger._saved = saved
        return ledger
