"""What a source finds before it decodes anything: labels, and a way to the pixels. Stratified choice happens here."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from tsflora.data.images import ImageSet, check_labels
from tsflora.errors import ConfigError, DataError
from tsflora.seeding import numpy_generator


@dataclass(frozen=True, eq=False)
class Listing:
    """Labelled images whose pixels are not read yet, so that a limited set costs only what it keeps.

    Raises:
        DataError: no images, or a label that is no index into `class_names`.
    """

    where: str
    """The file or folder, for error lines."""
    labels: Int64[np.ndarray, "n"]
    class_names: tuple[str, ...]
    read: Callable[[Int64[np.ndarray, "k"]], UInt8[np.ndarray, "k height width 3"]]
    """The images at given indices."""

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise DataError(f"{self.where}: holds no images")
        check_labels(self.labels, len(self.class_names), self.where)

    def image_set(self, size: int | None, *names: object) -> ImageSet:
        """All images, or a stratified choice of `size` under the draw called `names`, in the listing's order.

        Raises:
            ConfigError: `size` is more than there is.
            DataError: an image that cannot be read.
        """
        n = len(self.labels)
        if size is not None and size > n:
            raise ConfigError(f"{'_'.join(map(str, names))}_size: {size} asked, {self.where} holds {n} images")
        chosen = np.arange(n) if size is None else np.sort(stratified_order(self.labels, "limit", *names)[:size])
        return ImageSet(self.read(chosen), self.labels[chosen], self.class_names)

    def split(self, test_fraction: float, *names: object) -> tuple["Listing", "Listing"]:
        """A stratified (train, test) split under the draw called `names`; at least one image on either side.

        Raises:
            DataError: fewer than two images.
        """
        n = len(self.labels)
        if n < 2:
            raise DataError(f"{self.where}: one image cannot be split into train and test")
        n_test = min(max(round(test_fraction * n), 1), n - 1)
        order = stratified_order(self.labels, "split", *names)
        return self._part(np.sort(order[n_test:])), self._part(np.sort(order[:n_test]))

    def _part(self, members: Int64[np.ndarray, " k"]) -> "Listing":
        return Listing(self.where, self.labels[members], self.class_names, lambda rows: self.read(members[rows]))


def stratified_order(labels: Int64[np.ndarray, " n"], *names: object) -> Int64[np.ndarray, " n"]:
    """A random permutation of 0..n-1 of which every head is stratified, seeded by `names`.

    The j-th image (in random order) of a class of m stands at (j + 1/2) / m, so each class advances at the same pace.
    Heads are nested: the first 100 are among the first 200.
    """
    shuffled = numpy_generator("stratified", *names).permutation(len(labels))
    place: Float64[np.ndarray, " n"] = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]
