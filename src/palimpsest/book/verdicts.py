"""The verdicts page: every claim with its verdict, the reason and the recorded values; no number is typed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from palimpsest.files import write_atomically
from palimpsest.results import records
from palimpsest.results.claims import (
    PUBLISHED,
    Claim,
    Claims,
    Paper,
    Verdict,
    load_claims,
    load_records,
    profiles_with_results,
    verdict,
)
from palimpsest.results.printed_audit import agreement, load_audit
from palimpsest.results.rules import (
    LABELS,
)
from palimpsest.results.tables import table

KINDS = {"T": "theorem or formula", "N": "published numbers", "Q": "trend"}

DISAGREE = ("wrong as printed", "contradicted")

Found = dict[str, list[Verdict]]
"""Id of a claim -> one verdict for each profile, in the order of the profiles."""


def write_verdicts(results_root: Path, out_path: Path, profiles: Sequence[str] | None = None) -> None:
    """Generate the page at ``out_path`` and ``verdict_summary.txt`` beside it.

    Args:
        results_root: folder with one folder of records for each profile.
        out_path: the Markdown file to write.
        profiles: one column each; by default every profile with results.
    """
    chosen = list(profiles or profiles_with_results(results_root))
    claims, found = load_claims(), {}
    results = {profile: load_records(results_root, profile) for profile in chosen}
    for claim in claims.claims:
        found[claim.id] = [verdict(claim, results[profile], profile) for profile in chosen]
    page, summary = _page(claims, found, chosen), _summary(claims, found, chosen)
    write_atomically(out_path, page.encode())
    write_atomically(out_path.with_name("verdict_summary.txt"), summary.encode())


def _page(claims: Claims, found: Found, profiles: Sequence[str]) -> str:
    parts = [
        "(verdicts)=\n# Verdicts",
        "Every claim the project sets out to test, with the verdict that its rule computes from the "
        "recorded results. Nothing on this page is written by hand. {doc}`../how_to_read` explains "
        "the labels and the rules; {doc}`audit` holds the checks of the printed numbers.",
        "## How many",
        _counts(claims, found, profiles),
    ]
    parts += [_paper(paper, claims.of(paper.id), found, profiles) for paper in claims.papers]
    parts.append(_disagreements(claims, found))
    return "\n\n".join(parts) + "\n"


def _counts(claims: Claims, found: Found, profiles: Sequence[str]) -> str:
    """One table for each profile: a row for each paper, a column for each label."""
    parts = []
    for position, profile in enumerate(profiles):
        groups = [(paper.title, claims.of(paper.id)) for paper in claims.papers]
        rows = []
        for title, group in [*groups, ("all", claims.claims)]:
            counts = Counter(found[claim.id][position].label for claim in group)
            rows.append([title, *(str(counts[label] or "") for label in LABELS), str(len(group))])
        parts.append(f"Profile `{profile}`:\n\n" + table(["source", *LABELS, "claims"], rows))
    return "\n\n".join(parts)


def _summary(claims: Claims, found: Found, profiles: Sequence[str]) -> str:
    """Short table for the introduction: number of claims with each label under the first profile."""
    counts = Counter(verdicts[0].label for verdicts in found.values())
    rows = [[label, str(counts[label]), LABELS[label]] for label in LABELS if counts[label]]
    head = ["verdict", "claims", "meaning"]
    return (
        f"Of {len(claims.claims)} claims, under the profile `{profiles[0]}` "
        f"({{ref}}`all of them <verdicts>`):\n\n{table(head, rows)}\n"
    )


def _paper(paper: Paper, claims: Sequence[Claim], found: Found, profiles: Sequence[str]) -> str:
    rows = []
    for claim in claims:
        verdicts = [_label(claim, item) for item in found[claim.id]]
        row = [f"{{ref}}`{claim.id} <claim-{claim.id}>`", claim.place, claim.statement]
        rows.append([*row, *verdicts, _reason(found[claim.id]), _notebook(claim)])
    head = ["id", "place", "claim", *(f"`{name}`" for name in profiles), "found", "page"]
    source = f"Source: {{cite:t}}`{paper.cite}`.\n\n" if paper.cite else ""
    details = "\n\n".join(_detail(claim, found[claim.id]) for claim in claims)
    return (
        f"## {paper.title}\n\n{source}{table(head, rows)}\n\n"
        f"### Behind each verdict: {paper.title}\n\n{details}"
    )


def _label(claim: Claim, item: Verdict) -> str:
    if item.label in DISAGREE:
        return f"{{ref}}`{item.label} <disagreement-{claim.id}>`"
    return item.label


def _reason(verdicts: Sequence[Verdict]) -> str:
    """Reason of the verdict under the first profile that has one."""
    return next((item.reason for item in verdicts if item.label != "not run"), "")


def _values(verdicts: Sequence[Verdict]) -> str:
    """Recorded values of the first profile that has any, as text."""
    shown = next((item.values for item in verdicts if item.values), {})
    return "; ".join(f"`{name}` {records.readable(entry)}" for name, entry in shown.items())


def _notebook(claim: Claim) -> str:
    if claim.notebook is None:
        return "{doc}`audit <audit>`" if claim.rule is not None else ""
    return f"{{doc}}`{claim.notebook[:2]} <../_pages/{claim.notebook}>`"


def _detail(claim: Claim, verdicts: Sequence[Verdict]) -> str:
    """Paragraph on one claim, with the label by which other pages refer to it."""
    told = [f"**{claim.id}** ({KINDS[claim.kind]}; {claim.place})."]
    for item in verdicts[:1] if verdicts[0].profile == PUBLISHED else verdicts:
        told.append(f"*{item.label}* ({item.profile}): {item.reason}.")
    if _values(verdicts):
        told.append(f"Values: {_values(verdicts)}.")
    if claim.mathematics:
        told.append(f"On paper: {claim.mathematics}")
    if claim.audit is not None:
        told.append(_checks(claim))
    return f"(claim-{claim.id})=\n" + " ".join(" ".join(told).split())


def _checks(claim: Claim) -> str:
    assert claim.audit is not None
    rows = claim.audit.pick(load_audit())
    agree, total = agreement(rows)
    if not total:
        return f"Printed numbers: none of {len(rows)} can be checked, they exist only in a figure."
    return f"Printed numbers: {agree} of {total} {{doc}}`checks <audit>` agree."


def _disagreements(claims: Claims, found: Found) -> str:
    parts = ["(disagreements)=\n## Where the print does not hold"]
    for claim in claims.claims:
        clashes = [item for item in found[claim.id] if item.label in DISAGREE]
        if clashes:
            parts.append(_disagreement(claim, clashes))
    if len(parts) == 1:
        parts.append("No result recorded so far disagrees with a printed claim.")
    return "\n\n".join(parts)


def _disagreement(claim: Claim, clashes: Sequence[Verdict]) -> str:
    seen = clashes[:1] if clashes[0].profile == PUBLISHED else clashes
    lines = [
        f"(disagreement-{claim.id})=\n### {claim.id}: {claim.place}",
        f"Claim: {' '.join(claim.statement.split())}",
        *(f"Found ({item.profile}): *{item.label}*; {item.reason}." for item in seen),
    ]
    if _values(seen):
        lines.append(f"Values: {_values(seen)}.")
    if claim.mathematics:
        lines.append(f"What holds: {' '.join(claim.mathematics.split())}")
    page = _notebook(claim)
    if page:
        lines.append(f"Shown in {page}.")
    return "\n\n".join(lines)
