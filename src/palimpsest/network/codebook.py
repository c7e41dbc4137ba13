"""A codebook: keys with radii and labels, the nearest of which decides; the index of GRACE and of MELO.

A query belongs to the entry whose key is nearest to it, if that key is not farther away than the entry's
radius, and otherwise to none (GRACE, Eq. 1: d(h, k_i) < ε_i for i = argmin d(h, k_i)). Distances are
Euclidean.

A key with a label is written by these rules, of which the first that applies counts:

    expanded   the nearest entry has the same label, and lies within its own radius and a new one's of the
               key: its radius grows so far that the key lies within, unless it would meet one of another
               label
    split      entries of other labels lie that near: the new entry and each of them end halfway to the other
    new        nothing is near: a new entry with the initial radius

So the radii of two entries with different labels never add up to more than their distance: which label a
query belongs to does not depend on rounding, except at the point where two entries touch.

Differences from the released code of GRACE: it splits only the nearest entry, sets its radius to half the
distance even where it was smaller, and expands without regard to other labels, so that entries of different
labels may overlap there.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.errors import NonFiniteError, ShapeError

MARGIN = 1e-3
"""By which share a radius exceeds the distance of the key for which it was expanded: the same key read in
another batch differs by rounding."""


def _no_keys() -> Tensor:
    return torch.zeros(0, 0)


def _no_radii() -> Tensor:
    return torch.zeros(0)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Entries in the order in which they were made.

    Attributes:
        keys: (m, d), float32 or float64.
        radii: (m,), above 0, in the unit of the keys; dtype of the keys.
        labels: what an entry stands for.

    Raises:
        ShapeError: if there are not as many keys as radii and labels, or a radius is 0 or less.
        NonFiniteError: if a key or radius is not finite.
    """

    keys: Float[Tensor, "m d"] = field(default_factory=_no_keys)
    radii: Float[Tensor, " m"] = field(default_factory=_no_radii)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = len(self.keys), len(self.radii), len(self.labels)
        if len({*sizes}) != 1:
            raise ShapeError(
                f"a codebook has {sizes[0]} keys, {sizes[1]} radii and {sizes[2]} labels; give one of each "
                "for an entry"
            )
        if not (self.keys.isfinite().all() and self.radii.isfinite().all()):
            raise NonFiniteError(
                "a key or a radius of a codebook is NaN or infinite: the model's states overflow; load it in "
                "a wider dtype"
            )
        if len(self.radii) and not self.radii.min() > 0:
            raise ShapeError(
                f"a radius of a codebook is {float(self.radii.min()):g}, so that its key answers nothing; "
                "give a radius above 0"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def nearest(self, queries: Float[Tensor, "q d"]) -> Int[Tensor, " q"]:
        """Index of the entry that each query belongs to; −1 for none. A query with NaN belongs to none.

        Raises:
            ShapeError: if the queries are of another width than the keys.
        """
        if not len(self):
            return torch.full((len(queries),), -1, device=queries.device)
        if queries.shape[1] != self.keys.shape[1]:
            raise ShapeError(
                f"a query of width {queries.shape[1]} was asked of keys of width {self.keys.shape[1]}; use "
                "the layer and the place that the keys were read at"
            )
        exact = torch.promote_types(torch.promote_types(queries.dtype, self.keys.dtype), torch.float32)
        keys, radii = (part.to(queries.device, exact) for part in (self.keys, self.radii))
        # Differences, not products: near keys are told apart by small distances of long vectors.
        far = torch.cdist(queries.to(exact), keys, compute_mode="donot_use_mm_for_euclid_dist")  # (q, m)
        least, entry = far.min(1)
        return torch.where(least <= radii[entry], entry, -1)

    def distances(self, key: Float[Tensor, " d"]) -> Float[Tensor, " m"]:
        """Distance of each entry's key from a key (m,), float64."""
        return (self.keys.double() - key.double()).norm(dim=1)

    def with_key(self, key: Float[Tensor, " d"], label: str, initial: float) -> tuple["Codebook", int, str]:
        """The codebook in which a key has been written by the rules above.

        Args:
            key: (d,), of the dtype of the keys.
            label: what it stands for.
            initial: radius of a new entry, above 0.

        Returns:
            The codebook, the entry that the key belongs to, and the rule: ``expanded``, also where the radius
            need not grow, ``split`` or ``new``.

        Raises:
            ShapeError: if the key is that of an entry with another label, or the initial radius is not above
                0.
        """
        if not len(self):
            return self._with_entry(key, label, initial), 0, "new"
        far, radii = self.distances(key), self.radii.double()
        other = torch.tensor([known != label for known in self.labels], device=far.device)
        near, close = int(far.argmin()), far <= initial + radii
        if not other[near] and close[near]:
            grown = self._expanded(near, float(far[near]) * (1 + MARGIN), other)
            if grown is not None:
                return grown, near, "expanded"
        conflicting = other & close
        if not conflicting.any():
            return self._with_entry(key, label, initial), len(self), "new"
        half = far[conflicting] / 2
        radii[conflicting] = torch.minimum(radii[conflicting], half)
        cut = replace(self, radii=_rounded_down(radii, self.radii.dtype))
        return cut._with_entry(key, label, min(initial, float(half.min()))), len(self), "split"

    def _expanded(self, entry: int, radius: float, other: Tensor) -> "Codebook | None":
        """With an entry of at least this radius; None if it would meet an entry of another label."""
        if radius > self.radii[entry]:
            room = (self.distances(self.keys[entry]) - self.radii.double())[other]
            if len(room) and radius > float(room.min()):
                return None
            radii = self.radii.double().clone()
            radii[entry] = radius
            return replace(self, radii=_rounded_down(radii, self.radii.dtype))
        return self

    def _with_entry(self, key: Tensor, label: str, radius: float) -> "Codebook":
        last = _rounded_down(torch.tensor([radius], dtype=torch.float64), key.dtype).to(key.device)
        if not len(self):
            return Codebook(key[None], last, (label,))
        return Codebook(
            torch.cat([self.keys, key[None]]), torch.cat([self.radii, last]), (*self.labels, label)
        )


def _rounded_down(radii: Tensor, dtype: torch.dtype) -> Tensor:
    """Radii in a narrower dtype, none of them longer than before."""
    found = radii.to(dtype)
    return torch.where(found.double() > radii, found.nextafter(torch.zeros_like(found)), found)
