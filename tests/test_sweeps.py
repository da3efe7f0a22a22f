"""Sweeps: every run at its setting whatever its key, figures that grow with the runs, choices compared seed by seed."""

from collections.abc import Callable

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
from matplotlib.figure import Figure

from tsflora.analysis.figures import COLUMN_IN, DOUBLE_COLUMN_IN
from tsflora.analysis.figures.sweeps import accuracy_by_bits, accuracy_by_cut, selection_controls
from tsflora.analysis.runs import read_jsonl, write_jsonl
from tsflora.analysis.runs.points import method_records, planned_frame, settings_frame
from tsflora.analysis.runs.sweep_means import (
    CHOICES,
    accuracy_by_bits_means,
    accuracy_by_cut_means,
    selection_differences,
    selection_means,
)
from tsflora.analysis.runs.sweeps import bits_runs, cut_runs, selection_runs
from tsflora.analysis.tables import selection_table, write_table
from tsflora.errors import DataError
from tsflora.experiment import ExperimentConfig, run
from tsflora.study import StudyConfig

FIGURES: list[Callable[..., Figure]] = [accuracy_by_bits, accuracy_by_cut, selection_controls]
SFLORA = {"label": "SFLora", "algorithm": "sflora"}


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


def plan(**changes) -> list[ExperimentConfig]:
    config = small_config().dump()
    values = {
        "name": "test",
        "datasets": {"digits": config["dataset"]},
        "partitions": {"iid": config["partition"]},
        "seeds": [0, 1, 2],
        "backbone": config["backbone"],
        "training": config["training"],
        "methods": {"sflora": SFLORA, "sflora_8bit": {**SFLORA, "quantizer": uniform(8)}, "tsflora": tsflora()},
        "sweeps": {
            "grid": {"base": "tsflora", "vary": {"tokens.n_tokens": [30, 40, 50], "quantizer.bits": [2, 4, 8]}},
            "cuts": {"base": "tsflora", "vary": {"cut": [2, 4], "quantizer.bits": [4, 8]}},
            "who": {
                "base": "tsflora",
                "vary": {"tokens.name": ["top_k_merge", "random", "feature_norm"], "cut": [2, 4]},
            },
            "unmerged": {"base": "tsflora", "vary": {"tokens.merge": ["none"], "cut": [2, 4]}},
        },
    }
    return StudyConfig.parse({**values, **changes}).all_cells()


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


def one(method, key="mine", cut=2, seed=0, **changes):
    return small_config(method, method_key=key, cut=cut, seed=seed, **changes)


def lines(figure, panel=0):
    """Points of each line of a panel by legend label, without the dodge."""
    axis = figure.axes[panel]
    labels = [text.get_text() for text in figure.legends[0].texts]
    drawn = [line for line in axis.lines if len(line.get_xdata()) != 2 or line.get_marker() not in ("", "None")]
    return {
        label: dict(zip(np.round(line.get_xdata()).tolist(), line.get_ydata().tolist(), strict=True))
        for label, line in zip(labels, drawn, strict=False)
    }


# settings


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (SFLORA, ("all", None, 50, 32, 32)),
        ({**SFLORA, "quantizer": "float16", "gradient_quantizer": uniform(4)}, ("all", None, 50, 16, 4)),
        (tsflora(30, 4), ("top_k_merge", "attention", 30, 4, 32)),
        (tsflora(31, 8, merge="none"), ("top_k_merge", "none", 31, 8, 32)),
        (tsflora(20, 2, "random", merge="uniform"), ("random", "uniform", 20, 2, 32)),
        (tsflora(50, 8, "feature_norm"), ("all", None, 50, 8, 32)),
        ({"algorithm": "sflora", "tokens": {"name": "top_k_merge", "K": 28}}, ("top_k_merge", "attention", 30, 32, 32)),
    ],
)
def test_a_setting_is_read_from_the_configuration(method, expected):
    (row,) = settings_frame(done([one(method, cut=3)])).to_dict("records")
    assert tuple(row[name] for name in ("selection", "merge", "n_tokens", "bits", "gradient_bits")) == expected
    assert (row["cut"], row["n_patches"], row["algorithm"], row["method"]) == (3, 49, "sflora", "mine")
    assert row["uplink_mib_per_device_round"] == pytest.approx(1 + 2**-10)
    assert row["total_mib_per_device_round"] == pytest.approx(2 + 2**-10)


def test_a_component_that_is_not_installed_is_a_missing_number():
    config = one(tsflora()).dump()
    config["method"]["tokens"] = {"name": "plugged_in", "ratio": 0.5}
    config["method"]["quantizer"] = {"name": "vector", "book": 64}
    row = settings_frame([make_record(config=config)]).iloc[0]
    assert row[["n_tokens", "bits"]].isna().all()
    assert (row["selection"], row["merge"], row["gradient_bits"]) == ("plugged_in", None, 32)
    assert row["quantizer"] == "book 64, name vector"
    for draw in FIGURES:
        assert "No runs of this sweep yet." in draw([make_record(config=config)]).texts[0].get_text()


def test_a_run_that_sends_no_activations_has_no_codec():
    sent = {"adapters": 2**20}
    record = done([one({"algorithm": "fed_lora"})], uplink_bytes=sent, downlink_bytes=sent)[0]
    row = settings_frame([record]).iloc[0]
    assert row[["selection", "merge", "n_tokens", "bits", "gradient_bits"]].isna().all()
    assert row["algorithm"] == "fed_lora"


def test_records_from_before_sweeps_and_of_any_shape_are_read():
    config = one(tsflora()).dump()
    old = {**config, "method": {name: value for name, value in config["method"].items() if name != "cut"}}
    del old["sweep"]
    new, before = (settings_frame([make_record(config=content)]) for content in (config, old))
    pd.testing.assert_frame_equal(new, before)
    assert settings_frame([make_record()])["n_tokens"].isna().all()
    assert settings_frame([]).empty


def test_method_records_leave_the_points_of_sweeps_out():
    cells = plan()
    records = [*done(cells), make_record("older")]
    assert {run.method for run in method_records(records)} == {"sflora", "sflora_8bit", "tsflora", "older"}


def test_a_setting_that_ran_twice_counts_once_under_the_methods_name():
    point, method = one(tsflora(), "grid-point", sweep="grid"), one(tsflora(), "zeta")
    for records in (done([point, method]), done([method, point])):
        frame = settings_frame(records)
        assert frame["method"].tolist() == ["zeta"]
    with pytest.raises(DataError, match=r"digits, iid, seed 0: grid-point, zeta are one setting.*0\.4.*0\.6"):
        settings_frame(done([point], lambda _: 0.4) + done([method], lambda _: 0.6))
    more = done([method], uplink_bytes={"activations": 7})
    with pytest.raises(DataError, match="different results"):
        settings_frame(done([point]) + more)


def test_all_tokens_are_one_setting_under_any_name_because_the_runs_are_equal_to_the_bit(settings):
    methods = [{**SFLORA, "quantizer": uniform(8)}, tsflora(50, name="random")]
    training = {**small_config().dump()["training"], "rounds": 1, "participants": 1}
    runs = [run(one(method, f"m{place}", training=training), settings) for place, method in enumerate(methods)]
    first, second = [record.comparable()["history"] for record in runs]
    assert first == second
    assert len(settings_frame(runs)) == 1


@settings(deadline=None, max_examples=8)
@given(st.permutations(range(12)), st.integers(0, 12))
def test_frames_do_not_depend_on_the_order_of_records(order, n):
    records = done(plan()[:12])[:n]
    shuffled = [records[place] for place in order if place < n]
    pd.testing.assert_frame_equal(settings_frame(records), settings_frame(shuffled))


def test_a_plan_has_the_settings_of_its_records():
    cells = plan()
    records = done(cells)
    columns = ["dataset", "partition", "seed", "cut", "selection", "n_tokens", "bits", "rest", "setting"]
    frames = (planned_frame(cells, records), settings_frame(records))
    planned, measured = (frame[columns].sort_values(columns).reset_index(drop=True) for frame in frames)
    pd.testing.assert_frame_equal(planned, measured)
    alone = planned_frame(cells, [])
    assert alone.loc[alone["selection"] == "all", "n_tokens"].isna().all()


# accuracy by bits


def test_a_plan_knows_its_records_after_they_were_on_disk(tmp_path):
    # JSON lines sort their keys, which a comparison of texts would take for another backbone.
    cells = plan()
    write_jsonl(done(cells), tmp_path / "records.jsonl")
    read = planned_frame(cells, read_jsonl(tmp_path / "records.jsonl").complete)
    assert read.equals(planned_frame(cells, done(cells)))
    assert read["n_patches"].notna().all()


def test_bits_take_the_runs_of_methods_and_sweeps_alike():
    cells = plan()
    figure = accuracy_by_bits(done(cells), planned=cells)
    expected = {
        f"{n} tokens": {bits: 100 * (0.512 + 0.004 * n - 0.4 / 2**bits + 0.02) for bits in (1, 2, 3)}
        for n in (30, 40, 50)
    }
    drawn = lines(figure)
    assert {label: pytest.approx(points) for label, points in drawn.items()} == expected
    full = figure.axes[0].lines[-1]
    assert full.get_ydata() == pytest.approx([100 * (0.512 + 0.2 - 0.4 / 32 + 0.02)] * 2)
    assert figure.axes[0].get_xticklabels()[0].get_text() == "2"
    # 3 x 3 points at three seeds, each once; the reference is none of them.
    assert "Cut 2. 27 of 27 planned runs." in figure.get_supxlabel()
    assert "n = 3 seeds." in figure.get_supxlabel()


def test_intervals_of_points_are_t_intervals():
    records = done([one(tsflora(bits=4), seed=seed) for seed in (0, 1, 2)], lambda cell: 0.5 + 0.1 * cell.seed)
    (row,) = accuracy_by_bits_means(records).to_dict("records")
    assert (row["mean"], row["n"]) == (pytest.approx(0.6), 3)
    assert row["low"] == pytest.approx(0.6 - 0.24841, abs=1e-5)
    (bars,) = accuracy_by_bits(records).axes[0].collections
    assert isinstance(bars, LineCollection)
    (bar,) = bars.get_segments()
    assert bar[:, 1] == pytest.approx([60 - 24.841, 60 + 24.841], abs=1e-3)


def test_the_most_common_cut_is_taken_unless_another_is_asked_for():
    cells = [one(tsflora(bits=bits), f"a{bits}", cut=4) for bits in (2, 4)] + [one(tsflora(), "b")]
    assert set(accuracy_by_bits_means(done(cells))["cut"]) == {4}
    assert set(accuracy_by_bits_means(done(cells), cut=2)["cut"]) == {2}
    assert accuracy_by_bits_means(done(cells), cut=7).empty
    # The plan says which one is usual, even while few of its runs are in; what is asked for need not be planned.
    planned = [one(tsflora(bits=bits), f"p{bits}", cut=2) for bits in (2, 4, 8)]
    assert set(accuracy_by_bits_means(done(cells), planned=planned)["cut"]) == {2}
    assert set(accuracy_by_bits_means(done(cells), cut=4, planned=planned)["cut"]) == {4}
    assert accuracy_by_bits(done(cells), cut=7).texts[0].get_text() == "No runs of this sweep yet."


def test_other_choices_of_tokens_and_other_cuts_stay_out_of_the_bits():
    cells = plan()
    assert set(bits_runs(done(cells)).runs["selection"]) == {"all", "top_k_merge"}
    assert set(bits_runs(done(cells)).runs["merge"]) == {None, "attention"}
    assert set(bits_runs(done(cells)).runs["cut"]) == {2}


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
    cells = [one(tsflora(bits=bits), f"m{bits}") for bits in (2, 4, 8)]
    records = done(cells) + done([one(odd, "odd")], lambda _: 0.01)
    chosen = bits_runs(records)
    assert chosen.runs["method"].tolist() == ["m2", "m4", "m8"]
    assert chosen.n_left_out == 1
    assert "1 of other settings left out." in accuracy_by_bits(records).get_supxlabel()


def test_the_reference_is_of_the_same_training():
    cells = [one(tsflora()), one(SFLORA, "sflora"), one({"algorithm": "split_lora"}, "split_lora")]
    assert set(bits_runs(done(cells)).runs["method"]) == {"mine", "sflora"}


# accuracy by cut


def test_cuts_are_drawn_at_the_most_varied_number_of_tokens():
    cells = plan()
    drawn = lines(accuracy_by_cut(done(cells), planned=cells))
    assert list(drawn) == ["2 bits", "4 bits", "8 bits", "full precision, all tokens"]
    assert [list(points) for points in drawn.values()] == [[2], [2, 4], [2, 4], [2]]
    assert drawn["4 bits"][4] == pytest.approx(100 * (0.512 + 0.12 - 0.1 + 0.04))
    assert set(accuracy_by_cut_means(done(cells), n_tokens=40)["cut"]) == {2}
    assert cut_runs(done(cells)).fixed == {"n_tokens": 30}


def test_panels_that_no_sweep_varies_are_left_out_and_stay_if_none_does():
    cells = plan(partitions={"iid": {"name": "iid"}, "skewed": {"name": "dirichlet", "alpha": 0.5}})
    part = [cell for cell in cells if cell.sweep is None or cell.partition_name == "iid"]
    assert set(cut_runs(done(part)).runs["partition"]) == {"iid"}
    methods = [cell for cell in cells if cell.sweep is None]
    assert set(cut_runs(done(methods), n_tokens=30).runs["partition"]) == {"iid", "skewed"}
    # The plan decides, so that a panel does not come and go while runs come in.
    assert set(cut_runs(done(methods), planned=part).runs["partition"]) == {"iid"}


# who chooses


def test_choices_stand_beside_each_other_at_every_cut():
    cells = plan()
    figure = selection_controls(done(cells), planned=cells)
    assert list(lines(figure)) == list(CHOICES.values())
    assert "30 tokens, 8 bits. 24 of 24 planned runs." in figure.get_supxlabel()
    means = selection_means(done(cells))
    assert means["cut"].tolist() == [2] * 4 + [4] * 4
    assert means["choice"].tolist() == 2 * list(CHOICES.values())
    at_2 = [xs(marker)[0] for marker in figure.axes[0].lines]
    assert len(set(at_2)) == 4, "points of one cut do not hide each other"


def test_differences_are_paired_by_seed_at_the_same_cut():
    by_choice = {"top_k_merge": (0.50, 0.60, 0.70), "random": (0.489, 0.59, 0.691), "feature_norm": (0.49, 0.63, 0.79)}
    cells = [
        one(tsflora(name=name), f"{name}{cut}", cut=cut, seed=seed)
        for name in by_choice
        for cut in (2, 4)
        for seed in (0, 1, 2)
        if not (name == "top_k_merge" and cut == 4 and seed < 2)
    ]
    records = done(cells, lambda cell: by_choice[cell.method.tokens.name][cell.seed] + 0.1 * (cell.cut == 4))
    long = selection_differences(records)
    assert long[["cut", "choice", "n"]].to_numpy().tolist() == [
        [2, "Random, merged", 3],
        [2, "Feature norm, merged", 3],
        [4, "Random, merged", 1],
        [4, "Feature norm, merged", 1],
    ]
    assert set(long["reference"]) == {"CLS attention, merged"}
    assert long["difference"].tolist() == pytest.approx([-0.01, 0.11 / 3, -0.009, 0.09])
    table = selection_table(records)
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


def test_without_cls_attention_there_are_accuracies_and_no_differences(tmp_path):
    records = done([one(tsflora(name="random"), seed=seed) for seed in (0, 1)])
    assert selection_differences(records).empty
    table = selection_table(records)
    assert table["Minus CLS attention, merged"].tolist() == ["–"]
    write_table(table, tmp_path / "selection", selection_differences(records))


# plans


def test_the_plan_is_matched_by_configuration_and_not_by_name():
    cells = plan(sweeps={"grid": {"base": "tsflora", "vary": {"quantizer.bits": [2, 4, 8]}}})
    renamed = [cell.model_copy(update={"method_key": f"x{place}", "sweep": None}) for place, cell in enumerate(cells)]
    chosen = bits_runs(done(renamed), planned=cells)
    assert (chosen.n_in, chosen.n_planned) == (12, 12)
    faster = {**small_config().dump()["training"], "optimizer": {"lr": 0.5}}
    stale = done(plan(training=faster, sweeps={}))
    chosen = bits_runs(stale, planned=cells)
    assert (chosen.n_in, chosen.n_planned, len(chosen.runs)) == (0, 12, 9)
    assert (
        "0 of 12 planned runs. 6 drawn are not in the plan." in accuracy_by_bits(stale, planned=cells).get_supxlabel()
    )


@pytest.mark.parametrize("draw", FIGURES)
def test_nothing_run_is_a_sentence(draw):
    cells = plan()
    n_planned = {accuracy_by_bits: 27, accuracy_by_cut: 15, selection_controls: 24}[draw]
    reference = done([cell for cell in cells if cell.method_key == "sflora"])
    for records in ([], [make_record("fed_lora", uplink_bytes={})], reference):
        figure = draw(records, COLUMN_IN)
        assert figure.texts[0].get_text() == "No runs of this sweep yet."
        assert not figure.axes
        (text,) = draw(records, planned=cells).texts
        # Without a record of the backbone nobody knows that 50 tokens are all of them: those runs count twice.
        doubled = 3 if draw is accuracy_by_bits and records is not reference else 0
        assert text.get_text() == f"No runs of this sweep yet: 0 of {n_planned + doubled} planned."


def test_nothing_run_is_an_empty_table_that_says_so(tmp_path):
    cells = plan()
    table = selection_table([], planned=cells)
    assert table.empty
    assert table.columns.tolist() == ["No runs of this sweep yet: 0 of 24 planned."]
    frames = (selection_means([]), selection_differences([]), accuracy_by_bits_means([]), accuracy_by_cut_means([]))
    for place, frame in enumerate(frames):
        assert frame.empty
        csv, markdown, latex, _ = write_table(table, tmp_path / str(place), frame)
        assert csv.read_text().startswith("dataset,partition,cut")
        assert "0 of 24 planned" in markdown.read_text()
        assert "0 of 24 planned" in latex.read_text()


@settings(deadline=None, max_examples=3)
@given(st.sets(st.integers(0, 83)))
def test_any_part_of_the_runs_is_a_figure_and_a_table(inside):
    cells = plan(partitions={"iid": {"name": "iid"}, "skewed": {"name": "dirichlet", "alpha": 0.5}})
    records = done([cells[place] for place in sorted(inside) if place < len(cells)])
    for draw in FIGURES:
        draw(records, planned=cells)
    selection_table(records, planned=cells)


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("width_in", [COLUMN_IN, DOUBLE_COLUMN_IN])
def test_nothing_is_clipped_at_paper_width(draw, width_in):
    cells = plan(partitions={"iid": {"name": "iid"}, "dirichlet_0.5": {"name": "dirichlet", "alpha": 0.5}})
    figure = draw(done(cells[:-1]), width_in, planned=cells)
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= -0.01
    assert drawn.x1 <= width_in + 0.01
    assert drawn.y0 >= -0.01
    assert drawn.y1 <= figure.get_figheight() + 0.01


def test_one_seed_has_no_bar_and_says_why():
    figure = accuracy_by_bits(done([one(tsflora(bits=bits), f"m{bits}") for bits in (4, 8)]))
    assert "n = 1 seed. No interval at n = 1." in figure.get_supxlabel().replace("\n", " ")
    (mean,) = {tuple(row) for row in accuracy_by_bits_means(done([one(tsflora())]))[["low", "high"]].isna().to_numpy()}
    assert mean == (True, True)


def test_counts_of_tokens_and_bits_without_a_fixed_look_are_drawn():
    cells = [one(tsflora(n, bits), f"m{n}-{bits}", cut=cut) for n in (12, 17) for bits in (3, 5) for cut in (2,)]
    cells += [one(tsflora(12, bits), f"n{bits}", cut=3) for bits in (3, 5)]
    assert list(lines(accuracy_by_bits(done(cells)))) == ["12 tokens", "17 tokens"]
    assert list(lines(accuracy_by_cut(done(cells)))) == ["3 bits", "5 bits"]


def test_selected_runs_are_a_view_of_what_was_given():
    records = done(plan())
    before = [record.model_dump_json() for record in records]
    for choose in (bits_runs, cut_runs, selection_runs):
        choose(records)
    assert [record.model_dump_json() for record in records] == before
