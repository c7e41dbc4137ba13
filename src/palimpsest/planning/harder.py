"""Work of page 25, which asks harder questions in four forms."""

from palimpsest.planning.work import Parameters, Run, Work, together

QUESTION = 24
"""Tokens of a question, behind its worked examples."""

CRITERIA_FILLED, LOOKED_THROUGH = 5, 33
"""Ripple cases that are edited, and conditions that are asked to find them, for each case that a criterion is
to have; as with the embedded model, where some cases serve several criteria and one criterion has fewer."""

ROWS = 32
"""Texts that are sampled side by side: ``batch_size`` of `palimpsest.network.sampling.sample`."""


def harder(p: Parameters) -> Work:
    """Every editor writes four sets of cases; each system answers questions and writes texts."""
    names = [*p["editors"], *p["sequences"]]
    sizes = (p["hops"], CRITERIA_FILLED * p["ripples"], p["knowedits"], p["longs"])
    runs = tuple(Run(name, n, n) for name in names for n in sizes)
    said, texts = 6 * sizes[0] + 2 * sizes[1], sizes[2] + (1 + p["related"]) * sizes[3]
    looked_through = LOOKED_THROUGH * p["ripples"]
    conditions = min(p["candidates"], looked_through) if p["candidates"] else looked_through
    systems = 1 + len(names)
    drawn = {p["answer_tokens"]: systems * said + conditions, p["text_tokens"]: systems * texts}
    alone = {*names} - {"memit", "alphaedit", "rect_naive"} - {"serac"}  # three share values, one has none
    return Work(
        together((1 + len(alone)) * sum(sizes)),
        runs=runs,
        asked=systems * (said // 2 + 2 * sizes[2]),
        drawn=sum(tokens * -(-count // ROWS) for tokens, count in drawn.items()),
        sampled=sum((tokens + QUESTION) * count for tokens, count in drawn.items()),
    )
