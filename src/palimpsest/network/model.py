"""Language models as an editor sees them: layers, sites, and weights as W (d_v, d_k).

A supported architecture is one row of FAMILIES (`palimpsest.network.families`). GPT-2's Conv1D stores its
matrix transposed; only `read_weight` and `write_weight` handle this.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from palimpsest.cache import digest
from palimpsest.errors import ModelError, ScoreError, SiteError
from palimpsest.network.embedded import unpacked_model
from palimpsest.network.families import FAMILIES as FAMILIES
from palimpsest.network.families import Family as Family
from palimpsest.network.fitting import context_fits, tensors_fit, tokens_fit
from palimpsest.network.formats import Source, merged, source_of
from palimpsest.network.placement import connected, placed
from palimpsest.network.proposal import refused, without_data
from palimpsest.network.sources import EMBEDDED, check_source, unusable
from palimpsest.network.tokens import encode, pad
from palimpsest.types import Shown

Part = Literal["input", "key", "value", "before_norm", "hidden"]

CPU = torch.device("cpu")

SUMMED = 2**20
"""Numbers of a weight that are summed together in its checksum; affects only speed and memory."""

PROBE = "A probe: tokenizers differ in œ, 1987, and what they put before\n and after a text."


@dataclass(frozen=True)
class Site:
    """A place in the network where a tensor can be read or replaced.

    Attributes:
        layer: index of the decoder layer.
        part: ``input`` (of the whole layer, d_v wide), ``key`` (input of the edited weight, d_k wide),
            ``value`` (its output, d_v wide), ``before_norm`` (input of the norm behind it, d_v wide, where
            the family has one) or ``hidden`` (output of the whole layer, d_v wide).
    """

    layer: int
    part: Part = "key"


@dataclass(repr=False)
class EditableModel(Shown):
    """A causal language model with its tokenizer and family.

    Attributes:
        net: the Hugging Face network, in evaluation mode, parameters frozen.
        tokenizer: its fast tokenizer.
        family: row of FAMILIES.
        name: name or path it was loaded by.
        context: text before every prompt; set by `palimpsest.network.apply.installed`.
        loaded: fingerprint of the model as it was loaded; empty if it was not loaded from disk.
        sums: checksum of each weight, with what tells that the weight was written since; see `fingerprint`.
        wraps: edits in force that wrap the model (`palimpsest.network.wraps.Wrap`), the earliest first; set
            by `palimpsest.network.apply.installed`.
    """

    net: Any
    tokenizer: Any
    family: Family
    name: str
    context: str = ""
    loaded: str = ""
    sums: dict[str, tuple["_Written", list[int]]] = field(default_factory=dict, compare=False)
    wraps: tuple[Any, ...] = field(default=(), compare=False)

    def shown(self) -> dict[str, object]:
        """Name, size and place of the model."""
        dtype = str(next(self.net.parameters()).dtype).removeprefix("torch.")
        size = sum(weight.numel() for weight in self.net.parameters())
        return {
            "name": self.name,
            "layers": self.n_layers,
            "weights": f"{size / 1e6:,.1f} million, {dtype} on {self.device}",
        } | ({"context": f"{len(self.context)} characters"} if self.context else {})

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.net.get_submodule(self.family.layers))

    @property
    def device(self) -> torch.device:
        """Device of the first weights, on which all passes begin and end and all else is computed."""
        return torch.device(next(self.net.parameters()).device)

    @property
    def config(self) -> Any:
        """Configuration of the network; of the part that reads text, where it has others for images."""
        return self.net.config.get_text_config()

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt, after the context where one is installed."""
        return encode(self.tokenizer, self.before(prompt) + prompt)

    def before(self, prompt: str) -> str:
        """Text that is read before a prompt: the context, then what wraps in force choose for this prompt."""
        return self.context + "".join(wrap.before(prompt) for wrap in self.wraps)

    def require_room(self, text: str, tokens: int) -> None:
        """Check that a text of so many tokens fits into the model's context.

        Raises:
            ScoreError: otherwise.
        """
        most = getattr(self.config, "max_position_embeddings", None)
        if most is not None and tokens > most:
            shown = f"{text[:60]!r} needs {tokens} tokens"
            raise ScoreError(f"{shown}, and the context of {self.name} holds {most}; shorten it")

    def layer(self, index: int) -> nn.Module:
        """Decoder layer by index.

        Raises:
            SiteError: if there is no such layer.
        """
        if not 0 <= index < self.n_layers:
            raise SiteError(f"layer {index} does not exist; {self.name} has layers 0 to {self.n_layers - 1}")
        return self.net.get_submodule(f"{self.family.layers}.{index}")

    def projection(self, layer: int) -> nn.Module:
        """Module whose weight is edited in a layer."""
        return self.layer(layer).get_submodule(self.family.value_projection)

    def norm_behind(self, layer: int) -> nn.Module | None:
        """Norm that the edited map's output passes inside a layer; None if it is added as it is."""
        name, unless = self.family.norm_after, self.family.unless
        if name is None or (unless is not None and getattr(self.config, unless)):
            return None
        return self.layer(layer).get_submodule(name)

    def weight_name(self, layer: int) -> str:
        """Name of the edited parameter in the network's state dict."""
        self.layer(layer)
        return f"{self.family.layers}.{layer}.{self.family.value_projection}.weight"


def load(
    name: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device | Mapping[str, str] = "cpu",
) -> EditableModel:
    """Load a causal language model for editing.

    Each weight is read to the device where it is to lie, so that the host's memory never holds the whole
    model beside it, but for a GGUF file, which transformers turns into numbers on the host first.

    Args:
        name: ``smollm2-135m`` (embedded), a folder in Hugging Face format, a hub id, a GGUF file or a folder
            that holds only one, or the folder of a PEFT adapter, which is merged into its model.
        dtype: dtype of the weights; default float32 on CPU and the checkpoint's own on other devices.
        device: device to load it to; ``auto`` spreads the layers over all GPUs, and a mapping puts each part
            of the network where it says (a device map of transformers).

    Raises:
        UnknownNameError: if the name is none of the three.
        ModelError: if it is found but cannot be read, its conditions were not accepted, its architecture has
            no row in FAMILIES, its weights, tokenizer and context do not fit together (see
            `palimpsest.network.fitting`), there is no such device, the package that reads its format is
            missing, or the devices that it is spread over do not hold it.
        ResourceError: if the embedded model cannot be fetched or was damaged, or the hub is out of reach.
    """
    place = placed(device)
    whole = isinstance(place, torch.device)
    dtype = dtype or (torch.float32 if place == CPU else None)
    source = Source(str(unpacked_model())) if str(name) == EMBEDDED else source_of(str(name))
    if "gguf_file" not in source.options:
        check_source(source.path)
    options: Any = {"trust_remote_code": False, **source.options}
    strict: Any = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    spread: Any = {} if place == CPU else {"device_map": {"": place} if whole else place}
    try:
        config = AutoConfig.from_pretrained(source.path, **options)
        if config.model_type not in FAMILIES:
            raise ModelError(refused(config.model_type, str(name), without_data(config), list(FAMILIES)))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path, dtype=dtype or "auto", **spread, **strict, **options
        )
        net, found = loaded
        tensors_fit(str(name), found)
        net = net if source.adapter is None else merged(net, source.adapter)
        tokenizer = AutoTokenizer.from_pretrained(source.path, **options)
        tokens_fit(str(name), tokenizer, len(net.get_input_embeddings().weight))
        written = PreTrainedConfig.get_config_dict(source.path)[0] if not source.options else None
        context_fits(str(name), config, tokenizer, written)
        net = net.to(place) if whole else connected(net, FAMILIES[config.model_type], str(name))
        model = wrap(net, tokenizer, str(name))
        model.loaded = fingerprint(model)
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise unusable(
            name,
            str(error).partition("\n")[0],
            f"Complete the folder, or choose an architecture that is known: {', '.join(FAMILIES)}",
        ) from error
    return model


def wrap(net: Any, tokenizer: Any, name: str) -> EditableModel:
    """Wrap a loaded network as an EditableModel; freezes its parameters.

    Raises:
        ModelError: if the architecture has no row in FAMILIES, or the row does not fit.
    """
    kind = getattr(net.config, "model_type", "unknown")
    if kind not in FAMILIES:
        raise ModelError(refused(kind, name, net, list(FAMILIES)))
    net.eval().requires_grad_(False)
    model = EditableModel(net, tokenizer, FAMILIES[kind], name)
    try:
        model.projection(0)
    except AttributeError as error:
        raise ModelError(
            f"the family row of {kind!r} does not fit {name}: {error}. Correct the row"
        ) from error
    return model


def read_weight(model: EditableModel, layer: int) -> Float[Tensor, "d_v d_k"]:
    """Edited weight of a layer as W (d_v, d_k), on the model's device; a view, do not write to it."""
    return _weight(model, layer).to(model.device)


def write_weight(model: EditableModel, layer: int, weight: Float[Tensor, "d_v d_k"]) -> None:
    """Overwrite the edited weight of a layer in place with W (d_v, d_k)."""
    with torch.no_grad():
        _weight(model, layer).copy_(weight)


def _weight(model: EditableModel, layer: int) -> Float[Tensor, "d_v d_k"]:
    module = model.projection(layer)
    return module.weight.T if isinstance(module, Conv1D) else module.weight  # type: ignore[return-value]


def fingerprint(model: EditableModel, anew: bool = False) -> str:
    """Hash of all present weights, edits included, of how a text is tokenised, of context and wraps.

    It uses exact integer checksums of the bits by row and by column, weighted by position. It therefore does
    not depend on the number of threads, and needs one pass over the weights on their device. It guards
    against mistakes, not against forgery.

    The checksum of a weight is remembered until PyTorch has counted a write to it. Writes through ``.data``
    or NumPy are not counted.

    Args:
        model: the model as it is now.
        anew: read every weight again, whatever is remembered.
    """
    if anew:
        model.sums.clear()
    sums = {}
    weights = list(model.net.named_parameters())
    for name, weight in tqdm(weights, "reading weights", unit="weight", disable=None, delay=2, leave=False):
        held = model.sums.get(name)
        if held is None or not held[0].still(weight):
            held = model.sums[name] = _Written.of(weight), _checksum(weight)
        sums[name] = held[1]
    probe = model.tokenizer(PROBE)["input_ids"]
    asked = {"context": model.context} if model.context else {}
    wraps = {"wraps": [wrap.digest for wrap in model.wraps]} if model.wraps else {}
    return digest({"sums": sums, "vocabulary": len(model.tokenizer), "probe": probe, **asked, **wraps})


@dataclass(frozen=True)
class _Written:
    """How far a weight was written: the tensor itself, its storage, and PyTorch's count of writes to it."""

    weight: "ref[Tensor]"
    place: int
    writes: int

    @classmethod
    def of(cls, weight: Tensor) -> "_Written":
        return cls(ref(weight), weight.data_ptr(), -1 if weight.is_inference() else weight._version)

    def still(self, weight: Tensor) -> bool:
        """Whether this very weight was not written since; never so if nobody counts its writes."""
        now = _Written.of(weight)
        same = self.weight() is weight and (self.place, self.writes) == (now.place, now.writes)
        return same and now.writes >= 0


def _checksum(parameter: Tensor) -> list[int]:
    flat = parameter.detach().reshape(parameter.shape[0], -1)  # (rows, columns); a vector is (rows, 1)
    bits = flat.view(torch.int32 if flat.element_size() == 4 else torch.int16)
    # Block by block, because PyTorch makes a copy in int64.
    parts = bits.split(max(1, SUMMED // max(bits.shape[1], 1)))
    rows = torch.cat([part.sum(1, dtype=torch.int64) for part in parts])
    columns = torch.stack([part.sum(0, dtype=torch.int64) for part in parts]).sum(0)
    weigh = [torch.arange(1, len(s) + 1, device=s.device) for s in (rows, columns)]
    return [int((rows * weigh[0]).sum()), int((columns * weigh[1]).sum()), *parameter.shape]


def generate(model: EditableModel, prompt: str, max_new_tokens: int = 20) -> str:
    """Prompt with its greedy continuation, as text; what an edit placed before the prompt is removed.

    Raises:
        ScoreError: if the prompt gives no token, or it and its continuation exceed the model's context.
    """
    ids = model.encode(prompt)
    if not ids:
        raise ScoreError(f"prompt {prompt!r} gives no token, so nothing can be continued; give it a text")
    model.require_room(prompt, len(ids) + max_new_tokens)
    batch = pad(model.tokenizer, [ids]).to(model.device)
    with torch.no_grad():
        found = model.net.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=model.tokenizer.pad_token_id or model.tokenizer.eos_token_id,
        )
    return str(model.tokenizer.decode(found[0], skip_special_tokens=True)).removeprefix(model.before(prompt))


def describe(model: EditableModel) -> dict[str, str]:
    """Name, fingerprint, dtype and device of a model, for the provenance of a record."""
    dtype = str(next(model.net.parameters()).dtype).removeprefix("torch.")
    return {
        "name": model.name,
        "fingerprint": fingerprint(model),
        "dtype": dtype,
        "device": " and ".join(sorted({str(weight.device) for weight in model.net.parameters()})),
    }
