"""Key-value memory of a model: keys, values and key moments over text. Imports network and algebra."""
