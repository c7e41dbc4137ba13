"""The command that sums second moments in parts and merges them, for texts that take a machine too long."""

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.commands.edits import Json
from palimpsest.commands.shared import Device


def stats(
    model: Annotated[str, typer.Argument(help="Name, folder or hub id.")],
    layers: Annotated[str, typer.Option(help="Layers, for example 4-8 or 3,5,7.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the embedded text.")] = 100_000,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Sum the I-th of N shards.", show_default=False)
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add all shards up for the runs of pages.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the shards; default in the cache.", show_default=False)
    ] = None,
    products: Annotated[
        str, typer.Option(help="float64, or float32 for cards that are slow in float64.")
    ] = "float64",
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between saved sums.")] = 300,
    json: Json = None,
    device: Device = "cpu",
) -> None:
    """Sum second moments of keys by shards, and merge them exactly into what a page's run looks for.

    A shard is written once, with checksums; one that was interrupted goes on from its last saved sums. Shards
    of another model, text, layers or number are refused, and a merge names a shard that is missing. Without
    --shard and --merge the one shard 1/1 is summed and merged.

    Example: palimpsest stats smollm2-135m --layers 4-8 --shard 1/2
    Example: palimpsest stats smollm2-135m --layers 4-8 --merge
    """
    from palimpsest.files import as_json, write_atomically
    from palimpsest.memory.shard_files import Keys, Shard, known_products, layers_of
    from palimpsest.memory.shards import merge_shards, sum_shard
    from palimpsest.network.model import load

    chosen, part = layers_of(layers), Shard.parsed(shard or "1/1")
    kind = known_products(products)
    net = load(model, device=device)
    keys = Keys.of(net, chosen, tokens, products=kind)
    files: list[Path] = []
    if shard is not None or not merge:
        files = [sum_shard(net, keys, part, folder=out, save_every=save_every)]
        typer.echo(f"shard {part}: {files[0]}")
    if merge or shard is None:
        made = merge_shards(keys, out)
        files = list(made.values())
        for layer, path in made.items():
            typer.echo(f"layer {layer}: {path}")
    if json is not None:
        content = {"model": model, "layers": chosen, "tokens": tokens, "files": [str(path) for path in files]}
        write_atomically(json, as_json(content))
