"""`tsflora compare`: a method of one's own against methods of a study, at the same runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsflora.cli.common import PARAMS, read_study, show
from tsflora.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from tsflora.planned import ExperimentConfig, MethodConfig
    from tsflora.records import RunRecord
    from tsflora.study import StudyConfig

_KEY = "mine"


def compare(
    mine: Annotated[
        Path | None, typer.Argument(help="A Python file that registers your component.", metavar="MINE.py")
    ] = None,
    quantizer: Annotated[
        str | None, typer.Option(help="Your method is SFLora with this quantizer: a name, or YAML with its options.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Your method: YAML as below `methods` in params.yaml, or a key there.")
    ] = None,
    against: Annotated[list[str], typer.Option(help="A method of the study; again for each.")] = [  # noqa: B006
        "sflora",
        "sflora_8bit",
    ],
    params: Annotated[Path, typer.Option(help="The study's params.yaml.")] = PARAMS,
    dataset: Annotated[str | None, typer.Option(help="A key of `datasets`. [default: the first]")] = None,
    partition: Annotated[list[str], typer.Option(help="A key of `partitions`; again for each.")] = ["iid"],  # noqa: B006
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed; again for each. [default: the study's first three]")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for tables, figure and records.")] = Path("compare"),
) -> None:
    """Train your method beside others; print what differs.

    Accuracy, differences paired by seed, and traffic, as tables, and the one against the other as a figure. The same
    shards, participants and sample order for all. What is done lies in the output folder and is not run again, unless
    what it depends on has changed, the text of MINE.py included.
    """
    from tsflora.analysis.runs.collection import separate
    from tsflora.plugins import load_plugins
    from tsflora.runs import run_cells
    from tsflora.settings import Settings

    study = read_study(params)
    plugins = load_plugins([] if mine is None else [str(mine)], Path())
    key, own = _own_method(quantizer, method, study)
    if key in against:
        raise ConfigError(f"--against {key}: this is your method itself; name another one")
    changes = {"methods": {**study.methods, key: own}, "plugins": tuple(dict.fromkeys([*study.plugins, *plugins]))}
    study = study.model_copy(update=changes)
    cells = study.cells(dataset or next(iter(study.datasets)), [*against, key], partition, seed or study.seeds[:3])
    found = separate(run_cells(cells, Settings.from_environment(), output / "records"))
    _write(found.complete, cells, key, against, output)
    typer.echo(f"tables, figure and records -> {output}")
    if found.failed:
        raise typer.Exit(1)


def _own_method(quantizer: str | None, method: str | None, study: "StudyConfig") -> "tuple[str, MethodConfig]":
    """The user's method, and its key.

    Raises:
        ConfigError: not exactly one of the two is given, or it is not a method.
    """
    from tsflora.config import did_you_mean
    from tsflora.params import parse_yaml
    from tsflora.planned import MethodConfig

    where = "your method"
    if quantizer is not None and method is None:
        values = parse_yaml(quantizer, "--quantizer")
        name = values.get("name") if isinstance(values, Mapping) else values
        named = {"label": f"SFLora ({name})", "algorithm": "sflora", "quantizer": values}
        return _KEY, MethodConfig.parse(named, where)
    if method is None or quantizer is not None:
        raise ConfigError("what is your method? give --quantizer NAME, or --method with YAML as in params.yaml")
    values = parse_yaml(method, "--method")
    if isinstance(values, Mapping):
        return _KEY, MethodConfig.parse(values, where)
    if values not in study.methods:
        allowed = did_you_mean(values, study.methods)
        raise ConfigError(f"--method: a mapping such as {{algorithm: sflora}}, or a key; given: {values!r}; {allowed}")
    return values, study.methods[values]


def _write(
    records: "Sequence[RunRecord]", cells: "Sequence[ExperimentConfig]", key: str, against: Sequence[str], output: Path
) -> None:
    """Show and write all that is known of these records."""
    from tsflora.analysis.figures import accuracy_against_traffic, save_figure
    from tsflora.analysis.runs import accuracy_means, tradeoff_frame, traffic_means
    from tsflora.analysis.tables import accuracy_table, traffic_table, write_table
    from tsflora.analysis.tables.writers import write_csv

    n_seeds = len({cell.seed for cell in cells})
    differences, difference_numbers = _differences(records, cells, key, against)
    for title, stem, table, numbers in (
        ("Final accuracy in percent", "accuracy", accuracy_table(records, n_seeds, cells), accuracy_means(records)),
        ("Difference in percentage points, paired by seed", "differences", differences, difference_numbers),
        (
            "Traffic per device and round",
            "traffic",
            traffic_table(records, against[0]),
            traffic_means(records, against[0]),
        ),
    ):
        typer.echo(title)
        show(_upright(table) if stem == "traffic" else table)
        write_table(table, output / stem, numbers)
    save_figure(accuracy_against_traffic(records, planned=cells), output / "tradeoff")
    write_csv(tradeoff_frame(records), output / "tradeoff")


def _differences(
    records: "Sequence[RunRecord]", cells: "Sequence[ExperimentConfig]", key: str, against: Sequence[str]
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The user's method minus each other one, as a table and as numbers."""
    import pandas as pd

    from tsflora.analysis.runs import accuracy_differences, partition_label
    from tsflora.analysis.tables.methods import difference_cell, no_table

    numbers = pd.concat(
        [
            accuracy_differences([run for run in records if run.method in (key, other)], other, cells)
            for other in against
        ]
    )
    if numbers.empty:
        return no_table("No seed has runs of both."), numbers
    labels = {cell.method_key: cell.label for cell in cells}
    table = pd.DataFrame(
        [
            {
                "Difference": f"{labels[key]} minus {labels[row['reference']]}",
                "Partition": partition_label(row["partition"]),
                "95 % interval": difference_cell(row),
            }
            for row in numbers.to_dict("records")
        ]
    )
    return table, numbers


def _upright(table: "pd.DataFrame") -> "pd.DataFrame":
    """One column for each row: ten columns of numbers are wider than a terminal."""
    from tsflora.analysis.tables.markup import flat

    table = flat(table)
    table = table.drop(columns=[name for name in ("Dataset", "Partition") if table[name].nunique() == 1])
    heads = [name for name in ("Partition", "Method") if name in table]
    numbers, names = table.drop(columns=heads), table[heads].agg(", ".join, axis=1)
    return numbers.set_axis(names).T.rename_axis("")
