"""Rooms for rehearsals: a checkout with a profile like one for a GPU, and a tiny random model for it.

A model has the family of the profile's and a tokenizer made here. Its layers are the first, the edited and
the last one of the real model, numbered anew; settings on file keep all else but their numbers of steps. A
page keeps the profile's names (editors, sequences, regimes), with the numbers of its small run.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from palimpsest.book.parameters import read_parameters
from palimpsest.book.profiles import load_profile, parameters_for
from tests.tiny import NETS

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("data", "notebooks", "src", "book", "tests", "pyproject.toml")
WIDE, ROOM, WORDS = 32, 1024, 3000
"""Width of a model, its positions, and the tokens that its tokenizer knows."""
FEWER = {"steps": 3, "statistics_tokens": 3000, "count": 2, "length": 4, "batch": 3}
"""Numbers of a settings file that cost time -> the most that a rehearsal takes."""
STARTUP = """\
import sys

if any("ipykernel" in word for word in sys.orig_argv):  # the kernel of a page, and not the runner
    from tests.device_double import double

    _double = double()
    _double.__enter__()
    from palimpsest.memory import contexts

    contexts.check_readable = lambda *_: []  # a random model writes noise, which editors refuse
"""


@dataclass(frozen=True)
class Layers:
    """Layers of a real model that its tiny one has; their places in this order are the new numbers."""

    kept: tuple[int, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Layers":
        """The first, the edited and the last layer of a settings file."""
        edited = {layer for host in ("memit", "rome") for layer in content["editors"][host]["layers"]}
        return cls(tuple(sorted({0, content["shape"]["depth"] - 1, *edited})))

    def new(self, layer: int) -> int:
        """New number of a layer: of the nearest that is kept."""
        return min(range(len(self.kept)), key=lambda at: abs(self.kept[at] - layer))


def smaller(settings: Any, layers: Layers, name: str = "") -> Any:
    """Settings of a model with fewer layers, and with fewer steps."""
    if isinstance(settings, dict):
        return {key: smaller(value, layers, key) for key, value in settings.items()}
    if name in ("layers", "loss_layer"):
        asked = settings if isinstance(settings, list) else [settings]
        found = list(dict.fromkeys(layers.new(layer) for layer in asked))
        return found if isinstance(settings, list) else found[0]
    return min(settings, FEWER[name]) if name in FEWER and isinstance(settings, int) else settings


def parameter(name: str, asked: Any, own: Any, layers: Layers) -> Any:
    """A parameter of a rehearsal: the profile's names, layers by their new numbers, the page's own sizes."""
    entries = asked if isinstance(asked, list) else [asked]
    if name == "layers" and isinstance(asked, list):
        return smaller(asked, layers, name)
    return asked if any(isinstance(one, str | bool) for one in entries) else own


def tiny_folder(content: Mapping[str, Any], layers: Layers, folder: Path) -> None:
    """A random model of a settings file's family with some layers, in Hugging Face format."""
    config, net, shape = NETS[content["architecture"]]
    sizes = {
        "n_layer": len(layers.kept),
        "num_hidden_layers": len(layers.kept),
        "n_positions": ROOM,
        "max_position_embeddings": ROOM,
        "n_embd": WIDE,
        "hidden_size": WIDE,
    }
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    made = net(
        config(
            **(shape | {name: value for name, value in sizes.items() if name in shape}),
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.3,
        )
    )
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows the common words of the project's facts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train([str(ROOT / "data" / "facts" / name) for name in ("triples.csv", "relations.yaml")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def room(name: str, where: Path) -> tuple[str, list[str]]:
    """A checkout with a profile like the one named, for a tiny model; name of that profile, and its pages."""
    profile = load_profile(name)
    for entry in LINKED:
        (where / entry).symlink_to(ROOT / entry)
    (where / "results").mkdir()
    shutil.copytree(ROOT / "config", where / "config")
    file = next(
        path
        for path in sorted((where / "config" / "models").glob("*.yaml"))
        if profile.model in [path.stem, *yaml.safe_load(path.read_text("utf-8")).get("also", [])]
    )
    content = yaml.safe_load(file.read_text("utf-8"))
    layers = Layers.of(content)
    model = where.parent / "models" / f"tiny-{file.stem}"  # not below the root, whose files are hashed
    tiny_folder(content, layers, model)
    content["editors"] = smaller(content["editors"], layers)
    content["shape"] |= {"depth": len(layers.kept), "width": WIDE}
    file.write_text(yaml.safe_dump(content))
    notebooks = {}
    for page in profile.listed:
        source = ROOT / "notebooks" / f"{page}.ipynb"
        own, asked = read_parameters(source), parameters_for(profile, source)
        notebooks[page] = {
            key: parameter(key, value, own[key].default, layers)
            for key, value in asked.items()
            if key in own and key not in ("profile", "model", "device")
        }
    made = {
        "model": str(model),
        "settings": file.stem,
        "description": "a rehearsal",
        "machine": "any",
        "pages": list(profile.listed),
        "defaults": {"device": "standin:0"},
        "notebooks": notebooks,
    }
    (where / "config" / "profiles" / f"rehearse-{name}.yaml").write_text(yaml.safe_dump(made))
    (where / "start").mkdir()
    (where / "start" / "sitecustomize.py").write_text(STARTUP)
    return f"rehearse-{name}", list(profile.listed)


def environment(where: Path) -> dict[str, str]:
    """Of a page's run: the room, its cache with the resources of this machine, and the double."""
    cache = where.parent / f"cache of {where.name}"  # not below the root, whose files are hashed
    cache.mkdir(exist_ok=True)
    known = Path(os.environ.get("PALIMPSEST_CACHE", Path.home() / ".cache" / "palimpsest"))
    for shared in ("resources", "models"):
        if (known / shared).exists() and not (cache / shared).exists():
            (cache / shared).symlink_to(known / shared)
    return os.environ | {
        "PALIMPSEST_ROOT": str(where),
        "PALIMPSEST_CACHE": str(cache),
        "PYTHONPATH": f"{where / 'start'}:{ROOT / 'src'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
    }
