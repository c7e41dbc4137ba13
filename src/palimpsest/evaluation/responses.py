"""Responses sampled from a model, several to each wording of each fact, cached on disk fact by fact.

For the same prompts two models are sampled with the same random numbers, so differences between them are due
to the edit. A fact's texts are cached under the hash of everything they depend on: an interrupted run
continues with the next facts, and the unedited model is sampled once for all editors.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import ResourceError, ScoreError
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.network.sampling import sample
from palimpsest.paths import cache_dir

REVISION = 1
"""Part of the cache key; increase it when the code gives different texts for the same request."""

PROBE_TOKENS = 4

Wordings = Mapping[str, Sequence[str]]
"""Id of a fact -> its M wordings, subject filled in."""

Texts = tuple[tuple[str, ...], ...]
"""K sampled continuations of each of the M wordings."""


@dataclass(frozen=True)
class Decoding:
    """Settings of sampling: nucleus sampling (Holtzman et al. 2020) with a temperature.

    Attributes:
        samples: K, responses per wording, 2 or more.
        tokens: largest number of new tokens per response.
        top_p: probability mass of the nucleus, in (0, 1].
        temperature: divides the logits; above 0.
        seed: of all draws.
        batch_size: responses per forward pass; it does not change what is drawn.

    Raises:
        ScoreError: if a number is outside its range.
    """

    samples: int = 5
    tokens: int = 32
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 120

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ScoreError(
                f"samples is {self.samples}; one response to a wording shows no scatter, so draw 2 or more"
            )
        sizes_fit = self.tokens >= 1 and self.batch_size >= 1
        if not (sizes_fit and 0 < self.top_p <= 1 and 0 < self.temperature < float("inf")):
            raise ScoreError(
                f"cannot draw responses with {self}; tokens and batch_size are 1 or more, top_p lies in "
                "(0, 1], and temperature is above 0"
            )


def responses(
    model: EditableModel,
    wordings: Wordings,
    decoding: Decoding | None = None,
) -> dict[str, Texts]:
    """Sample K continuations of every wording, or read them from disk if they were sampled before.

    Facts are sampled a few at a time, in their order, and written as soon as they are done. The random
    numbers depend only on the seed, the fact's id, the wording and the number of the sample, not on the other
    facts or the model.

    Args:
        model: the current model, edited or not.
        wordings: two or more for every fact.
        decoding: settings of sampling; use the same before and after an edit.

    Returns:
        Fact -> M tuples of K texts, in the order given. A text is empty if the model ends at once.

    Raises:
        ScoreError: if a fact has fewer than two wordings or one of them is repeated, and as
            `palimpsest.network.sampling.sample`.
        NonFiniteError: if the model gives NaN.
        ResourceError: if a stored file is damaged or cannot be written.
    """
    chosen = decoding or Decoding()
    _check(wordings)
    places = _places(model, wordings, chosen)
    missing = sum(not path.exists() for path in places.values())
    with tqdm(total=missing, desc="asking", unit="fact", leave=False, disable=not missing) as bar:
        for group in _groups(list(wordings), wordings, chosen):
            with cache.missing(places[fact] for fact in group) as made:
                fresh = {fact: wordings[fact] for fact in group if places[fact] in made}
                for fact, texts in drawn(model, fresh, chosen):
                    with cache.sealed(places[fact]) as temporary:
                        temporary.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
                    bar.update()
    return {fact: _read(places[fact]) for fact in wordings}


@dataclass(frozen=True)
class Cost:
    """Expected cost of sampling responses.

    Attributes:
        facts: number of facts requested.
        on_disk: number of these that are cached and cost nothing.
        texts: number of responses still to draw.
        tokens: largest number of tokens of these texts, without prompts.
        seconds: estimated time, from a short trial of one fact on this machine; batches of several facts and
            texts that end early are somewhat faster.
    """

    facts: int
    on_disk: int
    texts: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        if not self.texts:
            return f"{self.facts} facts, all on disk"
        held = f", {self.on_disk} of them on disk" if self.on_disk else ""
        return (
            f"{self.facts} facts{held}: {self.texts:,} texts of at most {self.tokens // self.texts} tokens, "
            f"about {self.seconds / 60:.1f} minutes here"
        )

    def __add__(self, other: "Cost") -> "Cost":
        names = ("facts", "on_disk", "texts", "tokens", "seconds")
        return Cost(*(getattr(self, name) + getattr(other, name) for name in names))


def cost(model: EditableModel, wordings: Wordings, decoding: Decoding | None = None) -> Cost:
    """Cost of `responses` with the same arguments; samples a few tokens to measure the speed.

    Raises:
        As `responses`.
    """
    chosen = decoding or Decoding()
    _check(wordings)
    places = _places(model, wordings, chosen)
    missing = [fact for fact in wordings if not places[fact].exists()]
    texts = chosen.samples * sum(len(wordings[fact]) for fact in missing)
    seconds = _seconds(model, wordings, missing, chosen) if missing else 0.0
    return Cost(len(wordings), len(wordings) - len(missing), texts, texts * chosen.tokens, seconds)


def _seconds(model: EditableModel, wordings: Wordings, missing: list[str], decoding: Decoding) -> float:
    """Time for all facts, extrapolated from the time of one fact's prompts and of each further token."""
    trial = min(PROBE_TOKENS, decoding.tokens)
    times = []
    for tokens in (1, trial):
        start = time.perf_counter()
        list(drawn(model, {missing[0]: wordings[missing[0]]}, replace(decoding, tokens=tokens)))
        times.append(time.perf_counter() - start)
    each = max(times[1] - times[0], 0) / max(trial - 1, 1)
    share = sum(len(wordings[fact]) for fact in missing) / len(wordings[missing[0]])
    return share * (times[0] + (decoding.tokens - 1) * each)


def _check(wordings: Wordings) -> None:
    for fact, own in wordings.items():
        if len(own) < 2 or len(set(own)) < len(own):
            raise ScoreError(
                f"fact {fact!r} has {len(own)} wordings, {len(set(own))} of them different; uncertainty "
                "needs two or more, each once"
            )


def _places(model: EditableModel, wordings: Wordings, decoding: Decoding) -> dict[str, Path]:
    """Cache file of each fact."""
    how = {name: value for name, value in asdict(decoding).items() if name != "batch_size"}
    common = {"revision": REVISION, "model": fingerprint(model), "decoding": how}
    folder = cache_dir() / "responses"
    return {
        fact: folder / f"{cache.digest(common | {'fact': fact, 'asked': list(own)})[:32]}.json"
        for fact, own in wordings.items()
    }


def _groups(facts: Sequence[str], wordings: Wordings, decoding: Decoding) -> Iterator[list[str]]:
    """Yield groups of one or more facts that fill a batch; the groups do not depend on what is cached."""
    group: list[str] = []
    rows = 0
    for fact in facts:
        more = decoding.samples * len(wordings[fact])
        if group and rows + more > decoding.batch_size:
            yield group
            group, rows = [], 0
        group.append(fact)
        rows += more
    if group:
        yield group


def drawn(model: EditableModel, wordings: Wordings, decoding: Decoding) -> Iterator[tuple[str, Texts]]:
    """Sample the texts of some facts together, without the cache; `responses` adds it.

    Yields:
        Fact and its M tuples of K texts, in the order given.

    Raises:
        ScoreError, NonFiniteError: as `responses`.
    """
    _check(wordings)
    rows = [
        (wording, f"{fact}\n{wording}")
        for fact, own in wordings.items()
        for wording in own
        for _ in range(decoding.samples)
    ]
    if not rows:
        return
    prompts, names = zip(*rows, strict=True)
    options = {name: value for name, value in asdict(decoding).items() if name != "samples"}
    texts = iter(sample(model, prompts, top_k=None, names=names, **options))
    for fact, own in wordings.items():
        yield fact, tuple(tuple(next(texts) for _ in range(decoding.samples)) for _ in own)


def _read(path: Path) -> Texts:
    try:
        return tuple(tuple(map(str, own)) for own in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ResourceError(
            f"cache file {path} is damaged ({error}); delete it and it will be computed again"
        ) from error
