"""What a notebook shows: displayed where it runs, written where it was asked for, with the words that go with it."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tsflora.analysis.figures.style import save_figure
from tsflora.analysis.page.sections import Item, Manifest
from tsflora.analysis.tables.writers import write_csv, write_table


class Output:
    """The tables and figures of one notebook, in its order; one section of a study's page.

    `folder` None displays everything and writes nothing.
    """

    def __init__(self, folder: str | Path | None, title: str) -> None:
        self.folder = None if folder is None else Path(folder)
        self._manifest = Manifest(title=title)

    def table(self, stem: str, table: pd.DataFrame, numbers: pd.DataFrame, *, title: str, caption: str) -> None:
        """A table for people, with its numbers for machines.

        Raises:
            StorageError: the folder cannot be written.
        """
        _display(table)
        if self.folder is not None:
            write_table(table, self.folder / stem, numbers)
            self._describe(self.folder, Item(stem=stem, title=title, caption=caption))

    def figure(self, stem: str, figure: Figure, numbers: pd.DataFrame, *, title: str, caption: str) -> None:
        """A figure, with the numbers that are drawn in it.

        Raises:
            StorageError: the folder cannot be written.
        """
        _display(figure)
        if self.folder is not None:
            save_figure(figure, self.folder / stem)
            write_csv(numbers, self.folder / stem)
            self._describe(self.folder, Item(stem=stem, title=title, caption=caption))

    def _describe(self, folder: Path, item: Item) -> None:
        """Say of one more item what it is; a cell that runs again says it again, in its place."""
        items = {**{known.stem: known for known in self._manifest.items}, item.stem: item}
        self._manifest = self._manifest.model_copy(update={"items": tuple(items.values())})
        self._manifest.write(folder)


def _display(content: pd.DataFrame | Figure) -> None:
    from IPython.display import display  # only notebooks need it, and it is no dependency of the library

    display(content)
