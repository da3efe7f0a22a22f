"""The learning rate of a study: chosen once for each data set, with one method, without looking at the test set.

SFLora alone is trained at each rate of a stated grid, on training images of which some are held back, and is judged on
those. The rate with the best mean over partitions and seeds holds for every method on that data set; a rate at which
any run diverged is out.
"""

from collections.abc import Sequence

import pandas as pd

from tsflora.data import data_sources
from tsflora.errors import ConfigError
from tsflora.planned import ExperimentConfig
from tsflora.records import RunRecord
from tsflora.study import StudyConfig

REFERENCE = "sflora"
"""The method that the rate is chosen with."""


def rate_cells(
    study: StudyConfig,
    dataset: str,
    rates: Sequence[float],
    held_back: int,
    seeds: Sequence[int] | None = None,
    method: str = REFERENCE,
) -> list[ExperimentConfig]:
    """The reference's runs at each rate, on all partitions of the study and these of its seeds; None takes them all.

    Raises:
        ConfigError: a data set or method that the study does not have, no rates, or one that is not positive.
    """
    if not rates:
        raise ConfigError("rates: given none; allowed: one or more positive numbers")
    cells = []
    for cell in study.cells(dataset, [method], seeds=seeds):
        source = data_sources.build({**cell.dataset.model_dump(), "held_back": held_back})
        for rate in rates:
            optimizer = type(cell.training.optimizer).parse({**cell.training.optimizer.model_dump(), "lr": rate})
            training = cell.training.model_copy(update={"optimizer": optimizer})
            names = {"method_key": f"{method}-lr_{rate:g}", "sweep": "rates"}
            cells.append(cell.model_copy(update={"dataset": source, "training": training, **names}))
    return cells


def rate_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Accuracy on the images held back, in percent, by data set and rate; `chosen` marks the best rate of a data set.

    `mean` is over partitions and seeds; it is missing where a run diverged or failed, and the rate is then not chosen.
    """
    rows = [
        {
            "dataset": record.dataset,
            "lr": record.config["training"]["optimizer"]["lr"],
            "accuracy": 100 * record.final.accuracy if record.status == "complete" and record.final.accuracy else None,
            "diverged": record.status != "complete" or record.diverged,
        }
        for record in records
    ]
    groups = pd.DataFrame(rows).groupby(["dataset", "lr"], sort=True)
    table = groups.agg(mean=("accuracy", "mean"), n=("accuracy", "size"), diverged=("diverged", "sum")).reset_index()
    table.loc[table["diverged"] > 0, "mean"] = float("nan")
    best = table.groupby("dataset")["mean"].transform("max")
    return table.assign(chosen=table["mean"].notna() & (table["mean"] == best))
