"""Sweeps: planned runs at their settings, figures that grow with the runs, choices compared seed by seed."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import small_config
from drawn import xs
from factories import make_geometry, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection

from tsflora.analysis.figures import COLUMN_IN, DOUBLE_COLUMN_IN, accuracy_by_bits, accuracy_by_cut, selection_controls
from tsflora.analysis.runs import (
    accuracy_by_bits_means,
    accuracy_by_cut_means,
    method_records,
    read_jsonl,
    selection_differences,
    selection_means,
    settings_frame,
    write_jsonl,
)
from tsflora.analysis.runs.sweeps import CHOICES, bits_runs, cut_runs, selection_runs
from tsflora.analysis.tables import selection_table, write_table
from tsflora.errors import DataError
from tsflora.records import RunRecord
from tsflora.study import StudyConfig

FIGURES = [accuracy_by_bits, accuracy_by_cut, selection_controls]
SFLORA = {"label": "SFLora", "algorithm": "sflora"}
IID = {"iid": {"name": "iid"}}
TWO = {**IID, "dirichlet_0.5": {"name": "dirichlet", "alpha": 0.5}}


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    plt.close("all")


def uniform(bits, **options):
    return {"name": "uniform", "bits": bits, **options}


def tsflora(n_tokens=30, bits=8, name="top_k_merge", **tokens):
    return {
        "algorithm": "sflora",
        "tokens": {"name": name, "n_tokens": n_tokens, **tokens},
        "quantizer": uniform(bits),
    }


SWEEPS = {
    "grid": {"base": "tsflora", "vary": {"tokens.n_tokens": [30, 40, 50], "quantizer.bits": [2, 4, 8]}},
    "cuts": {"base": "tsflora", "vary": {"cut": [2, 4], "quantizer.bits": [4, 8]}},
    "who": {"base": "tsflora", "vary": {"tokens.name": ["top_k_merge", "random", "feature_norm"], "cut": [2, 4]}},
    "unmerged": {"base": "tsflora", "vary": {"tokens.merge": ["none"], "cut": [2, 4]}},
}


def plan(**changes) -> StudyConfig:
    config = small_config().dump()
    values = {
        "name": "test",
        "datasets": {"digits": config["dataset"]},
        "partitions": IID,
        "seeds": [0, 1, 2],
        "backbone": config["backbone"],
        "training": config["training"],
        "methods": {"sflora": SFLORA, "sflora_8bit": {**SFLORA, "quantizer": uniform(8)}, "tsflora": tsflora()},
        "sweeps": SWEEPS,
    }
    return StudyConfig.parse({**values, **changes})


def methods(*given_, **changes) -> StudyConfig:
    """A study of methods alone, keys m0, m1, ...; each may name its own cut."""
    return plan(methods={f"m{place}": method for place, method in enumerate(given_)}, sweeps={}, **changes)


def accuracy_of(cell) -> float:
    """Any number that depends on the configuration and the seed alone, by a rule that is easy to check."""
    tokens = getattr(cell.method.tokens, "n_tokens", 50)
    choice = {"random": 0.05, "feature_norm": 0.08}.get(cell.method.tokens.name, 0.0)
    merged = 0.03 if getattr(cell.method.tokens, "merge", "") == "none" else 0.0
    bits = cell.method.quantizer.bits_per_entry
    wobble = cell.seed * (0.01 if choice else 0.012)
    return round(0.5 + 0.004 * tokens - 0.4 / bits + 0.01 * cell.cut - choice - merged + wobble, 6)


def done(cells, accuracy=accuracy_of, **fields):
    return [
        make_record(
            cell.method_key,
            label=cell.label,
            dataset=cell.dataset_name,
            partition=cell.partition_name,
            seed=cell.seed,
            accuracies=[accuracy(cell)],
            config=cell.dump(),
            geometry=make_geometry().model_copy(update={"cut": cell.cut}),
            **fields,
        )
        for cell in cells
    ]


def diverge(record):
    """The record with a loss above that of guessing."""
    last = record.final.model_copy(update={"train_loss": 1e3})
    return record.model_copy(update={"history": (*record.history[:-1], last)})


def lines(figure, panel=0):
    """Points of each line of a panel by legend label, without the dodge."""
    axis = figure.axes[panel]
    labels = [text.get_text() for text in figure.legends[0].texts]
    drawn = [line for line in axis.lines if len(line.get_xdata()) and line.get_marker() != "None"]
    return {
        label: dict(zip(np.round(line.get_xdata()).astype(int).tolist(), line.get_ydata(), strict=True))
        for label, line in zip(labels, drawn, strict=False)
    }


# settings


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (SFLORA, ("all", None, 50, 32)),
        ({**SFLORA, "quantizer": "float16"}, ("all", None, 50, 16)),
        (tsflora(30, 4), ("top_k_merge", "attention", 30, 4)),
        (tsflora(31, 8, merge="none"), ("top_k_merge", "none", 31, 8)),
        (tsflora(20, 2, "random", merge="uniform"), ("random", "uniform", 20, 2)),
        (tsflora(50, 8, "feature_norm"), ("all", None, 50, 8)),
        ({"algorithm": "sflora", "tokens": {"name": "top_k_merge", "K": 28}}, ("top_k_merge", "attention", 30, 32)),
    ],
)
def test_a_setting_is_that_of_the_plan(method, expected):
    study = methods(method, cut=3, seeds=[0])
    (row,) = settings_frame(done(study.all_cells()), study).to_dict("records")
    assert tuple(row[name] for name in ("selection", "merge", "n_tokens", "bits")) == expected
    assert (row["cut"], row["method"]) == (3, "m0")


def test_numbers_that_depend_on_the_data_are_missing():
    coded = {"name": "entropy_coded", "quantizer": uniform(8)}
    study = methods(
        {**SFLORA, "tokens": {"name": "attention_mass", "mass": 0.9}, "quantizer": coded}, {"algorithm": "fed_lora"}
    )
    frame = settings_frame(done(study.all_cells(), lambda _: 0.5), study)
    assert set(frame["method"]) == {"m0"}, "a method that sends no tokens has no setting"
    assert frame[["n_tokens", "bits"]].isna().all(axis=None)
    for draw in FIGURES:
        assert draw(done(study.all_cells(), lambda _: 0.5), study).texts[0].get_text() == (
            "This study plans no such sweep."
        )


def test_runs_of_other_settings_than_planned_are_not_in():
    study = plan()
    other = plan(training={**small_config().dump()["training"], "optimizer": {"lr": 0.5}})
    assert settings_frame(done(other.all_cells()), study)["accuracy"].isna().all()
    assert bits_runs(done(other.all_cells()), study).count == "0 of 27 planned runs"


def test_method_records_leave_the_points_of_sweeps_out():
    records = [*done(plan().all_cells()), make_record("older")]
    assert {run.method for run in method_records(records)} == {"sflora", "sflora_8bit", "tsflora", "older"}


def test_a_setting_under_two_names_counts_once_and_as_the_one_that_ran():
    study = methods({**SFLORA, "quantizer": uniform(8)}, tsflora(50, name="random"), seeds=[0])
    cells = study.all_cells()
    assert settings_frame(done(cells), study)["method"].tolist() == ["m0"]
    (row,) = settings_frame(done(cells[1:]), study).to_dict("records")
    assert (row["method"], row["accuracy"]) == ("m1", accuracy_of(cells[1]))


def test_two_records_of_one_run_are_an_error():
    study = plan()
    with pytest.raises(DataError, match="two records of the same run"):
        settings_frame(done(study.all_cells()) + done(study.all_cells()), study)


@settings(deadline=None, max_examples=8)
@given(st.permutations(range(12)), st.integers(0, 12))
def test_frames_do_not_depend_on_the_order_of_records(order, n):
    study = plan()
    records = done(study.all_cells()[:12])[:n]
    shuffled = [records[place] for place in order if place < n]
    pd.testing.assert_frame_equal(settings_frame(records, study), settings_frame(shuffled, study))


def test_records_are_known_after_they_were_on_disk(tmp_path):
    study = plan()
    write_jsonl(done(study.all_cells()), tmp_path / "records.jsonl")
    read = settings_frame(read_jsonl(tmp_path / "records.jsonl").complete, study)
    pd.testing.assert_frame_equal(read, settings_frame(done(study.all_cells()), study))
    assert read["accuracy"].notna().all()


# accuracy by bits


def test_bits_take_the_runs_of_methods_and_sweeps_alike():
    study = plan()
    figure = accuracy_by_bits(done(study.all_cells()), study)
    expected = {
        f"{n} tokens": {bits: 100 * (0.512 + 0.004 * n - 0.4 / 2**bits + 0.02) for bits in (1, 2, 3)}
        for n in (30, 40, 50)
    }
    assert {label: pytest.approx(points) for label, points in lines(figure).items()} == expected
    full = figure.axes[0].lines[-1]
    assert full.get_ydata() == pytest.approx([100 * (0.512 + 0.2 - 0.4 / 32 + 0.02)] * 2)
    assert figure.axes[0].get_xticklabels()[0].get_text() == "2"
    # 3 x 3 points at three seeds, each once; the reference is none of them.
    assert "Cut 2. 27 of 27 planned runs." in figure.get_supxlabel()
    assert "n = 3 seeds." in figure.get_supxlabel()


def test_intervals_of_points_are_t_intervals():
    study = methods(tsflora(bits=4))
    records = done(study.all_cells(), lambda cell: 0.5 + 0.1 * cell.seed)
    (row,) = accuracy_by_bits_means(records, study).to_dict("records")
    assert (row["mean"], row["n"], row["diverged"]) == (pytest.approx(0.6), 3, 0)
    assert row["low"] == pytest.approx(0.6 - 0.24841, abs=1e-5)
    (bars,) = accuracy_by_bits(records, study).axes[0].collections
    assert isinstance(bars, LineCollection)
    (bar,) = bars.get_segments()
    assert bar[:, 1] == pytest.approx([60 - 24.841, 60 + 24.841], abs=1e-3)


def test_where_a_run_diverged_the_word_stands_in_place_of_the_point():
    study = methods(tsflora(bits=4), tsflora(bits=8))
    records = done(study.all_cells())
    records[0] = diverge(records[0])
    means = accuracy_by_bits_means(records, study)
    assert means["diverged"].tolist() == [1, 0]
    assert means["mean"].isna().tolist() == [True, False]
    assert [text.get_text() for text in accuracy_by_bits(records, study).axes[0].texts] == ["diverged"]
    assert not len(accuracy_by_bits(done(study.all_cells()), study).axes[0].texts)


def test_other_choices_of_tokens_and_other_cuts_stay_out_of_the_bits():
    study = plan()
    chosen = bits_runs(done(study.all_cells()), study).runs
    assert set(chosen["selection"]) == {"all", "top_k_merge"}
    assert set(chosen["merge"]) == {None, "attention"}
    assert set(chosen["cut"]) == {2}


@pytest.mark.parametrize(
    "odd",
    [
        {**tsflora(bits=4), "gradient_quantizer": uniform(8)},
        {**tsflora(bits=4), "quantizer": uniform(4, rounding="nearest")},
        {**tsflora(bits=4), "algorithm": {"name": "split_lora", "mode": "relay"}},
        tsflora(bits=4, score_norm="patches"),
    ],
)
def test_runs_that_differ_in_what_a_figure_does_not_show_are_never_averaged_with_the_others(odd):
    study = methods(*(tsflora(bits=bits) for bits in (2, 4, 8)), odd, seeds=[0])
    assert bits_runs(done(study.all_cells()), study).runs["method"].tolist() == ["m0", "m1", "m2"]


def test_the_reference_is_of_the_same_training():
    study = methods(tsflora(), SFLORA, {"algorithm": "split_lora"}, seeds=[0])
    assert set(bits_runs(done(study.all_cells()), study).runs["method"]) == {"m0", "m1"}


# accuracy by cut


def test_cuts_are_drawn_at_the_most_varied_number_of_tokens():
    study = plan()
    figure = accuracy_by_cut(done(study.all_cells()), study)
    drawn = lines(figure)
    assert list(drawn) == ["2 bits", "4 bits", "8 bits", "full precision, all tokens"]
    assert [list(points) for points in drawn.values()] == [[2], [2, 4], [2, 4], [2]]
    assert drawn["4 bits"][4] == pytest.approx(100 * (0.512 + 0.12 - 0.1 + 0.04))
    assert cut_runs(done(study.all_cells()), study).fixed == {"n_tokens": 30}


def test_panels_that_no_sweep_varies_are_left_out_and_stay_if_none_does():
    swept = {name: {**sweep, "partitions": ["iid"]} for name, sweep in SWEEPS.items()}
    study = plan(partitions=TWO, sweeps=swept)
    assert set(cut_runs(done(study.all_cells()), study).runs["partition"]) == {"iid"}
    # The plan decides, so that a panel does not come and go while runs come in.
    assert set(cut_runs(done(study.cells()), study).runs["partition"]) == {"iid"}
    alone = plan(partitions=TWO, sweeps={})
    assert set(cut_runs(done(alone.all_cells()), alone).runs["partition"]) == {"iid", "dirichlet_0.5"}


# who chooses


def test_choices_stand_beside_each_other_at_every_cut():
    study = plan()
    figure = selection_controls(done(study.all_cells()), study)
    assert list(lines(figure)) == list(CHOICES.values())
    assert "30 tokens, 8 bits. 24 of 24 planned runs." in figure.get_supxlabel()
    means = selection_means(done(study.all_cells()), study)
    assert means["cut"].tolist() == [2] * 4 + [4] * 4
    assert means["choice"].tolist() == 2 * list(CHOICES.values())
    at_2 = [xs(marker)[0] for marker in figure.axes[0].lines]
    assert len(set(at_2)) == 4, "points of one cut do not hide each other"


def test_differences_are_paired_by_seed_at_the_same_cut():
    by_choice = {"top_k_merge": (0.50, 0.60, 0.70), "random": (0.489, 0.59, 0.691), "feature_norm": (0.49, 0.63, 0.79)}
    study = methods(*({**tsflora(name=name), "cut": cut} for name in by_choice for cut in (2, 4)))
    cells = [
        cell
        for cell in study.all_cells()
        if not (cell.method.tokens.name == "top_k_merge" and cell.cut == 4 and cell.seed < 2)
    ]
    records = done(cells, lambda cell: by_choice[cell.method.tokens.name][cell.seed] + 0.1 * (cell.cut == 4))
    long = selection_differences(records, study)
    assert long[["cut", "choice", "n"]].to_numpy().tolist() == [
        [2, "Random, merged", 3],
        [2, "Feature norm, merged", 3],
        [4, "Random, merged", 1],
        [4, "Feature norm, merged", 1],
    ]
    assert set(long["reference"]) == {"CLS attention, merged"}
    assert long["difference"].tolist() == pytest.approx([-0.01, 0.11 / 3, -0.009, 0.09])
    table = selection_table(records, study)
    # As in accuracy tables: s = 0.1 and 5.033 points, t_{0.975, 2} = 4.30265.
    assert table["Minus CLS attention, merged"].tolist() == [
        "–",
        "−1.0 [−1.2, −0.8] (3)",
        "+3.7 [−8.8, +16.2] (3) n.s.",
        "–",
        "−0.9 (1) untested",
        "+9.0 (1) untested",
    ]
    assert table["Accuracy (%)"].tolist()[0] == "60.0 ± 24.8 (3)"
    assert table["Bootstrap"].tolist()[0] == table["Bootstrap"].tolist()[4] == "–"
    assert table["Bootstrap"].tolist()[1] == "[−1.1, −0.9]"
    # A choice of which a run diverged is compared with none.
    lost = [diverge(run) if run.method == "m2" else run for run in records]
    assert selection_differences(lost, study)["choice"].tolist() == [
        "Feature norm, merged",
        "Random, merged",
        "Feature norm, merged",
    ]
    assert selection_table(lost, study)["Accuracy (%)"].tolist()[1] == "3 of 3 diverged"


def test_without_cls_attention_there_are_accuracies_and_no_differences(tmp_path):
    study = methods(tsflora(name="random"), tsflora(name="feature_norm"), seeds=[0, 1])
    records = done(study.all_cells())
    assert selection_differences(records, study).empty
    table = selection_table(records, study)
    assert table["Minus CLS attention, merged"].tolist() == ["–", "–"]
    write_table(table, tmp_path / "selection", selection_differences(records, study))


def test_one_choice_alone_is_no_comparison():
    study = methods(tsflora(), tsflora(bits=4))
    (text,) = selection_controls(done(study.all_cells()), study).texts
    assert text.get_text() == "This study plans no such sweep."
    assert selection_means(done(study.all_cells()), study).empty


# plans


@pytest.mark.parametrize(("draw", "n_planned"), list(zip(FIGURES, (27, 15, 24), strict=True)))
def test_nothing_run_is_a_sentence(draw, n_planned):
    study = plan()
    reference = done([cell for cell in study.all_cells() if cell.method_key == "sflora"])
    nothing: list[RunRecord] = []
    for records in (nothing, reference):
        (text,) = draw(records, study, COLUMN_IN).texts
        # Without a record nobody knows that 50 tokens are all of them: those runs count twice.
        doubled = 3 if draw is accuracy_by_bits and not records else 0
        wanted = f"No runs of this sweep yet: 0 of {n_planned + doubled} planned runs."
        assert text.get_text().replace("\n", " ") == wanted


def test_nothing_run_is_an_empty_table_that_says_so(tmp_path):
    study = plan()
    table = selection_table([], study)
    assert table.empty
    assert table.columns.tolist() == ["No runs of this sweep yet: 0 of 24 planned runs."]
    for place, means in enumerate((selection_means, selection_differences, accuracy_by_bits_means)):
        frame = means([], study)
        assert frame.empty
        csv, markdown, latex, _ = write_table(table, tmp_path / str(place), frame)
        assert csv.read_text().startswith("dataset,partition,cut")
        assert "0 of 24 planned" in markdown.read_text()
        assert "0 of 24 planned" in latex.read_text()
    assert accuracy_by_cut_means([], study).empty


@settings(deadline=None, max_examples=3)
@given(st.sets(st.integers(0, 83)))
def test_any_part_of_the_runs_is_a_figure_and_a_table(inside):
    study = plan(partitions=TWO)
    cells = study.all_cells()
    records = done([cells[place] for place in sorted(inside) if place < len(cells)])
    for draw in FIGURES:
        draw(records, study)
    selection_table(records, study)


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("width_in", [COLUMN_IN, DOUBLE_COLUMN_IN])
def test_nothing_is_clipped_at_paper_width(draw, width_in):
    study = plan(partitions=TWO)
    figure = draw(done(study.all_cells()[:-1]), study, width_in)
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= -0.01
    assert drawn.x1 <= width_in + 0.01
    assert drawn.y0 >= -0.01
    assert drawn.y1 <= figure.get_figheight() + 0.01


def test_one_seed_has_no_bar_and_says_why():
    study = methods(tsflora(bits=4), tsflora(bits=8), seeds=[0])
    records = done(study.all_cells())
    figure = accuracy_by_bits(records, study)
    assert "n = 1 seed. No interval at n = 1." in figure.get_supxlabel().replace("\n", " ")
    assert accuracy_by_bits_means(records, study)[["low", "high"]].isna().all(axis=None)


def test_counts_of_tokens_and_bits_without_a_fixed_look_are_drawn():
    study = methods(
        *(tsflora(n, bits) for n in (12, 17) for bits in (3, 5)), *({**tsflora(12, b), "cut": 3} for b in (3, 5))
    )
    records = done(study.all_cells())
    assert list(lines(accuracy_by_bits(records, study))) == ["12 tokens", "17 tokens"]
    assert list(lines(accuracy_by_cut(records, study))) == ["3 bits", "5 bits"]


def test_records_are_left_as_they_were():
    study = plan()
    records = done(study.all_cells())
    before = [record.model_dump_json() for record in records]
    for choose in (bits_runs, cut_runs, selection_runs):
        choose(records, study)
    assert [record.model_dump_json() for record in records] == before
