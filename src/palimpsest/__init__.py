"""Sequential knowledge editing of language models: one library behind every notebook of the book.

The names that the package hands out are listed in ``__init__.pyi``. Each is imported when first used, so that
parts without a network (records, claims, the command line) start without loading torch.
"""

from importlib.metadata import version

from lazy_loader import attach_stub

__version__ = version("palimpsest")
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
