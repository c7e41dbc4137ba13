"""A model with written facts, each of which can be removed exactly; in memory and as a folder.

    edited = EditedModel(load("smollm2-135m"), "memit_aligned")
    print(edited.edit(requests))  # the facts are now in the model, and this is what it says
    edited.forget(["some id"])    # the weights are those of a model without this fact
    edited.save("folder")         # loadable by transformers; continue with EditedModel.open("folder")

Keys and values are read on the unedited model, so they depend on each fact alone, and the weights are a
function of the current facts only, not of the history: W_0 plus the one-time solution of each layer's ledger,
recomputed over the facts in the order of their ids and rounded once. Without facts they are W_0, bit by bit.

With ``batch=1`` each fact's values are optimised alone, and after forgetting a fact the weights equal, bit by
bit, those of a model into which it was never written. In larger batches they are equal up to rounding: values
optimised in one batch depend slightly on the other facts in that batch (1e-6 to 1e-4 of the update on the
embedded model).

Source: The Labyrinth and the Thread, Prop. 3.2 and Eq. 31.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.ledger_facts import unique
from palimpsest.datasets.facts import load_facts
from palimpsest.editors import check_kind
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.errors import LedgerError, ModelError
from palimpsest.network.apply import restored
from palimpsest.network.model import EditableModel, describe, fingerprint, load, read_weight, write_weight
from palimpsest.types import EditRequest, Shown, span
from palimpsest.workbench import folder as files
from palimpsest.workbench.effort import Effort, control_prompts
from palimpsest.workbench.effort import until_said as raise_effort
from palimpsest.workbench.exact import dtype_of, sequence
from palimpsest.workbench.folder import Description
from palimpsest.workbench.held import check_held, check_new, renewed
from palimpsest.workbench.limits import check_batch, check_window
from palimpsest.workbench.places import place
from palimpsest.workbench.report import EditReport, chosen, report_on
from palimpsest.workbench.steps import computed_alone, joined, lean, solutions, state_of
from palimpsest.workbench.work import Work, described

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_SEQUENCE = "memit_aligned"


class EditedModel(Shown):
    """A model, the facts written into it, and a ledger of them for each edited layer.

    Args:
        model: the unedited model; this object changes its weights, and no other code may change them.
        editor: a row of ``config/sequences.yaml``, or a `Sequential`.
        settings: name of the model whose settings on file a row is combined with; default the model itself.

    Attributes:
        model: with all facts in force.
        editor: settings of the sequence.
        base: name, fingerprint, dtype and device of the unedited model.
        facts: id -> fact, in the order in which they were written.
        losses: id -> loss at the end of the optimisation of the fact's value, where this object ran it.

    Raises:
        UnknownNameError, ProfileError: see `palimpsest.editors.named_sequences.configuration`.
        SequenceError: if the settings do not keep every fact, or read keys and values on the edited model.
    """

    def __init__(
        self,
        model: EditableModel,
        editor: Sequential | str = DEFAULT_SEQUENCE,
        settings: str | None = None,
    ) -> None:
        self.model = model
        self.editor = sequence(editor, settings or model)
        self.base = describe(model)
        self.facts: dict[str, EditRequest] = {}
        self.losses: dict[str, float] = {}
        self._state: SequenceState | None = None
        self._written: dict[int, Tensor] = {}  # layer -> expected current weight
        self._stands: dict[Path, str] = {}  # folder -> SHA-256 of its description when last seen

    @property
    def ledgers(self) -> dict[int, EditLedger]:
        """Layer -> ledger; empty before the first fact."""
        return dict(self._state.ledgers) if self._state else {}

    @property
    def is_unedited(self) -> bool:
        """Whether every weight equals that of the unedited model, bit by bit."""
        return fingerprint(self.model, anew=True) == self.base["fingerprint"]

    def __len__(self) -> int:
        return len(self.facts)

    def shown(self) -> dict[str, object]:
        """Model, facts and layers."""
        return {
            "model": self.base["name"],
            "facts": len(self),
            "layers": span(self.editor.layers),
            "undo": "forget([id]), with ids from .facts",
        }

    def edit(
        self,
        requests: Sequence[EditRequest],
        batch: int = 1,
        after: Callable[[], None] | None = None,
        editor: Sequential | None = None,
        *,
        report: bool = True,
        until_said: bool = False,
    ) -> EditReport:
        """Write facts into the model, batch by batch, and ask it about them.

        Args:
            requests: new facts; the filled prompt serves as id if a fact has none.
            batch: facts whose values are optimised in one batch, see the module's docstring.
            after: called after each batch, for example to save a checkpoint.
            editor: other settings of these facts' values, in the same layers; default those of the sequence.
            report: ask the unedited and the edited model; without it the report holds no fact.
            until_said: raise the effort for facts that are not said, by `palimpsest.workbench.effort`.

        Returns:
            What the model answered and answers to each fact, with the object's probability and rank.

        Raises:
            LedgerError: if an id occurs twice or is already in use; nothing is changed.
            RequestError: if a filled prompt occurs twice or is in use, a fact is too long, or the batch is
                below 1; nothing is changed.
            ModelError: if other code changed the edited weights; nothing is changed.
            ScoreError: if an answer exceeds the model's context; all facts are written.
            Exception: any error of the editor; earlier batches stay written, the failing one is not.
        """
        check_batch(batch)
        check_kind(requests)
        check_window(self.model, requests, self.editor)
        named = [r if r.id else replace(r, id=r.text) for r in requests]
        check_new(self.facts, named)
        self._check_written()
        cut = [named[start : start + batch] for start in range(0, len(named), batch)]
        try:
            with tqdm(total=len(named), desc="writing facts", unit="fact", disable=None, leave=False) as bar:
                for some in cut:
                    self._take_in(some, editor or self.editor)
                    bar.update(len(some))
                    if after is not None:
                        after()
        finally:
            self._write(self.ledgers)
        names = [fact.id for fact in named]
        done = self._until_said(names, batch) if until_said else Effort({}, {})
        return self.report(names if report else ()).with_effort(done.tried, done.cost)

    def _until_said(self, names: Sequence[str], batch: int) -> Effort:
        """Raise the effort for facts; its cost is measured on prompts of the project's fact set."""
        asked = {"control prompts": control_prompts(load_facts(), [self.facts[name] for name in names])}
        with self._or_as_before():
            return raise_effort(self, names, asked, batch)

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        """Facts and weights as they were, if a block fails that forgets before it writes."""
        before = self._state, self.facts, dict(self.losses)
        try:
            yield
        except BaseException:
            self._state, self.facts, self.losses = before
            self._write(self.ledgers)
            raise

    def _take_in(self, facts: Sequence[EditRequest], editor: Sequential) -> None:
        """Write one batch, computed as if there were no other fact."""
        state = self._state or lean(self.editor.set_up(self.model))
        alone, losses = computed_alone(self.model, facts, editor, state)
        ledgers, weights = joined(state, alone)
        for layer, weight in weights.items():
            write_weight(self.model, layer, weight)
        self._state = replace(state, ledgers=ledgers, weights=weights, steps=state.steps + 1)
        self._written = {i: read_weight(self.model, i).clone() for i in self.editor.layers}
        self.losses |= losses
        self.facts |= {request.id: request for request in facts}

    def forget(self, ids: Sequence[str]) -> None:
        """Remove facts from the model, as if they had never been written.

        Raises:
            LedgerError: if an id occurs twice or is unknown; nothing is changed.
            ModelError: if other code changed the edited weights; nothing is changed.
            SingularProblemError: if the problem over the remaining facts has no unique solution; nothing is
                changed.
        """
        names = unique(ids)
        check_held(self.facts, names, "nothing was forgotten")
        self._check_written()
        ledgers = {layer: ledger.copy() for layer, ledger in self.ledgers.items()}
        for ledger in ledgers.values():
            ledger.forget(names)
        self._write(ledgers)
        self.facts = {name: fact for name, fact in self.facts.items() if name not in names}

    def replace(self, name: str, new: str | EditRequest) -> None:
        """Give a fact a new object, or another request under its id, in one step.

        The weights are then, bit by bit, those after `forget` of the old fact and `edit` of the new one.

        Args:
            name: id of the fact.
            new: the new object, or a whole request, which gets this id.

        Raises:
            LedgerError: if the id is unknown; the message names those that are like it.
            RequestError: if the new fact cannot be written, or another one asks its prompt.
            ModelError: if other code changed the edited weights.
            Exception: any error of the editor. Whatever the error, the old fact is then as it was.
        """
        check_held(self.facts, [name], "nothing was replaced")
        fresh = renewed(self.facts[name], new)
        check_window(self.model, [fresh], self.editor)
        self._check_written()
        with self._or_as_before():
            self.forget([name])
            self.edit([fresh], report=False)

    def report(self, ids: Sequence[str] | None = None) -> EditReport:
        """Ask the model, unedited and edited, about some of its facts, or all; its weights stay as they are.

        Raises:
            LedgerError: if an id is unknown.
            ScoreError: if a prompt with its answer exceeds the model's context.
        """
        base = {layer: ledger.base for layer, ledger in self.ledgers.items()}
        facts, stop = chosen(self.facts, ids), self.editor.targets.stop_below
        return report_on(self.model, base, facts, self.losses, stop, self.base["name"])

    def save(self, folder: str | Path, task: str = "save") -> None:
        """Write model, tokenizer and ledgers as a folder; an edited model that was there is replaced.

        A symbolic link is followed. Files in the folder that this package did not write stay.

        Args:
            folder: where.
            task: what this is part of, for a process that finds it unfinished.

        Raises:
            LedgerError: if no fact has been written yet.
            ModelError: if other code changed the model's weights.
            ResourceError: if the folder cannot be written, or exists and holds no edited model; an existing
                folder is then unchanged.
            SequenceError: if the folder was changed since it was opened, or an edit of it is unfinished.
        """
        self._check_written()
        with restored(self.model, self.ledgers):
            for layer, ledger in self.ledgers.items():
                write_weight(self.model, layer, ledger.base)
            if not self.is_unedited:
                raise ModelError(self._changed("layers that are not edited"))
        about, path = self._described(fingerprint(self.model, anew=True)), place(folder)
        seen = self._stands.get(path)
        self._stands[path] = files.write_folder(path, self.model, about, self.ledgers, task, seen)

    @classmethod
    def open(cls, folder: str | Path, device: str | torch.device = "cpu") -> "EditedModel":
        """Open a folder written by `save`.

        Raises:
            LedgerError: if the folder holds no edited model, or the ledgers belong to another model.
            ModelError, ResourceError: if weights or other files are not those that were saved.
        """
        path = place(folder)
        where = Work(path).current
        about, seen = files.read_description(where), described(where)
        files.check_files(where, about)
        ledgers, model = files.read_ledgers(where, about, device), load(where, dtype_of(about), device)
        model.name = str(path)
        edited = cls(model, about.editor)
        if edited.base["fingerprint"] != about.fingerprint:
            raise ModelError(
                f"the weights in {folder} are not those that were saved with its ledgers; restore the folder "
                "from a copy, or make the edits again on the unedited model"
            )
        edited._adopt(about, ledgers)
        edited._stands[path] = seen
        return edited

    def checkpoint(self, folder: Path) -> None:
        """Write only the ledgers and the description, for `resume`; later calls append to the ledgers.

        Raises:
            LedgerError: if no fact has been written yet.
            ResourceError: if a file cannot be written.
        """
        files.write_ledgers(folder, self._described(""), self.ledgers)

    def resume(self, folder: Path) -> None:
        """Restore the facts written by `checkpoint`; this object's model must be the same unedited one.

        Raises:
            ModelError: if the checkpoint was made from another model.
            LedgerError, ResourceError: as `open`.
        """
        about = files.read_description(folder)
        if about.base["fingerprint"] != self.base["fingerprint"]:
            raise ModelError(
                f"{folder} holds an unfinished run on {about.base['name']}, whose weights are others than "
                f"those of {self.model.name}; give the same model, or delete that folder to begin anew"
            )
        self._adopt(about, files.read_ledgers(folder, about, self.model.device))
        self._write(self.ledgers)

    def _adopt(self, about: Description, ledgers: dict[int, EditLedger]) -> None:
        self.base = dict(about.base)
        self.facts = {fact.id: fact for fact in about.facts}
        self._state = state_of(ledgers, about.contexts, about.steps)
        self._written = {layer: read_weight(self.model, layer).clone() for layer in ledgers}

    def _described(self, seal: str) -> Description:
        if self._state is None:
            raise LedgerError("no fact was written yet, so there is nothing to save; call edit first")
        unedited = {layer: ledger.base_sha256 for layer, ledger in self.ledgers.items()}
        done = (self._state.prepared.contexts, self._state.steps, tuple(self.facts.values()), unedited, seal)
        return Description(self.base, self.editor, *done)

    def _write(self, ledgers: dict[int, EditLedger]) -> None:
        """Recompute the solutions of the ledgers and write their weights into the model."""
        if self._state is None:
            return
        solved, rounded = solutions(ledgers)
        for layer, weight in rounded.items():
            write_weight(self.model, layer, weight)
        weights = {layer: ledger.weight for layer, ledger in solved.items()}
        self._state, self._written = replace(self._state, ledgers=solved, weights=weights), rounded

    def _check_written(self) -> None:
        for layer, weight in self._written.items():
            if not torch.equal(read_weight(self.model, layer), weight.to(self.model.device)):
                raise ModelError(self._changed(f"layer {layer}"))

    def _changed(self, where: str) -> str:
        return (
            f"weights of {self.model.name} in {where} were changed by something else than this EditedModel; "
            "take that back, or open the saved folder again"
        )
