"""Random sites and histories of a ledger, and an oracle that shares no code with the package."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.projector import Projector
from palimpsest.errors import SingularProblemError
from tests.problems import EPS, gaussian

Fact = tuple[Tensor, Tensor, float]  # key (d_k,), value (d_v,), weight
Held = dict[str, Fact]


@dataclass(frozen=True, repr=False)
class Site:
    """What a ledger is made of, with M = F Fᵀ so that the oracle needs no root of it."""

    base: Tensor  # (d_v, d_k)
    half: Tensor  # F (d_k, p)
    ridge: float
    basis: Tensor  # of range(P), (d_k, r)
    span: Tensor  # of its complement, (d_k, d_k - r)
    form: str  # how P is held

    def __repr__(self) -> str:
        sizes = f"base {tuple(self.base.shape)} {self.base.dtype}, F {tuple(self.half.shape)}"
        return f"Site({sizes}, ridge {self.ridge:.3g}, kept {self.basis.shape[1]} by {self.form})"

    @property
    def projector(self) -> Projector | None:
        forms = {"basis": self.basis, "complement": self.span}
        return None if self.form == "none" else Projector(**{self.form: forms[self.form]})

    def ledger(self) -> EditLedger:
        moment = self.half @ self.half.T if self.half.shape[1] else None
        return EditLedger(self.base, moment, self.ridge, self.projector, site="layer 3")

    def stacked(self, held: Held) -> tuple[np.ndarray, np.ndarray]:
        """The one-time problem in the coordinates of range(P) as one tall system ``A x ≈ b``."""
        base, b, rows, wanted = self.base.double(), self.basis, [self.half.T @ self.basis], []
        rows.append(self.ridge**0.5 * torch.eye(b.shape[1], dtype=torch.float64))
        zeros = torch.zeros(self.half.shape[1] + b.shape[1], len(base), dtype=torch.float64)
        for key, value, weight in held.values():
            inside = key @ b
            inside = inside if inside.norm() > 1e-12 * key.norm() else 0 * inside  # no part but rounding
            rows.append(weight**0.5 * inside[None])
            wanted.append(weight**0.5 * (value - base @ key)[None])
        return torch.cat(rows).numpy(), torch.cat([zeros, *wanted]).numpy()

    def oracle(self, held: Held) -> tuple[Tensor, float]:
        """The weight that should be there, and the condition number of the normal matrix on range(P)."""
        base = self.base.double()
        if not held or not self.basis.shape[1]:
            return base, 1.0
        a, b = self.stacked(held)
        x = np.linalg.lstsq(a, b, rcond=None)[0]
        s = np.linalg.svd(a, compute_uv=False)
        cond = (s[0] / s[-1]) ** 2 if len(a) >= a.shape[1] and s[-1] > 0 else np.inf
        return base + torch.from_numpy(x.T) @ self.basis.T, float(cond)


@st.composite
def sites(draw: st.DrawFn, unique: bool = False) -> Site:
    """M absent, of full rank or deficient; P in every form; λ 0 (unless ``unique``) or 1e-6 to 1e3."""
    d_k, d_v = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    seed, form = draw(st.integers(0, 2**20)), draw(st.sampled_from(["none", "basis", "complement"]))
    protected = 0 if form == "none" else draw(st.integers(0, d_k))
    ridge = 10 ** draw(st.floats(-6, 3))
    if not unique and draw(st.booleans()):
        ridge = 0.0
    p = draw(st.sampled_from([0, d_k // 2, 2 * d_k + 2]))
    frame = torch.linalg.qr(gaussian(seed, d_k, d_k)).Q
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    base, half = gaussian(seed + 1, d_v, d_k).to(dtype), gaussian(seed + 2, d_k, p)
    return Site(base, half, ridge, frame[:, protected:], frame[:, :protected], form)


OPERATIONS = ("insert", "insert", "insert", "resolve", "replace", "forget", "forget", "reweight")
histories = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2**20)), min_size=1, max_size=12)


class Random:
    """The choices of one operation, from its seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape))

    def weights(self, n: int) -> Tensor:
        return torch.from_numpy(10 ** self.rng.uniform(-2, 2, n))

    def some(self, names: list[str]) -> list[str]:
        n = self.rng.integers(1, len(names) + 1) if names else 0
        return list(self.rng.permutation(np.array(names, dtype=object))[:n]) if n else []

    def keys(self, site: Site, held: Held, n: int) -> Tensor:
        """New keys of every awkward kind: repeated, opposite, nearly equal, zero, protected."""
        keys = 10 ** float(self.rng.uniform(-1, 1)) * self.normal(site.base.shape[1], n)
        known = [fact[0] for fact in held.values()]
        for i in range(n):
            kind, old = self.rng.integers(0, 10), (known or [keys[:, 0]])[-1]
            if kind < 4:
                keys[:, i] = (old, -old, old + 1e-3 * keys[:, i], 0 * old)[kind]
            elif kind == 4 and site.span.shape[1]:
                keys[:, i] = site.span[:, 0]
        return keys


def columns(site: Site, facts: list[Fact], names: list[str]) -> tuple[Tensor, Tensor, list[str], Tensor]:
    """Facts as `EditLedger.insert` takes them."""
    d_v, d_k = site.base.shape
    keys = torch.stack([fact[0] for fact in facts], 1) if facts else torch.zeros(d_k, 0)
    values = torch.stack([fact[1] for fact in facts], 1) if facts else torch.zeros(d_v, 0)
    return keys, values, names, torch.tensor([fact[2] for fact in facts], dtype=torch.float64)


def zipped(names: list[str], k: Tensor, v: Tensor, w: Tensor) -> Held:
    return {name: (k[:, i], v[:, i], float(w[i])) for i, name in enumerate(names)}


RULES = {
    "new": lambda old, new: new,
    "old": lambda old, new: old,
    "mean": lambda old, new: (old + new) / 2,
    lambda old, new: 3 * old - new: lambda old, new: 3 * old - new,
}


def plan(site: Site, held: Held, operation: str, seed: int) -> tuple[str, tuple, dict, Held]:
    """A method of the ledger, what to call it with, and the facts that must be held afterwards."""
    random = Random(seed)
    chosen = random.some(list(held))
    left = {name: fact for name, fact in held.items() if name not in chosen}
    if operation == "forget":
        return "forget", (chosen,), {}, left
    if operation == "replace":
        v = random.normal(len(site.base), len(chosen))
        fresh = {name: (held[name][0], v[:, i], held[name][2]) for i, name in enumerate(chosen)}
        return "replace", (chosen, v), {}, held | fresh
    if operation == "reweight":
        w = random.weights(len(chosen))
        fresh = {name: (*held[name][:2], float(w[i])) for i, name in enumerate(chosen)}
        return "reweight", (chosen, w), {}, left | fresh
    names = [f"{seed}-{i}" for i in range(int(random.rng.integers(0, 9))) if f"{seed}-{i}" not in held]
    met = chosen if operation == "resolve" else []
    names = list(random.rng.permutation(np.array(names + met, dtype=object)))
    k = random.keys(site, held, len(names))
    v, w = random.normal(len(site.base), len(names)), random.weights(len(names))
    rule = list(RULES)[random.rng.integers(0, len(RULES))] if operation == "resolve" else None
    fresh = zipped(names, k, v, w)
    for name in met:
        new = fresh[name]
        fresh[name] = (new[0], RULES[rule](held[name][1], new[1]), new[2])
    if rule == "old":
        return "insert", (k, v, names, w), {"resolve": rule}, fresh | held
    return "insert", (k, v, names, w), {"resolve": rule}, held | fresh


def same_facts(ledger: EditLedger, held: Held) -> bool:
    found = zipped(list(ledger.ids), ledger.keys, ledger.values, ledger.weights)
    return set(found) == set(held) and all(
        torch.equal(found[name][0], fact[0])
        and torch.equal(found[name][1], fact[1])
        and found[name][2] == fact[2]
        for name, fact in held.items()
    )


def walk(
    site: Site, history: list[tuple[str, int]]
) -> Iterator[tuple[EditLedger, Held, Tensor, Tensor, float]]:
    """Carry out a history. Yields, after each step that has a unique solution, the ledger, the facts it
    should hold, the sum of W₀ and all steps, the wanted weight, and the tolerance."""
    ledger, held, weight = site.ledger(), {}, site.base.double()
    for operation, seed in history:
        method, given_, options, after = plan(site, held, operation, seed)
        wanted, cond = site.oracle(after)
        before = ledger.copy()
        try:
            weight = weight + getattr(ledger, method)(*given_, **options)
            held = after
        except SingularProblemError:
            assert cond > 1e12, f"refused a problem of condition {cond:.1e}"
            assert same_facts(ledger, held)
            assert torch.equal(ledger.total, before.total)
            continue
        assert cond < 1e18, "accepted a problem without a unique solution"
        assert same_facts(ledger, held)
        yield ledger, held, weight, wanted, 1e-9 + 100 * EPS * cond


def end(site: Site, history: list[tuple[str, int]]) -> tuple[EditLedger, Held, Tensor, Tensor, float]:
    """What `walk` yields last; a history in which nothing was possible is no example."""
    states = list(walk(site, history))
    assume(states)
    return states[-1]


def some_ledger(n: int = 6, d_v: int = 3, d_k: int = 8, **options) -> EditLedger:
    """A well conditioned ledger with facts "0", "1", … ."""
    ledger = EditLedger(gaussian(0, d_v, d_k), **{"ridge": 0.5, "site": "layer 3"} | options)
    ledger.insert(gaussian(1, d_k, n), gaussian(2, d_v, n), [str(i) for i in range(n)])
    return ledger
