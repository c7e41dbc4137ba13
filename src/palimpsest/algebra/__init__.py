"""Pure tensors: solvers, spectra, projectors and exact ledgers, without a model. Imports the ground alone."""
