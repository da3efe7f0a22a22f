import json
import logging
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from drawn import bars, xs
from factories import LABELS, make_record
from hypothesis import given, settings
from hypothesis import strategies as st

from tsflora.analysis import figures, paper, runs, tables
from tsflora.analysis.paper import VALUES
from tsflora.analysis.runs.naming import in_order, significant_digits
from tsflora.errors import ConfigError, DataError, StorageError
from tsflora.records import RunRecord

FIGURES = [figures.accuracy_by_round, figures.accuracy_by_bytes, figures.bytes_per_round, figures.final_accuracy]


def study(methods=tuple(LABELS), partitions=("iid", "dirichlet_0.5"), seeds=(0, 1), rounds=3):
    silent: dict[str, Any] = {"uplink_bytes": {}, "downlink_bytes": {}}
    return [
        make_record(
            method,
            accuracies=[0.1 * number + 0.01 * seed for number in range(1, rounds + 1)],
            seed=seed,
            partition=partition,
            **(silent if method == "local_lora" else {}),
        )
        for method in methods
        for partition in partitions
        for seed in seeds
    ]


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    plt.close("all")


# records in


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="no run records"):
            runs.load_records(folder)


def test_failed_runs_are_kept_apart_and_logged(tmp_path, caplog):
    make_record(seed=1).write(tmp_path / "deep" / "er" / "a.json")
    make_record(seed=0, status="failed", error="NumericsError: round 2", accuracies=[]).write(tmp_path / "b.json")
    with caplog.at_level(logging.WARNING):
        records = runs.load_records(tmp_path)
    assert [run.seed for run in records.complete] == [1]
    assert [run.error for run in records.failed] == ["NumericsError: round 2"]
    assert "NumericsError: round 2" in caplog.text


def test_a_damaged_file_is_never_skipped(tmp_path):
    make_record().write(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json"):
        runs.load_records(tmp_path)


def test_jsonl_returns_what_was_written_in_report_order(tmp_path):
    records = [*study(), make_record("sflora", seed=7, status="failed", error="x")]
    runs.write_jsonl(records, tmp_path / "runs.jsonl")
    runs.write_jsonl(records[::-1], tmp_path / "again.jsonl")
    assert (tmp_path / "runs.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    back = runs.read_jsonl(tmp_path / "runs.jsonl")
    assert back.complete == in_order(study())
    assert [run.seed for run in back.failed] == [7]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("{", "line 2: not a run record: Invalid JSON"), ("", "line 2"), ('{"seed": 1}', "line 2.*required")],
)
def test_a_damaged_line_is_named_and_not_printed_whole(tmp_path, line, expected):
    good = json.dumps(make_record().model_dump(mode="json"))
    (tmp_path / "runs.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=expected) as caught:
        runs.read_jsonl(tmp_path / "runs.jsonl")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_missing_or_empty_jsonl_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        runs.read_jsonl(tmp_path / "none.jsonl")
    runs.write_jsonl([], tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="holds no run records"):
        runs.read_jsonl(tmp_path / "empty.jsonl")


# frames


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([make_record(status="failed", error="boom")], "failed.*boom"),
        ([make_record(accuracies=[])], "no rounds"),
        ([make_record(participants=())], "no rounds with participants"),
        ([make_record(accuracies=[0.5, None])], "not evaluated"),
        ([make_record(), make_record()], "two records"),
        ([make_record(), make_record(seed=1, accuracies=[0.1, 0.2])], "rounds per seed differ"),
    ],
)
def test_what_cannot_be_reported_is_refused(records, expected):
    with pytest.raises(DataError, match=expected):
        runs.runs_frame(records)


def test_one_run_is_summed_by_hand():
    record = make_record(
        "sflora_8bit",
        accuracies=[0.3, 0.25],
        uplink_bytes={"activations": 3 * 2**20, "labels": 64, "headers": 960},
        downlink_bytes={"gradients": 2**21, "adapters": 2**20},
        participants=(4, 7, 9),
    )
    row = runs.runs_frame([record]).iloc[0]
    assert (row["accuracy"], row["rounds"], row["device_rounds"]) == (0.25, 2, 6)
    assert (row["uplink_bytes"], row["downlink_bytes"]) == (2 * (3 * 2**20 + 1024), 6 * 2**20)
    assert row["total_bytes"] == row["uplink_bytes"] + row["downlink_bytes"]
    assert (row["uplink_labels_bytes"], row["downlink_labels_bytes"]) == (128, 0)
    assert row["total_bytes_per_round"] == row["total_bytes"] / 2
    assert row["uplink_mib_per_device_round"] == 1 + 1 / 3 / 1024
    assert row["downlink_mib_per_device_round"] == 1

    rounds = runs.rounds_frame([record])
    assert rounds["cumulative_mib"].tolist() == [6 + 1 / 1024, 12 + 2 / 1024]
    assert rounds["accuracy"].tolist() == [0.3, 0.25]

    parts = runs.bytes_frame([record]).set_index(["direction", "kind"])
    assert parts.loc[("uplink", "activations"), "mib_per_device_round"] == 1
    assert parts.loc[("uplink", "headers"), "bytes_per_round"] == 960
    assert parts.loc[("downlink", "adapters"), "bytes_per_round"] == 2**20
    assert parts["mib_per_device_round"].sum() == pytest.approx(row["total_mib_per_device_round"], rel=1e-12)


def test_a_round_without_evaluation_is_not_a_zero():
    rounds = runs.rounds_frame([make_record(accuracies=[None, 0.4])])
    assert np.isnan(rounds["accuracy"].iloc[0])


def test_rows_do_not_depend_on_the_order_of_records():
    records = study()
    for frame in (runs.runs_frame, runs.rounds_frame, runs.bytes_frame):
        pd.testing.assert_frame_equal(frame(records), frame(records[::-1]))


# tables


def test_accuracy_cells_by_hand():
    # Mean 60, s = 10 points, t_{0.975, 2} = 4.30265: half-width 4.30265 * 10 / sqrt(3) = 24.84.
    records = [make_record("sflora", seed=seed, accuracies=[value]) for seed, value in enumerate((0.5, 0.6, 0.7))]
    records += [make_record("fed_lora", seed=0, accuracies=[0.4251])]
    records += [make_record("sflora", seed=seed, accuracies=[0.25], partition="dirichlet_0.5") for seed in (0, 1)]
    table = tables.accuracy_table(records)
    assert table.columns.tolist() == [("digits", "IID"), ("digits", "Dirichlet(0.5)")]
    assert table.index.tolist() == ["FedLoRA", "SFLora"]
    assert table.to_numpy().tolist() == [["42.5 (1)", "–"], ["60.0 ± 24.8 (3)", "25.0 ± 0.0 (2)"]]
    planned = tables.accuracy_table(records, planned_seeds=3)
    assert planned.to_numpy().tolist() == [["42.5 (1/3)", "–"], ["60.0 ± 24.8 (3)", "25.0 ± 0.0 (2/3)"]]


def test_no_mean_and_no_interval_stands_over_runs_that_diverged():
    good = [make_record("sflora", seed=seed, accuracies=[0.9]) for seed in (0, 1, 2)]
    bad = [lost(make_record("fed_lora", seed=seed, accuracies=[0.1]), 9.0) for seed in (0, 1)]
    records = [*good, *bad, make_record("fed_lora", seed=2, accuracies=[0.88])]
    assert [run.diverged for run in records] == [False] * 3 + [True] * 2 + [False]
    assert tables.accuracy_table(records).to_numpy().tolist() == [["2 of 3 diverged"], ["90.0 ± 0.0 (3)"]]
    means = runs.accuracy_means(records).set_index("method")
    assert means.loc["fed_lora", ["mean", "low", "high"]].isna().all()
    assert means["diverged"].to_dict() == {"fed_lora": 2, "sflora": 0}
    assert tables.difference_table(records).to_numpy().tolist() == [["2 of 3 pairs diverged"]]
    assert runs.accuracy_differences(records)["difference"].isna().all()
    assert not lost(make_record(accuracies=[0.1]), 2.3).diverged, "a guess costs ln 10 = 2.303"


def lost(record, loss):
    last = record.history[-1].model_copy(update={"train_loss": loss})
    return record.model_copy(update={"history": (*record.history[:-1], last)})


def test_methods_stand_in_the_order_of_the_paper_then_by_name():
    records = [make_record(method) for method in ("zeta", *reversed(runs.METHODS), "alpha")]
    assert tables.accuracy_table(records).index.tolist() == [*LABELS.values(), "alpha", "zeta"]
    assert runs.runs_frame(records)["method"].tolist() == [*runs.METHODS, "alpha", "zeta"]
    assert tables.traffic_table(records)["", "Method"].tolist() == [*LABELS.values(), "alpha", "zeta"]


def test_data_sets_stand_apart():
    records = [make_record(dataset="b", partition="shards_2"), make_record(dataset="a"), make_record(dataset="b")]
    columns = tables.accuracy_table(records).columns.tolist()
    assert columns == [("a", "IID"), ("b", "IID"), ("b", "shards_2")]


def test_a_difference_that_may_be_zero_is_never_shown_as_a_win():
    base = [make_record("sflora", seed=seed, accuracies=[value]) for seed, value in enumerate((0.5, 0.6, 0.7))]
    steady = [make_record("fed_lora", seed=seed, accuracies=[v]) for seed, v in enumerate((0.511, 0.61, 0.709))]
    unsteady = [make_record("split_lora", seed=seed, accuracies=[v]) for seed, v in enumerate((0.49, 0.63, 0.79))]
    alone = [make_record("sflora_8bit", seed=2, accuracies=[0.9]), make_record("sflora_4bit", seed=9)]
    records = base + steady + unsteady + alone
    table = tables.difference_table(records)["digits", "IID"]
    # Differences 1.1, 1.0, 0.9 have s = 0.1: 4.30265 * 0.1 / sqrt(3) = 0.25; -1, 3, 9 have s = 5.033: 12.50.
    assert table.to_dict() == {
        "FedLoRA": "+1.0 [+0.8, +1.2] (3)",
        "SplitLoRA": "+3.7 [−8.8, +16.2] (3) n.s.",
        "SFLora (8-bit)": "+20.0 (1) untested",
    }
    long = runs.accuracy_differences(records).set_index("method")
    assert long["significant"].to_dict() == {"fed_lora": True, "split_lora": False, "sflora_8bit": False}
    assert set(long["reference"]) == {"sflora"}


def test_a_reference_that_was_not_run_is_named():
    with pytest.raises(DataError, match="sflora_8bit"):
        runs.accuracy_differences([make_record("sflora_8bit")], reference="sflora_9bit")


def test_differences_where_no_seed_is_shared_are_an_empty_table(tmp_path):
    records = [make_record("sflora", seed=0), make_record("fed_lora", seed=1)]
    long, table = runs.accuracy_differences(records), tables.difference_table(records)
    assert long.empty
    assert table.empty
    assert tables.write_table(table, tmp_path / "none", long)[0].read_text().startswith("dataset,partition,method")


def test_traffic_by_hand():
    records = [
        make_record("local_lora", uplink_bytes={}, downlink_bytes={}),
        make_record("sflora", uplink_bytes={"activations": 2**23, "labels": 2048, "headers": 0}),
        make_record("sflora_8bit", uplink_bytes={"activations": 2**21, "labels": 2048, "headers": 1024}),
        make_record("sflora_8bit", seed=5, uplink_bytes={"activations": 2**30}),
    ]
    table = tables.traffic_table(records[:3])
    assert table["Uplink", "activations (MiB)"].tolist() == ["0", "4.000", "1.000"]
    assert table["Uplink", "labels (bytes)"].tolist() == ["0", "1,024", "1,024"]
    assert table["Uplink", "headers (bytes)"].tolist() == ["0", "0", "512"]
    assert table["Downlink", "gradients (MiB)"].tolist() == ["0", "1.000", "1.000"]
    assert table["Total", "up + down (MiB)"].tolist() == ["0", "5.001", "2.001"]
    assert ("Downlink", "activations (MiB)") not in table.columns
    assert table["Reduction vs SFLora", "uplink activations"].tolist() == ["–", "1.00×", "4.00×"]
    assert table["Reduction vs SFLora", "total"].tolist() == ["–", "1.00×", "2.50×"]
    # A seed that the reference lacks changes the mean traffic and not the ratio.
    means = runs.traffic_means(records).set_index("method")
    assert means.loc["sflora_8bit", "uplink_activations_ratio"] == 4
    assert means.loc["sflora_8bit", "uplink_activations_mib"] == (1 + 512) / 2


def test_traffic_without_the_reference_has_no_ratio():
    table = tables.traffic_table([make_record("fed_lora")])
    assert table["Reduction vs sflora", "total"].tolist() == ["–"]


@settings(deadline=None)
@given(st.floats(1e-4, 1e9))
def test_amounts_keep_their_digits(amount):
    text = significant_digits(amount, 4)
    assert "e" not in text
    assert not text.endswith(".")
    assert float(text) == pytest.approx(amount, rel=5.1e-4)


# files


def test_the_files_of_a_table(tmp_path):
    records = [make_record("a_b", label="A&B_50% | #1", seed=seed, accuracies=[0.5 + seed / 10]) for seed in (0, 1)]
    stem = tmp_path / "new" / "accuracy_dirichlet_0.5"
    paths = tables.write_table(tables.accuracy_table(records), stem, raw=runs.accuracy_means(records))
    assert [path.name for path in paths] == [f"accuracy_dirichlet_0.5.{end}" for end in ("csv", "md", "tex", "html")]
    csv, markdown, latex, html = paths
    assert pd.read_csv(csv)["mean"].tolist() == [0.55]
    assert r"| A&B_50% \| #1 | 55.0 ± 63.5 (2) |" in " ".join(markdown.read_text().split())
    text = latex.read_text()
    assert r"A\&B\_50\% \textbar{} \#1 & 55.0 $\pm$ 63.5 (2) \\" in text
    assert r"\toprule" in text
    assert text.isascii()
    assert '<th scope="row">A&amp;B_50% | #1</th>' in html.read_text()


def test_latex_has_only_signs_that_every_engine_knows(tmp_path):
    records = [make_record("sflora", seed=seed, accuracies=[0.5 + seed / 10]) for seed in (0, 1)]
    records += [make_record("fed_lora", seed=seed, accuracies=[0.5]) for seed in (0, 1)]
    records += [make_record("split_lora", partition="shards_2")]
    for name, table in {
        "difference": tables.difference_table(records),
        "traffic": tables.traffic_table(records),
        "accuracy": tables.accuracy_table(records),
    }.items():
        assert tables.write_table(table, tmp_path / name)[2].read_text().isascii()
    assert "$-$5.0" in (tmp_path / "difference.tex").read_text()


def test_a_table_without_raw_numbers_is_its_own_csv(tmp_path):
    csv = tables.write_table(tables.accuracy_table([make_record()]), tmp_path / "table")[0]
    assert csv.read_text() == 'Method,"digits, IID"\nSFLora,50.0 (1)\n'


def test_committed_files_hold_no_clock_or_host_and_repeat_to_the_byte(tmp_path):
    records = study()
    later = [
        run.model_copy(
            update={
                "seconds": 77777.0,
                "started_at": "2031-01-01",
                "peak_memory_mib": 55555.0,
                "provenance": run.provenance.model_copy(update={"host": {"cores": "96"}}),
            }
        )
        for run in reversed(records)
    ]
    for name, done in {"a": records, "b": later}.items():
        tables.write_table(tables.accuracy_table(done), tmp_path / name / "acc", runs.accuracy_means(done))
        tables.write_table(tables.difference_table(done), tmp_path / name / "dif", runs.accuracy_differences(done))
        tables.write_table(tables.traffic_table(done), tmp_path / name / "tra", runs.traffic_means(done))
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 12
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_summary_has_every_method_and_no_accuracy_where_runs_diverged():
    records = [make_record(accuracies=[0.5 + seed / 100], seed=seed) for seed in range(3)]
    others = [lost(make_record("lost", seed=seed), 5.0) for seed in range(2)]
    found = runs.summary([*records, *others])["digits"]["iid"]
    assert found["sflora"] == {
        "accuracy_percent": 51.0,
        "uplink_mib": 1.00098,
        "total_mib": found["sflora"]["total_mib"],
        "seeds": 3,
    }
    assert "accuracy_percent" not in found["lost"]
    assert found["lost"]["seeds"] == 2


# style and figures


def test_eight_methods_have_eight_looks():
    styles = [figures.style_of(method, LABELS[method]) for method in runs.METHODS]
    for field in ("label", "colour", "marker"):
        assert len({getattr(style, field) for style in styles}) == 8


def test_an_unknown_method_looks_the_same_everywhere_and_unlike_the_eight():
    style = figures.style_of("my_topk", "Mine")
    # Written down: a change would recolour every figure that users have made.
    assert style == figures.MethodStyle("Mine", "#DDCC77", "d", "-")
    known = [figures.style_of(method, "") for method in runs.METHODS]
    for number in range(50):
        other = figures.style_of(f"method_{number}", "")
        assert other.colour not in {one.colour for one in known}
        assert other.marker not in {one.marker for one in known}
    assert len({figures.style_of(f"method_{number}", "") for number in range(50)}) > 40


def test_methods_that_are_drawn_together_share_no_colour_while_there_are_any():
    labels = {method: method for method in (*runs.METHODS, "central_raw", *(f"mine_{number}" for number in range(8)))}
    styles = figures.styles_of(labels)
    assert len({style.colour for style in styles.values()}) == len(labels)
    assert len({style.marker for key, style in styles.items() if key.startswith("mine")}) == 8
    many = figures.styles_of({f"mine_{number}": "" for number in range(20)})
    assert len(many) == 20
    assert {style.colour for style in many.values()} == {
        style.colour for style in figures.styles_of({f"mine_{number}": "" for number in range(9)}).values()
    }


@pytest.mark.parametrize("label", ["_mine", "$5 & $6", "a|b", r"\x_y^2", "<b>", "50 %"])
def test_any_label_is_printed_as_it_is(label):
    def printed(texts):
        """What matplotlib makes of texts, and whether it takes any for a formula."""
        words, formula = zip(*(text._preprocess_math(text.get_text()) for text in texts), strict=True)
        return [word.strip("\u200b") for word in words], any(formula)

    records = [make_record(label=label), make_record("fed_lora"), make_record("local_lora", uplink_bytes={})]
    (legend,) = figures.accuracy_by_round(records).legends
    assert printed(legend.texts) == ([LABELS["local_lora"], LABELS["fed_lora"], label], False)
    (axis,) = figures.final_accuracy(records).axes
    assert label in printed(axis.get_yticklabels())[0]
    for draw in FIGURES:
        draw(records).draw_without_rendering()


def test_drawing_leaves_the_users_settings_alone():
    before = dict(mpl.rcParams)
    figures.final_accuracy(study(seeds=(0,)))
    assert dict(mpl.rcParams) == before


def test_saved_figures_repeat_to_the_byte_and_are_closed(tmp_path):
    records = study(methods=("sflora", "local_lora"), partitions=("iid",))
    for name in ("a", "b"):
        figure = figures.accuracy_by_bytes(records, figures.COLUMN_IN)
        paths = figures.save_figure(figure, tmp_path / name / "figure_0.5")
        assert not plt.fignum_exists(figure.number)
        assert [path.name for path in paths] == ["figure_0.5.png", "figure_0.5.pdf"]
    for end in ("png", "pdf"):
        first, second = ((tmp_path / name / f"figure_0.5.{end}").read_bytes() for name in ("a", "b"))
        assert first == second
        assert b"Date" not in first
        assert b"matplotlib.org" not in first
    width_px, _ = plt.imread(tmp_path / "a" / "figure_0.5.png").shape[1::-1]
    assert width_px == 1005  # 3.35 in at 300 dpi


def test_a_figure_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        figures.save_figure(figures.final_accuracy([make_record()]), tmp_path / "file" / "figure")


def test_curves_carry_mean_and_band():
    records = [make_record("sflora", seed=seed, accuracies=[0.2, 0.4 + 0.1 * seed]) for seed in (0, 1, 2)]
    axis = figures.accuracy_by_round(records).axes[0]
    (line,) = axis.lines
    assert xs(line).tolist() == [1, 2]
    assert line.get_ydata() == pytest.approx([20, 50])
    band = np.asarray(axis.collections[0].get_paths()[0].vertices)[:, 1]
    assert band.max() == pytest.approx(50 + 24.841, abs=1e-3)
    assert line.get_color() == figures.style_of("sflora", "").colour


def test_one_seed_draws_no_band_and_says_why():
    figure = figures.accuracy_by_round([make_record(accuracies=[0.1, 0.2])])
    assert not any(np.size(path.vertices) for path in figure.axes[0].collections[0].get_paths())
    assert "n = 1 seed. No interval" in figure.get_supxlabel()


def test_bytes_are_cumulative_totals_and_silence_is_a_level_line():
    figure = figures.accuracy_by_bytes(study(methods=("local_lora", "sflora"), partitions=("iid",), seeds=(0, 1)))
    axis = figure.axes[0]
    level, curve = sorted(axis.lines, key=lambda line: str(line.get_gid()))
    assert axis.get_xscale() == "log"
    per_round = 4 + 2**11 / 2**20
    assert curve.get_xdata() == pytest.approx([per_round, 2 * per_round, 3 * per_round])
    assert level.get_ydata() == pytest.approx([30.5, 30.5])
    assert level.get_label() == "LocalLoRA: 0 bytes, final"


def test_only_silent_methods_still_make_figures():
    silent = study(methods=("local_lora",), partitions=("iid",))
    for draw in FIGURES:
        draw(silent).draw_without_rendering()


def test_bars_end_where_their_number_says():
    figure = figures.bytes_per_round([make_record(uplink_bytes={"activations": 2**23, "adapters": 2**22})])
    uplink, downlink = figure.axes
    ends = [patch.get_x() + patch.get_width() for patch in bars(uplink)]
    assert max(ends) == 6
    assert [text.get_text() for text in uplink.texts] == ["6.00"]
    assert [text.get_text() for text in downlink.texts] == ["1.00", "up +\ndown", "7.00"]


def test_final_accuracy_shows_every_seed_and_the_interval():
    values = (0.5, 0.6, 0.7)
    axis = figures.final_accuracy([make_record(seed=s, accuracies=[v]) for s, v in enumerate(values)]).axes[0]
    interval, mean, seeds = axis.lines
    assert interval.get_xdata() == pytest.approx([60 - 24.841, 60 + 24.841], abs=1e-3)
    assert mean.get_xdata() == pytest.approx([60])
    assert seeds.get_xdata() == pytest.approx([50, 60, 70])


def test_a_panel_that_was_not_run_says_so():
    records = [make_record(dataset="a"), make_record(dataset="b", partition="dirichlet_0.5")]
    texts = [text.get_text() for axis in figures.accuracy_by_round(records).axes for text in axis.texts]
    assert texts == ["not run", "not run"]


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("width_in", [figures.COLUMN_IN, figures.DOUBLE_COLUMN_IN])
def test_nothing_is_clipped_at_paper_width(draw, width_in):
    figure = draw(study(rounds=2), width_in)
    figure.draw_without_rendering()
    assert figure.get_figwidth() == width_in
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= -0.01
    assert drawn.x1 <= width_in + 0.01
    assert drawn.y0 >= -0.01
    assert drawn.y1 <= figure.get_figheight() + 0.01
    shown = [handle.get_text() for legend in figure.legends for handle in legend.texts]
    if draw in (figures.accuracy_by_round, figures.accuracy_by_bytes):
        assert [text.split(":")[0] for text in shown] == list(LABELS.values())


@pytest.mark.parametrize("width_in", [figures.COLUMN_IN, figures.DOUBLE_COLUMN_IN])
def test_twenty_methods_with_long_names_have_a_legend_that_fits(width_in):
    records = [
        make_record(f"mine_{number}", seed=seed, label=f"A method of one's own, number {number}")
        for number in range(20)
        for seed in (0, 1)
    ]
    figure = figures.accuracy_against_traffic(records, width_in)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.texts) == 20
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


# the paper's numbers


def test_headline_numbers_need_the_papers_token_count():
    assert paper.compression_ratio(49, 30, 8, "paper") == pytest.approx(6.8, rel=1e-12)
    assert paper.token_saving(49, 30, "paper") == pytest.approx(0.41176, abs=1e-5)
    assert paper.compression_ratio(49, 30, 8, "plain") == pytest.approx(6.6667, abs=1e-4)
    assert paper.token_saving(49, 30, "plain") == pytest.approx(0.4)


def test_all_tokens_at_full_precision_save_nothing():
    assert paper.compression_ratio(49, 50, 32, "plain") == 1
    assert paper.token_saving(49, 50, "plain") == 0


@pytest.mark.parametrize(("tokens", "bits"), [(0, 8), (51, 8), (30, 0), (30, 33)])
def test_impossible_compression_is_refused(tokens, bits):
    with pytest.raises(ConfigError, match="allowed"):
        paper.compression_ratio(49, tokens, bits, "plain")


def test_printed_numbers_are_as_printed_and_all_have_a_source():
    frame = paper.paper_frame()
    table_one = frame[frame["source"].str.endswith("Table I") & (frame["basis"] == "printed")]
    assert table_one["value"].tolist() == [229.2, 15.8, 61.3, 233.5, 1.1, 2.3]
    assert frame["source"].str.contains("2605.23988").all()
    assert not frame.duplicated(["quantity", "subject"]).any()
    assert len(frame) == len(VALUES)


def test_the_printed_traffic_follows_from_the_inferred_settings():
    values = {value.subject: value.value for value in VALUES}
    samples, rank, cut = (values[name] for name in ("samples per device and round", "LoRA rank", "cut layer"))
    adapter_mib = 12 * rank * (4 + 5 + 5) * 768 * 4 / 2**20  # qkv, fc1, fc2 of ViT-B: (1+3) + (1+4) + (4+1) widths
    assert adapter_mib == pytest.approx(values["FL"], abs=0.06)
    for n_tokens, name in ((50, "SFL ViT-B/32"), (197, "SFL ViT-B/16")):
        printed = next(value.value for value in VALUES if value.subject == name and value.unit == "MB")
        assert samples * n_tokens * 768 * 4 / 2**20 + adapter_mib * cut / 12 == pytest.approx(printed, abs=0.1)


def test_records_stay_as_they_were():
    records = study()
    before = [run.model_dump_json() for run in records]
    for draw in (tables.accuracy_table, tables.traffic_table, figures.final_accuracy):
        draw(records)
    assert [run.model_dump_json() for run in records] == before
    assert all(isinstance(run, RunRecord) for run in records)


def test_without_runs_the_frame_is_empty_and_has_the_same_columns():
    assert list(runs.runs_frame([]).columns) == list(runs.runs_frame([make_record()]).columns)
    assert runs.runs_frame([]).empty
