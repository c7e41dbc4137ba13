"""General ability by EleutherAI's lm-eval harness, around a network that is loaded already.

lm-eval is optional (``pip install -e '.[ability]'`` in a clone). Here it is given local files alone: tasks of
this package are written as YAML over JSON lines into a temporary folder, tasks of one's own are read from a
folder. Its hub clients are set offline for the time of the call, so that nothing is fetched.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from palimpsest.errors import DataError, ModelError, ResourceError, ScoreError, UnknownNameError
from palimpsest.evaluation.ability import COLUMNS, NONE, Ability, ability
from palimpsest.files import scratch
from palimpsest.network.model import EditableModel
from palimpsest.types import Item, Task

INSTALL = "install the extra 'ability' with .venv/bin/python -m pip install -e '.[ability]' in the clone"
By = Literal["palimpsest", "lm-eval", "any"]
"""Who scores: this package, the harness, or the harness where it is installed and else this package."""

PREFIX = "palimpsest_"
"""Before the name of a task of this package, so that it meets none of the harness."""


def has_harness() -> bool:
    """Whether lm-eval is installed."""
    return find_spec("lm_eval") is not None


def scored_by(by: By, model: EditableModel, tasks: Sequence[Task], batch_size: int = 64) -> Ability:
    """Tasks of this package, scored by it or by the harness.

    Args:
        by: with ``any`` the harness is used where it is installed, and `Ability.by` says what was used.
        model: the model, edited or not.
        tasks: as `palimpsest.evaluation.ability.ability`.
        batch_size: sequences per forward pass.

    Raises:
        UnknownNameError: if ``by`` is none of the three.
        ResourceError: if lm-eval was asked for and is not installed.
        As `palimpsest.evaluation.ability.ability`.
    """
    if by not in ("palimpsest", "lm-eval", "any"):
        raise UnknownNameError("scorer", by, ["palimpsest", "lm-eval", "any"])
    if by == "lm-eval" or (by == "any" and has_harness()):
        return harness(model, tasks, batch_size)
    found = ability(model, tasks, batch_size)
    if by == "palimpsest":
        return found
    return Ability(found.tasks, found.rows, f"palimpsest (lm-eval is not installed: {INSTALL})", found.seed)


def harness(model: EditableModel, tasks: Sequence[Task], batch_size: int = 8, seed: int = 0) -> Ability:
    """Score tasks of this package with lm-eval: options by total log-likelihood, single answers by argmax.

    The harness compares totals, whatever a task says, and does not tell what greedy decoding would write of
    several options; ``said`` is then −1.

    Args:
        model: the model, edited or not, without a text before its prompts.
        tasks: as `palimpsest.evaluation.ability.ability`.
        batch_size: sequences per forward pass.
        seed: of the bootstraps.

    Raises:
        ResourceError: if lm-eval is not installed.
        ModelError: if the model has a context, which the harness would not see.
        ScoreError: if there is no task.
    """
    if not tasks:
        raise ScoreError("the harness needs a task; give one or more")
    _require(model)
    with scratch("tasks") as folder:
        for task in tasks:
            _write(task, folder)
        found = _evaluate(model, [PREFIX + task.name for task in tasks], folder, batch_size, folder / "cache")
    rows = [row for task in tasks for row in _rows(task, found["samples"][PREFIX + task.name])]
    return Ability(tuple(tasks), pd.DataFrame(rows, columns=list(COLUMNS)), "lm-eval", seed)


def harness_folder(
    model: EditableModel, folder: str | Path, names: Sequence[str] = (), limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Run tasks of lm-eval that are defined in a folder of YAML files over local data files.

    Args:
        model: the model, edited or not, without a text before its prompts.
        folder: with the YAML files; ``dataset_path: json`` and absolute ``data_files`` make a task local.
        names: tasks to run; by default every ``task`` that a YAML file of the folder names.
        limit: most items of each task.

    Returns:
        Task -> the numbers that the harness gives for it, under its own names, for example ``acc,none``.

    Raises:
        ResourceError: if lm-eval is not installed, or a task needs something that is not on this machine.
        DataError: if the folder holds no task.
        UnknownNameError: if a task is not among them.
        ModelError: if the model has a context.
    """
    _require(model)
    known = [name for path in sorted(Path(folder).glob("*.y*ml")) if (name := _named(path))]
    if not known:
        raise DataError(f"{folder}: no YAML file that names a task; give the folder of the task files")
    for name in names:
        if name not in known:
            raise UnknownNameError("task of the folder", name, known)
    with scratch("tasks") as place:
        found = _evaluate(model, list(names) or known, Path(folder), 8, place, limit)
    return {
        name: {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}
        for name, numbers in found["results"].items()
    }


def _require(model: EditableModel) -> None:
    if not has_harness():
        raise ResourceError(f"lm-eval is not installed; {INSTALL}, or score the tasks with by='palimpsest'")
    if model.context:
        raise ModelError(
            f"{model.name} has {len(model.context)} characters before every prompt, and lm-eval does not see "
            "them; score the tasks with by='palimpsest'"
        )
    choosing = [wrap.what for wrap in model.wraps if wrap.reads]
    if choosing:
        raise ModelError(
            f"{model.name} is read with {choosing[0]}, and lm-eval does not see it; score the tasks with "
            "by='palimpsest'"
        )


def _named(path: Path) -> str:
    try:
        content = yaml.load(path.read_text("utf-8"), _lenient())
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({error})") from error
    name = content.get("task") if isinstance(content, dict) else None
    return name if isinstance(name, str) else ""


def _lenient() -> type[yaml.SafeLoader]:
    """A loader that reads past the tags of the harness (``!function``), whose values are not needed here."""

    class Lenient(yaml.SafeLoader):
        """With a constructor of its own, which the safe loader itself does not get."""

    Lenient.add_multi_constructor("!", lambda loader, suffix, node: None)
    return Lenient


def _write(task: Task, folder: Path) -> None:
    """A task as one YAML and one JSON-lines file."""
    name = PREFIX + task.name
    data = folder / f"{name}.jsonl"
    data.write_text("".join(f"{json.dumps(_line(item))}\n" for item in task.items), "utf-8")
    answers: dict[str, Any] = (
        {"output_type": "loglikelihood", "doc_to_target": "{{options[0]}}"}
        if task.completes
        else {"output_type": "multiple_choice", "doc_to_choice": "options", "doc_to_target": "right"}
    )
    described = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "prompt",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **answers,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(described), "utf-8")


def _line(item: Item) -> dict[str, Any]:
    return {"id": item.id, "prompt": item.prompt, "options": list(item.options), "right": item.right}


def _evaluate(
    model: EditableModel,
    names: list[str],
    folder: Path,
    batch_size: int,
    place: Path,
    limit: int | None = None,
) -> Mapping[str, Any]:
    """What the harness makes of tasks of a folder, offline, with its data cached under ``place``."""
    with _offline(place):
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        begins = model.tokenizer.bos_token_id in model.encode("a")[:1]
        wrapped = HFLM(
            pretrained=model.net,
            backend="causal",
            tokenizer=model.tokenizer,
            batch_size=batch_size,
            add_bos_token=begins,
        )
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        try:
            found = simple_evaluate(
                model=wrapped,
                tasks=names,
                task_manager=manager,
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
            )
        except (ConnectionError, OSError) as error:
            raise ResourceError(
                f"a task of {folder} needs what is not on this machine ({error}); nothing is fetched, so "
                "give its data as local files"
            ) from error
    assert found is not None
    return dict(found)


@contextmanager
def _offline(place: Path) -> Iterator[None]:
    """Hub clients offline, data sets cached in a folder, for the time of the block."""
    import huggingface_hub.constants as hub
    from lm_eval.api.task import datasets as sets  # a wing of this package has the name of that library

    changes: list[tuple[Any, str, Any]] = [
        (hub, "HF_HUB_OFFLINE", True),
        (sets.config, "HF_HUB_OFFLINE", True),
        (sets.config, "HF_DATASETS_CACHE", place),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _rows(task: Task, samples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Rows of `Ability`, from what the harness logs of each item."""
    told = {int(sample["doc_id"]): sample for sample in samples}
    for number, item in enumerate(task.items):
        results = told[number]["filtered_resps"]
        if task.completes:
            said = item.right if bool(results[0][1]) else NONE
            yield task.name, item.id, item.group, item.right, NONE, said, int(said == item.right)
            continue
        totals = [float(result[0]) for result in results]
        best = [place for place, total in enumerate(totals) if total == max(totals)]
        chosen = best[0] if len(best) == 1 else NONE
        yield task.name, item.id, item.group, item.right, chosen, NONE, int(chosen == item.right)
