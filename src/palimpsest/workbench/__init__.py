"""Edited models as objects and as folders on disk, with the commands edit, undo and diagnose.

Imports algebra, network, datasets, editors and evaluation.
"""
