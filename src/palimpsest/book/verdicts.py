"""The verdicts page: every claim with its verdict, the reason and the recorded values; no number is typed."""

import html
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from palimpsest.book.badges import anchor, claims_map, labels_of, raw
from palimpsest.book.claim_details import detail
from palimpsest.book.profiles import known_notebooks, known_profiles
from palimpsest.book.seeds import spread
from palimpsest.book.standing import standing
from palimpsest.files import write_atomically
from palimpsest.results.claims import Claim, Claims, Paper, Verdict, headline, judged, load_claims
from palimpsest.results.labels import badge
from palimpsest.results.rules import LABELS
from palimpsest.results.tables import table

DISAGREE = ("wrong as printed", "biased", "opposite here")
"""Labels of claims that are listed again where the papers do not hold."""

Found = Mapping[str, Sequence[Verdict]]
"""Id of a claim -> one verdict for each profile, in the order of the profiles."""


def write_verdicts(results_root: Path, out_path: Path) -> None:
    """Generate the page at ``out_path``, and beside it the map and the labels that other pages include.

    Args:
        results_root: folder with one folder of records for each profile.
        out_path: the Markdown file to write; ``claims_map.txt`` and ``labels.txt`` go beside it.
    """
    claims = load_claims()
    found = judged(claims, results_root)
    older = _older(claims, found, results_root)
    seeds = {
        claim.id: spread(claim, headline(claim, found[claim.id]), results_root) for claim in claims.claims
    }
    write_atomically(out_path, _page(claims, found, older, seeds).encode())
    write_atomically(out_path.with_name("labels.txt"), _labels().encode())
    write_atomically(out_path.with_name("claims_map.txt"), claims_map(claims, found).encode())


def _page(claims: Claims, found: Found, older: Collection[str], seeds: Mapping[str, str]) -> str:
    parts = [
        "(verdicts)=\n# Verdicts",
        "Every claim that this project sets out to test, with the verdict that its rule computes from the "
        "recorded results. {doc}`../how_to_read` explains the labels and the rules, {doc}`audit` holds the "
        "checks of the printed numbers. Buttons choose verdicts; the head of a column sorts by it.",
        raw(_table(claims, found)),
        "## By source",
        _counts(claims, found),
        "(disagreements)=\n## Where a claim does not hold",
        _disagreements(claims, found),
    ]
    parts += [_paper(paper, claims.of(paper.id), found, older, seeds) for paper in claims.papers]
    return "\n\n".join(parts) + "\n"


def _table(claims: Claims, found: Found) -> str:
    """All claims as one HTML table, which a script can filter and sort."""
    titles = {paper.id: paper.title for paper in claims.papers}
    labels = labels_of(claims.claims, found)
    rows = "\n".join(_row(claim, titles[claim.paper], labels[claim.id]) for claim in claims.claims)
    head = "".join(f"<th>{name}</th>" for name in ("id", "claim", "source", "verdict", "page"))
    shown = html.escape(json.dumps([label for label in LABELS if label in labels.values()]))
    return (
        f'<div class="claims-scroll"><table class="claims" data-labels="{shown}">'
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(claim: Claim, title: str, label: str) -> str:
    page = f'<a href="../_pages/{claim.notebook}.html">{claim.notebook[:2]}</a>' if claim.notebook else ""
    statement, place = html.escape(" ".join(claim.statement.split())), html.escape(claim.place)
    return (
        f'<tr data-label="{html.escape(label)}"><td><a href="#{anchor(claim.id)}">{claim.id}</a></td>'
        f"<td>{statement}</td><td>{html.escape(title)}, {place}</td>"
        f'<td data-key="{list(LABELS).index(label):02d}">{badge(label)}</td><td>{page}</td></tr>'
    )


def _counts(claims: Claims, found: Found) -> str:
    """A row for each source, a column for each label that occurs."""
    labels = labels_of(claims.claims, found)
    shown = [label for label in LABELS if label in labels.values()]
    rows = []
    for title, group in [*((p.title, claims.of(p.id)) for p in claims.papers), ("all", claims.claims)]:
        counts = Counter(labels[claim.id] for claim in group)
        rows.append([title, *(str(counts[label] or "") for label in shown), str(len(group))])
    return table(["source", *shown, "claims"], rows)


def _labels() -> str:
    """All labels with their meaning."""
    return table(["verdict", "meaning"], [[badge(label), told] for label, told in LABELS.items()]) + "\n"


def _paper(
    paper: Paper,
    claims: Sequence[Claim],
    found: Found,
    older: Collection[str],
    seeds: Mapping[str, str],
) -> str:
    source = f"Source: {{cite:t}}`{paper.cite}`.\n\n" if paper.cite else ""
    sections = (detail(claim, found[claim.id], claim.id in older, seeds[claim.id]) for claim in claims)
    return f"## {paper.title}\n\n{source}" + "\n\n".join(sections)


def _older(claims: Claims, found: Found, results_root: Path) -> set[str]:
    """Ids of claims that are decided by a record which is older than its sources."""
    deciding = {
        claim.id: (claim.notebook, headline(claim, found[claim.id]).profile)
        for claim in claims.claims
        if claim.notebook and claim.rule
    }
    known = [
        run for run in set(deciding.values()) if run[1] in known_profiles() and run[0] in known_notebooks()
    ]
    stale = {run for run in known if standing(*run, folder=results_root / run[1]).kind == "stale"}
    return {name for name, run in deciding.items() if run in stale}


def _disagreements(claims: Claims, found: Found) -> str:
    lines, labels = [], labels_of(claims.claims, found)
    for claim in claims.claims:
        if (label := labels[claim.id]) in DISAGREE:
            said = " ".join((claim.mathematics or claim.statement).split())
            lead = "" if claim.mathematics else "Claimed: "
            lines.append(f"- {{ref}}`{claim.id} <claim-{claim.id}>` {badge(label)} {lead}{said}")
    return "\n".join(lines) or "No result recorded so far disagrees with a printed claim."
