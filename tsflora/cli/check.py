"""`tsflora check`: what a study plans, what of it is done, and what the rest will take."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsflora.cli.common import PARAMS, Params, read_study, show

if TYPE_CHECKING:
    import pandas as pd

    from tsflora.analysis.sizing.hours import DatasetShape
    from tsflora.planned import ExperimentConfig
    from tsflora.records import RunRecord
    from tsflora.settings import Settings
    from tsflora.study import StudyConfig


def check(
    params: Params = PARAMS,
    records: Annotated[
        Path | None,
        typer.Option(help="Records of what is done: a folder, or a .jsonl file. [default: results/NAME/records.jsonl]"),
    ] = None,
    hours: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N_STEPS", help="Predict wall hours, from N_STEPS timed steps of each method here."
        ),
    ] = None,
) -> None:
    """Validate a study; show what is done and what it will take.

    MiB are all bytes of one device in one round, as a run counts them; a range where runs of a row differ, and of a
    device with the mean number of images where that is drawn. "once": images travel once. "measured": the size depends
    on the data, and only a run can tell.
    """
    from tsflora.analysis.runs.coverage import coverage_sentence
    from tsflora.analysis.sizing.hours import dataset_shape
    from tsflora.settings import Settings

    study = read_study(params)
    settings = Settings.from_environment()
    shapes = {key: dataset_shape(source, settings.data_dir) for key, source in study.datasets.items()}
    planned = study.all_cells()
    tables = {key: _table([cell for cell in planned if cell.dataset_name == key], shapes[key]) for key in shapes}
    done = _done(records, Path("results") / study.name / "records.jsonl")
    times = {} if hours is None else _hours(study, hours, settings)
    seeds = ", ".join(map(str, study.seeds))
    typer.echo(f"{params}: {study.name}, {len(planned)} runs; {len(study.methods)} methods, seeds {seeds}\n")
    for key, table in tables.items():
        _count(table, [cell for cell in planned if cell.dataset_name == key], done)
        if hours is not None:
            table["time"] = [times.get((key, name), "measured") for name in table["method"]]
        typer.echo(key)
        show(table)
    typer.echo(coverage_sentence(planned, done))
    if hours is not None:
        typer.echo(f"All of it takes about {times['', 'total']} here.")


def _done(records: Path | None, usual: Path) -> "list[RunRecord]":
    from tsflora.analysis.runs import load_records, read_jsonl

    if records is None and not usual.exists():
        return []
    path = records or usual
    found = load_records(path) if path.is_dir() else read_jsonl(path)
    return [*found.complete, *found.failed]


def _by_row(cells: "Iterable[ExperimentConfig]") -> "dict[str, list[ExperimentConfig]]":
    rows: dict[str, list[ExperimentConfig]] = {}
    for cell in cells:
        rows.setdefault(_row_of(cell.method_key, cell.sweep), []).append(cell)
    return rows


def _row_of(method: str, sweep: str | None) -> str:
    return method if sweep is None else f"sweep {sweep}"


def _table(cells: "Sequence[ExperimentConfig]", shape: "DatasetShape") -> "pd.DataFrame":
    """Methods, then sweeps, of one data set, with what one device sends and gets in one round.

    Raises:
        ConfigError: a run that the backbone cannot have.
    """
    import pandas as pd

    rows = []
    for name, group in _by_row(cells).items():
        up, down = _traffic(group, shape)
        rows.append({"method": name, "up, MiB": up, "down, MiB": down})
    return pd.DataFrame(rows)


def _traffic(cells: "Sequence[ExperimentConfig]", shape: "DatasetShape") -> tuple[str, str]:
    from tsflora.analysis.costs import MeasuredError
    from tsflora.analysis.sizing.traffic import round_traffic

    try:
        sent = [
            round_traffic(cell, shape)
            for cell in {cell.model_copy(update={"seed": 0}).digest: cell for cell in cells}.values()
        ]
    except MeasuredError:
        return "measured", "measured"
    once = " once" if all(cell.method.plan.uploads == "samples" for cell in cells) else ""
    return _span([one.uplink_bytes for one in sent]) + once, _span([one.downlink_bytes for one in sent])


def _span(sizes_bytes: Sequence[int]) -> str:
    texts = [f"{size / 2**20:.3g}" for size in (min(sizes_bytes), max(sizes_bytes))]
    return "–".join(dict.fromkeys(texts))


def _count(table: "pd.DataFrame", cells: "Sequence[ExperimentConfig]", done: "Sequence[RunRecord]") -> None:
    """Columns after the first that say how many runs of a partition are done."""
    from tsflora.analysis.runs.coverage import coverage

    for place, partition in enumerate(dict.fromkeys(cell.partition_name for cell in cells), start=1):
        found = coverage([cell for cell in cells if cell.partition_name == partition], done).to_dict("records")
        counts = {
            _row_of(row["method"], row["method"] if row["is_sweep"] else None): f"{row['in']}/{row['planned']}"
            for row in found
        }
        table.insert(place, partition, [counts.get(name, "") for name in table["method"]])


def _hours(study: "StudyConfig", n_steps: int, settings: "Settings") -> Mapping[tuple[str, str], str]:
    """Wall time by data set and row of its table, and of the whole study, all cores at work."""
    from tsflora.analysis.sizing import hours_frame, measure_study, size_study
    from tsflora.runs import workers_of

    rates = measure_study(study, n_steps, settings, data_dir=settings.data_dir)
    sizes = size_study(study, settings.data_dir)
    total_h = 0.0
    times: dict[tuple[str, str], str] = {}
    for dataset in study.datasets:
        frame = hours_frame([size for size in sizes if size.dataset == dataset], rates, workers_of(settings))
        times |= {(dataset, str(name)): _duration(time_h) for name, time_h in frame["total_h"].items()}
        total_h += frame["total_h"].sum()
    return times | {("", "total"): _duration(total_h)}


def _duration(time_h: float) -> str:
    if time_h < 1 / 60:
        return f"{3600 * time_h:.2g} s"
    return f"{60 * time_h:.2g} min" if time_h < 1 else f"{time_h:.1f} h"
