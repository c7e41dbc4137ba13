"""Edited models as objects and as folders on disk: edit, undo, diagnose.

Imports algebra, network, datasets, editors and evaluation.
"""
