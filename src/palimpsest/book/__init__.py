"""Generated pages and the extensions of the book build."""
