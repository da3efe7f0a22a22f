"""Checked copies of images and weights that the pipeline's first stages leave for the later ones.

A copy is used when `prepared_dir` is set. Beside each lies the configuration it was made from, so that a stale one is
refused and never used in silence.
"""

import hashlib
import json
from pathlib import Path

from safetensors.torch import save

from tsflora.config import Config
from tsflora.data import DataSource, ImageSet
from tsflora.errors import DataError
from tsflora.files import write_atomically
from tsflora.models import BackboneConfig, load_backbone
from tsflora.settings import Settings


def prepare_images(source: DataSource, settings: Settings, folder: Path) -> tuple[ImageSet, ImageSet]:
    """Load a data set from its original files and leave a copy in `folder`."""
    train, test = source.load(settings.data_dir)
    train.save(folder / "train.safetensors")
    test.save(folder / "test.safetensors")
    _sign(folder / "source.json", source, images_digest(train, test))
    return train, test


def prepared_images(source: DataSource, key: str, settings: Settings) -> tuple[ImageSet, ImageSet]:
    """Training and test images: the prepared copy where there is a `prepared_dir`, else from the original files.

    Raises:
        DataError: no copy there, a damaged one, or one made with other options.
    """
    if settings.prepared_dir is None:
        return source.load(settings.data_dir)
    folder = settings.prepared_dir / key
    _check(folder / "source.json", source, f"data set {key!r}")
    return ImageSet.load(folder / "train.safetensors"), ImageSet.load(folder / "test.safetensors")


def images_sha256(source: DataSource, key: str, settings: Settings) -> str:
    """Digest of the images that `prepared_images` gives, from the copy's signature where there is one.

    Raises:
        DataError: as `prepared_images`.
    """
    if settings.prepared_dir is None:
        return images_digest(*source.load(settings.data_dir))
    return _check(settings.prepared_dir / key / "source.json", source, f"data set {key!r}")


def images_digest(train: ImageSet, test: ImageSet) -> str:
    """One digest of both parts."""
    return hashlib.sha256((train.digest() + test.digest()).encode()).hexdigest()


def prepare_backbone(config: BackboneConfig, settings: Settings, folder: Path) -> dict[str, object]:
    """Load a backbone and leave a copy of its frozen tensors in `folder`; returns what it is, for the stage's log."""
    backbone = load_backbone(config, n_classes=2, seed=0, weights_dir=settings.weights_dir)
    state = {name: t.contiguous() for name, t in backbone.model.state_dict().items() if not name.startswith("head.")}
    write_atomically(folder / "backbone.safetensors", save(state))
    _sign(folder / "backbone.json", config, backbone.weights_sha256)
    return {
        "backbone": config.name,
        "image_size": backbone.image_size,
        "patches": backbone.n_patches,
        "frozen_parameters": sum(tensor.numel() for tensor in state.values()),
        "weights_sha256": backbone.weights_sha256,
    }


def prepared_backbone(config: BackboneConfig, settings: Settings) -> BackboneConfig:
    """The configuration that loads the prepared copy, or `config` itself where there is no `prepared_dir`."""
    if settings.prepared_dir is None:
        return config
    folder = settings.prepared_dir / "backbone"
    _check(folder / "backbone.json", config, f"backbone {config.name!r}")
    return BackboneConfig(
        name=config.name, image_size=config.image_size, weights=str((folder / "backbone.safetensors").resolve())
    )


def weights_sha256(config: BackboneConfig, settings: Settings) -> str:
    """Digest of the frozen tensors that `prepared_backbone` leads to, from the copy's signature where there is one.

    Raises:
        DataError, WeightsError: as `prepared_backbone` and `load_backbone`.
    """
    if settings.prepared_dir is None:
        return load_backbone(config, n_classes=2, seed=0, weights_dir=settings.weights_dir).weights_sha256
    return _check(settings.prepared_dir / "backbone" / "backbone.json", config, f"backbone {config.name!r}")


def _sign(path: Path, config: Config, sha256: str) -> None:
    signature = {"options": config.model_dump(mode="json"), "sha256": sha256}
    write_atomically(path, json.dumps(signature, indent=1, sort_keys=True).encode() + b"\n")


def _check(path: Path, config: Config, what: str) -> str:
    """The digest of what lies beside the signature at `path`."""
    try:
        found = json.loads(path.read_bytes())
        options, sha256 = found["options"], str(found["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        raise DataError(
            f"{what} is not prepared in {path.parent}; run the pipeline's data and backbone stages"
        ) from None
    if options != config.model_dump(mode="json"):
        raise DataError(f"{what} in {path.parent} was prepared with other options; run its stage again")
    return sha256
