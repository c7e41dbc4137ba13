"""Shape and type checks inside the package, how many random examples a property is tried on, and which
combinations of method and family run when.

The import hook must run before the first import of the package, hence here and not in a fixture:
every jaxtyping annotation (shapes, dtypes) and every ordinary annotation of ``palimpsest`` is then
checked at each call. A plain ``import palimpsest`` outside the tests is not slowed by it. The inner loop
(``PALIMPSEST_QUICK=1``, as `make check` sets it) does without these checks and tries fewer examples.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

from tests import typecheck

QUICK = os.environ.get("PALIMPSEST_QUICK") == "1"
if not QUICK:
    install_import_hook("palimpsest", f"{typecheck.__name__}.check")

_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "normal", max_examples=30, deadline=None, derandomize=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "quick", max_examples=8, deadline=None, derandomize=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "nightly", max_examples=300, deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)


def _nightly(config: pytest.Config) -> bool:
    expression = config.getoption("-m") or ""
    return "nightly" in expression and "not nightly" not in expression


def pytest_configure(config: pytest.Config) -> None:
    """Examples per property: HYPOTHESIS_PROFILE, else 300 under ``-m nightly``, 8 if quick, else 30."""
    default = "nightly" if _nightly(config) else "quick" if QUICK else "normal"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", default))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device cuda`` runs ``tests/test_on_device.py`` on a GPU, as ``scripts/gpu_check.sh`` does."""
    parser.addoption("--device", default="cpu", help="device of tests/test_on_device.py, for example cuda")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of ``--device``."""
    from palimpsest.network.device import device as usable  # not before the import hook

    return usable(str(request.config.getoption("--device")))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PALIMPSEST_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the tests of one module, where hypothesis allows none for each."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PALIMPSEST_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Hundreds of tiny solves: handing each to several threads takes far longer than solving it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The package as users run it, without the type checks: for tests of its own error messages."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``-m nightly`` selects every property test; ``-m 'not nightly'`` deselects none of them."""
    if not _nightly(config):
        return
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("nightly")
