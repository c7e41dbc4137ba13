"""Facts to edit and to test with: the project's own set, and the original CounterFact and ZsRE."""

from palimpsest.datasets.cases import counterfact_style, zsre_style
from palimpsest.datasets.counterfact import load_counterfact, to_counterfact
from palimpsest.datasets.facts import Fact, FactSet, Relation, load_facts, split_of
from palimpsest.datasets.files import Loaded, Rejected, content_hash
from palimpsest.datasets.zsre import load_zsre, to_zsre

__all__ = [
    "Fact",
    "FactSet",
    "Loaded",
    "Rejected",
    "Relation",
    "content_hash",
    "counterfact_style",
    "load_counterfact",
    "load_facts",
    "load_zsre",
    "split_of",
    "to_counterfact",
    "to_zsre",
    "zsre_style",
]
