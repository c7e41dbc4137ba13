"""The facts written into one weight, each of which can be replaced, re-weighted or forgotten exactly.

A ledger holds the unedited weight W₀ (d_v, d_k) and facts i with key k_i, value v_i and weight w_i > 0.
Whatever the order of operations, its weight is W₀ + D, where D is the one-time solution over the facts
that are left,

    minimise over D = DP:   Σ w_i ‖(W₀ + D) k_i − v_i‖² + tr(D M Dᵀ) + λ‖D‖²,

and D = 0 without facts. Each operation returns the ΔW that takes the weight from the old D to the new.
The solution itself is found by `palimpsest.onetime`, the file is written by `save`.

A fact is removed at the key it was stored with. Lyu et al., Prop. 3.5, subtracts the resolved value at the
new key instead; as printed that leaves the old fact in place.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.cache import replacing
from palimpsest.errors import LedgerError, ResourceError
from palimpsest.onetime import Facts, Fit, Problem, check
from palimpsest.projector import Projector

SCHEMA = 1
Values = Float[Tensor, "d_v n"]
Resolve = Literal["new", "old", "mean"] | Callable[[Tensor, Tensor], Tensor]


class EditLedger:
    """Facts at one site, and the weight that holds exactly them.

    Args:
        weight: W₀ (d_v, d_k) in any floating dtype; kept as given.
        preserve: M (d_k, d_k), symmetric positive semidefinite; None for zero.
        ridge: λ ≥ 0.
        projector: P; None for the identity.
        site: a label of the weight, checked when a saved ledger is opened.

    Raises:
        ShapeError: if shapes do not fit, or λ is negative or infinite.
        NonFiniteError: if a tensor holds NaN or infinity.

    No tensor of a ledger is ever changed in place, and a failed operation changes nothing.
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
        self.base = weight.detach()
        self.site = site
        self._problem = Problem(self.base, preserve, float(ridge), projector)
        self._solved = self._problem.fit(self._problem.empty)

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
        """Estimated condition number of what was factorised; 1 without facts."""
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

        Source: Lyu et al., Prop. 3.2 and, for ``resolve``, the corrected form of Prop. 3.5.
        """
        fresh = self._problem.facts(ids, keys, values, weights)
        held = set(self.ids)
        met = [i for i, name in enumerate(fresh.ids) if name in held]
        if met and resolve is None:
            raise LedgerError(
                f"id {fresh.ids[met[0]]!r} is held already; replace or forget it first, or say with resolve= "
                "which of the two values to keep"
            )
        if resolve == "old":
            return self._change([], fresh.without(met), dtype)
        stale = self._columns([fresh.ids[i] for i in met])
        if met and resolve is not None:
            fresh = self._resolved(fresh, met, self._solved.facts.values[:, stale], resolve)
        return self._change(stale, fresh, dtype)

    def replace(
        self, ids: Sequence[str], values: Float[Tensor, "d_v n"], *, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "d_v d_k"]:
        """Give facts that are held other values at their stored keys.

        Raises:
            LedgerError: for repeated or unknown ids.
            ShapeError, NonFiniteError: if ``values`` has the wrong shape, or holds NaN or infinity.
        """
        columns = self._columns(ids)
        chosen = self._solved.facts.take(columns)
        fresh = self._problem.facts(chosen.ids, chosen.keys, values, chosen.weights)
        return self._move(self._problem.fit(self._solved.facts.put(columns, fresh)), dtype)

    def forget(self, ids: Sequence[str], *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "d_v d_k"]:
        """Remove facts, as if they had never been inserted.

        Raises:
            LedgerError: for repeated or unknown ids.
            SingularProblemError: if the one-time problem over the rest has no unique solution.

        Source: Lyu et al., Eq. 31.
        """
        return self._change(self._columns(ids), self._problem.empty, dtype)

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
        fresh = self._problem.facts(chosen.ids, chosen.keys, chosen.values, weights)
        return self._change(columns, fresh, dtype)

    def copy(self) -> "EditLedger":
        """A ledger of its own; tensors are shared, because none is ever changed in place."""
        return copy.copy(self)

    def _columns(self, ids: Sequence[str]) -> list[int]:
        """Columns of facts that are held."""
        if isinstance(ids, str):
            raise LedgerError(f"ids must be a list of names, got the one text {ids!r}; write [{ids!r}]")
        where = {name: i for i, name in enumerate(self.ids)}
        for i, name in enumerate(ids):
            if name not in where:
                raise LedgerError(
                    f"no fact {name!r} at site {self.site!r}: {len(where)} facts are held, see .ids"
                )
            if name in ids[:i]:
                raise LedgerError(f"id {name!r} is given twice in one call; name every fact once")
        return [where[name] for name in ids]

    def _resolved(self, fresh: Facts, met: Sequence[int], old: Tensor, resolve: Resolve) -> Facts:
        """The new facts with resolved values where an id was held already."""
        new = fresh.values[:, met]
        if callable(resolve):
            chosen = resolve(old, new)
        elif resolve in ("new", "mean"):
            chosen = new if resolve == "new" else (old + new) / 2
        else:
            raise LedgerError(f"resolve must be 'new', 'old', 'mean' or a function, got {resolve!r}")
        check("resolved values", chosen, tuple(new.shape))
        values = fresh.values.index_copy(1, torch.tensor(met), chosen.to(new))
        return self._problem.facts(fresh.ids, fresh.keys, values, fresh.weights)

    def _change(self, gone: Sequence[int], fresh: Facts, dtype: torch.dtype) -> Tensor:
        return self._move(self._problem.fit(self._solved.facts.without(gone).join(fresh)), dtype)

    def _move(self, after: Fit, dtype: torch.dtype) -> Tensor:
        """Take the new solution, and what it adds to the old one."""
        delta = (after.total() - self._solved.total()).to(dtype)
        self._solved = after
        return delta

    def save(self, path: str | Path) -> None:
        """Write the ledger to one safetensors file, under a temporary name first.

        Raises:
            ResourceError: if it cannot be written; what was there before is unchanged.
        """
        tensors = {name: t.detach().cpu().contiguous() for name, t in self._tensors().items()}
        about = {
            "schema": SCHEMA,
            "site": self.site,
            "ridge": self._problem.ridge,
            "ids": self.ids,
            "sha256": {name: content_hash(t) for name, t in tensors.items()},
        }
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={"ledger": json.dumps(about)})

    def _tensors(self) -> dict[str, Tensor]:
        facts, p = self._solved.facts, self._problem.projector
        found = {"base": self.base, "keys": facts.keys, "values": facts.values, "weights": facts.weights}
        found |= {
            "preserve": self._problem.preserve,
            "basis": p and p.basis,
            "complement": p and p.complement,
        }
        return {name: t for name, t in found.items() if t is not None}

    @classmethod
    def load(
        cls, path: str | Path, weight: Float[Tensor, "d_v d_k"] | None = None, site: str = ""
    ) -> "EditLedger":
        """Read what `save` wrote, and solve its one-time problem anew.

        Args:
            path: the file.
            weight: the unedited weight it should belong to; not checked if absent.
            site: the site it should belong to; not checked if empty.

        Raises:
            ResourceError: if the file is missing or damaged.
            LedgerError: if it holds no ledger, or one of another weight or site.
        """
        tensors, about = _read(Path(path))
        if weight is not None and content_hash(weight.detach().cpu()) != about["sha256"]["base"]:
            raise LedgerError(
                f"{path} is a ledger of another model: its unedited weight differs from the one given; pass "
                "the weight as it was before any edit"
            )
        if site and site != about["site"]:
            raise LedgerError(
                f"{path} is a ledger of site {about['site']!r}, not of {site!r}; open that one's"
            )
        basis, complement = tensors.get("basis"), tensors.get("complement")
        free = basis is None and complement is None
        projector = None if free else Projector(basis, complement)
        ledger = cls(tensors["base"], tensors.get("preserve"), about["ridge"], projector, site=about["site"])
        ledger.insert(tensors["keys"], tensors["values"], about["ids"], tensors["weights"])
        return ledger


def content_hash(tensor: Tensor) -> str:
    """Sha256 of a tensor's type, shape and bits."""
    tensor = tensor.contiguous()
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a ledger file and what is written about them."""
    try:
        with safe_open(path, framework="pt") as handle:
            about = (handle.metadata() or {}).get("ledger")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ResourceError(
            f"ledger file {path} is missing or damaged ({error}); take an earlier copy of it"
        ) from error
    if about is None:
        raise LedgerError(f"{path} holds no ledger; give a file written by EditLedger.save")
    described = json.loads(about)
    if described["schema"] != SCHEMA:
        raise LedgerError(
            f"{path} has format {described['schema']}, this version reads {SCHEMA}; open it with the "
            "version that wrote it"
        )
    return tensors, described
