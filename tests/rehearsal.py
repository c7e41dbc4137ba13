"""Rooms for rehearsals: a checkout with a profile like one for a GPU, and a tiny random model for it.

A model has the family of the profile's and a tokenizer made here. Its layers are the first, the edited and
the last one of the real model, numbered anew; settings on file keep all else but their numbers of steps. A
page keeps the profile's names (editors, sequences, regimes), with the numbers of its small run.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import yaml
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from palimpsest.book.needs import left_out
from palimpsest.book.parameters import read_parameters
from palimpsest.book.profiles import load_profile, parameters_for
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.memory import contexts
from palimpsest.network import embedder
from palimpsest.network.activations import capture, run_body
from palimpsest.network.model import EditableModel, Site, wrap
from palimpsest.network.tokens import encode_target, pad
from tests.tiny import NETS, SENTENCES

ROOT = Path(__file__).resolve().parents[1]
REHEARSED = "rehearse-"
"""What the name of a profile begins with in a rehearsal."""
LINKED = ("data", "notebooks", "src", "book", "tests", "pyproject.toml")
WIDE, ROOM, WORDS = 32, 1024, 3000
"""Width of a model, its positions, and the tokens that its tokenizer knows."""
MIDDLE = 0.01
"""Median eigenvalue of the second moments of a model's keys, below the published thresholds."""
TAUGHT, ROUNDS, SURE = 30, 5, 1.5
"""Facts that its head is taught, how often where the head is the embedding too, and to which loss in nats."""
MOVING = {"lr": 1.0, "clamp": 8, "decay": 0.0}
"""How far the values of a random model must be moved, so that facts are written."""
FEWER = {
    "steps": 15,
    "statistics_tokens": 3000,
    "count": 2,
    "length": 4,
    "batch": 3,
    "preserve_weight": 10,
    "ridge": 0.01,
}
"""Numbers of a settings file that cost time, or hold a random model fast -> the most allowed."""
STARTUP = """\
import sys

if any("ipykernel" in word for word in sys.orig_argv):  # the kernel of a page, and not the runner
    from tests.device_double import double

    _double = double()
    _double.__enter__()
    from tests.rehearsal import made_easy

    made_easy()
"""


@dataclass(frozen=True)
class Layers:
    """Layers of a real model that its tiny one has; their places in this order are the new numbers."""

    kept: tuple[int, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Layers":
        """The first, the edited and the last layer of a settings file, and those of its regimes."""
        edited = {layer for host in ("memit", "rome") for layer in content["editors"][host]["layers"]}
        regimes = [part for row in content.get("regimes", {}).values() for part in row.values()]
        edited |= {layer for part in regimes if isinstance(part, dict) for layer in part.get("layers", [])}
        return cls(tuple(sorted({0, content["shape"]["depth"] - 1, *edited})))

    def new(self, layer: int) -> int:
        """New number of a layer: of the nearest that is kept."""
        return min(range(len(self.kept)), key=lambda at: abs(self.kept[at] - layer))


def smaller(settings: Any, layers: Layers, name: str = "") -> Any:
    """Settings of a model with fewer layers, and with fewer steps."""
    if isinstance(settings, dict):
        parts = {key: smaller(value, layers, key) for key, value in settings.items()}
        return parts | (MOVING if name == "targets" else {})
    if name in ("layers", "loss_layer"):
        asked = settings if isinstance(settings, list) else [settings]
        found = list(dict.fromkeys(layers.new(layer) for layer in asked))
        return found if isinstance(settings, list) else found[0]
    return min(settings, FEWER[name]) if name in FEWER and isinstance(settings, int | float) else settings


def parameter(name: str, asked: Any, own: Any, layers: Layers) -> Any:
    """A parameter of a rehearsal: the profile's names, layers by their new numbers, the page's own sizes."""
    if name == "layers" and isinstance(asked, list):
        return smaller(asked, layers, name)
    if name == "changes":
        return [_renumbered(change, layers) for change in asked]
    entries = [one for value in (asked, own) for one in (value if isinstance(value, list) else [value])]
    return asked if any(isinstance(one, str | bool) for one in entries) else own


def _renumbered(change: str, layers: Layers) -> str:
    """A change of a setting, ``layers=[8]``, with new numbers of layers."""
    key, _, value = change.partition("=")
    return f"{key}={smaller(yaml.safe_load(value), layers, key)}" if key == "layers" else change


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
    model = wrap(made, tokenizer, folder.name)
    _lower(model)
    _teach(model)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _lower(model: EditableModel) -> None:
    """Make keys as small as a trained model's, so that its thresholds of eigenvalues part them."""
    for layer in range(model.n_layers):
        weight = next(
            weight
            for name, weight in model.layer(layer).named_parameters()
            if name.endswith(("up_proj.weight", "c_fc.weight", "fc_in.weight", "fc1.weight"))
        )
        for _ in range(3):
            batch = pad(model.tokenizer, [model.encode(text) for text in SENTENCES]).to("cpu")
            keys = capture(model, batch, [Site(layer)])[Site(layer)].flatten(0, 1).double()
            middle = float(torch.linalg.eigvalsh(keys.T @ keys / len(keys)).median())
            weight.mul_((MIDDLE / middle) ** 0.5)


def _teach(model: EditableModel) -> None:
    """Teach the head some facts, so that pages about facts that a model knows find some."""
    rows, answers = [], []
    for case in counterfact_style(load_facts(), split="test")[:TAUGHT]:
        target = encode_target(model.tokenizer, case.target_true, case.request.text)
        rows += [[*model.encode(case.request.text), *target[:at]] for at in range(len(target))]
        answers += target
    batch = pad(model.tokenizer, rows, side="left").to("cpu")
    head = model.net.get_submodule(model.family.head).weight
    for _ in range(ROUNDS if model.net.config.tie_word_embeddings else 1):  # what it reads changes with it
        with torch.no_grad():
            last = run_body(model, batch, use_cache=False).last_hidden_state[:, -1]  # (n, d)
        step = torch.zeros_like(head, requires_grad=True)
        adam = torch.optim.Adam([step], lr=0.05)
        for _ in range(60):
            adam.zero_grad()
            loss = torch.nn.functional.cross_entropy(last @ (head + step).T, torch.tensor(answers))
            if loss < SURE:
                break
            loss.backward()
            adam.step()
        with torch.no_grad():
            head.add_(step)


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


def made_easy() -> None:
    """In this process, what a random model or the double would stop, and no GPU, is let pass."""
    contexts.check_readable = lambda *_: []  # a random model writes noise, which editors refuse
    # sentence-transformers moves its network itself, in ways that the double does not follow.
    embedder.one_of = lambda device: torch.device("cpu")
    # transformers leaves some buffers unset where it is loaded under the double.
    for kind, name in ((AutoModelForCausalLM, "from_pretrained"), (SentenceTransformer, "__init__")):
        setattr(kind, name, _outside(getattr(kind, name)))


def _outside(load: Callable[..., Any]) -> Callable[..., Any]:
    """The same outside of the double."""

    @wraps(load)
    def loaded(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_map", None)  # the double; what is loaded is moved there afterwards
        with _disable_current_modes():
            return load(*args, **kwargs)

    return loaded


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
    for part in ("editors", "regimes"):
        content |= {part: smaller(content[part], layers)} if part in content else {}
    content["shape"] |= {"depth": len(layers.kept), "width": WIDE}
    file.write_text(yaml.safe_dump(content))
    notebooks = {}
    for page in profile.listed:
        source = ROOT / "notebooks" / f"{page}.ipynb"
        if left_out(profile, source):
            continue
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
        "pages": list(notebooks),
        "defaults": {"device": "standin:0"},
        "notebooks": notebooks,
    }
    (where / "config" / "profiles" / f"rehearse-{name}.yaml").write_text(yaml.safe_dump(made))
    (where / "start").mkdir()
    (where / "start" / "sitecustomize.py").write_text(STARTUP)
    return f"{REHEARSED}{name}", list(notebooks)


def environment(where: Path) -> dict[str, str]:
    """Of a page's run: the room, its cache with the resources of this machine, and the double."""
    cache = where.parent / f"cache of {where.name}"  # not below the root, whose files are hashed
    cache.mkdir(exist_ok=True)
    known = Path(os.environ.get("PALIMPSEST_CACHE", Path.home() / ".cache" / "palimpsest"))
    for shared in ("resources", "models", "text"):
        if (known / shared).exists() and not (cache / shared).exists():
            (cache / shared).symlink_to(known / shared)
    return os.environ | {
        "PALIMPSEST_ROOT": str(where),
        "PALIMPSEST_CACHE": str(cache),
        "PYTHONPATH": f"{where / 'start'}:{ROOT / 'src'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "PYTHONOPTIMIZE": "1",  # what pages assert of their numbers does not hold for a random model
    }
