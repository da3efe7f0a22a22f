"""Figures of the theory: what is drawn is what was measured, and the ranking is a rank correlation."""

import math
from pathlib import Path

import pandas as pd
import pytest
from drawn import bars, xs, ys
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from tsflora.analysis import figures, runs, tables
from tsflora.analysis.figures.style import COLUMN_IN, TOKEN_MARKERS
from tsflora.analysis.theory import ConvergenceBound, Problem, solve
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent


def rows():
    """A grid as `theory.measure` returns it, with numbers that tell each column from the others."""
    return pd.DataFrame(
        {
            "cut": 2,
            "n_tokens": tokens,
            "bits": bits,
            "selection_measured": 50.0 - tokens,
            "selection_diameter_bound": 2 * (50.0 - tokens),
            "selection_norm_bound": 4 * (50.0 - tokens),
            "rounding_measured": 2.0 * 4.0**-bits,
            "rounding_bound": 3.0 * 4.0**-bits,
            "rounding_signal": 1.0,
            "total_signal": 100.0,
            "scattered_perturbation": 0.1 * (51 - tokens) + 4.0**-bits,
            "transmitted_perturbation": 0.2 * (51 - tokens) + 4.0**-bits,
            "perturbation_bound": 0.3 * (51 - tokens) + 4.0**-bits,
            "gradient_squared": 2.0,
        }
        for tokens in (50, 10, 30)
        for bits in (8, 2)
    )


def lines(figure: Figure, panel: int) -> dict[str, tuple[list[float], list[float]]]:
    drawn = figure.axes[panel].get_lines()
    return {str(line.get_label()): (list(xs(line)), list(ys(line))) for line in drawn}


@pytest.mark.parametrize("width_in", [7.0, COLUMN_IN])
def test_distortion_draws_measured_and_bounds(width_in):
    figure = figures.distortion(rows(), width_in)
    selection, rounding = lines(figure, 0), lines(figure, 1)
    assert selection["measured"] == ([10, 30], [0.4, 0.2]), "50 tokens distort nothing, and log axes know no zero"
    assert selection["bound, diameter"][1] == [0.8, 0.4]
    assert selection["bound, norm"][1] == [1.6, 0.8]
    assert rounding["measured"] == ([2, 8], [2 * 4.0**-2, 2 * 4.0**-8])
    assert rounding["bound"][1] == [3 * 4.0**-2, 3 * 4.0**-8]


def test_perturbation_is_relative_to_the_gradient_with_a_bound_on_the_left_only():
    figure = figures.perturbation(rows())
    left, right = lines(figure, 0), lines(figure, 1)
    assert left["2 bits"][1] == pytest.approx([(0.1 * (51 - n) + 1 / 16) / 2 for n in (10, 30, 50)])
    assert right["8 bits"][1] == pytest.approx([(0.2 * (51 - n) + 4.0**-8) / 2 for n in (10, 30, 50)])
    assert "_bound" in left
    assert "_bound" not in right


def test_where_the_prediction_fails_the_note_counts_it():
    high = rows().assign(perturbation_bound=lambda frame: 0.9 * frame["scattered_perturbation"])
    assert "above it in 6 of 6 settings" in figures.perturbation(high).get_supxlabel().replace("\n", " ")
    assert "above it in 0 of 6 settings" in figures.perturbation(rows()).get_supxlabel().replace("\n", " ")


def test_the_table_of_bounds_is_relative_to_what_is_changed():
    table = tables.bounds_table(rows())
    (row,) = table[(table["", "Tokens"] == 30) & (table["", "Bits"] == 2)].to_dict("records")
    assert row["Lemma 1, selection", "measured"] == "0.200"
    assert row["Lemma 2, rounding", "bound"] == "0.188"
    assert row["Lemma 3, gradient", "measured"] == "1.08"
    assert row["Lemma 3, gradient", "predicted"] == "3.18"


def test_a_plan_stands_beside_what_training_measured():
    problem = Problem(2, 8, lambda _cut, n, bits: n + bits, 2 * 30 * 8 * 4, {2: 2**20}, {"phone": 2**20})
    plan = solve(problem, [2], [10, 30], [4, 8])
    accuracies = settings({(10, 4): {"accuracy": 0.5}, (30, 8): {"accuracy": 0.75}})
    table = tables.plan_table(plan, pd.concat([accuracies, accuracies])).set_index(["Tokens", "Bits"])
    assert table["Accuracy (%)"].to_dict() == {(10, 4): "50.0 (2)", (10, 8): "–", (30, 4): "–", (30, 8): "75.0 (2)"}
    assert table["Verdict"].to_dict() == {(10, 4): "chosen", (10, 8): "", (30, 4): "", (30, 8): "uplink"}
    assert table.loc[(30, 8), "Device memory (MiB)"] == "1.0"


def test_accuracies_are_of_what_the_prediction_is_about():
    study = StudyConfig.read(ROOT / "params.yaml")
    done = runs.read_jsonl(ROOT / "results" / "digits" / "records.jsonl").complete
    found = runs.accuracies_of(done, study, "digits", "iid")
    assert set(found["selection"]) == {"all", "top_k_merge"}
    assert set(found["merge"].dropna()) == {"attention"}
    assert len(runs.accuracies_of(done, study, "digits", "dirichlet_0.5")) < len(found)
    assert runs.accuracies_of(done, study, "cifar10", "iid").empty


def test_convergence_stacks_the_four_terms():
    figure = figures.convergence({"a": ConvergenceBound(1.0, 2.0, 3.0, 4.0), "b": ConvergenceBound(0.0, 0.0, 0.0, 5.0)})
    stacked = bars(figure.axes[0])
    assert [bar.get_width() for bar in stacked] == [1, 0, 2, 0, 3, 0, 4, 5]
    assert max(bar.get_x() + bar.get_width() for bar in stacked) == 10


def settings(values):
    return pd.DataFrame([{"cut": 2, "n_tokens": n, "bits": b} | rest for (n, b), rest in values.items()])


def test_ranking_is_spearmans_over_mean_accuracies():
    predicted = settings(
        {(10, 8): {"perturbation": 3.0}, (20, 8): {"perturbation": 2.0}, (30, 8): {"perturbation": 1.0}}
    )
    measured = settings(
        {(10, 8): {"accuracy": 0.5}, (20, 8): {"accuracy": 0.6}, (30, 8): {"accuracy": 0.7}, (40, 8): {"accuracy": 0.1}}
    )
    again = measured.assign(accuracy=measured["accuracy"] + 0.1)
    joined, correlation = tables.ranking(predicted, pd.concat([measured, again]))
    assert correlation == pytest.approx(-1)
    assert joined["mean"].tolist() == pytest.approx([0.75, 0.65, 0.55])
    assert joined["count"].tolist() == [2, 2, 2]
    _, swapped = tables.ranking(predicted, measured.assign(accuracy=1 - measured["accuracy"]))
    assert swapped == pytest.approx(1)
    axis = figures.ranking_figure(joined, correlation).axes[0]
    marks = [bar.lines[0] for bar in axis.containers if isinstance(bar, ErrorbarContainer)]
    assert [ys(mark) for mark in marks] == pytest.approx([75, 65, 55])
    assert [mark.get_marker() for mark in marks] == [TOKEN_MARKERS[n] for n in (30, 20, 10)]


def test_without_runs_the_ranking_says_so():
    predicted = settings({(10, 8): {"perturbation": 3.0}})
    joined, correlation = tables.ranking(predicted, settings({(9, 8): {"accuracy": 0.5}}))
    assert math.isnan(correlation)
    figure = figures.ranking_figure(joined, correlation)
    assert "no runs" in figure.axes[0].texts[0].get_text()
