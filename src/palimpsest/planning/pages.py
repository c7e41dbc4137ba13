"""How much of each kind of work a page does, from its parameters.

These are the numbers that a notebook prints as its cost, and those behind them: facts whose values are
optimised, steps that are solved, prompts that are asked. A page that may end a run early, or stops asking
once it has found enough, is counted as if it did not. Figures and bootstraps are not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from palimpsest.planning.harder import harder
from palimpsest.planning.work import (
    TOGETHER,
    Parameters,
    Run,
    Work,
    joined,
    names_of,
    prompts_of,
    stepwise,
    together,
    values_of,
    watched,
)

WORDINGS = 6
"""Wordings of a fact that page 10 asks."""

CLASSES = 8
"""Classes of facts on page 19."""

ARMS = 3
"""Arms of page 10 beside its methods and the control of each: no edit, twice, and a random value."""

TRACED = 3 * 12
"""Prompts asked of a fact at each layer by causal tracing: whole states, MLPs and attention put back at each
of the twelve tokens of a mean fact."""

SHARED = 1 + 2 + 4
"""Prompts asked of a fact where a page does not say how many: itself, paraphrases and neighbours."""

PROBLEM = 0.15
"""Seconds of a random problem on page 03, in all its statements."""

STEPS, STEP = 40, 0.008
"""Steps of an epoch on page 18: 1,258 images in five tasks, by 32; and seconds of one of them, in float64."""


def _one_fact(p: Parameters) -> Work:
    asked = 2 * (len(p["wordings"]) + len(p["neighbours"]) + 1)
    return Work({1: 1}, runs=(Run(p["editor"], 1, 1),), asked=asked)


def _one_edit(p: Parameters) -> Work:
    told = p["facts_told"]
    runs = (Run(p["editor"], 1, 1), Run(p["sequence"], told, 1))
    return Work(joined({1: 1}, together(told)), runs=runs, asked=4 * SHARED * told)


def _null_space(p: Parameters) -> Work:
    runs = tuple(Run("alphaedit_naive", p["written"], p["written"]) for _ in range(4))
    return Work(
        together(p["written"]),
        runs=(*runs, Run("alphaedit_naive", p["facts"], p["facts"])),
        asked=5 * p["written"] * (1 + p["neighbours"]),
        read=p["held_out_tokens"],
        tokens=p["tokens"],
        layers=len(p["layers"]) or None,
    )


def _lemmas(p: Parameters) -> Work:
    runs = (Run("alphaedit_plus", p["facts"], p["facts"]),)
    return Work(together(p["facts"]), runs=runs, waits=PROBLEM * p["problems"])


def _one_time(p: Parameters) -> Work:
    runs = (Run("memit_aligned", p["facts"], p["batch"]),) * 2
    return Work(together(p["facts"]), runs=runs, projected=False)


def _latest(p: Parameters) -> Work:
    names = [*names_of(p["runs"]) * len(p["orders"]), *names_of(p["beside"])]
    exact = p["latest"] * p["batches"]
    asked, read, drawn = watched(p, len(names))
    runs = tuple(Run(name, p["facts"], p["batch"]) for name in names)
    return Work(
        joined(stepwise(runs, len(p["orders"])), {min(p["latest"], TOGETHER): exact}),
        runs=(*runs, Run("latest_exact", exact, p["latest"])),
        asked=asked + (p["latest"] + p["forgotten"]) * (1 + p["neighbours"]),
        read=read,
        drawn=drawn,
        sampled=drawn * p["texts"],
    )


def _checkpoints(p: Parameters, long: Sequence[str], short: Sequence[str], once: Sequence[str]) -> Work:
    """Sequences measured at some sizes: some at full length, the others shorter, some in one order alone."""
    orders, last, shared = len(p["orders"]), p["at"][-1], p.get("again", p["at"])[-1]
    runs = [Run(name, last, p["batch"]) for name in long] * orders
    runs += [Run(name, shared, p["batch"]) for name in short] * orders
    runs += [Run(name, shared, p["batch"]) for name in once]
    moments = sum(len(p["at"]) if run.facts == last else len(p.get("again", ())) for run in runs)
    each = p.get("sample", 0) * prompts_of(p) + p.get("choices", 0)
    each += 3 * p.get("items", 0) + 2 * p.get("pairs", 0) + p.get("prompts", 0)
    return Work(
        stepwise(runs, orders),
        runs=tuple(runs),
        asked=moments * each,
        read=moments * p.get("tokens", 0),
        drawn=len(runs) * p.get("told_length", 0),
        sampled=len(runs) * p.get("told", 0) * p.get("told_length", 0),
    )


def _alignment(p: Parameters) -> Work:
    paired, runs = names_of(p["paired"]), names_of(p["runs"])
    return _checkpoints(p, paired, [name for name in runs if name not in paired], names_of(p["beside"]))


def _drift(p: Parameters) -> Work:
    pair = names_of(p["pair"])
    main = _checkpoints(p, pair, names_of(p["runs"]), names_of(p["beside"]))
    first = {**p, "orders": p["orders"][:1], "at": p["again"]}
    gentle = _checkpoints(first, pair, (), ())
    return Work(
        joined(main.optimised, gentle.optimised),
        runs=main.runs + gentle.runs,
        asked=main.asked + gentle.asked,
        read=main.read + gentle.read,
        drawn=main.drawn + gentle.drawn,
        sampled=main.sampled + gentle.sampled,
        after="06_alignment",
        found=replace(main, layers=0, projected=False),
    )


def _norms(p: Parameters) -> Work:
    regimes = p["regimes"]
    alone = p["single"] + (p["contrasted"] if len(regimes) > 1 else 0)
    runs = p["runs"] * len(p["orders"]) + p["further"] + (p["contrasts"] if len(regimes) > 1 else [])
    return Work(
        joined(together(4 * alone), {1: p["facts"] * len(runs)}),
        runs=(
            *(Run(name, p["facts"], 1) for name in names_of(runs)),
            *(Run("memit_naive", 1, 1) for _ in range(4 * alone)),
        ),
    )


def _protection(p: Parameters) -> Work:
    edits, followed = 4 * p["single"], len(p["betas"]) + len(p["readings"])
    return Work(
        joined({min(p["facts"], TOGETHER): p["facts"] * followed}, {min(p["single"], TOGETHER): edits}),
        steps=p["steps"],
        contexts=p["contexts"],
        runs=(Run("rome", edits, 1),),
        asked=edits * prompts_of(p),
        read=max(p["counts"]),
        projected=False,
        decomposed=dict.fromkeys(map(int, p["counts"]), int(p["edited"])),
    )


def _uncertainty(p: Parameters) -> Work:
    methods = [name for name in p["methods"] if name in ("rome", "memit", "alphaedit")]
    models = (2 * len(p["methods"]) + ARMS) * p["facts"]
    return Work(
        {1: len({*methods} - {"alphaedit"}) * p["facts"]},  # AlphaEdit's values are MEMIT's
        runs=tuple(Run(name, p["facts"], 1) for name in methods),
        asked=models * prompts_of(p),
        drawn=models * p["tokens"],
        sampled=models * p["tokens"] * WORDINGS * p["samples"],
    )


def _alphaset(p: Parameters) -> Work:
    size = p["hard"] + p["others"]
    runs = (Run("alphaedit_aligned", size, p["batch"]),) * (4 * p["seeds"])
    asked = len(runs) * size * prompts_of(p)
    values = joined(together(2 * p["base"]), {p["batch"]: len(runs) * size})
    return Work(values, runs=runs, asked=asked, read=_text(p, len(runs)))


def _text(p: Parameters, runs: int) -> int:
    return int(p["key_tokens"]) + runs * int(p["tokens"])


FIVE = ("memit_naive", "rect_naive", "alphaedit_aligned", "alphaedit_plus", "memit_aligned")
"""Methods of page 12."""


def _five_sets(p: Parameters) -> Work:
    size = p["hard"] + p["others"]
    sizes = {"AlphaSet3": round(p["third"] * size), "CounterFact-style": p["plain"], "ZsRE-style": p["plain"]}
    written = [sizes.get(title, size) for title in p["sets"]] * p["seeds"]
    timed = [sizes.get(title, size) for title in p["timed"]]
    runs = [Run(name, facts, p["batch"]) for facts in written for name in FIVE]
    runs += [Run(name, facts, p["batch"]) for facts in timed for name in FIVE[2:4]]
    runs += [Run("alphaedit_plus", p["leak"], p["batch"])] * 2
    facts = sum(run.facts for run in runs)
    values = joined(together(2 * p["base"]), {p["batch"]: facts})
    return Work(values, runs=tuple(runs), asked=facts * prompts_of(p), read=_text(p, len(runs)))


def _parts(p: Parameters) -> Work:
    written = 3 * (p["hard"] + p["others"])
    varied = sum(len(p[name]) for name in ("ridges", "past_weights", "steps", "thresholds"))
    runs = (Run("alphaedit_plus", written, p["batch"]),) * ((6 + varied) * p["seeds"])
    asked = len(runs) * written * prompts_of(p)
    values = joined(together(2 * p["base"]), {p["batch"]: len(runs) * written})
    return Work(values, runs=runs, asked=asked, read=_text(p, len(runs)))


def _comparison(p: Parameters) -> Work:
    sizes = (p["facts"], p["zsre_facts"])
    runs = tuple(Run(name, n, n) for name in ("rome", "memit", "alphaedit") for n in sizes)
    values = joined(*(together(n) for n in sizes * 2))  # ROME's, and MEMIT's, which are AlphaEdit's
    return Work(values, runs=runs, asked=4 * sum(sizes) * 13)


def _long_run(p: Parameters) -> Work:
    asked, read, drawn = watched(p, 1)
    run = Run(names_of([p["run"]])[0], p["facts"], p["batch"])
    sampled = drawn * p["texts"]
    done = Work({run.batch: run.facts}, runs=(run,), asked=asked, read=read, drawn=drawn, sampled=sampled)
    return replace(done, after="05_memorize_the_latest", found=replace(done, layers=0, projected=False))


def _ability(p: Parameters) -> Work:
    whole = _checkpoints(p, p["pair"], p["runs"], p["beside"])
    return replace(whole, after="06_alignment", found=values_of(whole.runs, len(p["orders"])))


def _states(p: Parameters) -> Work:
    whole = _checkpoints(p, names_of(p["runs"]), (), names_of(p["beside"]))
    shared = [run for run in whole.runs if not run.sequence.startswith(("prune", "alphaedit_plus"))]
    return replace(whole, after="06_alignment", found=values_of(shared, len(p["orders"])))


def _training(p: Parameters) -> Work:
    ways = 6 + len(p["multiples"]) + len(p["thresholds"])
    return Work(tokens=p["tokens"], layers=p["layers"], waits=STEP * STEPS * p["epochs"] * ways * p["seeds"])


def _categories(p: Parameters) -> Work:
    each, again = CLASSES * p["each"], len(p["sizes"]) + len(p["columns"]) + 2
    swept = Run("alphaedit_aligned", p["swept"], p["batch"])
    runs = (Run("alphaedit_aligned", each, p["batch"]), *[swept] * again)
    asked = 2 * each * prompts_of(p) + again * p["swept"] * prompts_of(p)
    read = p["unseen"] + len(runs) * p["tokens"]
    values = joined({p["batch"]: each + p["swept"]}, together(p["swept"]))
    return Work(values, runs=runs, asked=asked, read=read, tokens=sum(p["sizes"]))


def _horizon(p: Parameters) -> Work:
    runs = tuple(Run(name, p["at"][-1], p["batch"]) for name in names_of(p["runs"]))
    moments = len(runs) * len(p["at"])
    asked = moments * ((p["sample"] + 2 * p["batch"]) * prompts_of(p) + p["choices"])
    return Work(
        together(p["at"][-1]),
        runs=runs,
        asked=asked,
        read=moments * p["tokens"],
        projected=False,
        saved=p["at"][-1],
    )


def _cost(p: Parameters) -> Work:
    runs = (Run("alphaedit", p["facts"], p["facts"]), Run("memit", p["facts"], p["facts"]))
    held, anew, new = p["held"], p["anew"], 1 + p["batch"]
    inserted = 2 * (held[-1] + p["repeats"] * (sum(anew) + len(held) * new))
    drawn = inserted * p["d_k"] * (3 * p["d_k"] + 2 * p["d_v"])
    return Work(together(p["facts"]), runs=runs, asked=p["facts"] * SHARED, exact=drawn)


def _traced(p: Parameters) -> Work:
    by_layer = p["facts"] * p["samples"] * TRACED // p["every"]
    return Work(asked=p["asked"], by_layer=by_layer, layers=0, projected=False)


def _in_turn(p: Parameters) -> Work:
    names = [*p["sequences"], *p["editors"]]
    runs = tuple(Run(name, p["facts"], p["batch"]) for name in p["sequences"])
    times = len(names) * len(p["at"])
    asked = len(names) * sum(p["at"]) * (1 + 4 + 10) + times * 8 * p["items"]
    drawn = times * p["texts"] * p["text_tokens"]
    return Work(
        {p["batch"]: len(names) * p["facts"]},
        runs=runs,
        asked=asked,
        drawn=drawn // p["texts"],
        sampled=drawn,
        read=times * p["tokens"],
    )


def _none(_: Parameters) -> Work:
    return Work(layers=0, projected=False)


PAGES: dict[str, Callable[[Parameters], Work]] = {
    "00_try_it": _one_fact,
    "01_one_edit": _one_edit,
    "02_null_space": _null_space,
    "03_alphaedit_plus_lemmas": _lemmas,
    "04_one_time_equals_sequential": _one_time,
    "05_memorize_the_latest": _latest,
    "06_alignment": _alignment,
    "07_drift": _drift,
    "08_norm_inflation": _norms,
    "09_protection": _protection,
    "10_uncertainty": _uncertainty,
    "11_building_alphaset": _alphaset,
    "12_alphaset_tables": _five_sets,
    "13_alphaedit_plus_parts": _parts,
    "14_comparison": _comparison,
    "15_long_run": _long_run,
    "16_general_ability": _ability,
    "17_hidden_representations": _states,
    "18_null_space_training": _training,
    "19_categories_and_sample": _categories,
    "20_long_horizon": _horizon,
    "21_cost": _cost,
    "22_alphaedit_theorems": _none,
    "23_causal_tracing": _traced,
    "24_other_editors": _in_turn,
    "25_harder_questions": harder,
}
"""Notebook -> its work by its parameters. A page that is not here has no estimate, and a plan says so."""
