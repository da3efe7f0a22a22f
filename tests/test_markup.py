"""A table prints what its cells hold, in each language, and its columns stand where they belong."""

import re
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tsflora.analysis.tables.markup import html_table, is_numeric, latex_table, markdown_table, printed
from tsflora.analysis.tables.writers import write_table

LABELS = [
    "_mine",
    "a|b",
    "50 % & more",
    "<b>",
    "*s*",
    "`c`",
    "a_b",
    "_x_",
    "[t](u)",
    "$5 & $6",
    "a\\",
    "&amp;",
    "~~no~~",
]
TEXT = st.one_of(
    st.sampled_from(LABELS),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8),
    st.text("_*`|\\[]()<>&$~#-+!:;a1 ", max_size=8).map(lambda text: " ".join(text.split())),
)


def cells_of(html):
    """Header and rows of a table, in text."""
    rows = ElementTree.fromstring(html).iter("tr")
    return [["".join(cell.itertext()).strip() for cell in row] for row in rows]


def of_markdown(text):
    """What a reader of GitHub's Markdown sees, where formulas stand between dollars."""
    html = MarkdownIt("commonmark", {"xhtmlOut": True}).enable(["table", "strikethrough"]).render(text)
    return cells_of(re.sub(r"(<a [^>]*>|<img [^>]*>|</?(em|strong|code|s|br)\b[^>]*>)", "<!MARKUP>", html))


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1, max_size=3), heading=TEXT.filter(bool))
def test_any_label_prints_as_it_is_in_markdown_and_html(rows, heading):
    table = printed(pd.DataFrame(rows, columns=[heading, "b"]))
    assert cells_of(html_table(table)) == [[heading, "b"], *rows]
    assert of_markdown(markdown_table(table)) == [[heading, "b"], *rows]


def test_dollars_make_no_formula_on_github():
    assert r"| \$5 & \$6 |" in markdown_table(pd.DataFrame({"a": ["$5 & $6"]}))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("_mine", r"\_mine"),
        ("a|b", r"a\textbar{}b"),
        ("50 % & more", r"50 \% \& more"),
        ("<b>", r"\textless{}b\textgreater{}"),
        ("[6pt]", "{}[6pt]"),  # at the start of a row: how far the row is from the one before
        ("*", "{}*"),
        (r"\x{y}", r"\textbackslash{}x\{y\}"),
        ("a--b", "a-{}-b"),
        ("$1 #2 ~^", r"\$1 \#2 \textasciitilde{}\textasciicircum{}"),
        ("5 ± 1 × −2 –", r"5 $\pm$ 1 $\times$ $-$2 \textendash{}"),
    ],
)
def test_any_label_prints_as_it_is_in_latex(label, expected):
    lines = latex_table(printed(pd.DataFrame({label: [label], "b": ["1"]}))).split("\n")
    assert lines[2] == f"{expected} & b \\\\"
    assert lines[4] == f"{expected} & 1 \\\\"


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1,024", "−0.5", "+3", "41 %", "6.8×", ".5"], True),
        (["5.23", "–", ""], True),
        (["5.23", "19.1", "infeasible (66.2)"], True),
        (["5.23", "infeasible (66.2)", "infeasible (137)"], False),
        (["–", "– (0/3)"], False),
        (["infeasible"], False),
        ([], False),
        (["93.8 ± 4.0 (3)", "2 of 3 diverged"], False),
        (["8-bit", "4-bit"], False),
    ],
)
def test_a_column_of_numbers_is_one_in_every_language(cells, numeric):
    assert is_numeric(cells) == numeric
    table = printed(pd.DataFrame({"a": ["x"] * len(cells), "n": cells}))
    assert markdown_table(table).split("\n")[1].endswith("-:|" if numeric else "-|")
    assert "{lr}" in latex_table(table) if numeric else "{ll}" in latex_table(table)
    classes = {cell.get("class") for cell in ElementTree.fromstring(html_table(table)).iter("td")}
    assert classes <= ({"number"} if numeric else {None})


def test_a_row_can_be_read_alone():
    """On a phone: its names, then every value with the heading of its column, group and all."""
    columns = pd.MultiIndex.from_tuples([("", "Method"), ("", "Partition"), ("Up", "all"), ("Up", "labels"), ("", "")])
    table = pd.DataFrame([["8-bit", "IID", "1", "–", "words " * 9]], columns=columns)
    root = ElementTree.fromstring(html_table(printed(table)))
    groups, _, row = root.iter("tr")
    assert [(cell.get("colspan"), cell.text) for cell in groups] == [("2", None), ("2", "Up"), ("1", None)]
    assert [cell.tag for cell in row] == ["th", "th", "td", "td", "td"]
    assert [cell.get("data-label") for cell in row if cell.tag == "td"] == ["Up, all", "Up, labels", ""]
    assert [cell.get("class") for cell in row if cell.tag == "td"] == ["number", None, "prose"]
    assert row[0][0].tag == "span", "no break at the hyphen"


def test_four_files_from_one_frame(tmp_path):
    table = pd.DataFrame({"Method": ["a", "b"], "Share": [1 / 3, float("nan")], "Bytes": [2**40, 1]})
    csv, markdown, latex, html = write_table(table, tmp_path / "t_0.5", table)
    assert [path.name for path in (csv, markdown, latex, html)] == [
        f"t_0.5{end}" for end in (".csv", ".md", ".tex", ".html")
    ]
    assert csv.read_text() == "Method,Share,Bytes\na,0.333333,1099511627776\nb,,1\n"
    assert cells_of(html.read_text())[1:] == [["a", "0.333333", "1099511627776"], ["b", "–", "1"]]
    assert of_markdown(markdown.read_text())[2] == ["b", "–", "1"]
    assert r"b & \textendash{} & 1 \\" in latex.read_text()
