"""Bad input to every command is one message with the cause, status 2, and nothing changed on disk."""

import gzip
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palimpsest.cache import digest
from palimpsest.datasets.any_format import load_cases_of
from palimpsest.workbench.folder import SUM
from tests.commands.bad_files import FACTS
from tests.commands.rooms import enter, make_room, run, snapshot
from tests.permissions import permissions_hold

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked")

LONG = "x" * 252
EDIT = "edit facts.jsonl --model base --out out"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return make_room(tmp_path_factory.mktemp("room") / "room", patch)


@pytest.fixture
def room(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "room"
    shutil.copytree(made, folder)
    settings = folder / "config/models/tiny.yaml"
    settings.write_text(settings.read_text().replace(str(made), str(folder)))
    enter(folder, monkeypatch)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")  # relative: such names have a hundred bytes at most
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    return folder


def refused(room: Path, arguments: list[str], message: str, status: int = 2) -> None:
    """The command ends with one message, and every file is as it was."""
    before = snapshot(room)
    result = run(*arguments)
    assert result.exit_code == status, (result.output, result.exception)
    said = " ".join(result.stderr.replace("│", " ").split())  # typer puts its own messages into a box
    assert message in said, result.stderr
    assert "Traceback" not in result.output
    assert snapshot(room) == before


COMMANDS = [
    ("edit facts.jsonl --model base --out /", "/ is the root of the file system; choose a folder in it"),
    (
        "edit facts.jsonl --model base --out .",
        "exists and holds no edited model; choose a folder that does not",
    ),
    ("edit facts.jsonl --model base --out ..", "exists and holds no edited model"),
    (
        f"edit facts.jsonl --model base --out {LONG}",
        "has 252 bytes, and 200 is the most; choose a shorter one",
    ),
    (f"edit facts.jsonl --model base --out deep/{LONG}", "has 252 bytes, and 200 is the most"),
    ("edit facts.jsonl --model base --out base", "base exists and holds no edited model"),
    ("edit facts.jsonl --model base --out facts.jsonl", "facts.jsonl exists and holds no edited model"),
    (
        "edit facts.jsonl --model base --out a\0b",
        "Invalid value for '--out': Value error, embedded null byte",
    ),
    (
        "edit facts.jsonl --model other --out edited",
        "edited was made from base, not from other; leave the model",
    ),
    (
        "edit facts.jsonl --sequence plain_aligned --out edited",
        "was made with another sequence or other sett",
    ),
    ("edit . --model base --out out", ".: cannot be read (Is a directory); check the path"),
    (
        "edit absent --model base --out out",
        "absent: cannot be read (No such file or directory); check the path",
    ),
    (f"edit {LONG}{LONG} --model base --out out", "cannot be read (File name too long)"),
    ("edit a\udcffb --model base --out out", "cannot be read (No such file or directory)"),
    ("edit base/model.safetensors --model base --out out", "not UTF-8 text"),
    (f"{EDIT} --device foo", "device 'foo' cannot be used here: Expected one of cpu, cuda"),
    (f"{EDIT} --device cuda", "device 'cuda' cannot be used here"),
    (f"{EDIT} --device cuda:99", "device 'cuda:99' cannot be used here"),
    (
        f"{EDIT} --device meta",
        "device 'meta' holds no numbers, so nothing can be computed on it. Choose one of",
    ),
    (f"{EDIT} --device cpu:x", "device 'cpu:x' cannot be used here"),
    (f"{EDIT} --sequence memit", "unknown sequence 'memit'; choose one of: "),
    (f"{EDIT} --sequence memit_naive", "with retain='none' the weights are not those of a ledger"),
    (f"{EDIT} --settings nobody", "unknown model with settings in "),
    (f"{EDIT} --settings nobody", "name one with --settings"),
    (f"{EDIT} --batch 0", "Invalid value for '--batch': Input should be greater than or equal to 1"),
    (f"{EDIT} --batch -1", "Invalid value for '--batch'"),
    (f"{EDIT} --batch many", "Invalid value for '--batch': Input should be a valid integer"),
    (f"{EDIT} --nonsense", "No such option: --nonsense"),
    ("edit facts.jsonl --out out --model ", "the model's name is empty; leave it out for the default"),
    ("edit facts.jsonl --out edited --model ", "the model's name is empty; leave it out for the default"),
    ("edit facts.jsonl", "Missing option '--out'."),
    ("edit", "Missing argument 'facts'."),
    ("undo", "Missing argument 'folder'."),
    ("undo edited", "say which facts to forget: their ids, or all of them, and not both"),
    ("undo edited 0 --all", "say which facts to forget"),
    ("undo edited nobody", "no fact 'nobody' among the 3 that are held; nothing was forgotten"),
    ("undo edited 0 0", "'0'"),
    ("undo edited \udcff", "no fact '\\udcff' among the 3"),
    ("undo absent 0", "absent holds no edited model (it has no palimpsest.json)"),
    ("undo base 0", "base holds no edited model (it has no palimpsest.json)"),
    ("undo facts.jsonl 0", "facts.jsonl holds no edited model"),
    ("undo . 0", "holds no edited model"),
    ("undo / 0", "/ is the root of the file system"),
    ("undo edited 0 --device meta", "device 'meta' holds no numbers"),
    (f"undo {LONG} 0", "has 252 bytes"),
    ("diagnose", "Missing option '--edit'."),
    ("diagnose --edit absent", "absent holds no edited model"),
    ("diagnose --edit facts.jsonl", "facts.jsonl holds no edit that can be read"),
    ("diagnose --edit base/model.safetensors", "holds no edit that can be read"),
    ("diagnose --edit edited --samples 0", "samples is 0"),
    ("diagnose --edit edited --samples -3", "samples is -3"),
    ("diagnose --edit edited --tokens 0", "tokens"),
    ("diagnose --edit edited --limit 0", "limit is 0; diagnose at least 1 fact"),
    ("diagnose --edit edited --wordings absent", "absent: cannot be read"),
    ("diagnose --edit edited --wordings facts.jsonl", "field 'wordings' is missing"),
    ("diagnose --edit edited --device foo", "device 'foo' cannot be used here"),
    ("evaluate", "Missing argument 'model'."),
    ("evaluate base", "Missing argument 'facts'."),
    ("evaluate  facts.jsonl", "unknown model ''; choose one of: "),
    ("evaluate base absent", "absent: cannot be read"),
    ("evaluate base config", "config: cannot be read (Is a directory)"),
    ("evaluate base facts.jsonl --limit 0", "Invalid value for '--limit'"),
    ("evaluate base facts.jsonl --device cuda:99", "device 'cuda:99' cannot be used here"),
    ("evaluate facts.jsonl facts.jsonl", "facts.jsonl is a file; give the folder with config.json"),
    ("evaluate base facts.jsonl --csv facts.jsonl/x.csv", "room/facts.jsonl: [Errno 17] File exists: "),
    ("evaluate base facts.jsonl --json facts.jsonl/x.json", "room/facts.jsonl: [Errno 17] File exists: "),
    ("compare base", "Missing argument 'second'."),
    ("compare base absent", "model 'absent': no folder of that name"),
    ("compare absent base", "model 'absent': no folder of that name"),
    ("compare base edited --facts absent", "absent: cannot be read"),
    ("compare base edited --json facts.jsonl/x.json", "room/facts.jsonl: [Errno 17] File exists: "),
    ("replace edited 0 x --device foo", "device 'foo' cannot be used here"),
    ("replace edited", "Missing argument 'id'."),
    ("replace edited 0", "give the new object, or a file with --request, and not both"),
    ("replace edited nobody x", "no fact 'nobody' among the 3 that are held; nothing was replaced"),
    ("replace edited \udcff x", "no fact '\\udcff' among the 3"),
    ("replace edited \u202e x", "no fact '\\u202e' among the 3"),
    (
        "replace edited 0/1 x",
        "no fact '0/1' among the 3 that are held; nothing was replaced",
    ),
    ("replace edited 0 ", "target is empty or only spaces"),
    ("replace edited 0 \u2060", "target is empty or only spaces"),
    ("replace edited 0 \udcff", "target '\\udcff' holds half of a surrogate pair"),
    ("replace absent 0 x", "absent holds no edited model"),
    ("replace facts.jsonl 0 x", "facts.jsonl holds no edited model"),
    ("replace / 0 x", "/ is the root of the file system"),
    (f"replace {LONG} 0 x", "has 252 bytes"),
    ("replace edited 0 --request config", "config: cannot be read (Is a directory)"),
    ("replace edited 0 --request facts.jsonl", "facts.jsonl holds 3 facts; give a file with the one"),
    ("replace edited 0 --request pipe", "pipe: is a pipe and no file; write what it gives to a file"),
    ("undo pipe 0", "pipe holds no edited model"),
    ("undo loop 0", "'loop' cannot be the path of a folder: [Errno 40] Too many levels of symbolic links"),
    ("undo edited ../0", "no fact '../0' among the 3"),
    ("undo edited 0 1 2 3 4 5", "no fact '3', '4', '5' among the 3"),
    ("undo edited \x07", "no fact '\\x07' among the 3"),
    ("edit pipe --model base --out out", "pipe: is a pipe and no file"),
    ("edit /dev/zero --model base --out out", "/dev/zero: is a device and no file"),
    ("edit /dev/null --model base --out out", "/dev/null: is a device and no file"),
    ("edit socket --model base --out out", "socket: is a socket and no file"),
    ("edit loop --model base --out out", "loop: cannot be read (Too many levels of symbolic links)"),
    ("edit dangling --model base --out out", "dangling: cannot be read (No such file or directory)"),
    ("edit facts.jsonl/ --model base --out out/x/../..", "exists and holds no edited model"),
    ("edit facts.jsonl --model base --out pipe", "pipe exists and holds no edited model"),
    (
        "edit facts.jsonl --model base --out loop",
        "'loop' cannot be the path of a folder: [Errno 40] Too many",
    ),
    ("edit facts.jsonl --model base --out /proc", "/proc exists and holds no edited model"),
    ("edit facts.jsonl --model base --out /dev/null", "/dev/null exists and holds no edited model"),
    ("edit facts.jsonl --model base --out facts.jsonl/m", "room/facts.jsonl: [Errno 20] Not a directory"),
    ("edit facts.jsonl --model base --out /proc/none", "cannot write in /proc"),
    (f"{EDIT} --json config", "config is a folder; choose the path of a file, which is made or replaced"),
    (f"{EDIT} --json /dev/null", "/dev/null is a device; choose the path of a file"),
    (f"{EDIT} --json pipe", "pipe is a pipe; choose the path of a file"),
    (f"{EDIT} --json {LONG}", "has a name of 252 bytes, and 1 to 200 are possible"),
    (f"{EDIT} --json a\0b", "embedded null byte"),
    (f"{EDIT} --batch 1e3", "Invalid value for '--batch'"),
    (f"{EDIT} --batch nan", "Invalid value for '--batch'"),
    (f"{EDIT} --batch {'9' * 5000}", "Invalid value for '--batch'"),
    (f"{EDIT} --sequence ../models/tiny", "unknown sequence '../models/tiny'"),
    (f"{EDIT} --settings ../tiny", "unknown model with settings in "),
    (f"{EDIT} --device cpu,cuda", "device 'cpu,cuda' cannot be used here"),
    (f"{EDIT} --device ", "cannot be used here"),
    (f"{EDIT} --device mps", "device 'mps'"),
    ("diagnose --edit pipe", "pipe: is a pipe and no file"),
    ("diagnose --edit edited --wordings pipe", "pipe: is a pipe and no file"),
    ("diagnose --edit edited --out config", "config is a folder"),
    ("diagnose --edit edited --out /dev/null", "/dev/null is a device"),
    ("diagnose --edit edited --samples many", "Invalid value for '--samples'"),
    ("diagnose --edit edited --seed 1.5", "Invalid value for '--seed'"),
    ("diagnose --edit edited --limit -1", "limit is -1; diagnose at least 1 fact"),
    ("diagnose --edit edited --model absent", "absent"),
    ("evaluate base pipe", "pipe: is a pipe and no file"),
    ("evaluate pipe facts.jsonl", "pipe is a file; give the folder with config.json"),
    ("evaluate loop facts.jsonl", "loop"),
    ("evaluate base facts.jsonl --csv /dev/null", "/dev/null is a device"),
    ("evaluate base facts.jsonl --csv config", "config is a folder"),
    ("evaluate base facts.jsonl --limit -5", "Invalid value for '--limit'"),
    ("evaluate base facts.jsonl --limit x", "Invalid value for '--limit'"),
    ("evaluate base facts.jsonl --seed x", "Invalid value for '--seed'"),
    ("evaluate base facts.jsonl --seed -1", "seed"),
    ("compare base edited --facts pipe", "pipe: is a pipe and no file"),
    ("compare base edited --json config", "config is a folder"),
    ("compare base facts.jsonl", "facts.jsonl is a file; give the folder"),
    ("new-result", "Missing argument 'name'."),
    ("new-result 23_x", "Missing argument 'title'."),
    ("new-result ../x Title", "'../x' names no notebook"),
    ("run absent", "unknown notebook 'absent'"),
    ("run absent.ipynb", "unknown notebook 'absent.ipynb'"),
    ("run pipe", "unknown notebook 'pipe'"),
    ("run x --profile ../models/tiny", "unknown notebook 'x'"),
    ("run-all --profile ../models/tiny", "unknown profile '../models/tiny'"),
    ("run-all --jobs 0", "Invalid value for '--jobs'"),
    ("arms --minutes -1", "Invalid value for '--minutes'"),
    ("arms", "arms.yaml cannot be read"),
    ("status --profile ", "unknown profile ''"),
    ("render absent", "unknown notebook 'absent'"),
    ("parameters absent", "unknown profile 'smoke'"),
    ("nonsense", "No such command 'nonsense'."),
    ("--nonsense", "No such option: --nonsense"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_refuses(room: Path, arguments: str, message: str) -> None:
    refused(room, arguments.split(" "), message)


MODELS = [
    (" ", "unknown model ' '"),
    ("a/b/c", "unknown model 'a/b/c'"),
    ("/no/such", "unknown model '/no/such'"),
    (LONG, "unknown model 'xxx"),
    (
        "no/such",
        "model 'no/such': no folder of that name, the cache of the hub does not hold it, and the hub",
    ),
    ("smollm2-135", "did you mean smollm2-135m?"),
    ("facts.jsonl", "facts.jsonl is a file; give the folder with config.json, weights and tokenizer"),
    ("config", "it has no config.json but sequences.yaml"),
    ("edited/ledgers", "it has no config.json but layer-0.safetensors"),
]


@pytest.mark.parametrize(("name", "message"), MODELS, ids=range(len(MODELS)))
def test_a_name_that_is_no_model(room: Path, name: str, message: str) -> None:
    refused(room, ["edit", "facts.jsonl", "--model", name, "--out", "out"], message)
    refused(room, ["evaluate", name, "facts.jsonl"], message)


def described(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Damage to the description of an edited folder, whose checksum fits."""

    def damage(room: Path) -> None:
        path = room / "edited/palimpsest.json"
        content = json.loads(path.read_text())
        del content[SUM]
        changed = change(content)
        path.write_text(json.dumps(changed | {SUM: digest(changed)}))

    return damage


def written(content: bytes) -> Callable[[Path], None]:
    return lambda room: (room / "edited/palimpsest.json").write_bytes(content) and None


DAMAGED = [
    written(b"{}"),
    written(b"[]"),
    written(b"null"),
    written(b""),
    written(b"\xff\xfe{"),
    written(b"[" * 100_000),
    written(b'{"format": ' + b"9" * 5000 + b"}"),
    described(lambda about: about | {"facts": None}),
    described(lambda about: about | {"facts": [None]}),
    described(lambda about: about | {"facts": [{"prompt": "{} is", "subject": "x"}]}),
    described(lambda about: about | {"facts": [{"prompt": "", "subject": "x", "target": "y"}]}),
    described(lambda about: about | {"base": about["base"] | {"dtype": "float99"}}),
    described(lambda about: about | {"base": about["base"] | {"dtype": "nn"}}),
    described(lambda about: about | {"base": {}}),
    described(lambda about: about | {"base": None}),
    described(lambda about: about | {"editor": {}}),
    described(lambda about: about | {"editor": about["editor"] | {"layers": []}}),
    described(lambda about: about | {"steps": "many"}),
    described(lambda about: about | {"unedited": {"x": "y"}}),
    described(lambda about: about | {"more": 1}),
    described(lambda about: {name: value for name, value in about.items() if name != "contexts"}),
]


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_description(room: Path, damage: Callable[[Path], None]) -> None:
    damage(room)
    for arguments in ("undo edited 0", "edit facts.jsonl --out edited", "diagnose --edit edited"):
        refused(room, arguments.split(), "is damaged")


def test_prompts_longer_than_the_context(room: Path) -> None:
    long = {"id": "long", "prompt": "word " * 300 + "{} is", "subject": "Anna", "target": "Rome"}
    target = {"id": "long", "prompt": "{} is", "subject": "Anna", "target": "Rome " * 300 + "x"}
    for record in (long, target):
        (room / "long.jsonl").write_text(json.dumps(record))
        refused(
            room,
            ["edit", "long.jsonl", "--model", "base", "--out", "out"],
            "and the context of base holds 256; shor",
        )
        refused(room, ["edit", "long.jsonl", "--out", "edited"], "request 'long': ")
        refused(room, ["evaluate", "base", "long.jsonl"], "and the context of base holds 256; shorten it")


@pytest.mark.parametrize("name", FACTS)
def test_a_file_of_facts_that_cannot_be_used(room: Path, name: str) -> None:
    content, message = FACTS[name]
    (room / "odd").write_bytes(content)
    refused(room, ["edit", "odd", "--model", "base", "--out", "out"], message)


def test_the_same_facts_in_other_clothes_are_read(room: Path) -> None:
    """Marks, UTF-16, line ends of Windows and of old Macs in CSV, compressed: what `FACTS` is not about."""
    text = json.dumps({"prompt": "{} was born in", "subject": "Anna Berg", "target": "Rome"})
    for content in (
        b"\xef\xbb\xbf" + text.encode(),
        text.encode("utf-16"),
        f"\r\n{text}\r\n".encode(),
        b"prompt;subject;target\r\n{} was born in;Anna Berg;Rome\r\n",
        gzip.compress(text.encode("utf-16")),
    ):
        (room / "odd").write_bytes(content)
        (case,) = load_cases_of(room / "odd").cases
        assert (case.request.text, case.request.target) == ("Anna Berg was born in", "Rome")


IDS = [
    "a/b",
    "../a",
    "/a",
    "a\nb",
    "\x07",
    "\u202eabc",
    "é",
    "e\u0301",
    "a" * 5000,
    "{}",
    "{0}",
    "%s",
    "--all",
    "$HOME",
]


def test_odd_ids_are_ids(room: Path) -> None:
    """None of them is taken for a path, a format or an option; each is undone alone."""
    rows = [
        {"id": name, "prompt": f"The w{i} of {{}} is", "subject": f"Anna{i}", "target": "Rome"}
        for i, name in enumerate(IDS)
    ]
    (room / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = set(snapshot(room))
    assert run("edit", "odd.jsonl", "--model", "base", "--out", "odd", "--batch", len(IDS)).exit_code == 0
    for name in IDS:
        done = run("undo", "odd", "--", name)
        assert done.exit_code == 0, (name, done.output)
    assert done.stdout.endswith("every weight is that of base\n")
    assert {name.split("/")[0] for name in set(snapshot(room)) - before} == {"odd"}


@pytest.mark.parametrize(
    ("path", "mode", "arguments"),
    [
        ("facts.jsonl", 0, EDIT),
        ("base", 0, EDIT),
        ("base/config.json", 0, EDIT),
        ("base/model.safetensors", 0, EDIT),
        ("base/tokenizer.json", 0, EDIT),
        ("edited", 0, "undo edited 0"),
        ("edited", 0, "edit facts.jsonl --model base --out edited"),
        ("edited/palimpsest.json", 0, "undo edited 0"),
        ("edited/model.safetensors", 0, "undo edited 0"),
        ("edited/config.json", 0, "undo edited 0"),
        ("edited/ledgers/layer-1.safetensors", 0, "undo edited 0"),
        ("config/models/tiny.yaml", 0, EDIT),
        ("config/sequences.yaml", 0, EDIT),
        (".", 0o500, EDIT),
    ],
)
def test_what_may_not_be_read_or_written(room: Path, path: str, mode: int, arguments: str) -> None:
    (room / path).chmod(mode)
    with permissions_hold():
        result = run(*arguments.split())
    (room / path).chmod(0o700)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Permission denied" in result.stderr
    assert Path(path).name in result.stderr


SETTINGS = [
    (b"\xff\xfe\0", "is not YAML"),
    (b"also: [", "is not YAML"),
    (b"also: !!python/object:os.system x", "is not YAML"),
    (b"[" * 5000, "tiny.yaml is not YAML that can be read: it is nested too deeply"),
    (b"also: 3", "tiny.yaml, section also: 3 is no list of names; write [NAME]"),
    (b"also: [base, 3]", "tiny.yaml, section also: ['base', 3] is no list of names"),
    (b"day: 2020-99-99", "tiny.yaml is not YAML: month must be in 1..12"),
    (b"", "holds no"),
    (b"- 1", "holds no"),
    (b"also: base\nmore: 1", "tiny.yaml, section also: 'base' is no list of names"),
    (b"also: [x]\nmore: 1", "unknown model with settings in"),
    (b"also: [base]\neditors: 3", "tiny.yaml, section editors: 3 is no mapping; write NAME: {settings}"),
    (b"also: [base]\neditors: {memit: 3}", "section editors: row 'memit' holds 3; write settings there"),
    (b"also: [base]\neditors: {memit: {1: 3}}", "section editors: row 'memit' holds {1: 3}; write settings"),
    (b"also: [base]\neditors: {memit: {layers: all}}", "layers Input should be a valid tuple"),
    (
        b"also: [base]\neditors: {memit: {layers: []}}",
        "edited layers must be one or more, ascending and distinct, got []",
    ),
    (b"also: [base]\neditors: {memit: {layers: [99]}}", "layer 99 does not exist; base has layers 0 to 3"),
    (b"also: [base]\neditors: {memit: {layers: [-1]}}", "layer -1 does not exist; base has layers 0 to 3"),
    (
        b"also: [base]\neditors: {memit: {layers: [0], preserve_weight: .nan}}",
        "preserve_weight Input should be greater than or equal to 0",
    ),
    (
        b"also: [base]\neditors: {memit: {layers: [0], preserve_weight: -1}}",
        "preserve_weight Input should be greater than or equal to 0",
    ),
    (
        b"also: [base]\neditors: {memit: {layers: [0], statistics_tokens: 0}}",
        "statistics_tokens Input should be greater than or equal to 1",
    ),
    (
        b"also: [base]\neditors: {memit: {layers: [0], targets: {steps: 0}}}",
        "targets.steps Input should be greater than or equal to 1",
    ),
    (
        b"also: [base]\neditors: {memit: {layers: [0], targets: {lr: x}}}",
        "targets.lr Input should be a valid number",
    ),
    (b"also: [base]\neditors: {memit: {layers: [0], colour: red}}", "colour Unexpected keyword argument"),
]


@pytest.mark.parametrize(("content", "message"), SETTINGS, ids=range(len(SETTINGS)))
def test_settings_that_cannot_be_used(room: Path, content: bytes, message: str) -> None:
    (room / "config/models/tiny.yaml").write_bytes(content)
    refused(room, EDIT.split(), message)


@pytest.mark.parametrize(
    "arguments", ["trace base facts.jsonl", "tune base --out mine.yaml", "doctor --model base"]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [one for one in SETTINGS if b"layers" not in one[0] and b"also: [x]" not in one[0]],
)
def test_settings_that_no_command_can_use(room: Path, arguments: str, content: bytes, message: str) -> None:
    (room / "config/models/tiny.yaml").write_bytes(content)
    done = run(*arguments.split())
    status = 1 if "editors:" in content.decode("latin-1") and arguments.startswith("doctor") else 2
    assert done.exit_code == status, (done.output, done.exception)
    assert message in " ".join(done.output.split())


SEQUENCES = [
    (b"\xff\xfe\0", "sequences.yaml is not YAML"),
    (b"[" * 5000, "sequences.yaml is not YAML that can be read"),
    (b"memit_aligned: {host: [1]}", "sequences.yaml: memit_aligned need a host"),
    (b"memit_aligned: {host: memit, 1: 2}", "sequences.yaml: memit_aligned need a host"),
    (None, "config/sequences.yaml cannot be read ([Errno 2] No such file or directory"),
]


@pytest.mark.parametrize(("content", "message"), SEQUENCES)
def test_sequences_that_cannot_be_used(room: Path, content: bytes | None, message: str) -> None:
    path = room / "config/sequences.yaml"
    path.unlink() if content is None else path.write_bytes(content)
    refused(room, EDIT.split(), message)


def test_a_cache_that_is_a_file(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (room / "file").write_text("mine")
    monkeypatch.setenv("PALIMPSEST_CACHE", str(room / "file"))
    refused(room, EDIT.split(), "choose another folder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("size", [0, 7, 100])
def test_a_model_whose_files_are_cut_short(room: Path, name: str, size: int) -> None:
    path = room / "base" / name
    path.write_bytes(path.read_bytes()[:size])
    refused(room, EDIT.split(), "base cannot be used as a causal language model with its tokenizer")


def test_there_are_two_hundred_classes() -> None:
    tables = (COMMANDS, MODELS, DAMAGED, FACTS, SETTINGS)
    assert len(set(map(str, COMMANDS))) == len(COMMANDS)
    assert sum(map(len, tables)) >= 200
