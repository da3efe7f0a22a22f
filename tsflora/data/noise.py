"""Generated images, for what does not depend on what they show: how long a step takes, and how many bytes it sends."""

from pathlib import Path

import numpy as np
from pydantic import Field
from typing_extensions import override

from tsflora.data.listing import Listing
from tsflora.data.sources import DataSource, data_sources
from tsflora.seeding import numpy_generator


@data_sources.register
class Noise(DataSource):
    """Square images of independent uniform pixels; classes take turns."""

    name = "noise"

    n_train: int = Field(default=1000, ge=1)
    n_test: int = Field(default=100, ge=1)
    n_classes: int = Field(default=10, ge=1)
    side: int = Field(default=32, ge=1)
    """In pixels."""

    @override
    def listings(self, data_dir: Path | None) -> tuple[Listing, Listing]:
        return self._listing("train", self.n_train), self._listing("test", self.n_test)

    def _listing(self, part: str, n: int) -> Listing:
        names = tuple(str(label) for label in range(self.n_classes))

        def read(rows: np.ndarray) -> np.ndarray:
            generator = numpy_generator("noise", part)
            return generator.integers(0, 256, (n, self.side, self.side, 3), dtype=np.uint8)[rows]

        return Listing(f"{self.name}, {part}", np.arange(n) % self.n_classes, names, read)
