"""Runs notebooks and builds the book from their results, without a model.

Imports results, and never torch.
"""
