"""What commands share: where a study is, and how a table looks in a terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsflora.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from tsflora.study import StudyConfig

PARAMS = Path("params.yaml")
Params = Annotated[Path, typer.Argument(help="The study's params.yaml.", metavar="PARAMS")]


def read_study(params: Path) -> "StudyConfig":
    """The study of a params.yaml.

    Raises:
        ConfigError: it is not there, or as `StudyConfig.read`.
    """
    from tsflora.study import StudyConfig

    if not params.exists():
        raise ConfigError(
            f"there is no {params} in {Path.cwd()}; name a study's params.yaml, or go to its folder: "
            "the suite's repository has one"
        )
    return StudyConfig.read(params)


def show(table: "pd.DataFrame") -> None:
    """Print a table of texts."""
    from tsflora.analysis.tables.markup import flat

    index = table.index.name is not None
    typer.echo(flat(table).to_markdown(tablefmt="simple", index=index, disable_numparse=True) + "\n")
