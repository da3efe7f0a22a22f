"""One page from what a study produced: nothing from outside, nothing that runs, nothing missing in silence."""

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from conftest import small_config
from factories import LABELS, make_provenance, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from test_pipeline import script
from test_study import study_values
from typer.testing import CliRunner

from tsflora.analysis import page as page_room
from tsflora.analysis.figures.style import save_figure
from tsflora.analysis.page.page import Runs, build_page, provenance_facts
from tsflora.analysis.page.sections import Item, Manifest, embed_figure, read_sections
from tsflora.analysis.tables.writers import write_table
from tsflora.cli.report import report
from tsflora.errors import ConfigError, DataError
from tsflora.planned import ExperimentConfig
from tsflora.records import RunRecord
from tsflora.terminal import one_line_errors

VOID = {"meta", "link", "img", "br"}
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"


def planned(method: str, seed: int) -> ExperimentConfig:
    """A run of a plan, which `ran` is the record of."""
    return small_config({"algorithm": "sflora", "label": LABELS[method]}, method_key=method, seed=seed)


def ran(method: str = "sflora", seed: int = 0, **fields: Any) -> RunRecord:
    """The record of a planned run."""
    return make_record(method, seed=seed, config=planned(method, seed).dump(), **fields)


class Document(HTMLParser):
    """A page's tags, ids, addresses and text; an error where tags do not close in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str | None] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.images: list[Any] = []
        self.attributes, self.style = set(), ""
        self.feed(html.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute twice in {tag}"
        self.attributes |= values.keys()
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] or "" for name in ("href", "src", "srcset", "action", "data") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "style":
            self.style += text
        else:
            self.text.append(text)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def png(path, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path, **options)
    return path


def describe(folder, *items, title=""):
    Manifest(title=title, items=items).write(folder)


def make_report(folder):
    """Three sections: two described, one found; tables and figures narrow and wide, as notebooks write them."""
    numbers = pd.DataFrame({"Method": ["SFLora", "A | B (8-bit)"], "Accuracy": ["93.8 ± 4.0 (3)", "–"]})
    write_table(numbers, folder / "table_3" / "accuracy", pd.DataFrame({"mean": [0.938]}))
    figure = Figure(figsize=(7.0, 3.0))
    figure.subplots(1, 2)[0].plot([1, 2, 3], [50, 80, 90], color="#D55E00", linewidth=6)
    save_figure(figure, folder / "table_3" / "curves")
    describe(
        folder / "table_3",
        Item(stem="curves", title="Accuracy by round", caption="Mean over seeds."),
        Item(stem="accuracy", title="Final accuracy"),
        title="What the methods reach",
    )
    columns = {f"{way}link, {kind}_with_a_long_name (MiB)": ["0.3906"] for way in ("Up", "Down") for kind in "abcdefg"}
    write_table(pd.DataFrame(columns), folder / "costs" / "traffic")
    describe(folder / "costs", Item(stem="traffic", title="Traffic of one device", caption="A caption. " * 30))
    png(folder / "fig_10" / "scatter_0.5.png", (300, 200), dpi=(300, 300))
    (folder / "fig_10" / "scatter_0.5.csv").write_text("x,y\n12345.678,2\n")
    return folder


@pytest.fixture(scope="session")
def finished_report(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("finished") / "report")


@pytest.fixture
def folder(tmp_path, finished_report):
    return shutil.copytree(finished_report, tmp_path / "report")


def test_the_page_is_valid_and_its_anchors_lead_somewhere(folder):
    records = [ran(seed=seed) for seed in (0, 1)]
    page = build_page(folder, "digits", Runs([planned("sflora", 0), planned("sflora", 1)], records), {"Cut": "2"})
    document = Document(page.html)
    assert page.html.startswith(b"<!DOCTYPE html>\n<html lang")
    assert [document.tags.count(tag) for tag in ("title", "h1", "header", "nav", "main")] == [1] * 5
    assert document.tags.count("figure") == document.tags.count("figcaption") == page.n_items == 4
    assert document.tags.count("section") == 3 + 3
    assert len(set(document.ids)) == len(document.ids)
    links = [address[1:] for address in document.addresses if address.startswith("#")]
    assert len(links) >= 8
    assert set(links) <= set(document.ids)
    assert [image["alt"] for image in document.images] == ["Accuracy by round", "Scatter 0.5"]
    assert page.notices == ()
    for text in ("What the methods reach", "Mean over seeds.", "A | B"):
        assert text in document.words


def test_a_page_needs_nothing_but_itself(folder):
    document = Document(build_page(folder, "digits").html)
    assert all(re.match(r"(#|data:(image/webp;|text/csv;|,))", address) for address in document.addresses)
    assert document.tags.count("style") == 1
    assert not {"script", "iframe", "object", "embed", "form"} & set(document.tags)
    assert not re.search(r"@import|url\(|https?:|//", document.style)
    assert not [name for name in document.attributes if name.startswith("on") or name == "style"]


def test_a_page_forbids_itself_scripts_and_every_other_style(folder):
    html = build_page(folder, "digits").html
    (policy,) = re.findall(rb'Content-Security-Policy" content="([^"]*)"', html)
    digest = base64.b64encode(hashlib.sha256(Document(html).style.encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in policy.decode().split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert "script-src" not in rules


def test_raw_numbers_travel_with_the_page(folder):
    html = build_page(folder, "digits").html.decode()
    ((name, content),) = re.findall(
        r'download="(accuracy[^"]*)" href="data:text/csv;charset=utf-8;base64,([^"]*)"', html
    )
    assert name == "accuracy.csv"
    assert base64.b64decode(content) == (folder / "table_3" / "accuracy.csv").read_bytes()


def test_the_numbers_of_a_figure_travel_along_and_are_not_printed(folder):
    document = Document(build_page(folder, "digits").html)
    assert document.tags.count("table") == 2
    assert "12345.678" not in document.words
    content = base64.b64encode((folder / "fig_10" / "scatter_0.5.csv").read_bytes()).decode()
    assert f"data:text/csv;charset=utf-8;base64,{content}" in document.addresses


def test_same_input_same_bytes(tmp_path):
    first = build_page(make_report(tmp_path / "a" / "report"), "digits")
    again = build_page(make_report(tmp_path / "elsewhere"), "digits")
    assert first.html == again.html


def test_sections_stand_in_the_order_asked_for_then_tables_figures_and_others(folder):
    def titles(order):
        return [section.name for section in read_sections(folder, order, 100)[0]]

    assert titles(()) == ["table_3", "fig_10", "costs"]
    assert titles(["costs"]) == ["costs", "table_3", "fig_10"]


def test_what_is_missing_is_marked_and_named(folder):
    (folder / "table_3" / "curves.png").unlink()
    (folder / "table_3" / "curves.csv").unlink(missing_ok=True)
    describe(folder / "costs", Item(stem="traffic", title="Traffic"), Item(stem="energy", title="Energy of one device"))
    page = build_page(folder, "digits", order=["theory"])
    document = Document(page.html)
    assert "Missing: nothing was written to theory ." in document.words
    assert "costs/energy is missing: no .png or .html or .csv" in document.words
    assert "Not shown: Theory" in document.words
    assert document.words.count("Energy of one device") == 3  # contents, banner and place
    assert page.n_items == 3
    energy, theory, curves = sorted(page.notices)
    assert energy == "costs/energy is missing: no .png or .html or .csv"
    assert theory.startswith("section theory is missing")
    assert curves == "table_3/curves is missing: no .png or .html or .csv beside curves.pdf"


WHOLE = "<table><tbody><tr><td>1</td></tr></tbody></table>"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe", "not a whole table"),
        (b"", "not a whole table"),
        (WHOLE[:-12].encode(), "not a whole table"),
        (f"{WHOLE}<p>more</p>".encode(), "not a whole table"),
        (WHOLE.replace("1", "<script>1</script>").encode(), "more than a table"),
        (WHOLE.replace("<td>", '<td onclick="x()">').encode(), "more than a table"),
        (b"<span>a</span>", "more than a table"),
    ],
)
def test_a_damaged_table_is_left_out_and_named(folder, content, reason):
    (folder / "costs" / "traffic.html").write_bytes(content)
    page = build_page(folder, "digits")
    (notice,) = page.notices
    assert re.fullmatch(rf"costs/traffic\.html is not shown: it .*{reason}.*", notice)
    document = Document(page.html)
    assert "Not shown: Traffic of one device" in document.words
    assert not {"script", "p onclick"} & set(document.tags)
    assert page.n_items == 4, "its numbers are there"


def test_a_damaged_figure_is_left_out_and_named(folder):
    (folder / "table_3" / "curves.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (notice,) = build_page(folder, "digits").notices
    assert re.fullmatch(r"table_3/curves\.png is not shown: it is not a PNG that can be read \(.*\)", notice)


def test_other_files_are_named_and_left_out(folder):
    (folder / "notes.xyz").write_text("secret words")
    (folder / ".hidden.html").write_text("<table>secret</table>")
    page = build_page(folder, "digits")
    assert page.notices == ("notes.xyz is not shown: a page takes .png, .html, .csv and items.json",)
    assert b"secret" not in page.html


def test_a_section_is_looked_for_below_the_folder_only(folder, tmp_path):
    write_table(pd.DataFrame({"word": ["swordfish"]}), tmp_path / "other" / "more")
    page = build_page(folder, "digits", order=["../other", str(tmp_path / "other")])
    assert b"swordfish" not in page.html
    assert len(page.notices) == 2


@pytest.mark.parametrize("stem", ["../secret", "/etc/passwd", "a/b", "..", "", "a\\b"])
def test_a_manifest_names_stems_not_paths(folder, stem):
    (folder / "costs" / "items.json").write_text(json.dumps({"items": [{"stem": stem, "title": "x"}]}))
    with pytest.raises(DataError, match=r"costs/items.json.items.0.stem: .*pattern") as caught:
        build_page(folder, "digits")
    assert "\n" not in str(caught.value)


def test_a_wrong_key_in_a_manifest_is_one_line(folder):
    (folder / "costs" / "items.json").write_text('{"items": [{"stem": "a", "title": "b", "captoin": "c"}]}')
    with pytest.raises(DataError, match=r"items\.0\.captoin: Extra inputs are not permitted"):
        build_page(folder, "digits")
    (folder / "costs" / "items.json").write_text('{"items": [')
    with pytest.raises(DataError, match="Invalid JSON"):
        build_page(folder, "digits")


def test_what_a_notebook_shows_again_keeps_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(page_room.output, "_display", print)
    show = page_room.Output(tmp_path, "Results")
    frame = pd.DataFrame({"a": [1]})
    for stem, title in (("b", "first"), ("a", "second"), ("b", "third")):
        show.table(stem, frame, frame, title=title, caption="Words.")
    ((section,), notices) = read_sections(tmp_path, (), 100)
    assert (section.title, notices) == ("Results", [])
    assert [(entry.item.stem, entry.item.title) for entry in section.entries] == [("b", "third"), ("a", "second")]
    assert all(entry.table and entry.numbers and entry.item.caption == "Words." for entry in section.entries)
    page_room.Output(None, "Results").table("c", frame, frame, title="", caption="")


@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1))
def test_a_value_is_text_wherever_it_stands(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("report")

    def page(value):
        write_table(pd.DataFrame({value: [value]}), folder / "t")
        describe(folder, Item(stem="t", title=value, caption=value), title=value)
        runs = Runs([planned("sflora", 0)], [ran(status="failed", error=value)])
        return Document(build_page(folder, value, runs, {value: value}).html)

    hostile = page(HOSTILE + text)
    # A span keeps a word with a hyphen on one line, and is ours.
    assert [tag for tag in hostile.tags if tag != "span"] == [tag for tag in page("plain").tags if tag != "span"]
    assert " ".join(text.split()) in hostile.words


def test_a_figure_keeps_every_pixel_and_its_size(tmp_path):
    path = png(tmp_path / "a.png", (60, 40), "RGB", dpi=(300, 300))
    picture = embed_figure(path, 100)
    image = Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1])))
    assert (image.format, image.size) == ("WEBP", (60, 40))
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(Image.open(path)))
    assert picture["width"] == round(60 / 300 * 96 * 1.35)
    assert picture["height"] == round(40 / 300 * 96 * 1.35)


def test_a_figure_is_made_narrower_and_stands_on_white(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (400, 100), (0, 0, 0, 0)).save(path)
    image = Image.open(io.BytesIO(base64.b64decode(embed_figure(path, 200)["src"].split(",")[1])))
    assert image.size == (200, 50)
    assert image.convert("RGB").getpixel((100, 25)) == (255, 255, 255)
    assert embed_figure(path, 200)["width"] == embed_figure(path, 4000)["width"]
    with pytest.raises(ConfigError, match="max_width_px: 1 or more; given: 0"):
        build_page(tmp_path, "x", max_width_px=0)


def test_the_page_says_how_many_runs_are_in_and_which_are_not():
    cells = [planned(method, seed) for method in ("sflora", "sflora_8bit") for seed in (0, 1)]
    records = [ran(seed=0), ran(seed=1), ran("sflora_8bit", status="failed", error="NaN here")]
    page = build_page(Path("no-such-folder"), "digits", Runs(cells, records))
    words = Document(page.html).words
    assert "Incomplete. 2 of 4 planned runs are in" in words
    assert "SFLora (8-bit) 0 of 2 everything" in words
    assert "NaN here" in words
    assert "No tables or figures are in yet." in words
    whole = Document(build_page(Path("no-such-folder"), "digits", Runs(cells[:2], records[:2])).html).words
    assert "All 2 planned runs are in." in whole
    assert "Incomplete" not in whole
    assert "Incomplete" in Document(build_page(Path("no-such-folder"), "x", Runs(cells, [])).html).words
    assert "runs" not in Document(build_page(Path("no-such-folder"), "x").html).words


def test_provenance_that_differs_says_how_often():
    dirty = make_provenance().model_copy(update={"git_commit": "ab" * 20 + "-dirty", "versions": {"torch": "2.12"}})
    records = [make_record(seed=0), make_record(seed=1), make_record(seed=2, provenance=dirty)]
    facts = provenance_facts(records)
    assert facts["Git commit"] == "unknown (2 runs); abababababab with uncommitted changes (1 run)"
    assert facts["torch version"] == "2.13.0 (2 runs); 2.12 (1 run)"


def test_no_clock_and_no_host_stands_on_the_page():
    record = ran()
    again = record.model_copy(
        update={
            "seconds": 77777.0,
            "started_at": "2031-01-01T00:00:00",
            "peak_memory_mib": 55555.0,
            "provenance": record.provenance.model_copy(update={"host": {"cores": "96"}}),
        }
    )
    pages = [
        build_page(Path("no-such-folder"), "digits", Runs([planned("sflora", 0)], [run])).html
        for run in (record, again)
    ]
    assert pages[0] == pages[1]
    assert b"torch version" in pages[0]


def test_the_stage_writes_the_page_and_names_what_is_missing(tmp_path, folder):
    (tmp_path / "params.yaml").write_text(json.dumps(study_values(seeds=[0])))
    (tmp_path / "records.jsonl").write_text(make_record().model_dump_json() + "\n")
    (folder / "notes.xyz").touch()
    outcome = script(
        "report.py", folder, "--output", tmp_path / "new" / "report.html", "--params", tmp_path / "params.yaml",
        "--records", tmp_path / "records.jsonl", "--section", "table_3", "--section", "theory",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    document = Document((tmp_path / "new" / "report.html").read_bytes())
    assert document.words.index("What the methods reach") < document.words.index("Traffic of one device")
    assert "Batch size" in document.words
    assert "4 tables and figures, 0." in outcome.stdout
    notes, theory = (line for line in outcome.stderr.splitlines() if "not shown" in line or "missing" in line)
    assert "notes.xyz is not shown" in notes
    assert "section theory is missing" in theory


def in_process(*arguments):
    """The stage without a new interpreter, which takes seconds to start."""
    app = typer.Typer()
    app.command()(one_line_errors()(report))
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_damaged_manifest_ends_the_stage_with_one_line(tmp_path, folder):
    (tmp_path / "params.yaml").write_text(json.dumps(study_values(seeds=[0])))
    (folder / "items.json").write_text("[]")
    where = ["--output", tmp_path / "r.html", "--params", tmp_path / "params.yaml"]
    outcome = in_process(folder, *where)
    assert outcome.exit_code == 1
    assert re.fullmatch(r"error: .*items.json.*\n", outcome.stderr)
    assert not (tmp_path / "r.html").exists()
    missing = in_process(tmp_path / "nothing", *where)
    assert missing.exit_code == 1
    assert re.fullmatch(r"error: .*nothing is no folder; name the one that .*\n", missing.stderr)
    (tmp_path / "empty").mkdir()
    assert in_process(tmp_path / "empty", *where).exit_code == 0
    assert "No tables or figures are in yet." in Document((tmp_path / "r.html").read_bytes()).words


def test_help_says_what_goes_in():
    outcome = in_process("--help")
    assert outcome.exit_code == 0
    for word in ("FOLDER", "--output", "--records", "--params", "--section", "items.json"):
        assert word in outcome.stdout
