"""Language models: loading, tokens, activations, applied edits, sampling. Imports only ground modules."""
