"""What of a plan is in: by name and configuration, in words that a reader can act on."""

import pandas as pd
import pytest
from conftest import small_config
from factories import make_record

from tsflora.analysis import figures, runs, tables
from tsflora.analysis.runs.coverage import coverage, coverage_sentence
from tsflora.experiment import ExperimentConfig
from tsflora.study import StudyConfig


def plan(**changes) -> list[ExperimentConfig]:
    config = small_config().dump()
    values = {
        "name": "test",
        "datasets": {"a": config["dataset"], "b": config["dataset"]},
        "partitions": {"iid": config["partition"], "dirichlet_0.5": {"name": "dirichlet", "alpha": 0.5}},
        "seeds": [0, 1, 2],
        "backbone": config["backbone"],
        "training": config["training"],
        "methods": {
            "sflora": {"label": "SFLora", "algorithm": "sflora"},
            "tsflora_8bit_30": {
                "label": "TSFLora",
                "algorithm": "sflora",
                "tokens": {"name": "top_k_merge", "n_tokens": 30},
                "quantizer": {"name": "uniform", "bits": 8},
            },
        },
        "sweeps": {
            "grid": {
                "base": "tsflora_8bit_30",
                "vary": {"cut": [2, 4], "quantizer.bits": [4, 8]},
                "partitions": ["iid"],
            }
        },
    }
    return StudyConfig.parse({**values, **changes}).all_cells()


def done(cells, **fields):
    return [
        make_record(
            cell.method_key,
            dataset=cell.dataset_name,
            partition=cell.partition_name,
            seed=cell.seed,
            label=cell.label,
            config=cell.dump(),
            **fields,
        )
        for cell in cells
    ]


def table(cells, records) -> pd.DataFrame:
    return coverage(cells, records).set_index(["dataset", "method"])


def test_a_full_study_misses_nothing():
    cells = plan()
    frame = table(cells, done(cells))
    assert frame["planned"].sum() == len(cells) == 42
    assert (frame["planned"] == frame["in"]).all()
    assert set(frame["missing"]) == set(frame["failed"]) == {""}
    assert frame.loc["a"].index.tolist() == ["sflora", "tsflora_8bit_30", "grid"]
    assert coverage_sentence(cells, done(cells)) == "All 42 planned runs are in."


def test_nothing_in_is_said_as_such():
    cells = plan()
    assert coverage_sentence(cells, []) == "0 of 42 planned runs are in."
    assert set(table(cells, [])["missing"]) == {"everything"}
    assert coverage_sentence([], []) == "No runs are planned."
    assert coverage([], []).empty
    assert "missing" in coverage([], []).columns


def test_what_is_missing_is_named_by_partition_seed_and_point():
    cells = plan()
    inside = [
        cell
        for cell in cells
        if cell.dataset_name == "a"
        and not (cell.method_key == "sflora" and cell.partition_name == "dirichlet_0.5")
        and not (cell.method_key == "tsflora_8bit_30" and cell.seed > 0 and cell.partition_name == "iid")
        and cell.label != "cut 4, bits 4"
        and not (cell.label == "cut 4, bits 8" and cell.seed == 1)
    ]
    frame = table(cells, done(inside))
    assert frame["missing"].to_dict() == {
        ("a", "sflora"): "Dirichlet(0.5) entirely",
        ("a", "tsflora_8bit_30"): "IID seeds 1, 2",
        ("a", "grid"): "IID (cut 4, bits 4), (cut 4, bits 8: seed 1)",
        ("b", "sflora"): "everything",
        ("b", "tsflora_8bit_30"): "everything",
        ("b", "grid"): "everything",
    }
    assert frame[["planned", "in"]].loc[[("a", "grid")]].to_numpy().tolist() == [[9, 5]]
    assert coverage_sentence(cells, done(inside)) == (
        "12 of 42 planned runs are in; missing: a SFLora (3 of 6), TSFLora (2 of 6), sweep grid (4 of 9); b entirely."
    )


def test_a_partition_that_no_method_has_is_named_once():
    cells = plan()
    inside = [cell for cell in cells if cell.partition_name == "iid" and cell.sweep is None]
    assert coverage_sentence(cells, done(inside)) == (
        "12 of 42 planned runs are in; missing: "
        "a Dirichlet(0.5) entirely, sweep grid entirely; b Dirichlet(0.5) entirely, sweep grid entirely."
    )


def test_a_record_of_another_configuration_or_name_does_not_count():
    cells = plan(sweeps={})
    old = done(plan(sweeps={}, cut=3))
    assert coverage_sentence(cells, old) == (
        "0 of 24 planned runs are in. 24 records are of other settings than planned."
    )
    assert set(table(cells, old)["other_settings"]) == {6}
    renamed = [run.model_copy(update={"method": "mine"}) for run in done(cells)]
    assert coverage_sentence(cells, renamed) == "0 of 24 planned runs are in."
    assert coverage_sentence(cells, done(cells) + old) == "All 24 planned runs are in."


@pytest.mark.parametrize("retried", [False, True])
def test_failed_runs_are_named_with_their_error_unless_they_succeeded_later(retried):
    cells = plan(sweeps={}, seeds=[0], datasets={"a": small_config().dump()["dataset"]})
    records = done(cells[1:]) + done(cells[:1], status="failed", error="round 2: NaN", accuracies=[])
    if retried:
        records += done(cells[:1])
        assert set(coverage(cells, records)["failed"]) == {""}
        assert coverage_sentence(cells, records) == "All 4 planned runs are in."
        return
    row = table(cells, records).loc[[("a", "sflora")]].iloc[0]
    assert (row["in"], row["missing"], row["failed"]) == (1, "IID entirely", "IID, seed 0: round 2: NaN")
    assert row["other_settings"] == 0
    assert coverage_sentence(cells, records) == (
        "3 of 4 planned runs are in; missing: a SFLora (1 of 2). 1 failed: a, SFLora, IID, seed 0: round 2: NaN."
    )


# tables and figures of a study that is not finished

FIGURES = [figures.accuracy_by_round, figures.accuracy_by_bytes, figures.bytes_per_round, figures.final_accuracy]


def methods_of(cells):
    return [cell for cell in cells if cell.sweep is None]


@pytest.mark.parametrize("draw", FIGURES)
def test_a_figure_of_no_runs_is_a_sentence(draw):
    figure = draw([], figures.COLUMN_IN)
    assert [text.get_text() for text in figure.texts] == ["No runs yet."]
    assert figure.get_figwidth() == figures.COLUMN_IN


def test_tables_of_no_runs_say_so_and_can_be_written(tmp_path):
    written = {
        "accuracy": (tables.accuracy_table([]), runs.accuracy_means([]), "No runs yet."),
        "traffic": (tables.traffic_table([]), runs.traffic_means([]), "No runs yet."),
        "differences": (
            tables.difference_table([]),
            runs.accuracy_differences([]),
            "No runs of the reference sflora yet, so no differences.",
        ),
    }
    for name, (table, raw, sentence) in written.items():
        assert table.empty
        assert raw.empty
        csv, markdown, latex, _ = tables.write_table(table, tmp_path / name, raw)
        assert csv.read_text().startswith("dataset,partition,method,label")
        assert sentence in markdown.read_text()
        assert sentence in latex.read_text()


def test_a_planned_column_without_runs_has_its_place():
    cells = methods_of(plan())
    inside = [cell for cell in cells if cell.dataset_name == "a" and cell.partition_name == "iid" and cell.seed < 2]
    records = done([cell for cell in inside if not (cell.method_key == "sflora" and cell.seed == 1)])
    table = tables.accuracy_table(records, planned=cells)
    assert table.columns.tolist() == [(name, side) for name in "ab" for side in ("IID", "Dirichlet(0.5)")]
    assert table.to_numpy().tolist() == [
        ["50.0 (1/3)", "– (0/3)", "– (0/3)", "– (0/3)"],
        ["50.0 ± 0.0 (2/3)", "– (0/3)", "– (0/3)", "– (0/3)"],
    ]
    differences = tables.difference_table(records, planned=cells)
    assert differences.columns.tolist() == table.columns.tolist()
    assert differences.index.tolist() == ["TSFLora"]
    assert differences.to_numpy().tolist() == [["0.0 (1) untested", "–", "–", "–"]]
    assert tables.accuracy_table([], planned=cells).to_numpy().tolist() == [["– (0/3)"] * 4] * 2
    # What was run and not planned is shown too, and counts nothing.
    extra = make_record("fed_lora", dataset="a")
    with_extra = tables.accuracy_table([*records, extra], planned=cells)
    assert with_extra.loc[["FedLoRA"]].to_numpy().tolist() == [["50.0 (1)", *["–"] * 3]]


def test_a_complete_study_has_the_same_tables_with_and_without_its_plan():
    cells = methods_of(plan())
    records = done(cells)
    for with_plan, without in (
        (tables.accuracy_table(records, planned=cells), tables.accuracy_table(records, planned_seeds=3)),
        (tables.difference_table(records, planned=cells), tables.difference_table(records)),
    ):
        pd.testing.assert_frame_equal(with_plan, without)


def test_differences_wait_for_their_reference():
    cells = methods_of(plan())
    lacking = [cell for cell in cells if cell.method_key != "sflora"]
    records = done(lacking)
    assert runs.accuracy_differences(records).empty
    table = tables.difference_table(records, planned=cells)
    assert table.columns.tolist() == ["No runs of the reference sflora yet, so no differences."]
    assert tables.traffic_table(records)["Reduction vs sflora", "total"].tolist() == ["–"] * 4
    half = done([cell for cell in cells if cell.method_key != "sflora" or cell.dataset_name == "a"])
    assert set(tables.difference_table(half).columns.get_level_values(0)) == {"a"}
    assert tables.difference_table(half, planned=cells)["b"].to_numpy().tolist() == [["–", "–"]]


@pytest.mark.parametrize("draw", FIGURES)
def test_figures_of_a_ragged_study_are_drawn(draw):
    records = [
        make_record("sflora", dataset="a", accuracies=[0.1, 0.2]),
        make_record("fed_lora", dataset="a", seed=1, accuracies=[None, 0.2], uplink_bytes={}),
        make_record("mine", dataset="b", partition="dirichlet_0.5", uplink_bytes={}, downlink_bytes={}),
    ]
    draw(records, figures.COLUMN_IN).draw_without_rendering()
