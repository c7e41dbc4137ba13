"""What the model holds of a fact: keys, values and their moments over text. Imports network and algebra."""
