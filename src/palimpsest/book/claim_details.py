"""Sections of the verdicts page: what is claimed, what was found, in which regime, and what holds."""

import html
from collections.abc import Sequence

from palimpsest.book.badges import anchor, raw
from palimpsest.results.claims import PUBLISHED, Claim, Verdict, headline
from palimpsest.results.labels import badge
from palimpsest.results.printed_audit import agreement, load_audit
from palimpsest.results.prose import plain, readable
from palimpsest.results.reservations import AS_PUBLISHED
from palimpsest.results.rules import OWN_DATA, Entry
from palimpsest.results.tables import table

KINDS = {"T": "theorem or formula", "N": "published numbers", "Q": "trend"}


def detail(claim: Claim, verdicts: Sequence[Verdict], older: bool = False, seeds: str = "") -> str:
    """Section on one claim, with the label by which other pages refer to it.

    Args:
        claim: the claim.
        verdicts: one for each profile.
        older: whether the record that decides is older than its sources.
        seeds: table of the values over several seeds, where there are some.
    """
    chosen = headline(claim, verdicts)
    others = [item for item in verdicts if item.label != "not run" and item.profile != chosen.profile]
    kind = KINDS[claim.kind]
    head = f"{claim.id} {badge(chosen.label)} {html.escape(' '.join(claim.statement.split()))}"
    blocks = [
        f"(claim-{claim.id})=\n"
        + raw(f'<details class="claim" id="{anchor(claim.id)}"><summary>{head}</summary>'),
        f"{_line(claim.place)}; {kind}{_page(claim)}. {_found(chosen)}",
        _parts(chosen),
        f"The record of the profile {plain(chosen.profile)} is older than its sources." if older else "",
        " ".join(_found(item) for item in others if item.profile != PUBLISHED),
        _ran(claim),
        _values(claim, chosen),
        seeds,
        f"On paper: {_line(claim.mathematics)}" if claim.mathematics else "",
        _checks(claim),
        " ".join(f"Changed on {change.on}, after its run: {_line(change.why)}." for change in claim.changed),
        raw("</details>"),
    ]
    return "\n\n".join(block for block in blocks if block)


def _line(text: str) -> str:
    """A text in one line, as it is whatever markup it seems to hold."""
    return plain(" ".join(text.split()))


def _page(claim: Claim) -> str:
    if claim.notebook is None:
        return ", {doc}`audit <audit>`" if claim.rule is not None else ""
    return f", page {{doc}}`{claim.notebook[:2]} <../_pages/{claim.notebook}>`"


def _found(item: Verdict) -> str:
    """The verdict of one profile as a sentence; the parts of a statement follow in a table."""
    where = "" if item.profile == PUBLISHED else f" (profile {plain(item.profile)})"
    reason = item.reason
    if item.parts:
        reason = reason.partition("; so far: ")[0] if "; so far: " in reason else "each part is judged alone"
    return f"*{item.label[0].upper()}{item.label[1:]}*{where}: {_line(reason)}."


def _parts(item: Verdict) -> str:
    rows = [[plain(name), _badge(found.label), plain(found.reason)] for name, found in item.parts]
    return table(["part", "verdict", "found"], rows) if rows else ""


def _ran(claim: Claim) -> str:
    return f"In the paper: {_line(claim.paper_ran.strip().rstrip('.'))}." if claim.paper_ran else ""


def _values(claim: Claim, item: Verdict) -> str:
    """Recorded values, beside those that the table of parts holds already."""
    told = set(claim.rule.names()) if item.parts and claim.rule is not None else set()
    shown = [f"`{name}` {_shown(entry)}" for name, entry in item.values.items() if name not in told]
    return f"Recorded: {'; '.join(shown)}." if shown else ""


def _shown(entry: Entry) -> str:
    """A value with its interval, and over how many cases or runs that is."""
    over = f" over {entry['n']} {entry.get('over') or 'problems'}" if entry.get("n") else ""
    return f"{plain(readable(entry))}{plain(over)}"


def _checks(claim: Claim) -> str:
    if claim.audit is None:
        return ""
    agree, total = agreement(rows := claim.audit.pick(load_audit()))
    if not total:
        return f"Printed numbers: none of {len(rows)} can be checked, they exist only in a figure."
    return f"Printed numbers: {agree} of {total} {{doc}}`checks <audit>` agree."


def _badge(label: str) -> str:
    """Of a part; what is as large as published on other data has the colours of such data."""
    return badge(OWN_DATA, label) if label == AS_PUBLISHED else badge(label)
