"""The type checker that runs inside the package during tests (see conftest.py).

A module of its own because jaxtyping's import hook names the checker by its path. An ``int`` is
accepted where ``float`` is annotated, as PEP 484 says and as mypy reads the same annotations.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
