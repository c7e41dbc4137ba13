"""The formula of memory against what a whole edit of a random model holds at its peak."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from palimpsest.planning import counts
from palimpsest.planning.counts import ACTIVATIONS, FEWEST_POSITIONS, Method, chunks_of
from palimpsest.planning.memory import HEAD_ROWS, LOGITS, memory, passing
from palimpsest.planning.work import TOGETHER, Run, Work
from palimpsest.studies.cost import Shape
from tests.planning.shapes import ALONE, TINY

D_V, D_K, DEPTH, HEADS, FACTS = 512, 1536, 8, 8, 100
WORDS, BEFORE = 10, 2
"""Words behind the subject in the prompt, and tokens before the subject's last one."""

EDIT = f"""
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import palimpsest as pl
import palimpsest.memory.moments as moments
from benchmarks.machine import peak_memory
from palimpsest.editors.sequential import Sequential
from palimpsest.evaluation.answers import ask
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.model import wrap
from tests.editing import texts
from tests.tiny import tiny_tokenizer

torch.set_num_threads(1)
moments.statistics_texts = texts
tokenizer, chooser = tiny_tokenizer(), random.Random(0)
words = ("mother", "tongue", "of", "is", "Anna", "in", "the")  # each is one token


def edit(d_v, d_k, depth, facts):
    sizes = dict(hidden_size=d_v, intermediate_size=d_k, num_hidden_layers=depth, num_attention_heads={HEADS})
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, num_key_value_heads={HEADS}, **sizes)
    model = wrap(LlamaForCausalLM(config), tokenizer, f"random-{{d_v}}")
    requests = [
        pl.EditRequest("The {{}} " + " ".join(chooser.choices(words, k={WORDS})), "Anna Berg", "English")
        for _ in range(facts)
    ]
    for request in requests:
        assert len(tokenizer.encode(request.text)) == {WORDS + BEFORE + 1}, request.text
    editor = Sequential(
        (1, 2), rule="energy", threshold=0.5, ridge=1.0, statistics_tokens=3000,
        targets=TargetSettings(steps=3, stop_below=0.0), contexts=ContextSettings(count=0),
    )
    change, _ = editor.edit(model, requests)
    with pl.installed(model, change):
        ask(model, [(request.text, request.target) for request in requests])
    return model


edit(64, 96, 4, 4)  # libraries are loaded
with peak_memory() as found:
    edit({D_V}, {D_K}, {DEPTH}, {FACTS})
print(found.megabytes)
"""


@pytest.mark.slow
def test_memory_is_that_of_a_whole_edit_at_its_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, moments, projectors, ledgers, and the largest piece of work: here the values' activations."""
    monkeypatch.setattr(counts, "PROMPT", BEFORE + 1 + WORDS)
    monkeypatch.setattr(counts, "SUBJECT", BEFORE)
    shape = Shape("wide", DEPTH, D_V, D_K, HEADS, HEADS, D_V // HEADS, 320, 3, tied=False)
    method = Method((1, 2), steps=3, contexts=0, tokens=3000)
    work = Work({FACTS: FACTS}, runs=(Run("alphaedit_aligned", FACTS, FACTS),), asked=FACTS)
    found = memory(shape, work, method, torch.float32)
    most = passing(shape, work, method, 4, 1)
    assert found["work"] == most["values"] > 2 * most["factors"] > 0
    # Freed blocks go back to the system at once, as those of the papers' models, above 32 MiB, always do.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "PALIMPSEST_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", EDIT], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(found.values()) / 1e6 == pytest.approx(float(done.stdout), rel=0.25), found


def test_sizes_of_pieces_are_the_library_s() -> None:
    """They stand in the plan's modules too, which may not import these."""
    from palimpsest.evaluation import drift
    from palimpsest.memory import optimisation, readout, values

    assert (ACTIVATIONS, FEWEST_POSITIONS) == (optimisation.ACTIVATIONS, optimisation.FEWEST_POSITIONS)
    assert (TOGETHER, HEAD_ROWS) == (values.TOGETHER, readout.HEAD_ROWS)
    assert drift._LOGITS_AT_ONCE == LOGITS


def test_chunks_are_those_of_the_optimisation() -> None:
    from palimpsest.memory.optimisation import by_work

    shape = Shape("wide", DEPTH, D_V, D_K, HEADS, HEADS, D_V // HEADS, 320, 3, tied=False)
    method = Method((1, 2), contexts=0)
    moving = counts.mean_fact(method).moving.run
    for facts in (1, 3, 20, 100):
        cut = by_work([moving] * facts, counts.most_positions(shape, 2, 4))
        assert chunks_of(shape, method, facts, 4) == len(cut)


def test_a_naive_ledger_counts_twice_and_directions_of_a_moment_are_facts() -> None:
    shape, method = TINY, ALONE

    def ledgers(name: str, facts: int = 4, batch: int = 2) -> int:
        work = Work(runs=(Run(name, facts, batch),))
        return memory(shape, work, method, torch.float32)["ledgers"]

    copies, square, weight = 2 * 8 * 8 * 16, 16 * 16 * 8, 4 * 8 * 16

    def facts_of(held: int) -> int:
        return 8 * held * (2 * 16 + 3 * 8 + held + 1) + weight

    assert ledgers("memit") == 2 * copies
    assert ledgers("alphaedit_aligned") == 2 * (facts_of(4) + copies)
    assert ledgers("alphaedit_naive") == 2 * (2 * facts_of(2) + copies)
    assert ledgers("memit_aligned") == 2 * (facts_of(4) + 2 * square + copies)
    assert ledgers("memit_naive") == 2 * (2 * (facts_of(2) + 2 * square) + copies)
    assert ledgers("latest_full") == ledgers("latest_full", facts=100) > ledgers("alphaedit_naive")
    anchored = passing(shape, Work(runs=(Run("latest_full", 4, 2),)), method, 4, 1)
    assert anchored["preserved"] == 11 * square
