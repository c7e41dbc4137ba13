"""What a model is asked, and scores of its answers. Imports network and `results.intervals`; no editors."""
