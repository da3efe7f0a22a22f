"""ImageSet: labelled images of one size in memory, and as one file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Int, Int64

from tsflora.errors import DataError, reason
from tsflora.files import write_atomically


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with a class each.

    Raises:
        DataError: no images, another dtype or shape than declared, or a label that is no index into `class_names`.
    """

    # Plain types: `__post_init__` holds the shapes and dtypes at run time, where annotations are only checked in tests.
    images: np.ndarray
    """uint8, (N, height, width, 3)."""
    labels: np.ndarray
    """int64, (N,): indices into `class_names`."""
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
            raise DataError(f"images must be uint8 of shape (N, H, W, 3), not {images.dtype} {images.shape}")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(f"labels must be int64, one per image ({len(images)}), not {labels.dtype} {labels.shape}")
        if not len(images):
            raise DataError("an image set needs at least one image")
        check_labels(labels, self.n_classes, "image set")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_classes(self) -> int:
        """Number of classes, those without an image included."""
        return len(self.class_names)

    def subset(self, indices: Int[np.ndarray, " k"] | Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order, under the same class names."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageSet(self.images[chosen], self.labels[chosen], self.class_names)

    def digest(self) -> str:
        """SHA-256 of pixels and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the set as one safetensors file, atomically.

        Raises:
            StorageError: the folder cannot be written, or the disk is full.
        """
        arrays = {"images": np.ascontiguousarray(self.images), "labels": np.ascontiguousarray(self.labels)}
        metadata = {"class_names": json.dumps(self.class_names)}
        write_atomically(path, safetensors.numpy.save(arrays, metadata))

    @classmethod
    def load(cls, path: Path) -> "ImageSet":
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or not an image set.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                images, labels = file.get_tensor("images"), file.get_tensor("labels")
                class_names = json.loads((file.metadata() or {})["class_names"])
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        except KeyError:
            raise DataError(f"{path} is not an intact image set (its class names are not there)") from None
        except (safetensors.SafetensorError, ValueError) as error:
            raise DataError(f"{path} is not an intact image set ({reason(error)})") from None
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise DataError(f"{path} is not an intact image set (class names are not a list of texts)")
        try:
            return cls(images, labels, tuple(class_names))
        except DataError as error:
            raise DataError(f"{path} is not an intact image set ({error})") from None


def check_labels(labels: Int64[np.ndarray, " n"], n_classes: int, where: str) -> None:
    """Hold every label to 0..n_classes-1.

    Raises:
        DataError: names `where`, the first wrong row and its label.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(f"{where}: label {labels[row]} in row {row} is outside 0..{n_classes - 1}")
