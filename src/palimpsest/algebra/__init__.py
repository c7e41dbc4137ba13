"""Linear algebra of edits, no model: solvers, spectra, projectors, ledgers. Imports only ground modules."""
