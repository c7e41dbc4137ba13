"""Data sets of facts for editing and evaluation: the project's facts, benchmarks of the field, hard sets."""

from palimpsest.datasets.alphaset import alphaset1, alphaset2, alphaset3
from palimpsest.datasets.alphaset_file import load_alphaset, load_released, save_alphaset
from palimpsest.datasets.alphaset_members import AlphaSet, Measures, Member, percentile_reached
from palimpsest.datasets.any_format import load_cases_of
from palimpsest.datasets.any_set import load_any_set
from palimpsest.datasets.case_files import LoadedSet
from palimpsest.datasets.cases import counterfact_style, zsre_style
from palimpsest.datasets.chains import multi_hop_cases
from palimpsest.datasets.counterfact import load_counterfact, to_counterfact
from palimpsest.datasets.facts import Fact, FactSet, Relation, load_facts, split_of
from palimpsest.datasets.files import Loaded, Rejected
from palimpsest.datasets.harder_cases import LongFormCase, MultiHopCase, RippleCase
from palimpsest.datasets.knowedit import load_knowedit, to_knowedit
from palimpsest.datasets.knowedit_cases import knowedit_cases
from palimpsest.datasets.leme import load_leme, to_leme
from palimpsest.datasets.long_form import long_form_cases
from palimpsest.datasets.mquake import conflicts, load_mquake, to_mquake
from palimpsest.datasets.multi_counterfact import load_multi_counterfact
from palimpsest.datasets.original import Original, load_original, original_statements
from palimpsest.datasets.rewordings import hold_out, known_reworded, reworded, rewrites
from palimpsest.datasets.ripple_edits import load_labels, load_ripple_edits, to_ripple_edits
from palimpsest.datasets.ripples import ripple_cases
from palimpsest.datasets.training import TrainingSplit, training_split
from palimpsest.datasets.zsre import load_zsre, to_zsre

__all__ = [
    "AlphaSet",
    "Fact",
    "FactSet",
    "Loaded",
    "LoadedSet",
    "LongFormCase",
    "Measures",
    "Member",
    "MultiHopCase",
    "Original",
    "Rejected",
    "Relation",
    "RippleCase",
    "TrainingSplit",
    "alphaset1",
    "alphaset2",
    "alphaset3",
    "conflicts",
    "counterfact_style",
    "hold_out",
    "knowedit_cases",
    "known_reworded",
    "load_alphaset",
    "load_any_set",
    "load_cases_of",
    "load_counterfact",
    "load_facts",
    "load_knowedit",
    "load_labels",
    "load_leme",
    "load_mquake",
    "load_multi_counterfact",
    "load_original",
    "load_released",
    "load_ripple_edits",
    "load_zsre",
    "long_form_cases",
    "multi_hop_cases",
    "original_statements",
    "percentile_reached",
    "reworded",
    "rewrites",
    "ripple_cases",
    "save_alphaset",
    "split_of",
    "to_counterfact",
    "to_knowedit",
    "to_leme",
    "to_mquake",
    "to_ripple_edits",
    "to_zsre",
    "training_split",
    "zsre_style",
]
