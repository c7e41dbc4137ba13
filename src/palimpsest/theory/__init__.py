"""Statements of the papers as functions to test. Imports algebra; imported by notebooks and tests alone."""
