"""Running of notebooks, and building of the book from their results.

Imports results, and never torch; building needs no model.
"""
