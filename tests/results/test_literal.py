"""Texts that hold markup are shown as they are: checked on what the book's own parser makes of them."""

import ast
import html
import re

import nbformat
import pandas as pd
import pytest
from docutils.core import publish_parts
from hypothesis import example, given, settings
from hypothesis import strategies as st
from myst_parser.docutils_ import Parser
from nbformat.v4 import new_markdown_cell, new_notebook

import palimpsest
from palimpsest import paths
from palimpsest.book.assemble import banner, other_profiles, provenance_box, stub
from palimpsest.book.badges import claims_map, raw
from palimpsest.book.claim_details import detail
from palimpsest.book.profiles import load_profile
from palimpsest.book.verdicts import _row
from palimpsest.results.answers import answer
from palimpsest.results.claims import Claims, Paper, Verdict, load_claims
from palimpsest.results.prose import filled, plain
from palimpsest.results.records import Results
from palimpsest.results.tables import frame_table, table
from palimpsest.types import Shown

SPITEFUL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "*a* _b_ **c** __d__ ~~e~~ ^f^",
    "{ref}`claim-P01` {{ substitution }} {eval-rst}",
    "```{raw} html",
    ":::{note}",
    "[a](javascript:alert(1)) ![b](c.png) [d]: e",
    "$x_1$ and $$y$$ and \\alpha",
    "# heading",
    "(label)=",
    "% comment",
    "+++",
    "- item",
    "1. item",
    "---",
    "&lt;b&gt; &amp; &copy;",
    "a | b | c",
    "../../etc/passwd and C:\\temp\\new",
    "<https://example.org> <a@b.c>",
)
EXTENSIONS = ["dollarmath", "amsmath", "substitution", "colon_fence", "html_image", "attrs_inline"]


def rendered(text: str) -> str:
    """HTML of some MyST, as the book's parser makes it."""
    options = {
        "myst_enable_extensions": EXTENSIONS,
        "report_level": 1,
        "halt_level": 5,
        "warning_stream": False,
    }
    return str(publish_parts(text, parser=Parser(), writer_name="html5", settings_overrides=options)["body"])


def shown(markup: str) -> str:
    """What a reader sees of HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


@pytest.mark.parametrize("text", SPITEFUL)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    """In a paragraph, at its beginning and inside, and in a table."""
    for markup in (rendered(plain(text)), rendered(f"Before {plain(text)} after")):
        assert re.fullmatch(r"<p>[^<]*</p>\s*", markup)
    assert shown(rendered(plain(text))) == " ".join(text.split())
    cells = re.findall(r"<td>(.*?)</td>", rendered(table(["a", "b"], [[plain(text), "last"]])), re.DOTALL)
    assert [shown(cell) for cell in cells] == [" ".join(text.split()), "last"]
    assert "<" not in "".join(re.findall(r"<td><p>(.*?)</p></td>", "".join(cells)))


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1).filter(str.strip)
)
@example("1) a")
@example("\\")
def test_any_text_is_shown_as_it_is(text: str) -> None:
    line = " ".join(text.split())
    assert shown(rendered(plain(line))) == line
    assert re.fullmatch(r"<p>[^<]*</p>\s*", rendered(plain(line)))


@pytest.mark.parametrize("text", SPITEFUL)
def test_a_fact_in_a_table_of_a_page(text: str) -> None:
    frame = pd.DataFrame({"fact": [text], "value": [0.5]})
    made = rendered(frame_table(frame, {"fact": ("fact", ""), "value": ("p", ".1f")}))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", made, re.DOTALL)
    assert [shown(cell) for cell in cells] == [" ".join(text.split()), "0.5"]


@pytest.mark.parametrize("text", SPITEFUL)
def test_a_claim_and_what_was_found(text: str) -> None:
    claim = next(one for one in load_claims().claims if one.paper_ran and one.rule is not None)
    claim = claim.model_copy(
        update={"statement": text, "place": text, "paper_ran": text, "mathematics": text}
    )
    found = Verdict(claim.id, "reproduced", "laptop", text)
    page = detail(claim, [found])
    line = " ".join(text.split())
    blocks = [part for part in page.split("\n\n") if not part.startswith(("(claim", "```"))]
    body = shown(rendered("\n\n".join(blocks)))
    assert body.count(line) >= 3
    assert shown(_row(claim, "source", "reproduced")).count(line) >= 2
    assert "<script>" not in page + _row(claim, "source", "reproduced")


def test_boxes_of_a_page() -> None:
    setting = load_profile("smoke")
    for text in SPITEFUL:
        box = provenance_box({"parameters": {"data": text}, "facts": {"model": text}}, {}, setting)
        inner = box.split("\n\n", 1)[1].rsplit("\n````", 1)[0]
        assert shown(rendered(inner)).count(" ".join(text.split())) >= 2
        assert "<script>" not in rendered(inner)
    assert other_profiles("no such page", "smoke", {"values": {}}) == ""


ANY = st.one_of(
    st.sampled_from(SPITEFUL),
    st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1),
).map(lambda text: " ".join(text.split()) or "x")


def inside(block: str) -> str:
    """What stands in a directive of a page, title and text, as its reader sees it."""
    head, _, rest = block.strip().partition("\n")
    title = head.split("} ", 1)[1]
    body = [line for line in rest.splitlines() if not line.startswith((":", "```"))]
    return shown(rendered(title)) + " " + shown(rendered("\n".join(body)))


@settings(max_examples=60)
@given(text=ANY)
def test_the_boxes_above_a_page(text: str) -> None:
    """Profile, model and description come from a file of settings, and a reason from names of definitions."""
    setting = load_profile("smoke").model_copy(update={"name": text, "model": text, "description": text})
    note, warning = banner(setting, text).split("\n\n", 1)
    assert inside(note).count(text) >= 3
    assert f"older than the sources it came from ({text})" in inside(warning)
    assert text in inside(banner(setting, None, {"facts": {"model": {"name": f"none, {text}"}}}))
    page = stub("01_page", new_notebook(cells=[new_markdown_cell("# Title")]), setting)
    assert shown(rendered(page[page.index("There is") : page.index(" Run `make")])).count(text) >= 2


@settings(max_examples=60)
@given(text=ANY)
def test_names_of_other_profiles(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """They are names of folders."""
    if "/" in text or text in (".", "..") or len(text) > 100:
        return
    folder = tmp_path_factory.mktemp("root")
    for name in ("results", "config/profiles"):
        (folder / name).mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    (folder / "results" / text).mkdir()
    values = {"schema": 1, "values": {"gain": {"value": 1.0, "unit": "ratio"}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_ROOT", str(folder))
        patch.setattr("palimpsest.book.assemble.records.read", lambda path: values)
        (folder / "results" / text / "01_page.json").touch()
        box = other_profiles("01_page", "smoke", values)
    head, _, rest = box.strip().partition("\n\n")
    assert shown(rendered(head.partition("Also run in: ")[2].splitlines()[0])) == text
    assert text in shown(rendered(rest.rsplit("\n", 1)[0]))


@settings(max_examples=60)
@given(ANY)
def test_html_of_the_verdicts(text: str) -> None:
    """A statement in the map of claims, and whatever is put into a page as HTML: no fence ends early."""
    claim = load_claims().claims[0].model_copy(update={"statement": text, "paper": "one"})
    verdicts = {claim.id: [Verdict(claim.id, "reproduced", "laptop", "so")]}
    for title in (text, f"```\n{text}"):
        made = claims_map(Claims((Paper(id="one", title=title),), (claim,)), verdicts)
        fence = made.partition("{")[0]
        assert fence not in made[len(fence) :].strip().removesuffix(fence)
        assert text in html.unescape(made)
        assert "<script" not in made
    block = raw(f"<p>{html.escape(text)}</p>\n```\n<i>last</i>")
    assert rendered(block).strip().endswith("<i>last</i>")


@settings(max_examples=60)
@given(ANY)
def test_objects_in_jupyter(text: str) -> None:
    class Thing(Shown):
        def shown(self) -> dict[str, object]:
            return {text: text}

    made = Thing()._repr_html_()
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", made)
    assert [html.unescape(cell) for cell in cells] == [text, text]
    assert not any("<" in cell for cell in cells)
    assert f"{text} {text}" in repr(Thing())


@settings(max_examples=60)
@given(ANY)
def test_a_recorded_text_in_a_sentence(text: str) -> None:
    """Of the record or a parameter: neither a template nor markup; a word of the page's own is Markdown."""
    results = Results("01_page", profile="laptop", parameters={"subject": text})
    results.value("fact", text)
    for name in ("fact", "subject"):
        for template in (f"{{{name}}}", f"Said: {{{name}}}.", f"Said: {{{name}:value}}."):
            made = rendered(results.say(template))
            assert re.fullmatch(r"<p>[^<]*</p>\s*", made)
            assert shown(made) == re.sub(r"\{.*\}", lambda found: text, template)
    assert filled("Said: {fact}.", {}, {"fact": text}) == f"Said: {text}."


def test_a_recorded_text_of_several_lines_stays_in_its_sentence() -> None:
    text = "Paris.\n\n# A heading\n\n- an item"
    made = rendered(filled("It says “{said}”.", {"said": {"value": text}}))
    assert made.strip() == "<p>It says “Paris. # A heading - an item”.</p>"


def test_markup_in_a_word_is_meant() -> None:
    assert "<em>or</em>" in rendered(filled("This {how} that.", {}, {"how": "*or*"}))


@settings(max_examples=60)
@given(ANY)
def test_a_recorded_text_in_an_answer(text: str) -> None:
    """HTML, in which MathJax looks for formulas unless it is told not to."""
    results = Results("no_page", profile="smoke", parameters={"new": text})
    results.value("fact", text)
    made = answer(results, "Is it so?", "Said: {fact}, {new}; $x$ {how}.", how="$y$")
    said = re.findall(r'<p class="answer-said"[^>]*>(.*?)</p>', made._repr_html_(), re.DOTALL)[0]
    bare = re.sub(r'<span class="mathjax_ignore tex2jax_ignore">(.*?)</span>', r"\1", said)
    assert "<" not in bare
    assert html.unescape(bare) == f"Said: {text}, {text}; $x$ $y$."
    outside = re.sub(r"<span.*?</span>", "", said)
    assert outside.count("$") == 4
    assert "\\" not in outside
    assert f"Said: {text}, {text}; $x$ $y$." in repr(made)


def drawn(page: str, cell: str, results: Results) -> str:
    """What a cell of a page shows of a record, as Markdown."""
    notebook = nbformat.read(paths.root() / "notebooks" / f"{page}.ipynb", as_version=4)
    names = {name: getattr(palimpsest, name) for name in ("frame_table", "counted")}
    shell: dict[str, object] = {**names, "pd": pd, "results": results, **results.parameters}
    body = ast.parse(next(one.source for one in notebook.cells if one.id == cell)).body
    last = body.pop()
    assert isinstance(last, ast.Expr)
    exec(compile(ast.Module(body, []), cell, "exec"), shell)
    return str(eval(compile(ast.Expression(last.value), cell, "eval"), shell))


@pytest.mark.parametrize("text", SPITEFUL)
def test_what_the_model_says_on_the_first_two_pages(text: str) -> None:
    line = " ".join(text.split())
    results = Results("00_try_it", profile="laptop", parameters={})
    rows = [(prompt, moment, text) for prompt in (text, "other") for moment in ("before", "edited", "undone")]
    results.table("tried", pd.DataFrame(rows, columns=["prompt", "moment", "says"]))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", rendered(drawn("00_try_it", "said-table", results)), re.DOTALL)
    assert [shown(cell) for cell in cells] == [line, line, line, "other", line, line]
    results = Results("01_one_edit", profile="laptop", parameters={})
    for moment in ("before", "after", "undone"):
        results.value(f"said_{moment}", text)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", rendered(drawn("01_one_edit", "said", results)), re.DOTALL)
    assert [shown(cell) for cell in cells][1::2] == [line] * 3
    assert not any("<" in cell.removeprefix("<p>").removesuffix("</p>") for cell in cells)


@pytest.mark.parametrize(
    ("page", "cell"), [("11_building_alphaset", "sizes"), ("12_alphaset_tables", "sizes-said")]
)
@pytest.mark.parametrize("text", [text for text in SPITEFUL if not text.startswith("```")])
def test_the_name_of_a_file_of_facts(page: str, cell: str, text: str) -> None:
    numbers = ("base", "hard", "others", "batch", "seeds", "paraphrases", "neighbours", "plain", "third")
    for data in (text, ""):
        results = Results(page, profile="laptop", parameters=dict.fromkeys(numbers, 2) | {"data": data})
        made = shown(rendered(drawn(page, cell, results)))
        assert made.endswith(
            f" The facts come from {data}." if data else " are asked." if "12" in page else "most."
        )
