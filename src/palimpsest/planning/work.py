"""How much of each kind of work a page does, from its parameters.

These are the numbers that a notebook prints as its cost, and those behind them: facts whose values are
optimised, steps that are solved, prompts that are asked. They are upper bounds where a page may stop early or
finds something in the cache. Work on random matrices, figures and bootstraps is not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Parameters = Mapping[str, Any]

WORDINGS = 6
"""Wordings of a fact that page 10 asks."""

CLASSES = 8
"""Classes of facts on page 19."""

ARMS = 3
"""Null edits beside the methods of page 10."""

TRACED = 3 * 12
"""Prompts asked of a fact at each layer by causal tracing: whole states, MLPs and attention put back at each
of the twelve tokens of a mean fact."""

SHARED = 1 + 2 + 4
"""Prompts asked of a fact where a page does not say how many: itself, paraphrases and neighbours."""


@dataclass(frozen=True)
class Run:
    """One sequence of edits.

    Attributes:
        sequence: row of ``config/sequences.yaml``, or an editor.
        facts: written in it.
        batch: facts of a step.
    """

    sequence: str
    facts: int
    batch: int


@dataclass(frozen=True)
class Work:
    """What a page does with the model.

    Attributes:
        values: facts whose values are optimised.
        steps: forward passes of each; None for those on file.
        runs: sequences of edits that are solved.
        asked: prompts that are asked, with two objects each.
        read: tokens of text that the whole model reads.
        drawn: tokens that are generated one after the other, of texts side by side.
        tokens: behind each second moment; None for those on file.
        layers: layers with a second moment; None for the edited ones, 0 for none.
        projected: whether projectors of these layers are made.
        by_layer: prompts that are asked again for each layer of the model.
    """

    values: int = 0
    steps: int | None = None
    runs: tuple[Run, ...] = ()
    asked: int = 0
    read: int = 0
    drawn: int = 0
    tokens: int | None = None
    layers: int | None = None
    projected: bool = True
    by_layer: int = 0


def _prompts(p: Parameters) -> int:
    """Prompts asked of each fact."""
    return 1 + int(p.get("paraphrases", 2)) + int(p.get("neighbours", 4))


def _names(texts: Sequence[str]) -> list[str]:
    """Sequences of run descriptions such as ``memit_naive each_step 1``."""
    return [text.split()[0] for text in texts]


def _one_fact(p: Parameters) -> Work:
    return Work(1, runs=(Run(p["editor"], 1, 1),), asked=2 * (len(p["wordings"]) + len(p["neighbours"]) + 1))


def _one_edit(p: Parameters) -> Work:
    told = p["facts_told"]
    return Work(1 + told, runs=(Run(p["editor"], 1, 1), Run(p["sequence"], told, 1)), asked=4 * SHARED * told)


def _null_space(p: Parameters) -> Work:
    layers = len(p["layers"]) or None
    runs = tuple(Run("alphaedit_naive", p["written"], p["written"]) for _ in range(4))
    return Work(
        p["written"],
        runs=(*runs, Run("alphaedit_naive", p["facts"], p["facts"])),
        asked=5 * p["written"] * (1 + p["neighbours"]),
        read=p["held_out_tokens"],
        tokens=p["tokens"],
        layers=layers,
    )


def _lemmas(p: Parameters) -> Work:
    return Work(p["facts"], runs=(Run("alphaedit_plus", p["facts"], p["facts"]),))


def _one_time(p: Parameters) -> Work:
    return Work(p["facts"], runs=(Run("memit_aligned", p["facts"], p["batch"]),) * 2, projected=False)


def _watched(p: Parameters, runs: int) -> tuple[int, int, int]:
    """Prompts, tokens read, and tokens drawn of some runs that are measured after every so many steps."""
    moments = runs * (1 + p["facts"] // p["batch"] // p["every"])
    asked = moments * (3 * p["sample"] + p["choices"])
    return asked, moments * p["tokens"], moments * p["length"]


def _latest(p: Parameters) -> Work:
    names = [*_names(p["runs"]) * len(p["orders"]), *_names(p["beside"])]
    exact = p["latest"] * p["batches"]
    asked, read, drawn = _watched(p, len(names))
    return Work(
        len(names) * p["facts"] + exact,
        runs=(
            *(Run(name, p["facts"], p["batch"]) for name in names),
            Run("latest_exact", exact, p["latest"]),
        ),
        asked=asked + (p["latest"] + p["forgotten"]) * (1 + p["neighbours"]),
        read=read,
        drawn=drawn,
    )


def _checkpoints(p: Parameters, long: Sequence[str], short: Sequence[str], once: Sequence[str]) -> Work:
    """Sequences measured at some sizes: some at full length, the others shorter, some in one order alone."""
    orders, last, shared = len(p["orders"]), p["at"][-1], p.get("again", p["at"])[-1]
    runs = [Run(name, last, p["batch"]) for name in long] * orders
    runs += [Run(name, shared, p["batch"]) for name in short] * orders
    runs += [Run(name, shared, p["batch"]) for name in once]
    moments = sum(len(p["at"]) if run.facts == last else len(p.get("again", ())) for run in runs)
    each = p.get("sample", 0) * _prompts(p) + p.get("choices", 0)
    each += 3 * p.get("items", 0) + 2 * p.get("pairs", 0) + p.get("prompts", 0)
    return Work(
        sum(run.facts for run in runs),
        runs=tuple(runs),
        asked=moments * each,
        read=moments * p.get("tokens", 0),
        drawn=len(runs) * p.get("told_length", 0),
    )


def _alignment(p: Parameters) -> Work:
    paired, runs = _names(p["paired"]), _names(p["runs"])
    return _checkpoints(p, paired, [name for name in runs if name not in paired], _names(p["beside"]))


def _drift(p: Parameters) -> Work:
    pair = _names(p["pair"])
    main = _checkpoints(p, pair, _names(p["runs"]), _names(p["beside"]))
    gentle = _checkpoints(p, pair, (), ())
    return Work(
        main.values + gentle.values,
        runs=main.runs + gentle.runs,
        asked=main.asked + gentle.asked,
        read=main.read + gentle.read,
        drawn=main.drawn + gentle.drawn,
    )


def _norms(p: Parameters) -> Work:
    regimes = p["regimes"]
    alone = p["single"] + (p["contrasted"] if len(regimes) > 1 else 0)
    runs = p["runs"] * len(p["orders"]) + p["further"] + (p["contrasts"] if len(regimes) > 1 else [])
    return Work(
        4 * alone + p["facts"] * len(runs),
        runs=(
            *(Run(name, p["facts"], 1) for name in _names(runs)),
            *(Run("memit_naive", 1, 1) for _ in range(4 * alone)),
        ),
    )


def _protection(p: Parameters) -> Work:
    edits = 4 * p["single"]
    return Work(
        p["facts"] * (len(p["betas"]) + len(p["readings"])) + edits,
        steps=p["steps"],
        runs=(Run("rome", edits, 1),),
        asked=edits * _prompts(p),
        read=max(p["counts"]),
        projected=False,
    )


def _uncertainty(p: Parameters) -> Work:
    methods = [name for name in p["methods"] if name in ("rome", "memit", "alphaedit")]
    models = (len(p["methods"]) + ARMS) * p["facts"]
    return Work(
        len(methods) * p["facts"],
        runs=tuple(Run(name, p["facts"], 1) for name in methods),
        asked=models * _prompts(p),
        drawn=models * p["tokens"],
    )


def _alphaset(p: Parameters) -> Work:
    size = p["hard"] + p["others"]
    runs = (Run("alphaedit_aligned", size, p["batch"]),) * (4 * p["seeds"])
    asked = len(runs) * size * _prompts(p)
    return Work(2 * p["base"] + len(runs) * size, runs=runs, asked=asked, read=_text(p, len(runs)))


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
    return Work(2 * p["base"] + facts, runs=tuple(runs), asked=facts * _prompts(p), read=_text(p, len(runs)))


def _parts(p: Parameters) -> Work:
    size = p["hard"] + p["others"]
    varied = sum(len(p[name]) for name in ("ridges", "past_weights", "steps", "thresholds"))
    runs = (Run("alphaedit_plus", size, p["batch"]),) * ((4 + varied) * p["seeds"])
    asked = len(runs) * size * _prompts(p)
    return Work(2 * p["base"] + len(runs) * size, runs=runs, asked=asked, read=_text(p, len(runs)))


def _comparison(p: Parameters) -> Work:
    sizes = (p["facts"], p["zsre_facts"])
    runs = tuple(Run(name, n, n) for name in ("rome", "memit", "alphaedit") for n in sizes)
    return Work(3 * sum(sizes), runs=runs, asked=4 * sum(sizes) * 13)


def _long_run(p: Parameters) -> Work:
    asked, read, drawn = _watched(p, 1)
    run = Run(_names([p["run"]])[0], p["facts"], p["batch"])
    return Work(p["facts"], runs=(run,), asked=asked, read=read, drawn=drawn)


def _ability(p: Parameters) -> Work:
    return _checkpoints(p, p["pair"], p["runs"], p["beside"])


def _states(p: Parameters) -> Work:
    return _checkpoints(p, _names(p["runs"]), (), _names(p["beside"]))


def _training(p: Parameters) -> Work:
    return Work(tokens=p["tokens"], layers=p["layers"])


def _categories(p: Parameters) -> Work:
    each, again = CLASSES * p["each"], len(p["sizes"]) + len(p["columns"]) + 2
    swept = Run("alphaedit_aligned", p["swept"], p["batch"])
    runs = (Run("alphaedit_aligned", each, p["batch"]), *[swept] * again)
    asked = 2 * each * _prompts(p) + again * p["swept"] * _prompts(p)
    read = p["unseen"] + len(runs) * p["tokens"]
    return Work(each + p["swept"] * again, runs=runs, asked=asked, read=read, tokens=p["sizes"][-1])


def _horizon(p: Parameters) -> Work:
    runs = tuple(Run(name, p["at"][-1], p["batch"]) for name in _names(p["runs"]))
    moments = len(runs) * len(p["at"])
    asked = moments * ((p["sample"] + 2 * p["batch"]) * _prompts(p) + p["choices"])
    return Work(p["at"][-1], runs=runs, asked=asked, read=moments * p["tokens"], projected=False)


def _cost(p: Parameters) -> Work:
    runs = (Run("alphaedit", p["facts"], p["facts"]), Run("memit", p["facts"], p["facts"]))
    return Work(p["facts"], runs=runs, asked=p["facts"] * SHARED)


def _traced(p: Parameters) -> Work:
    by_layer = p["facts"] * p["samples"] * TRACED // p["every"]
    return Work(asked=p["asked"], by_layer=by_layer, layers=0, projected=False)


def _in_turn(p: Parameters) -> Work:
    names = [*p["sequences"], *p["editors"]]
    runs = tuple(Run(name, p["facts"], p["batch"]) for name in p["sequences"])
    times = len(names) * len(p["at"])
    asked = len(names) * sum(p["at"]) * (1 + 4 + 10) + times * 8 * p["items"]
    drawn = times * p["texts"] * p["text_tokens"]
    return Work(len(names) * p["facts"], runs=runs, asked=asked, drawn=drawn, read=times * p["tokens"])


def _harder(p: Parameters) -> Work:
    names, facts = p["editors"], p["hops"] + p["ripples"]
    runs = tuple(Run(name, n, n) for name in names for n in (p["hops"], p["ripples"]))
    prompts = p["hops"] * (1 + 2 + 3) + p["ripples"] * 4
    drawn = (1 + len(names)) * p["answer_tokens"]
    return Work(len(names) * facts, runs=runs, asked=(1 + len(names)) * prompts // 2, drawn=drawn)


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
    "25_harder_questions": _harder,
}
"""Notebook -> its work by its parameters. A page that is not here has no estimate, and a plan says so."""
