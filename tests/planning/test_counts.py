"""Work of pages, and operations, memory and disk of it, against numbers made by hand."""

from dataclasses import replace

import pytest
import torch

from palimpsest.book.profiles import find_notebook, known_notebooks, load_profile, parameters_for
from palimpsest.planning.counts import (
    PROMPT,
    SUBJECT,
    Method,
    mean_fact,
    operations,
    projector_work,
    rows_of,
    solve_work,
    svd_work,
)
from palimpsest.planning.memory import RESULT, disk, freed, memory, passing
from palimpsest.planning.pages import PAGES
from palimpsest.planning.plan import method_of
from palimpsest.planning.work import Run, Work
from tests.planning.shapes import ALONE, TINY

# Work of pages


def test_every_page_has_a_count_of_its_work() -> None:
    """A page whose work is not counted would be missing in every plan."""
    assert known_notebooks() == sorted(PAGES)


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu-gpt2-xl"])
def test_work_is_counted_from_the_parameters_of_any_profile(profile: str) -> None:
    setting = load_profile(profile)
    for name in (name for name in setting.listed if name in PAGES):
        parameters = parameters_for(setting, find_notebook(name))
        work = PAGES[name](parameters)
        assert work.values >= 0
        assert all(run.facts > 0 and run.batch > 0 for run in work.runs)
        assert work.layers == 0 or method_of(find_notebook(name), parameters).layers


def test_work_is_what_the_notebooks_print_as_their_cost() -> None:
    """On a laptop, worked out by hand from its sizes."""
    laptop = load_profile("laptop")
    counts = {
        name: PAGES[name](parameters_for(laptop, find_notebook(name)))
        for name in (
            "06_alignment",
            "07_drift",
            "08_norm_inflation",
            "09_protection",
            "10_uncertainty",
            "13_alphaedit_plus_parts",
            "14_comparison",
            "20_long_horizon",
            "23_causal_tracing",
            "25_harder_questions",
        )
    }
    # 06: two arms of 100 facts and six of 60 in each of three orders, and seven of 60 in one order.
    # The first ten facts of an order have the same values in all of its runs: 31 runs, three orders.
    assert counts["06_alignment"].values == 3 * (2 * 100 + 6 * 60) + 7 * 60 - (31 - 3) * 10
    # 07: the same pair and four of the six, one beside; and the pair again in the gentle regime, once.
    drift = counts["07_drift"]
    assert len(drift.runs) == 3 * (2 + 2) + 1 + 2
    assert drift.found is not None
    assert drift.values - drift.found.values == 2 * 60 - 10
    # 08: four variants of 300 and 40 facts alone; 3 runs in 3 orders, 9 further and 2 contrasts of 50.
    assert counts["08_norm_inflation"].values == 4 * 340 + 50 * (3 * 3 + 9 + 2)
    # 09: 50 facts with four weights and two readings, and 80 with each of four losses; no prefixes.
    assert (counts["09_protection"].values, counts["09_protection"].contexts) == (50 * 6 + 80 * 4, 0)
    # 10: nineteen arms of 30 facts, five samples of six wordings each.
    assert counts["10_uncertainty"].sampled == 19 * 30 * 16 * 6 * 5
    # 13: eleven arms write three sets of 60, beside the values of 200 facts twice.
    assert counts["13_alphaedit_plus_parts"].values == 400 + 11 * 180
    assert counts["14_comparison"].values == 2 * (100 + 30)
    assert counts["20_long_horizon"].values == 300
    # 23: twelve facts, two draws, every third layer: each of three kinds at twelve tokens.
    assert counts["23_causal_tracing"].by_layer == 12 * 2 * 3 * 12 // 3
    # 25: 60 chains, about 50 ripple cases, 30 and 20 others; three editors share values, SERAC has none.
    harder = counts["25_harder_questions"]
    assert (harder.values, len(harder.runs)) == (60 + 5 * 10 + 30 + 20, 4 * 4)
    # Five systems say 360 and 100 answers of 12 tokens and write 70 texts of 32; 330 conditions before.
    said, written = 5 * (6 * 60 + 2 * 50) + 330, 5 * (30 + 2 * 20)
    assert harder.sampled == said * (12 + 24) + written * (32 + 24)
    assert harder.drawn == 12 * 83 + 32 * 11


# Operations


def test_positions_of_a_mean_fact() -> None:
    at = mean_fact(ALONE)
    # One row of the prompt, and one of the KL term: the subject and two tokens.
    assert at.whole.run == PROMPT + SUBJECT + 3
    assert at.moving.run == (PROMPT - SUBJECT) + 3
    assert at.moving.heads == 2
    assert at.subjects.run == SUBJECT + 1
    assert at.own_pairs == 5 * 6 // 2 + 3 * 4 // 2
    more = mean_fact(Method((1, 2), contexts=2, length=10))
    assert more.moving.run == 3 * (PROMPT - SUBJECT) + 3
    assert more.whole.run == at.whole.run + 2 * (PROMPT + 10)


def test_operations_by_hand() -> None:
    """A layer has 8·4·(2·2 + 2·1) + 3·8·16 = 576 weights, a pair 2·2·4 = 16, the head 50·8 = 400."""
    assert (TINY.layer, TINY.pair, TINY.head) == (576, 16, 400)
    work = Work({2: 2}, runs=(Run("alphaedit_aligned", 2, 1),), asked=3, read=10, drawn=5)
    found = operations(TINY, work, ALONE, item=4)
    # Layers 0 to 2 on 22 positions with 78 + 55 pairs, the upper one on the 14 fixed ones with 28 + 28.
    once = 3 * (576 * 22 + 16 * 133) + (576 * 14 + 16 * 56)
    # Eight moving positions: 78 − 28 and 55 − 28 pairs, two places of the head, 15 + 6 own pairs.
    ahead = 576 * 8 + 16 * 77 + 400 * 2
    back = ahead + 16 * 21
    assert found.model["values"] == 2 * (once + 3 * ahead + 2 * back)
    assert found.model["keys"] == 2 * 2 * 3 * (576 * 8 + 16 * 36)
    assert found.model["statistics"] == 3 * (576 * 100 + 16 * (100 * 257 // 2))
    assert found.exact["statistics"] == 2 * 100 * 16 * 16 // 2
    prompt = 4 * (576 * 12 + 16 * 78) + 400
    text = 4 * (576 * 10 + 16 * (10 * 257 // 2)) + 400 * 10
    assert found.model["evaluation"] == 3 * prompt + text
    # One chunk: five passes of the upper layer, each reading its weights.
    assert found.moved["values"] == 5 * 576 * 4
    assert operations(TINY, work, ALONE, item=4, cores=2).model["values"] == 2 * found.model["values"]
    each = operations(TINY, Work(asked=3, by_layer=2, layers=0), ALONE, item=4)
    assert each.model["evaluation"] == (3 + 2 * 4) * prompt
    assert found.moved["evaluation"] == 5 * TINY.weights * 4
    drawn = operations(TINY, Work(sampled=7, layers=0), ALONE, item=4)
    assert drawn.model["evaluation"] == 4 * (576 * 7 + 16 * 7 * 12) + 400 * 7
    also = operations(TINY, Work(decomposed={20: 3}, exact=5, waits=2.5, layers=0), ALONE, item=4)
    assert also.exact["other"] == 3 * svd_work(TINY, 20) + 5 == 3 * (3 * 20 * 16**2 + 10 * 16**3) + 5
    assert also.waits["other"] == 2.5
    assert found.exact["projector"] == 2 * projector_work(TINY) == 2 * int(4.5 * 16**3)


def solved(run: Run) -> int:
    return solve_work(TINY, run, rows_of(Work(runs=(run,)))[run.sequence])


def test_steps_of_a_run_by_hand() -> None:
    # Aligned: the second fact meets the first. n (2 N (d_k + d_v) + 3 N²/2 + d_v d_k), N = 0 and 1.
    assert solved(Run("alphaedit_aligned", 2, 1)) == 128 + (2 * 24 + 3 // 2 + 128)
    assert solved(Run("alphaedit_naive", 2, 1)) == 2 * 128
    assert solved(Run("alphaedit", 2, 2)) == 2 * 128
    # MEMIT factors its moment, at each step if each is a problem of its own.
    assert solved(Run("memit_naive", 2, 1)) == 2 * 128 + 2 * 16**3 // 6
    assert solved(Run("memit_aligned", 3, 3)) == 3 * 128 + 16**3 // 6
    # The directions of the moment are facts of each step: a decomposition, and 16 facts beside as many.
    anchored = int(4.5 * 16**3) + 16 * (3 * 16 * 16 + 2 * 128)
    assert solved(Run("latest_full", 2, 1)) == 2 * (128 + anchored) + 2 * 16**3 // 6


def test_facts_are_done_early_where_the_limit_is_high_or_steps_are_many() -> None:
    assert Method((1,), steps=20, stop_below=0.5).changed(Work()).steps == 13
    assert Method((1,), steps=20, stop_below=0.05).changed(Work()).steps == 20
    own = Method((1,), steps=20, contexts=3).changed(Work(steps=80, contexts=0))
    assert (own.steps, own.contexts) == (52, 0)


def test_memory_by_hand() -> None:
    work = Work({2: 2}, runs=(Run("alphaedit_aligned", 4, 1),))
    found = memory(TINY, work, ALONE, torch.bfloat16)
    assert found["weights"] == 2 * (4 * 576 + 2 * 400)
    assert found["moments"] == 2 * 16 * 16 * 8
    assert found["projectors"] == 16 * 16 * 8
    assert found["ledgers"] == 2 * (8 * 4 * (2 * 16 + 3 * 8 + 4 + 1) + 2 * 8 * 16 + 2 * 8 * 8 * 16)
    # Two facts of eight positions, 16 states and four inner ones each; and rows over the vocabulary: four
    # tensors of two, and one of the unedited model, for each fact.
    values = 16 * (16 * 8 + 4 * 16) * 2 + (4 * 4 + 2) * 50 * 4
    pieces = passing(TINY, work, ALONE, 2, 1)
    assert (pieces["values"], pieces["factors"]) == (values, 3 * 16 * 16 * 8)
    assert found["work"] == max(pieces.values()) == pieces["statistics"]
    plain = passing(replace(TINY, maps=2), work, ALONE, 2, 1)
    assert plain["values"] - pieces["values"] == 16 * (4 * 8 + 2 * 16) * 2
    assert freed({"weights": 1000, "moments": 100, "work": 50})["freed"] == 15
    nothing = memory(TINY, Work(layers=0, projected=False), ALONE, torch.float32)
    assert (nothing["moments"], nothing["work"]) == (0, 0)


def test_disk_by_hand() -> None:
    work = Work({2: 2}, runs=(Run("alphaedit_aligned", 20, 1),), found=Work({1: 1}), after="01_a")
    found = disk(TINY, work, ALONE, "02_b")
    assert found["moments", "1 of 100"] == found["moments", "2 of 100"] == 16 * 16 * 8
    assert found["projectors", "2 of 100"] == 16 * 16 * 4
    assert found["values", "02_b"] == (2 * 8 + 3) * 4  # the other fact's value is page 01's
    # More facts than keys are wide: rows of key, value, output and weight in a file, for two layers.
    assert found["ledgers", "02_b"] == 2 * 20 * 8 * (16 + 2 * 8 + 1)
    assert found["results", "02_b"] == RESULT
    saved = disk(TINY, Work(runs=(Run("memit_aligned", 4, 1),), saved=4, projected=False), ALONE, "03_c")
    assert saved["ledgers", "03_c"] == 2 * (4 * 8 * (16 + 8 + 1) + 16 * 16 * 8)
    assert "projectors" not in {part for part, _ in saved}
