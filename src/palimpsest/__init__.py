"""Sequential knowledge editing of language models: one library behind every notebook of the book."""
