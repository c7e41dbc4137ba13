"""The language model: loading, tokens, activations, edits in force, sampling. Imports the ground alone."""
