"""Files of facts that cannot be used, by name, each with a part of the message that it gets."""

import gzip
import json
from typing import Any

GOOD: dict[str, Any] = {"id": "a", "prompt": "{} was born in", "subject": "Anna Berg", "target": "Rome"}


def line(**change: Any) -> bytes:
    """One fact, with some fields changed; those that are None are left out."""
    record = {name: value for name, value in (GOOD | change).items() if value is not None}
    return json.dumps(record).encode()


def two(**change: Any) -> bytes:
    """The good fact, and beside it one with some fields changed."""
    return line() + b"\n" + line(**({"id": "b", "subject": "Carl Dahl"} | change))


def zipped(text: bytes) -> bytes:
    """As gzip writes it, without the time, so that the same text gives the same bytes."""
    return gzip.compress(text, mtime=0)


DEEP = 10_000
LONG = "x" * 100_000

FACTS: dict[str, tuple[bytes, str]] = {
    # What a file is written in
    "empty": (b"", "holds no fact; write one JSON object"),
    "blank": (b"\n \n\t\n", "holds no fact"),
    "mark alone": (b"\xef\xbb\xbf", "holds no fact"),
    "empty list": (b"[]", "holds no fact"),
    "empty list under a name": (b'{"facts": []}', "holds no fact"),
    "number": (b"3", "must be a JSON object, not int"),
    "null": (b"null", "a record must be a JSON object, not NoneType"),
    "true": (b"true", "a record must be a JSON object, not bool"),
    "text": (b'"prompt"', "a record must be a JSON object, not str"),
    "words": (b"The capital of France is Rome", "not valid JSON (Expecting value at column 1)"),
    "list of numbers": (b"[1, 2]", "2 malformed records: line 1: a record must be"),
    "list of lists": (b"[[]]", "must be a JSON object, not list"),
    "not closed": (line()[:-1], "not valid JSON (Expecting ',' delimiter"),
    "list not closed": (b"[" + line(), "not valid JSON (Expecting ',' delimiter on line 1)"),
    "list with a comma": (b"[" + line() + b",]", "not valid JSON ("),
    "two lists": (b"[]\n[]", "not valid JSON (Extra data on line 2)"),
    "single quotes": (line().replace(b'"', b"'"), "enclosed in double quotes"),
    "comment": (b"// facts\n" + line(), "not valid JSON (Expecting value at column 1)"),
    "deep": (b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}", "brackets are nested too deeply"),
    "deep list": (b"[" * DEEP, "brackets are nested too deeply"),
    "deep object": (b'{"a": ' * DEEP, "brackets are nested too deeply"),
    "huge number": (line()[:-1] + b', "id": ' + b"9" * 5000 + b"}", "value has 5000 digits"),
    "Latin-1": ("Zürich".encode("latin-1"), "not UTF-8 text"),
    "NUL": (b"\0" * 20, "not valid JSON"),
    "NUL inside": (line() + b"\0", "not valid JSON (Extra data at column 82)"),
    "UTF-16 without a mark": (line().decode().encode("utf-16-le"), "not valid JSON"),
    "UTF-16 cut": (b"\xff\xfe" + line().decode().encode("utf-16-le")[:-1], "not UTF-8 text"),
    "UTF-32": (line().decode().encode("utf-32"), "not valid JSON"),
    "gzip cut": (zipped(line())[:-10], "damaged gzip file"),
    "gzip flipped": (zipped(line())[:12] + b"\xff" * 8 + zipped(line())[20:], "damaged gzip"),
    "gzip head alone": (b"\x1f\x8b", "damaged gzip file"),
    "gzip of nothing": (zipped(b""), "holds no fact"),
    "gzip twice": (zipped(zipped(line())), "not UTF-8 text"),
    "zip": (b"PK\x03\x04" + b"\0" * 30, "not valid JSON"),
    "pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0", "not UTF-8 text"),
    "CSV head alone": (b"prompt,subject,target\n", "holds no fact"),
    "CSV cells more": (b"prompt,subject,target\n{} is,Anna,Rome,more\n", "more than the 3 columns"),
    "CSV cells fewer": (b"prompt,subject,target\n{} is,Anna\n", "field 'target' is missing"),
    "CSV quote": (b'prompt,subject,target\n"{} is,Anna,Rome\n', "field 'subject' is missing"),
    "CSV cell too long": (
        b"prompt,subject,target\n" + b"x" * 200_000 + b",a,b\n",
        "not valid CSV (field larger than",
    ),
    "CSV without a head": (b"{} is,Anna,Rome\n", "not valid JSON"),
    "YAML": (b"- prompt: '{} is'\n  subject: Anna\n", "2 malformed records"),
    # Fields
    "no prompt": (line(prompt=None), "a record of no known format"),
    "no subject": (line(subject=None), "field 'subject' is missing"),
    "no target": (line(target=None), "field 'target' is missing"),
    "other fields": (b'{"a": 1, "b": 2}', "it has 'a', 'b'"),
    "no fields": (b"{}", "it has no fields"),
    "prompt a number": (line(prompt=3), "field 'prompt' must be a text, not 3"),
    "prompt a list": (line(prompt=["{} is"]), "field 'prompt' must be a text"),
    "subject an object": (line(subject={}), "field 'subject' must be a text"),
    "target true": (line(target=True), "field 'target' must be a text, not True"),
    "target NaN": (line().replace(b'"Rome"', b"NaN"), "field 'target' must be a text, not nan"),
    "target infinite": (line().replace(b'"Rome"', b"1e999"), "field 'target' must be a text, not inf"),
    "target empty": (line(target=""), "field 'target' must be a text"),
    "target spaces": (line(target=" \t"), "field 'target' must be a text"),
    "target of width nothing": (line(target="\u200b"), "target is empty or only spaces"),
    "target a joiner": (line(target="\u2060"), "target is empty or only spaces"),
    "subject empty": (line(subject=""), "field 'subject' must be a text"),
    "no slot and no subject": (line(prompt="The capital is"), "occurs 0 times in prompt"),
    "slot twice": (line(prompt="{} and {} are"), "must occur exactly once"),
    "subject twice": (line(prompt="Anna Berg met Anna Berg in"), "occurs 2 times"),
    "slot and subject": (line(prompt="{} Anna Berg is"), "must occur exactly once"),
    "slot with a name": (line(prompt="{subject} was born in"), "occurs 0 times"),
    "slot with a space": (line(prompt="{ } was born in"), "occurs 0 times"),
    "half a brace": (line(prompt="{ was born in"), "occurs 0 times"),
    "id null": (line()[:-1] + b', "id": null}', "field 'id' must be a text or a whole number, not None"),
    "id true": (line(id=True), "field 'id' must be a text or a whole number, not True"),
    "id a fraction": (line(id=1.5), "field 'id' must be a text or a whole number, not 1.5"),
    "id NaN": (line().replace(b'"a"', b"NaN"), "field 'id' must be a text or a whole number, not nan"),
    "id a list": (line(id=["a"]), "field 'id' must be a text or a whole number"),
    "id twice": (two(id="a"), "case id 'a' was already used on line 1"),
    "id twice as number": (line(id=1) + b"\n" + line(id="1", subject="Carl"), "case id '1' was already used"),
    "prompt twice": (two(subject="Anna Berg"), "is asked a second time"),
    "half a surrogate": (line(target="\ud800"), "holds half of a surrogate pair"),
    "half a surrogate in an id": (line(id="\udcff"), "holds half of a surrogate pair"),
    "space a word": (line(space="maybe"), "field 'space' must be true or false, not 'maybe'"),
    "space a list": (line(space=[]), "field 'space' must be true or false"),
    "paraphrases a number": (line(paraphrases=3), "field 'paraphrases' must be a text or a list of texts"),
    "paraphrases of numbers": (line(paraphrases=[3]), "field 'paraphrases' must be"),
    "target and true alike": (line(target_true="Rome"), "are the same, 'Rome'"),
    "CounterFact without rewrite": (b'{"requested_rewrite": 3}', "is missing"),
    "CounterFact cut": (b'{"requested_rewrite": {"prompt": "{} is", "subject": "A"}}', "is missing"),
    "neighbours apart": (
        b'{"prompt": "{} is", "subject": "Anna", "target_new": "x", "locality_prompt": ["a"],'
        b' "locality_ground_truth": ["b", "c"]}',
        "has 1 prompts and 2 answers",
    ),
    "neighbours of numbers": (
        b'{"prompt": "{} is", "subject": "Anna", "target_new": "x", "locality_prompt": [1],'
        b' "locality_ground_truth": ["b"]}',
        "must be a list of texts",
    ),
    "neighbours a number": (
        b'{"prompt": "{} is", "subject": "Anna", "target_new": "x", "locality_prompt": 1,'
        b' "locality_ground_truth": 2}',
        "field 'locality_prompt' must be a text or a list of texts, not 1",
    ),
    "neighbours with a number": (
        b'{"prompt": "{} is", "subject": "Anna", "target_new": "x", "locality_prompt": ["a"],'
        b' "locality_ground_truth": 3}',
        "field 'locality_prompt' must be a text or a list of texts",
    ),
    # Sizes
    "prompt long": (line(prompt=f"{LONG} {{}} is"), "and the context of base holds 256"),
    "target long": (line(target=LONG), "and the context of base holds 256"),
    "subject long": (line(subject=LONG), "and the context of base holds 256"),
}
