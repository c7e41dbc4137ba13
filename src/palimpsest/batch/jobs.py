"""Jobs of a batch: what each runs, what it waits for, and whether it is due.

What is due is decided here, from the hashes by which `palimpsest status` decides, before the engine starts;
the engine is told by markers in ``build/batch``, which only say what has been done since.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from palimpsest import cache, paths
from palimpsest.batch.matrix import Matrix, Moments, Needs
from palimpsest.book.needs import left_out
from palimpsest.book.profiles import Profile, find_notebook, load_profile, own_seed, parameters_for
from palimpsest.book.status import entry
from palimpsest.errors import ProfileError

SPREAD = "auto"
"""Device of a model that is spread over all GPUs that its process sees."""


def batch_dir() -> Path:
    """Folder of markers, logs and plans: all of it can be deleted."""
    return paths.build_dir() / "batch"


@dataclass(frozen=True)
class Job:
    """One call of the command line.

    Attributes:
        name: unique in a batch, and its place among markers and logs.
        arguments: of ``palimpsest``.
        gpu: number of GPUs, all on one node.
        needs: memory, minutes and cores.
        after: names of jobs that are waited for.
        reason: why it is due.
        witness: file that a run of a page writes last; empty for other jobs.
        page: name of the notebook; empty for other jobs.
    """

    name: str
    arguments: tuple[str, ...]
    gpu: int
    needs: Needs
    after: tuple[str, ...] = ()
    reason: str = ""
    witness: str = ""
    page: str = ""

    @property
    def profile(self) -> str:
        """Name of its profile."""
        return self.name.partition("/")[0]

    @property
    def marker(self) -> Path:
        """File that says that the job is done."""
        return marker_of(self.name)


def marker_of(name: str) -> Path:
    """File that says that a job is done."""
    return batch_dir() / "done" / f"{name}.json"


@dataclass(frozen=True)
class Batch:
    """What is due, and what stands.

    Attributes:
        due: jobs, those that are waited for first.
        standing: names of the page runs that need nothing.
        left_out: profile and page -> why the profile does not run the page.
    """

    due: tuple[Job, ...]
    standing: tuple[str, ...] = field(default=())
    left_out: dict[str, str] = field(default_factory=dict)

    def unchecked(self) -> "Batch":
        """The same, with pages that run whatever their plan says of the memory of their GPU."""
        due = (replace(job, arguments=(*job.arguments, "--anyway")) if job.page else job for job in self.due)
        return replace(self, due=tuple(due))


def expand(matrix: Matrix, whole: int | None = None) -> Batch:
    """The jobs of a matrix that are due, as the results stand now.

    A page without a seed runs once for each profile, and one that the profile leaves out does not run. Second
    moments are summed where a page is due.

    Args:
        matrix: which runs are wanted.
        whole: GPUs of the node that runs the jobs; None where a scheduler chooses it.

    Raises:
        UnknownNameError: if a profile names a parameter that a page does not have.
        ProfileError: if a profile or its values are malformed, or the GPUs of a model that is spread over
            them are not known, or given for one that is not.
        NotebookError: if a page cannot be read.
    """
    due: list[Job] = []
    standing: list[str] = []
    skipped: dict[str, str] = {}
    out = {(pair.profile, pair.page) for pair in matrix.leave_out}
    for profile in matrix.profiles:
        setting = load_profile(profile)
        named = [page for page in matrix.notebooks if (profile, page) not in out]
        reasons = {page: left_out(setting, find_notebook(page)) for page in named}
        skipped |= {f"{profile}/{page}": reason for page, reason in reasons.items() if reason}
        pages = [page for page in named if not reasons[page]]
        wanted = Gpus.wanted(matrix, setting, whole)
        runs = [job for page in pages for job in _runs(matrix, wanted, page)]
        standing += [job.name for job in runs if not job.reason]
        fresh = [job for job in runs if job.reason]
        if fresh and profile in matrix.moments:
            before = _moments(matrix, wanted, matrix.moments[profile])
            due += before
            fresh = [_after(job, before[-1:]) for job in fresh]
        due += fresh
    return Batch(tuple(due), tuple(standing), skipped)


def _after(job: Job, others: Iterable[Job]) -> Job:
    return Job(**{**vars(job), "after": tuple(other.name for other in others)})


@dataclass(frozen=True)
class Gpus:
    """How many GPUs jobs of a profile ask for.

    Attributes:
        profile: its name.
        given: number for a model that is spread; None for all of the node.
        whole: all of the node; None where they are not known beforehand.
    """

    profile: str
    given: int | None
    whole: int | None

    @classmethod
    def wanted(cls, matrix: Matrix, profile: Profile, whole: int | None) -> "Gpus":
        """Those of a profile.

        Raises:
            ProfileError: if the matrix gives it several, and its models use one or none.
        """
        given = matrix.gpus.get(profile.name)
        places = [str(own.get("device", "cpu")) for own in (profile.defaults, *profile.notebooks.values())]
        if given not in (None, 1) and SPREAD not in places:
            raise ProfileError(
                f"config/batch.yaml gives {profile.name} {given} GPUs, and its device is {places[0]}, which "
                f"uses no more than one; set 'device: {SPREAD}' in the profile, or take the number away"
            )
        return cls(profile.name, given, whole)

    def of(self, device: str) -> int:
        """Number for a device, by its name.

        Raises:
            ProfileError: if a model that is spread has no number.
        """
        if device == SPREAD:
            number = self.given or self.whole
            if number is None:
                raise ProfileError(
                    f"{self.profile} spreads its model over all GPUs (device: {SPREAD}), and a scheduler "
                    "must be asked for their number; give it in config/batch.yaml, as "
                    f"'gpus: {{{self.profile}: 2}}'"
                )
            return max(number, 1)
        return int(device.startswith("cuda"))


def _runs(matrix: Matrix, gpus: Gpus, page: str) -> list[Job]:
    """One job for each seed of a page, with a reason where it is due."""
    profile = gpus.profile
    setting, source = load_profile(profile), find_notebook(page)
    own, parameters = own_seed(setting, source), parameters_for(setting, source)
    seeds: list[int | None] = [None] if own is None or not matrix.seeds else list(matrix.seeds)
    jobs = []
    for seed in seeds:
        found = entry(page, profile, seed)
        given = () if seed is None else ("--seed", str(seed))
        name = f"{profile}/{page}" + ("" if found.seed is None else f"/seed-{found.seed}")
        jobs.append(
            Job(
                name,
                ("run", page, "--profile", profile, *given),
                gpus.of(str(parameters.get("device", "cpu"))),
                matrix.needs_of.get(page, matrix.needs),
                reason=found.standing.reason if found.standing.due else "",
                witness=str(found.witness),
                page=page,
            )
        )
    return jobs


def _moments(matrix: Matrix, gpus: Gpus, moments: Moments) -> list[Job]:
    """Jobs for the shards of second moments, and their merge as the last; none that is done already."""
    profile = gpus.profile
    setting = load_profile(profile)
    device = str(setting.defaults.get("device", "cpu"))
    gpu = gpus.of(device)
    work = ["stats", setting.model, "--layers", moments.layers, "--tokens", str(moments.tokens)]
    work += ["--products", moments.products, "--device", device]
    place = f"{profile}/moments-{cache.digest([work, moments.shards])[:12]}"
    shards = []
    for number in range(1, moments.shards + 1):
        part = ("--shard", f"{number}/{moments.shards}")
        name = f"{place}/shard-{number}"
        shards.append(Job(name, _recorded(work, part, name), gpu, matrix.needs, reason="not summed yet"))
    name = f"{place}/merged"
    after = tuple(job.name for job in shards)
    merge = Job(name, _recorded(work, ("--merge",), name), gpu, matrix.needs, after, "not merged yet")
    return [merge] if _made(merge) else [*(job for job in shards if not _made(job)), merge]


def _recorded(work: list[str], part: tuple[str, ...], name: str) -> tuple[str, ...]:
    return (*work, *part, "--json", str(marker_of(name)))


def _made(job: Job) -> bool:
    """Whether a job of second moments is marked as done, and what it made is still there."""
    try:
        files = json.loads(job.marker.read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(files) and all(Path(file).is_file() for file in files)


def as_plan(jobs: Iterable[Job]) -> list[dict[str, object]]:
    """JSON-able entries for the engine."""
    return [
        {**asdict(job), **job.needs.model_dump(), "needs": None, "marker": str(job.marker)} for job in jobs
    ]
