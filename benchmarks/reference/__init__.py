"""Reference twins of the library's fast paths, written for this project to be read and believed.

They do what the released codes of MEMIT, AlphaEdit and EasyEdit do: one request at a time, forward passes of
the whole model with logits at all positions, one pass a layer, dense unsymmetric solves, a record at a time.
They use the library for loading, requests and tokenisation, and none of its passes or solvers.
"""
