"""The learning rate is chosen with one method, on images held back, and never among rates that diverge."""

import pytest
from factories import make_record
from test_report import lost
from test_study import study_values

from tsflora.errors import ConfigError
from tsflora.rates import rate_cells, rate_table
from tsflora.study import StudyConfig


def study():
    values = study_values()
    values["methods"]["sflora"] = {"algorithm": "sflora"}
    return StudyConfig.parse(values)


def test_the_grid_is_the_reference_at_each_rate_without_the_test_set():
    cells = rate_cells(study(), "digits", [0.02, 0.1], 50)
    assert len(cells) == 2 * 2 * 2
    assert {cell.training.optimizer.lr for cell in cells} == {0.02, 0.1}
    assert {cell.dataset.held_back for cell in cells} == {50}
    assert {cell.method.algorithm.name for cell in cells} == {"sflora"}
    assert len({(cell.method_key, cell.partition_name, cell.seed) for cell in cells}) == len(cells)
    (plain,) = study().cells(methods=["sflora"], partitions=["iid"], seeds=[0])
    changed = cells[0].model_copy(update={"dataset": plain.dataset, "training": plain.training})
    assert changed.without_names() == plain.without_names(), "all else is the study's"


@pytest.mark.parametrize(
    ("rates", "line"), [([], "rates: given none"), ([0.0], r"lr: .*greater than 0; given: 0.0"), ([-1.0], "lr")]
)
def test_a_wrong_grid_is_one_line(rates, line):
    with pytest.raises(ConfigError, match=line):
        rate_cells(study(), "digits", rates, 50)


def record(rate, seed, accuracy, **changes):
    made = make_record(seed=seed, accuracies=[accuracy], **changes)
    return made.model_copy(update={"config": {"training": {"optimizer": {"lr": rate}}}})


def test_the_best_rate_is_chosen_among_those_that_never_diverge():
    records = [record(rate, seed, a) for rate, a in [(0.02, 0.6), (0.05, 0.7), (0.1, 0.9)] for seed in (0, 1)]
    records[-1] = lost(records[-1], 9.0)
    records.append(record(0.2, 0, 0.9).model_copy(update={"status": "failed", "history": ()}))
    table = rate_table(records).set_index("lr")
    assert table["chosen"].to_dict() == {0.02: False, 0.05: True, 0.1: False, 0.2: False}
    assert table["diverged"].to_dict() == {0.02: 0, 0.05: 0, 0.1: 1, 0.2: 1}
    assert table["mean"][0.05] == pytest.approx(70)
    assert table.loc[[0.1, 0.2], "mean"].isna().all()
