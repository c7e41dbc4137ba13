"""A small shape and settings whose counts can be worked out by hand."""

from palimpsest.planning.counts import Method
from palimpsest.studies.cost import Shape

TINY = Shape("tiny", layers=4, d_v=8, d_k=16, heads=2, groups=1, d_head=4, vocabulary=50, maps=3, tied=False)
ALONE = Method((1, 2), steps=3, contexts=0, length=10, tokens=100)
