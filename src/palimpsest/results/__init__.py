"""Results of notebooks: records, confidence intervals, figures, tables, published numbers and claims.

Imports only the modules at the root of the package, and never torch.
"""
