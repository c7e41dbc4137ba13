"""Evaluation of edited models. Imports network and `palimpsest.results.intervals`, and no editors."""
