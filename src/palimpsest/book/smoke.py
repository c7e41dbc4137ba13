"""The regression test of the whole package: every notebook once, at smoke size, against the values carried.

nbval executes a notebook as it stands, which is its smoke size. Records go to ``build/smoke`` and get their
provenance there; values are compared with those of ``results/smoke``.
"""

import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from palimpsest.book.execution import environment
from palimpsest.book.profiles import SMOKE, carried_smoke, find_notebook, known_notebooks, results_of
from palimpsest.book.regression import check_against_carried
from palimpsest.book.runner import run_notebook
from palimpsest.errors import NotebookError


def check_notebooks(pages: Sequence[str] | None = None, *, jobs: int = 1, accept: bool = False) -> None:
    """Execute notebooks and compare their values with those carried.

    Args:
        pages: names of notebooks; all by default.
        jobs: at once; they share the cores (``OMP_NUM_THREADS``, where it is not set).
        accept: carry the new values from now on instead of comparing them.

    Raises:
        NotebookError: after the last one, if a notebook failed, ran code that its hash does not cover, or
            gave another value than the one carried.
        DataError: if a carried record is missing.
    """
    names = [find_notebook(page).stem for page in pages or known_notebooks()]
    folder, begun = results_of(SMOKE), time.monotonic()

    def one(name: str) -> str:
        """What went wrong with one notebook; nothing where all is well."""
        try:
            run = run_notebook(name, SMOKE, folder=folder, executor="nbval")
            if accept:
                carried_smoke().mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / f"{name}.json", carried_smoke() / f"{name}.json")
                print(f"{name}: carried from now on ({run.seconds:.0f} s)", flush=True)
                return ""
            found = check_against_carried(folder, [name])
        except NotebookError as error:
            print(f"{name}: failed\n{error}", flush=True)
            return f"{name} failed"
        verdict = f"{len(found)} values differ" if found else "values as carried"
        print("\n".join([f"{name}: {verdict} ({run.seconds:.0f} s)", *map(str, found)]), flush=True)
        return f"{name} differs" if found else ""

    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    with environment(threads | os.environ), ThreadPoolExecutor(jobs) as pool:
        wrong = [fault for fault in pool.map(one, names) if fault]
    print(f"{len(names)} notebooks, {len(wrong)} with faults, {time.monotonic() - begun:.0f} s", flush=True)
    if wrong:
        raise NotebookError(
            f"{'; '.join(wrong)}. If the change is meant, look at the new values and carry them with "
            "`palimpsest check-notebooks --accept NAME`"
        )
