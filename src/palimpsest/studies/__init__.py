"""What a page of the book runs: streams, trajectories, single edits and their controls.

Imports every wing below; only notebooks and the command line import it.
"""
