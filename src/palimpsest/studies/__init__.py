"""Experiments that the pages of the book run: streams, trajectories, single edits and their controls.

Imports algebra, network, memory, datasets, editors, evaluation and results; only notebooks and the command
line import it.
"""
