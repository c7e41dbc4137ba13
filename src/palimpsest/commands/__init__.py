"""Commands on models of one's own, a module a theme; `palimpsest.cli` puts them on the command line."""
