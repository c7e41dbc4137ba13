"""A temporary copy of the repository, in which a test adds something as a newcomer would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("src", "tests", "config", "data", "book", "notebooks", "pyproject.toml")
BUILT = shutil.ignore_patterns("__pycache__", "*.egg-info", "_pages", "_generated", "_build")


class Copy:
    """Sources, tests and settings in a folder of their own, without results and built pages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, root / part, ignore=BUILT)
            else:
                shutil.copy(source, root / part)

    def put(self, path: str, text: str) -> None:
        """A new file."""
        assert not (self.root / path).exists()
        (self.root / path).write_text(text)

    def insert(self, path: str, behind: str, text: str) -> None:
        """Further lines behind one that occurs once."""
        before = (self.root / path).read_text()
        assert before.count(behind) == 1, f"{behind!r} does not occur once in {path}"
        (self.root / path).write_text(before.replace(behind, behind + text))

    def replace(self, path: str, old: str, new: str) -> None:
        """The first of some lines rewritten."""
        before = (self.root / path).read_text()
        assert old in before, f"{old!r} does not occur in {path}"
        (self.root / path).write_text(before.replace(old, new, 1))

    def changed(self) -> set[str]:
        """Files that are new or not as they are in the repository."""
        files = (path for path in self.root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        names = (str(path.relative_to(self.root)) for path in files)
        return {
            name
            for name in names
            if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != (self.root / name).read_bytes()
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Python with the copy's package, its tests and an empty cache; nothing of the repository itself."""
        own = {"PYTHONPATH": str(self.root / "src"), "PALIMPSEST_ROOT": str(self.root)}
        own |= {"PALIMPSEST_CACHE": str(self.root.parent / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        environment = {k: v for k, v in os.environ.items() if k != "PALIMPSEST_RESULTS"} | own
        whole = [sys.executable, *command]
        return subprocess.run(whole, cwd=self.root, env=environment, capture_output=True, text=True)

    def says(self, code: str) -> str:
        """What a script prints, which must not fail."""
        done = self.run("-c", code)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    def tests(self, *arguments: str) -> tuple[set[str], set[str]]:
        """Names of the tests that passed and of those that did not, of test files or folders."""
        done = self.run("-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *arguments)
        assert done.returncode in (0, 1), (done.stdout + done.stderr)[-3000:]
        found: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
        for line in done.stdout.splitlines():
            name, _, rest = line.partition(" ")
            word = rest.split(" ")[0].strip()
            if "::" in name and word in found:
                found[word].add(name.partition("::")[2])
        assert found["PASSED"] | found["FAILED"], done.stdout[-3000:]
        return found["PASSED"], found["FAILED"] | found["ERROR"]
