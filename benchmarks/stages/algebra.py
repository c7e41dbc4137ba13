"""Stages of linear algebra on drawn keys: null spaces, one aligned step, the ledger, admission."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.contest import Contest, relative
from benchmarks.inputs import Inputs, PowerLaw, normal, power_law
from benchmarks.reference import admission as plain_admission
from benchmarks.reference import ledger as plain_ledger
from benchmarks.reference import null_space as plain_null_space
from benchmarks.reference import solve as plain_solve
from palimpsest.algebra.admission import Admission, Candidates, admit
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.projector import null_space as library_null_space
from palimpsest.algebra.solve import LeastSquares

ANGLE = 1e-6
"""Largest angle allowed between the protected subspaces of two decompositions."""

RIDGE = 10.0
PRESERVE_WEIGHT = 300.0


def null_space(inputs: Inputs) -> Contest:
    """Null-space projector of a power-law spectrum, against a full SVD and a dense projector."""
    sizes = inputs.sizes
    law = power_law(sizes.null_space, sizes.protected)

    def differences(found: Projector, plain: Tensor) -> Mapping[str, float]:
        # ‖P − P'‖ (Frobenius) is an upper bound on the sine of the largest angle between the subspaces.
        whole = found.apply(torch.eye(len(plain), dtype=plain.dtype))
        return {"subspace": float((whole - plain).norm())}

    return Contest(
        ours=partial(library_null_space, law.moment),
        twin=lambda: plain_null_space.projector(law.moment, law.threshold),
        differences=differences,
        tolerances={"subspace": ANGLE},
        sizes=f"d_k {sizes.null_space:,}, eigenvalues i^-1.5, {sizes.protected} directions protected",
    )


def large_null_space(inputs: Inputs) -> Contest:
    """Null-space projector at the width of an 8B model, once, against the basis it was made from."""
    sizes = inputs.sizes
    law = power_law(sizes.large_null_space, sizes.protected)

    def differences(found: Projector, truth: PowerLaw) -> Mapping[str, float]:
        # The sine of the largest angle is the norm of what P lets through of the protected directions.
        through = torch.linalg.matrix_norm(found.apply(truth.leading), 2)
        missed = abs(found.dim - found.kept - truth.leading.shape[1])
        return {"subspace": float(through), "protected directions": float(missed)}

    return Contest(
        ours=partial(library_null_space, law.moment),
        twin=lambda: law,
        differences=differences,
        tolerances={"subspace": ANGLE, "protected directions": 0.0},
        sizes=f"d_k {sizes.large_null_space:,}, eigenvalues i^-1.5, {sizes.protected} directions protected, "
        "float64, run once; compared with the eigenvectors that the matrix was made from",
        timed_twin=False,
        repeats=False,
    )


def aligned_step(inputs: Inputs) -> Contest:
    """New facts into a ledger at the width of an 8B model, against the released dense step in float32."""
    sizes = inputs.sizes
    d_v, d_k = sizes.large_layer
    ledger, complement = filled(d_v, d_k, sizes.held, sizes.protected)
    keys, values = normal(3, d_k, sizes.new), normal(4, d_v, sizes.new)
    names = [f"new {i}" for i in range(sizes.new)]
    # The twin holds P and the Gram matrix of past keys between steps, as the released code does.
    p = (-complement.float() @ complement.T.float()).add_(torch.eye(d_k))
    past = ledger.keys.float() @ ledger.keys.T.float()
    k, residual = keys.float(), (values - ledger.weight @ keys).float()

    return Contest(
        ours=lambda: ledger.copy().insert(keys, values, names, dtype=torch.float32),
        twin=lambda: plain_solve.released(p, (k @ k.T).add_(past), RIDGE, k, residual),
        differences=lambda found, plain: relative({"step": found}, {"step": plain}),
        tolerances={"step": 2e-3},  # the released form in float32 errs by 5e-4 here
        sizes=f"d_k {d_k:,}, d_v {d_v:,}, {sizes.held:,} facts held, {sizes.new} new, {sizes.protected} "
        "directions protected, update in float32",
    )


def filled(d_v: int, d_k: int, held: int, protected: int) -> tuple[EditLedger, Tensor]:
    """AlphaEdit's ledger with drawn facts, and the protected directions (d_k, protected)."""
    complement = torch.linalg.qr(normal(0, d_k, protected)).Q
    weight = normal(1, d_v, d_k).float() / d_k**0.5
    ledger = EditLedger(weight, ridge=RIDGE, projector=Projector(complement=complement))
    ledger.insert(normal(5, d_k, held), normal(6, d_v, held), [f"held {i}" for i in range(held)])
    return ledger, complement


def ledger_alphaedit(inputs: Inputs) -> Contest:
    """One fact into AlphaEdit's ledger (ridge and projector), against a new solution of all."""
    sizes = inputs.sizes
    d_v, d_k = sizes.layer
    ledger, complement = filled(d_v, d_k, sizes.held, sizes.protected)
    p = torch.eye(d_k, dtype=torch.float64) - complement @ complement.T
    return _one_fact(inputs, ledger, normal(7, d_k, 1), None, RIDGE, p, "ridge and projector (AlphaEdit)")


def ledger_memit(inputs: Inputs) -> Contest:
    """One fact into MEMIT's ledger (second moment), against a new solution of all."""
    sizes = inputs.sizes
    d_v, d_k = sizes.layer
    moment = power_law(d_k, sizes.protected, exponent=1.0).moment
    root = torch.linalg.cholesky(moment)  # keys with second moment C₀
    preserve = PRESERVE_WEIGHT * moment
    ledger = EditLedger(normal(1, d_v, d_k).float() / d_k**0.5, preserve)
    names = [f"held {i}" for i in range(sizes.held)]
    ledger.insert(root @ normal(5, d_k, sizes.held), normal(6, d_v, sizes.held), names)
    return _one_fact(inputs, ledger, root @ normal(7, d_k, 1), preserve, 0.0, None, "second moment (MEMIT)")


def _one_fact(
    inputs: Inputs,
    ledger: EditLedger,
    key: Tensor,
    preserve: Tensor | None,
    ridge: float,
    p: Tensor | None,
    form: str,
) -> Contest:
    d_v, d_k = inputs.sizes.layer
    value, before = normal(8, d_v, 1), ledger.total
    keys, values = torch.cat([ledger.keys, key], 1), torch.cat([ledger.values, value], 1)
    residual = values - ledger.base.double() @ keys

    def ours() -> tuple[EditLedger, Tensor]:
        after = ledger.copy()
        return after, after.insert(key, value, ["new"])

    def differences(found: tuple[EditLedger, Tensor], plain: Tensor) -> Mapping[str, float]:
        after, step = found
        both = {"total": after.total, "total before and the step": before + step}
        return relative(both, dict.fromkeys(both, plain))

    return Contest(
        ours=ours,
        twin=lambda: plain_ledger.total(keys, residual, preserve, ridge, p),
        differences=differences,
        tolerances=dict.fromkeys(("total", "total before and the step"), 1e-8),
        sizes=f"d_k {d_k:,}, d_v {d_v}, {inputs.sizes.held:,} facts held, 1 new, {form}, float64",
    )


def admission(inputs: Inputs) -> Contest:
    """The search of AlphaEdit+ over all candidates, against a dense solve for each."""
    sizes, tried = inputs.sizes, inputs.sizes.twin_pool
    d_v, d_k = sizes.layer
    vectors = torch.linalg.qr(normal(0, d_k, sizes.pool)).Q
    candidates = Candidates(vectors, torch.arange(1, sizes.pool + 1).double())
    keys, residual = normal(1, d_k, sizes.admitted_facts), normal(2, d_v, sizes.admitted_facts)
    problem = LeastSquares(keys, residual, None, 1.0, Projector(complement=vectors))
    p = torch.eye(d_k, dtype=torch.float64) - vectors @ vectors.T

    def differences(found: Admission, plain: Tensor) -> Mapping[str, float]:
        return relative({"objectives": found.objective_path[1 : tried + 1]}, {"objectives": plain})

    return Contest(
        ours=lambda: admit(problem, candidates, 0.0),
        twin=lambda: plain_admission.objectives(p, vectors[:, :tried], keys, residual, problem.ridge),
        differences=differences,
        tolerances={"objectives": 1e-8},
        sizes=f"d_k {d_k:,}, d_v {d_v}, {sizes.admitted_facts} facts, {sizes.pool} candidates; twin: {tried} "
        "candidates, scaled",
        scaled=lambda took: took * sizes.pool / tried,
    )
