"""Data sets of facts for editing and evaluation: the project's fact set, CounterFact, ZsRE and hard sets."""

from palimpsest.datasets.alphaset import alphaset1, alphaset2, alphaset3
from palimpsest.datasets.alphaset_file import load_alphaset, load_released, save_alphaset
from palimpsest.datasets.alphaset_members import AlphaSet, Measures, Member, percentile_reached
from palimpsest.datasets.any_format import load_cases_of
from palimpsest.datasets.cases import counterfact_style, zsre_style
from palimpsest.datasets.counterfact import load_counterfact, to_counterfact
from palimpsest.datasets.facts import Fact, FactSet, Relation, load_facts, split_of
from palimpsest.datasets.files import Loaded, Rejected
from palimpsest.datasets.original import Original, load_original, original_statements
from palimpsest.datasets.rewordings import hold_out, known_reworded, reworded, rewrites
from palimpsest.datasets.zsre import load_zsre, to_zsre

__all__ = [
    "AlphaSet",
    "Fact",
    "FactSet",
    "Loaded",
    "Measures",
    "Member",
    "Original",
    "Rejected",
    "Relation",
    "alphaset1",
    "alphaset2",
    "alphaset3",
    "counterfact_style",
    "hold_out",
    "known_reworded",
    "load_alphaset",
    "load_cases_of",
    "load_counterfact",
    "load_facts",
    "load_original",
    "load_released",
    "load_zsre",
    "original_statements",
    "percentile_reached",
    "reworded",
    "rewrites",
    "save_alphaset",
    "split_of",
    "to_counterfact",
    "to_zsre",
    "zsre_style",
]
