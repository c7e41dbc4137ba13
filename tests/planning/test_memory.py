"""The formula of memory against what an edit holds at its peak."""

import os
import subprocess
import sys

import pytest
import torch

from palimpsest.planning.counts import Method, memory
from palimpsest.planning.work import Run, Work
from palimpsest.studies.cost import Shape

D_V, D_K, LAYERS = 64, 1536, 3

EDIT = """
import torch
from benchmarks.machine import peak_memory
from palimpsest.algebra.projector import null_space
from palimpsest.memory.moments import SecondMoment

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)


def edit(d_k, layers):
    moments = {}
    for layer in range(layers):
        sums = SecondMoment.empty(d_k)
        moments[layer] = sums.add_keys(torch.randn(d_k, d_k // 2, generator=draw)).value
    return moments, {layer: null_space(moment) for layer, moment in moments.items()}


edit(64, 1)  # libraries are loaded
with peak_memory() as found:
    held = edit(D_K, LAYERS)
print(found.megabytes)
"""


@pytest.mark.slow
def test_memory_is_that_of_a_projection_at_its_peak() -> None:
    """Moments of all layers, their projectors, and the decomposition of one: the most that an edit holds."""
    shape = Shape("wide", 4, D_V, D_K, 1, 1, 1, 1, 2, tied=True)
    counted = memory(shape, Work(runs=(Run("alphaedit_aligned", 8, 8),)), Method((0, 1, 2)), torch.float32)
    expected = sum(counted[part] for part in ("moments", "projectors", "factors")) / 1e6
    code = EDIT.replace("D_K", str(D_K)).replace("LAYERS", str(LAYERS))
    # Freed blocks go back to the system at once, as those of the papers' models, above 32 MiB, always do.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) == pytest.approx(expected, rel=0.25)
