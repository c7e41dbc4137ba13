"""Second moments by shards: exact merges, resumed shards, and shards that do not belong together."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.errors import ResourceError, ShardError, SiteError, UnknownNameError
from palimpsest.memory import shards
from palimpsest.memory.moments import SecondMoment, key_blocks, key_statistics
from palimpsest.memory.shard_files import Keys, Products, Shard, known_products, layers_of
from palimpsest.memory.shards import merge_shards, sum_shard
from palimpsest.network import model as model_module
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import token_windows
from tests.editing import stub_texts, texts
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

SIZES = {"tokens": 300, "window": 16, "batch_size": 4}
LAYERS = (0, 2)


def keys_of(model: EditableModel, layers: Sequence[int] = LAYERS, products: Products = "float64") -> Keys:
    return Keys.of(model, layers, texts=texts(), products=products, **SIZES)


def undivided(model: EditableModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, SecondMoment]:
    """What `key_statistics` gives, from a cache of its own."""
    with monkeypatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(folder))
        return key_statistics(model, LAYERS, texts=texts(), **SIZES)


def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a forward pass was made")

    monkeypatch.setattr("palimpsest.memory.moments.capture", refuse)


@pytest.mark.parametrize("count", [1, 3])
def test_merged_shards_are_the_undivided_moment_where_a_page_looks(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")  # float32: passes of other texts together would differ by 1e-7
    whole = undivided(model, tmp_path / "elsewhere", monkeypatch)
    keys = keys_of(model)
    for number in range(count, 0, -1):
        sum_shard(model, keys, Shard(number, count), texts())
    made = merge_shards(keys)
    no_pass(monkeypatch)
    found = key_statistics(model, LAYERS, texts=texts(), **SIZES)
    for layer in LAYERS:
        torch.testing.assert_close(found[layer].total, whole[layer].total, rtol=1e-12, atol=0)
        assert (found[layer].count, found[layer].source) == (300, whole[layer].source)
        assert made[layer].is_file()


def test_products_in_float32_are_summed_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    whole = undivided(model, tmp_path / "elsewhere", monkeypatch)
    keys = keys_of(model, products="float32")
    sum_shard(model, keys, Shard(1, 1), texts())
    moment = SecondMoment.load(merge_shards(keys)[0])
    assert moment.total.dtype == torch.float64
    assert moment.source.endswith("products in float32")
    difference = (moment.total - whole[0].total).norm() / whole[0].total.norm()
    assert 0 < difference < 1e-6


def stop_after(passes: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the forward passes end after some; the list grows with each."""
    made: list[int] = []

    def blocks(*arguments: object) -> object:
        for block in key_blocks(*arguments):  # type: ignore[arg-type]
            if len(made) == passes:
                raise KeyboardInterrupt
            made.append(1)
            yield block

    monkeypatch.setattr(shards, "key_blocks", blocks)
    return made


def test_an_interrupted_shard_goes_on_and_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2")
    keys, shard = keys_of(model), Shard(2, 2)
    straight = sum_shard(model, keys, shard, texts(), tmp_path / "straight")
    with monkeypatch.context() as patch:
        first = stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            sum_shard(model, keys, shard, texts(), tmp_path / "stopped", save_every=0)
    assert (tmp_path / "stopped" / f"{shard.stem}.partial.safetensors").is_file()
    then = stop_after(1000, monkeypatch)
    resumed = sum_shard(model, keys, shard, texts(), tmp_path / "stopped", save_every=0)
    windows = token_windows(model.tokenizer, texts(), SIZES["tokens"], SIZES["window"])
    passes = len(shard.within(-(-len(windows) // SIZES["batch_size"])))
    assert len(first) + len(then) == passes
    for layer in LAYERS:
        one, other = (_total(manifest, layer) for manifest in (resumed, straight))
        assert torch.equal(one, other)
    assert not list((tmp_path / "stopped").glob("*partial*"))
    sum_shard(model, keys, shard, texts(), tmp_path / "stopped")
    assert len(first) + len(then) == passes, "a shard that is there was summed again"


def _total(manifest: Path, layer: int) -> torch.Tensor:
    name = json.loads(manifest.read_text())["files"][str(layer)][0]
    return SecondMoment.load(manifest.with_name(name)).total


def test_damaged_sums_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama")
    keys, shard = keys_of(model), Shard(1, 1)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            sum_shard(model, keys, shard, texts(), tmp_path, save_every=0)
    partial = tmp_path / f"{shard.stem}.partial.safetensors"
    partial.write_bytes(partial.read_bytes()[:-1] + b"?")
    sum_shard(model, keys, shard, texts(), tmp_path)
    assert f"{partial} is not as it was written; it is summed again" in capsys.readouterr().err
    file = tmp_path / f"{shard.stem}.layer-000.safetensors"
    whole = SecondMoment.load(file).total.clone()  # what is loaded is a view of the file
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(
        ShardError, match=r"layer-000\.safetensors in .*SHA-256 differs.*sum that shard again"
    ):
        merge_shards(keys, tmp_path)
    sum_shard(model, keys, shard, texts(), tmp_path)
    assert torch.equal(SecondMoment.load(file).total, whole)
    merge_shards(keys, tmp_path)


def test_a_merge_names_the_shards_that_are_missing(tmp_path: Path) -> None:
    model = tiny_model("llama")
    keys = keys_of(model)
    with pytest.raises(ShardError, match="holds no shards; sum them with 'palimpsest stats --shard 1/n'"):
        merge_shards(keys, tmp_path)
    sum_shard(model, keys, Shard(2, 4), texts(), tmp_path)
    with pytest.raises(ShardError, match="lacks shard 1/4, 3/4, 4/4; sum it with --shard 1/4"):
        merge_shards(keys, tmp_path)


def test_shards_of_something_else_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    sum_shard(model, keys_of(model), Shard(1, 2), texts(), tmp_path)
    others = {
        "model": keys_of(tiny_model("llama", seed=1)),
        "layers": keys_of(model, (0, 1)),
        "texts": Keys.of(model, LAYERS, texts=texts(seed=1), **SIZES),
        "tokens": Keys.of(model, LAYERS, texts=texts(), **SIZES | {"tokens": 200}),
        "products": keys_of(model, products="float32"),
    }
    for name, keys in others.items():
        with pytest.raises(ShardError, match=rf"shard-0001-of-0002\.json is of other keys: .*{name} "):
            sum_shard(model, keys, Shard(2, 2), texts(), tmp_path)
        with pytest.raises(ShardError, match=rf"is of other keys: .*{name} .*folder of its own"):
            merge_shards(keys, tmp_path)
    with pytest.raises(ShardError, match="is one of 2 shards, and shard 1/3 was asked for; go on with 2"):
        sum_shard(model, keys_of(model), Shard(1, 3), texts(), tmp_path)


def test_manifests_of_two_divisions_or_that_cannot_be_read(tmp_path: Path) -> None:
    model = tiny_model("llama")
    keys = keys_of(model)
    manifest = sum_shard(model, keys, Shard(1, 1), texts(), tmp_path)
    content = json.loads(manifest.read_text())
    other = tmp_path / "shard-0002-of-0002.json"
    other.write_text(json.dumps(named(content, Shard(2, 2))))
    with pytest.raises(ShardError, match="holds shards of 1 and of 2; keep those of one"):
        merge_shards(keys, tmp_path)
    faults = ("{", "3", "[" * 100_000, "9" * 5000, "{}")
    for text in (*faults, *map(json.dumps, damaged(content, Shard(2, 2)))):
        other.write_text(text)
        for act in (
            lambda: merge_shards(keys, tmp_path),
            lambda: sum_shard(model, keys, Shard(2, 2), texts(), tmp_path),
        ):
            with pytest.raises(
                ShardError, match=r"(?s)shard-0002-of-0002\.json cannot be read .*delete it and sum"
            ):
                act()


def named(content: dict[str, Any], shard: Shard) -> dict[str, Any]:
    """A manifest as that of another shard."""
    files = {layer: [shard.file(layer), digest] for layer, (_, digest) in content["files"].items()}
    return content | {"shard": shard.number, "of": shard.of, "files": files}


def damaged(content: dict[str, Any], shard: Shard) -> Iterator[dict[str, Any]]:
    """Manifests of a shard with one fault each, the last of another shard."""
    whole = named(content, shard)
    files = whole["files"]
    for name in whole:
        yield {key: value for key, value in whole.items() if key != name}
        yield whole | {name: [1]}
    yield whole | {"files": files | {"0": ["../elsewhere", files["0"][1]]}}
    yield whole | {"files": files | {"x": files["0"]}}
    yield whole | {"shard": 3}
    yield content


def test_a_manifest_that_lacks_a_layer(tmp_path: Path) -> None:
    model = tiny_model("llama")
    keys = keys_of(model)
    manifest = sum_shard(model, keys, Shard(1, 1), texts(), tmp_path)
    content = json.loads(manifest.read_text())
    del content["files"]["2"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ShardError, match=r"0001\.json names no file of layer 2; delete it and sum its shard"):
        merge_shards(keys, tmp_path)


def test_shards_that_lack_tokens(tmp_path: Path) -> None:
    model = tiny_model("llama")
    keys = keys_of(model)
    manifest = sum_shard(model, keys, Shard(1, 1), texts(), tmp_path)
    path = tmp_path / json.loads(manifest.read_text())["files"]["0"][0]
    moment = SecondMoment.load(path)
    SecondMoment(moment.total, 299, moment.source).save(path)
    content = json.loads(manifest.read_text())
    content["files"]["0"][1] = shards.cache.file_sha256(path)
    manifest.write_text(json.dumps(content))
    with pytest.raises(ShardError, match="hold 299 tokens, not 300"):
        merge_shards(keys, tmp_path)


@pytest.mark.parametrize("text", ["2", "a/3", "1/", "-1/2"])
def test_a_shard_is_written_as_two_numbers(text: str) -> None:
    with pytest.raises(ShardError, match="write number/of, for example 2/8"):
        Shard.parsed(text)


def test_what_cannot_be_divided_or_does_not_exist() -> None:
    with pytest.raises(ShardError, match="shard 3/2: the first number goes from 1 to the second"):
        Shard.parsed("3/2")
    with pytest.raises(ShardError, match=r"5 shards were asked for, .* 4 forward passes only; .* at most 4"):
        Shard(1, 5).within(4)
    parts = [Shard(number, 4).within(10) for number in range(1, 5)]
    assert [index for part in parts for index in part] == list(range(10))
    with pytest.raises(ShardError, match="no layer was given; tiny-llama-0 has layers 0 to 3"):
        keys_of(tiny_model("llama"), ())
    with pytest.raises(SiteError, match="layer 4 does not exist"):
        keys_of(tiny_model("llama"), (1, 4))
    with pytest.raises(ShardError, match="layers '4-': write numbers and ranges, for example 3,5-8"):
        layers_of("4-")
    assert layers_of("3, 5-8") == [3, 5, 6, 7, 8]
    with pytest.raises(UnknownNameError, match="unknown dtype of products 'float16'"):
        known_products("float16")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    model = tiny_model("llama")
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write in"):
        sum_shard(model, keys_of(model), Shard(1, 1), texts(), tmp_path / "file" / "shards")


def test_the_command_sums_merges_and_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    monkeypatch.setattr(shards, "statistics_texts", texts)
    monkeypatch.setattr(model_module, "load", lambda name, device: tiny_model("llama"))

    def stats(*arguments: str) -> str:
        done = CliRunner().invoke(
            cli.app, ["stats", "tiny", "--layers", "0-1", "--tokens", "600", *arguments]
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    assert stats("--shard", "1/2").startswith("shard 1/2: ")
    stats("--shard", "2/2")
    record = tmp_path / "made.json"
    assert "layer 0: " in stats("--merge", "--json", str(record))
    assert all(Path(file).is_file() for file in json.loads(record.read_text())["files"])
    no_pass(monkeypatch)
    assert key_statistics(tiny_model("llama"), [0, 1], 600)[1].count == 600
