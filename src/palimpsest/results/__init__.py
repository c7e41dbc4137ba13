"""What notebooks write and how it is shown and judged: records, intervals, figures, tables, claims.

Imports the ground alone, and never torch.
"""
