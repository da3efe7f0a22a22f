"""Files of backbone weights: find one, read it without running anything in it, and fit it to a model."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path

from timm.models import load_state_dict as read_checkpoint
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from tsflora.errors import WeightsError, reason
from tsflora.files import expanded


def find(weights: str, weights_dir: Path | None) -> Path:
    """The file that `weights` names: absolute, within `weights_dir`, or from here.

    Raises:
        ConfigError: a home folder or variable in the name that does not exist.
        WeightsError: no such file.
    """
    given = expanded(weights)
    places = [given] if given.is_absolute() or weights_dir is None else [weights_dir / given, given]
    for place in places:
        if place.is_file():
            return place
    raise WeightsError(
        f"weights file {weights!r} is not at {' or '.join(str(place) for place in places)}; "
        "set TSFLORA_WEIGHTS_DIR to its folder, or use pretrained: true"
    )


def load(model: VisionTransformer, name: str, path: Path) -> None:
    """Copy the weights in `path` into the model called `name`, position embeddings resampled to its grid; no head.

    Raises:
        WeightsError: the file cannot be read, or does not fit.
    """
    state = _read(path)
    _check_prefix(model, name, path, state)
    try:
        state = checkpoint_filter_fn(state, model)
    except Exception as error:  # whatever its many conversions meet in a foreign file
        raise WeightsError(f"{path} does not fit the model {name!r}: {reason(error)}") from None
    state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    try:
        outcome = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the model {name!r}: {str(error).splitlines()[1].strip()}") from None
    missing = [key for key in outcome.missing_keys if not key.startswith("head.")]
    if missing or outcome.unexpected_keys:
        raise WeightsError(
            f"{path} does not fit the model {name!r}: {len(missing)} tensors missing, "
            f"{len(outcome.unexpected_keys)} unknown (first: {[*missing, *outcome.unexpected_keys][0]!r}); "
            "timm's key names are expected"
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return dict(read_checkpoint(str(path), device="cpu", weights_only=True))
    except (AttributeError, TypeError, KeyError):  # timm looks for names in whatever it holds
        why = "it holds no tensors by name"
    except Exception as error:  # truncated or foreign files fail in many ways inside the readers
        why = reason(error)
        if pickle.UnpicklingError in (type(error), type(error.__cause__)):  # its text advises to run the file's code
            why = "it is no PyTorch file, or holds more than tensors"
    raise WeightsError(
        f"{path} cannot be read as weights ({why}); needed: an intact .safetensors file or a PyTorch state dict"
    )


def _check_prefix(model: VisionTransformer, name: str, path: Path, state: Mapping[str, Tensor]) -> None:
    """Hold the tokens beside the patches to the model's one; resampling to another grid would fail on any other."""
    embedding = state.get("pos_embed")
    if not isinstance(embedding, Tensor) or embedding.ndim != 3 or model.pos_embed is None:
        return
    n_rows, n_prefix = embedding.shape[1], 0 if model.no_embed_class else 1
    side = math.isqrt(n_rows)
    if n_rows != model.pos_embed.shape[1] and n_rows - side**2 != n_prefix:
        raise WeightsError(
            f"{path} does not fit the model {name!r}: its position embedding has {n_rows} rows, {side} x {side} "
            f"patches and {n_rows - side**2} other tokens; allowed: {n_prefix} other tokens"
        )
