"""Data sources: a name and options in, a training and a test `ImageSet` out."""

import json
import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from tsflora.config import Component, Registry
from tsflora.data.archives import cifar_listings, readable_names, tiny_imagenet_listings
from tsflora.data.download import Archive, fetch
from tsflora.data.folder import LAYOUT, class_folders, folder_listing
from tsflora.data.images import ImageSet
from tsflora.data.listing import Listing
from tsflora.data.parquet import parquet_class_names, parquet_listing
from tsflora.errors import ConfigError, DataError, reason
from tsflora.files import expanded
from tsflora.seeding import numpy_generator

_log = logging.getLogger(__name__)


class DataSource(Component):
    """Where images come from. A subclass says what there is (`listings`); choosing and decoding are done here."""

    train_size: int | None = Field(default=None, gt=0)
    """Number of training images to keep, stratified by class; None for all. Smaller choices lie within larger ones."""
    test_size: int | None = Field(default=None, gt=0)
    """The same for the test set."""

    @abstractmethod
    def listings(self, data_dir: Path | None) -> tuple[Listing, Listing]:
        """Train and test as listings, pixels unread.

        Raises:
            DataError: the data are missing, damaged, or not in the format they claim.
        """

    held_back: int | None = Field(default=None, ge=1)
    """Judge on this many training images, held back from training, in place of the test images: for choosing settings,
    which must not look at the test set."""

    def load(self, data_dir: Path | None) -> tuple[ImageSet, ImageSet]:
        """The training and the test set, the same ones on every call; what was found is logged.

        Raises:
            ConfigError: more images are asked for than there are.
            DataError: the data are missing, damaged, or not in the format they claim.
            StorageError: a download cannot be written.
        """
        try:
            train, test = self.listings(data_dir)
            chosen = (
                train.image_set(self.train_size, self.name, "train"),
                test.image_set(self.test_size, self.name, "test"),
            )
        except OSError as error:  # a folder that is closed to us, a disk that fails
            raise DataError(
                f"{error.filename or self.name}: cannot be read ({error.strerror or reason(error)})"
            ) from None
        for kept, found, split in zip(chosen, (train, test), ("training", "test"), strict=True):
            _log.info(
                "%s: %d of %d %s images, %d classes, from %s",
                self.name,
                len(kept),
                len(found.labels),
                split,
                kept.n_classes,
                found.where,
            )
        return chosen if self.held_back is None else self._without_test(chosen[0], self.held_back)

    def _without_test(self, train: ImageSet, n: int) -> tuple[ImageSet, ImageSet]:
        """The training images apart from `n` of them, and these; the same ones on every call.

        Raises:
            ConfigError: nothing would be left.
        """
        if n >= len(train):
            raise ConfigError(f"held_back: {n} of {len(train)} training images; allowed: 1 to {len(train) - 1}")
        order = numpy_generator("held back", self.name).permutation(len(train))
        return train.subset(order[n:]), train.subset(order[:n])


data_sources = Registry[DataSource]("data source", "tsflora.data_sources", DataSource)


@data_sources.register
class Digits(DataSource):
    """1,797 handwritten digits that come with scikit-learn: 8x8 pixels, scaled (bicubic) to 28x28 RGB."""

    name = "digits"

    test_fraction: float = Field(default=0.25, gt=0, lt=1)

    def listings(self, data_dir: Path | None) -> tuple[Listing, Listing]:  # noqa: ARG002
        """Train and test; `data_dir` is not used."""
        from sklearn.datasets import load_digits  # takes a second, and only this source needs it

        digits = load_digits()
        small = np.round(digits.images * (255 / 16)).astype(np.uint8)
        grey = [Image.fromarray(digit).resize((28, 28), Image.Resampling.BICUBIC) for digit in small]
        images = np.stack([np.asarray(digit.convert("RGB")) for digit in grey])
        names = tuple(str(digit) for digit in range(10))
        whole = Listing("scikit-learn's digits", digits.target.astype(np.int64), names, images.__getitem__)
        return whole.split(self.test_fraction, self.name)


class PublishedSource(DataSource):
    """A published data set: a pair of Parquet files, or the official archive, in the data folder."""

    archive: ClassVar[Archive]

    download: bool = True
    """Fetch the official archive into the data folder where neither form is there."""

    def listings(self, data_dir: Path | None) -> tuple[Listing, Listing]:
        """Train and test from what is in `data_dir`: Parquet first, then the archive, then a download."""
        wanted = f"{self.name}_train.parquet and {self.name}_test.parquet, or {self.archive.file_name}"
        if data_dir is None:
            raise DataError(f"{self.name}: set data_dir (or TSFLORA_DATA_DIR) to the folder for {wanted}")
        pair = [data_dir / f"{self.name}_{split}.parquet" for split in ("train", "test")]
        there = [path.exists() for path in pair]
        if all(there):
            class_names = self.parquet_names(pair[0])
            return parquet_listing(pair[0], class_names), parquet_listing(pair[1], class_names)
        if any(there):
            raise DataError(f"{self.name}: {pair[there.index(False)]} is missing beside {pair[there.index(True)]}")
        path = data_dir / self.archive.file_name
        if not path.exists():
            if not self.download:
                advice = "set data_dir (or TSFLORA_DATA_DIR) to their folder, or download to true"
                raise DataError(f"{self.name}: {data_dir} has neither {wanted}; {advice}")
            path = fetch(self.archive, data_dir)
        return self.archive_listings(path)

    @abstractmethod
    def parquet_names(self, train: Path) -> tuple[str, ...]:
        """Class names in label order for the Parquet pair of which `train` is one."""

    @abstractmethod
    def archive_listings(self, path: Path) -> tuple[Listing, Listing]:
        """Train and test from the official archive."""


class _Cifar(PublishedSource):
    class_names: ClassVar[tuple[str, ...]]
    members: ClassVar[tuple[tuple[str, ...], str]]
    label_bytes: ClassVar[int]
    misspelt: ClassVar[Mapping[str, str]] = {}

    def parquet_names(self, train: Path) -> tuple[str, ...]:
        named = parquet_class_names(train)
        if named is not None and tuple(self.misspelt.get(name, name) for name in named) != self.class_names:
            raise DataError(f"{train}: its classes are not those of {self.name} in their official order")
        return self.class_names

    def archive_listings(self, path: Path) -> tuple[Listing, Listing]:
        return cifar_listings(path, *self.members, self.label_bytes, self.class_names)


@data_sources.register
class Cifar10(_Cifar):
    """CIFAR-10 (Krizhevsky, 2009): 32x32 pixels, 10 classes; officially 50,000 + 10,000 images."""

    name = "cifar10"
    archive = Archive(
        "cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
    )
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    members = (
        tuple(f"cifar-10-batches-bin/data_batch_{batch}.bin" for batch in range(1, 6)),
        "cifar-10-batches-bin/test_batch.bin",
    )
    label_bytes = 1


@data_sources.register
class Cifar100(_Cifar):
    """CIFAR-100 (Krizhevsky, 2009), fine labels: 32x32 pixels, 100 classes; officially 50,000 + 10,000 images."""

    name = "cifar100"
    archive = Archive(
        "cifar-100-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
    )
    class_names = tuple(
        # One text, since a hundred quoted names would fill a screen.
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
    )
    members = (("cifar-100-binary/train.bin",), "cifar-100-binary/test.bin")
    label_bytes = 2
    misspelt = {"cra": "crab"}  # noqa: RUF012  (so in the Parquet files that are passed around)


@data_sources.register
class TinyImageNet(PublishedSource):
    """Tiny-ImageNet-200: 64x64 pixels, 200 classes by sorted WordNet id; officially 100,000 + 10,000 images."""

    name = "tiny_imagenet"
    archive = Archive(
        "tiny-imagenet-200.zip",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
    )

    def parquet_names(self, train: Path) -> tuple[str, ...]:
        """WordNet ids from the file, made readable by `tiny_imagenet_wnid_to_name.json` beside it, if it is there."""
        wnids = parquet_class_names(train)
        if wnids is None:
            return tuple(f"class {label}" for label in range(200))
        if list(wnids) != sorted(wnids):
            raise DataError(f"{train}: its classes are not in the order of their sorted WordNet ids")
        path = train.with_name("tiny_imagenet_wnid_to_name.json")
        if not path.exists():
            return wnids
        try:
            words = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a JSON table from WordNet id to name ({reason(error)})") from None
        if not isinstance(words, dict) or not all(isinstance(name, str) for name in words.values()):
            raise DataError(f"{path}: not a JSON table from WordNet id to name")
        return readable_names(list(wnids), words)

    def archive_listings(self, path: Path) -> tuple[Listing, Listing]:
        """Train and validation split of the official zip."""
        return tiny_imagenet_listings(path)


@data_sources.register
class ImageFolder(DataSource):
    """Your own images: one folder per class below `train/` and `test/` (or `val/`), or one tree that is split here."""

    name = "image_folder"
    examples = ({"path": "images"},)

    path: Path
    """The tree's root, absolute or within the data folder; `~` and environment variables are expanded."""
    image_size: int = Field(default=224, gt=0)
    """Side in pixels to which all images are brought: centre crop to a square, then bicubic."""
    test_fraction: float = Field(default=0.25, gt=0, lt=1)
    """Share of the images that becomes the test set, where the tree has no split of its own."""

    def listings(self, data_dir: Path | None) -> tuple[Listing, Listing]:
        """Train and test in the order of class and file names; a `test` folder is preferred to a `val` folder."""
        path = expanded(self.path)
        if data_dir is None and not path.is_absolute():
            raise DataError(f"image_folder: set data_dir (or TSFLORA_DATA_DIR), or make path {path} absolute")
        root = path if data_dir is None else data_dir / path
        if not root.is_dir():
            raise DataError(f"image_folder: there is no folder {root}; change path, data_dir or TSFLORA_DATA_DIR")
        if not (root / "train").is_dir():
            return folder_listing(root, class_folders(root), self.image_size).split(self.test_fraction, self.name)
        held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
        if held_out is None:
            raise DataError(f"image_folder: {root} has a train folder, but neither test nor val beside it; {LAYOUT}")
        class_names = class_folders(root / "train")
        train = folder_listing(root / "train", class_names, self.image_size)
        return train, folder_listing(held_out, class_names, self.image_size)
