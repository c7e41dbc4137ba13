"""Speed and memory of the library: each fast path against its plain twin, in one run on this machine.

    make bench

Times depend on the machine and its load, so a row also says how many times faster than the twin it is and,
where the work is matrix products, what share of the measured matrix-product rate of this machine it reaches.
"""

import time
from collections.abc import Callable

import pandas as pd
import torch

import palimpsest as pl
from palimpsest.cache import cache_dir
from palimpsest.contexts import sample_contexts
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.projector import Projector, null_space, relative
from palimpsest.settings import TargetSettings
from palimpsest.solve import LeastSquares, solve
from palimpsest.targets import _optimise_chunk


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


def bench_targets(facts: int = 16, steps: int = 4) -> dict[str, object]:
    """Values of several facts together against one at a time (which already reuses the lower layers)."""
    model = pl.load("smollm2-135m")
    requests = [case.request for case in counterfact_style(load_facts(), n=facts, seed=0, split="validation")]
    settings = TargetSettings(steps=steps, stop_below=0.0)
    contexts = sample_contexts(model, 3)

    def together() -> torch.Tensor:
        return _optimise_chunk(model, requests, 8, model.n_layers - 1, settings, contexts)["delta"]

    def alone() -> torch.Tensor:
        last = model.n_layers - 1
        return torch.cat(
            [_optimise_chunk(model, [r], 8, last, settings, contexts)["delta"] for r in requests]
        )

    fast_time = seconds(together, 1)
    return {
        "what": f"values, {facts} facts, {steps} steps",
        "seconds": fast_time,
        "times the twin": seconds(alone, 1) / fast_time,
        "difference": float((together() - alone()).norm() / alone().norm()),
    }


def bench_forward(tokens: int = 4096) -> dict[str, object]:
    """Keys of layer 8 by a truncated pass, as a share of the float32 matrix-product rate."""
    from palimpsest.activations import capture
    from palimpsest.model import Site
    from palimpsest.tokens import Batch

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


def main() -> None:
    """Run every bench and print one table."""
    print(f"threads {torch.get_num_threads()}, cache {cache_dir().name}")
    for dtype in (torch.float32, torch.float64):
        print(f"matrix products, {dtype}: {product_rate(dtype):.0f} GFLOP/s")
    rows = [bench_solve(), bench_targets(), bench_forward()]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
