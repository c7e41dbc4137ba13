"""Speed and memory of the library: each fast path against its plain twin, in one run on this machine.

    make bench

Times depend on the machine and its load, so a row also says how many times faster than the twin it is and,
where the work is matrix products, what share of the measured matrix-product rate of this machine it reaches.
"""

import os
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pandas as pd
import torch

import palimpsest as pl
from palimpsest.algebra.admission import Candidates, admit
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.one_time import Dual
from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.solve import LeastSquares, objective, solve
from palimpsest.algebra.spectrum import relative
from palimpsest.datasets import counterfact_style, hold_out, load_facts
from palimpsest.datasets.levels import level_wordings
from palimpsest.editors import Editor
from palimpsest.editors.alphaedit_plus import Smoothing
from palimpsest.evaluation.responses import Decoding, drawn
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.memory.contexts import sample_contexts
from palimpsest.memory.optimisation import Optimisation
from palimpsest.memory.settings import TargetSettings
from palimpsest.paths import cache_dir


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a few runs after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def product_rate(dtype: torch.dtype, size: int = 1536) -> float:
    """Matrix-product rate of this machine in GFLOP/s."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return 2 * size**3 / seconds(lambda: a @ a) / 1e9


def published_alphaedit(problem: LeastSquares, p: torch.Tensor) -> torch.Tensor:
    """The released d_k × d_k unsymmetric solve, in float64."""
    left = p @ (problem.keys @ problem.keys.T)
    left.diagonal().add_(problem.ridge)
    return torch.linalg.solve(left, p @ problem.keys @ problem.residual.T).T


def bench_solve(d_k: int = 1536, d_v: int = 576, n: int = 120) -> dict[str, object]:
    """AlphaEdit's step: facts × facts against the released form."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    spread = draw(d_k, 2 * d_k) * torch.logspace(0, -3, d_k, dtype=torch.float64)[:, None]
    projector: Projector = null_space(spread @ spread.T / spread.shape[1], relative(1e-3))
    problem = LeastSquares(draw(d_k, n), draw(d_v, n), ridge=1.0, projector=projector)
    p = projector.apply(torch.eye(d_k, dtype=torch.float64))
    fast, slow = solve(problem).delta, published_alphaedit(problem, p)
    return {
        "what": f"AlphaEdit step, d_k {d_k}, n {n}",
        "seconds": (fast_time := seconds(lambda: solve(problem))),
        "times the twin": seconds(lambda: published_alphaedit(problem, p)) / fast_time,
        "difference": float((fast - slow).norm() / slow.norm()),
    }


def dense_path(problem: LeastSquares, pool: Candidates, tried: int) -> torch.Tensor:
    """J after each of the first directions, by one d_k × d_k solve and one objective a direction."""
    assert problem.projector is not None
    p, path = problem.projector.apply(torch.eye(len(problem.keys)).to(problem.keys)), []
    for u in pool.vectors[:, :tried].T:
        p = p + torch.outer(u, u)
        path.append(objective(problem, published_alphaedit(problem, p)))
    return torch.tensor(path, dtype=torch.float64)


def bench_admission(
    d_k: int = 1536, d_v: int = 576, n: int = 120, pool: int = 200, tried: int = 5
) -> dict[str, object]:
    """The search of AlphaEdit+: the N × N recursion against a d_k × d_k solve for every candidate.

    The twin's time is that of its first few candidates, scaled to all: each costs it the same. The recursion
    should be at least a hundred times faster.
    """
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    frame = torch.linalg.qr(draw(d_k, d_k)).Q
    candidates = Candidates(frame[:, :pool], torch.arange(1, pool + 1).double())
    problem = LeastSquares(draw(d_k, n), draw(d_v, n), None, 1.0, Projector(complement=frame[:, :pool]))
    slow, slow_time = once(f"dense search, {tried} of {pool}", lambda: dense_path(problem, candidates, tried))
    fast = admit(problem, candidates, 0.0).objective_path[1 : tried + 1]
    fast_time = seconds(lambda: admit(problem, candidates, 0.0))
    return {
        "what": f"admission, d_k {d_k}, n {n}, {pool} candidates (twin: {tried}, scaled)",
        "seconds": fast_time,
        "times the twin": slow_time * pool / tried / fast_time,
        "difference": float((fast - slow).norm() / slow.norm()),
    }


def bench_targets(facts: int = 16, steps: int = 4) -> dict[str, object]:
    """Values of several facts together against one at a time (which already reuses the lower layers)."""
    model = pl.load("smollm2-135m")
    requests = [case.request for case in counterfact_style(load_facts(), n=facts, seed=0, split="validation")]
    settings = TargetSettings(steps=steps, stop_below=0.0)
    contexts = sample_contexts(model, 3)

    def together() -> torch.Tensor:
        return Optimisation(model, requests, 8, model.n_layers - 1, settings, contexts).run()["delta"]

    def alone() -> torch.Tensor:
        return Optimisation(model, requests, 8, model.n_layers - 1, settings, contexts).run(chunk=1)["delta"]

    fast_time = seconds(together, 1)
    return {
        "what": f"values, {facts} facts, {steps} steps",
        "seconds": fast_time,
        "times the twin": seconds(alone, 1) / fast_time,
        "difference": float((together() - alone()).norm() / alone().norm()),
    }


def bench_alphaedit_plus(facts: int = 10) -> list[dict[str, object]]:
    """A batch of AlphaEdit+ with all parts on, after two earlier ones, against AlphaEdit; values included.

    Each call computes its values anew. Once with the settings on file, for which the bar is 1.5 times
    AlphaEdit's time, and once in the dearest case: every fact counts as hard, so that smoothing scores all
    its candidates at every layer.
    """
    model = pl.load("smollm2-135m")
    apart = [hold_out(case) for case in counterfact_style(load_facts(), n=3 * facts, seed=5)]
    requests = [case.request for case, _ in apart]
    wordings = {case.request.id: [wording] for case, wording in apart}
    score = score_by("validation", [case for case, _ in apart], wordings)

    def median(editor: Editor) -> float:
        _, before = pl.edit(editor, model, requests[:facts], editor.begin(score=score))
        _, before = pl.edit(editor, model, requests[facts : 2 * facts], before)

        def anew() -> None:
            with TemporaryDirectory() as empty, patch.dict(os.environ, PALIMPSEST_CACHE=empty):
                pl.edit(editor, model, requests[2 * facts :], before)

        return seconds(anew)

    dearest = {"smoothing": Smoothing(threshold=0.0)}
    twin = median(pl.editor_for("alphaedit", model.name))
    rows = []
    for name, changes in (("settings on file", {}), ("every fact hard", dearest)):
        took = median(pl.editor_for("alphaedit_plus", model.name, **changes))
        what = f"AlphaEdit+, {facts} facts beside {2 * facts}, {name} (twin: AlphaEdit)"
        rows.append({"what": what, "seconds": took, "times the twin": twin / took})
    return rows


def bench_responses(facts: int = 4) -> dict[str, object]:
    """Sampled answers to six wordings of each fact against `generate` of transformers, fact by fact."""
    model = pl.load("smollm2-135m")
    cases = counterfact_style(load_facts(), n=facts, seed=0, split="validation")
    wordings, decoding = level_wordings(cases), Decoding()

    def ours() -> None:
        list(drawn(model, wordings, decoding))

    def theirs() -> None:
        for own in wordings.values():
            rows = model.tokenizer(list(own), return_tensors="pt", padding=True, padding_side="left")
            model.net.generate(
                **rows,
                do_sample=True,
                top_p=decoding.top_p,
                top_k=0,
                num_return_sequences=decoding.samples,
                max_new_tokens=decoding.tokens,
                pad_token_id=model.tokenizer.eos_token_id,
            )

    torch.manual_seed(0)  # generate draws from the global generator
    fast_time = seconds(ours, 1)
    minutes = fast_time * 2 * 100 / facts / 60
    return {
        "what": f"answers, {facts} facts x 6 x 5 x 32 tokens; 100 facts before and after: {minutes:.0f} min",
        "seconds": fast_time,
        "times the twin": seconds(theirs, 1) / fast_time,
    }


def bench_forward(tokens: int = 4096) -> dict[str, object]:
    """Keys of layer 8 by a truncated pass, as a share of the float32 matrix-product rate."""
    from palimpsest.network.activations import capture
    from palimpsest.network.model import Site
    from palimpsest.network.tokens import Batch

    model = pl.load("smollm2-135m")
    ids = torch.randint(0, 1000, (16, tokens // 16), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    took = seconds(lambda: capture(model, batch, [Site(8)]))
    weights = sum(p.numel() for i in range(9) for p in model.layer(i).parameters())
    rate = 2 * weights * tokens / took / 1e9
    return {
        "what": f"keys of layer 8, {tokens} tokens",
        "seconds": took,
        "share of product rate": rate / product_rate(torch.float32),
    }


def once(what: str, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The result of a single run and its seconds, for what takes minutes."""
    print(f"{what} ...", flush=True)
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def published_aligned_step(
    complement: torch.Tensor, past: torch.Tensor, keys: torch.Tensor, residual: torch.Tensor, ridge: float
) -> torch.Tensor:
    """The released step, (P(KKᵀ + KpKpᵀ) + λI) Δᵀ = P K Rᵀ with d_k × d_k matrices in float32."""
    complement, past, keys, residual = (t.float() for t in (complement, past, keys, residual))
    p = torch.eye(len(keys)) - complement @ complement.T
    left = p @ (keys @ keys.T).addmm_(past, past.T)
    left.diagonal().add_(ridge)
    right = p @ (keys @ residual.T)
    del p
    return torch.linalg.solve(left, right).T


def held_megabytes(ledger: EditLedger) -> float:
    """Memory of what a ledger keeps besides the unedited weight: facts, images, coefficients, factor."""
    solved = ledger._solved
    assert isinstance(solved, Dual)
    parts = [*vars(solved.facts).values(), *vars(solved).values(), *vars(solved.factor).values()]
    return sum(t.numel() * t.element_size() for t in parts if isinstance(t, torch.Tensor)) / 1e6


def bench_ledger(
    d_k: int = 14336, d_v: int = 4096, held: int = 2000, new: int = 100
) -> list[dict[str, object]]:
    """Inserting facts into a ledger against the released dense step, at the size of an 8B model's layer.

    About 40 directions are protected. The dense step needs some 4 GB and minutes, so it runs once.
    """
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    complement = torch.linalg.qr(draw(d_k, 40)).Q
    ledger = EditLedger(
        draw(d_v, d_k).float() / d_k**0.5, ridge=10.0, projector=Projector(complement=complement)
    )
    size = []
    for half in range(2):
        count = held // 2
        print(f"ledger, {count * (half + 1)} facts held ...", flush=True)
        ledger.insert(draw(d_k, count), draw(d_v, count), [f"{half}-{i}" for i in range(count)])
        size.append(held_megabytes(ledger))
    keys, values, ids = draw(d_k, new), draw(d_v, new), [f"new-{i}" for i in range(new)]
    residual, past = values - ledger.weight @ keys, ledger.keys
    rows, what = [], f"ledger step, d_k {d_k}, {held} held, {new} new"
    slow, slow_time = once(
        "released dense step", lambda: published_aligned_step(complement, past, keys, residual, 10.0)
    )
    for dtype in (torch.float64, torch.float32):
        insert = lambda dtype=dtype: ledger.copy().insert(keys, values, ids, dtype=dtype)  # noqa: E731
        fast_time = seconds(insert)
        rows.append(
            {
                "what": f"{what}, {str(dtype).removeprefix('torch.')}",
                "seconds": fast_time,
                "times the twin": slow_time / fast_time,
                "difference": float((insert() - slow).norm() / slow.norm()),
                "MB held at half": size[0],
                "MB held": size[1],
            }
        )
    return rows


def main() -> None:
    """Run every bench and print one table."""
    print(f"threads {torch.get_num_threads()}, cache {cache_dir().name}")
    for dtype in (torch.float32, torch.float64):
        print(f"matrix products, {dtype}: {product_rate(dtype):.0f} GFLOP/s")
    rows = [
        bench_solve(),
        bench_admission(),
        bench_targets(),
        bench_responses(),
        bench_alphaedit_plus(),
        bench_forward(),
        *bench_ledger(),
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
