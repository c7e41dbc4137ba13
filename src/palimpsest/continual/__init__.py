"""Continual learning in the null space of features: Adam-NSCL and its baselines on a sequence of image tasks.

Imports algebra and the second moment of memory; only notebooks import it.
"""
