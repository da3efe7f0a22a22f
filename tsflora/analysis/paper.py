"""Numbers of the TSFLora paper (arXiv 2605.23988), as data, to set ours beside.

Units are as printed. Arithmetic on Table I fits MiB (2^20 bytes), one direction and fp32 where it says MB.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from tsflora.analysis.units import FULL_BITS
from tsflora.errors import ConfigError

Basis = Literal["printed", "secondary", "inferred"]
"""Where a number comes from: printed in the paper, in a source that describes it, or worked out from printed ones."""

_PAPER = "arXiv 2605.23988"


@dataclass(frozen=True)
class PaperValue:
    """One number of the paper: what it is of, its unit, where it stands and how it is known."""

    quantity: str
    subject: str
    value: float
    unit: str
    source: str
    basis: Basis


def _table_one(quantity: str, subject: str, value: float, unit: str) -> PaperValue:
    return PaperValue(quantity, subject, value, unit, f"{_PAPER}, Table I", "printed")


def _setting(subject: str, value: float, unit: str, basis: Basis) -> PaperValue:
    sources: dict[Basis, str] = {
        "printed": f"{_PAPER}, settings",
        "secondary": f"descriptions of {_PAPER} and its authors' related code",
        "inferred": f"arithmetic on {_PAPER}, Table I",
    }
    return PaperValue("setting", subject, value, unit, sources[basis], basis)


def _table_two(device: str, compute_share: float, memory_share: float) -> tuple[PaperValue, PaperValue]:
    source = f"{_PAPER}, Table II"
    return (
        PaperValue("compute share", device, compute_share, "", source, "printed"),
        PaperValue("memory share", device, memory_share, "", source, "printed"),
    )


VALUES = (
    _table_one("communication per round", "CL", 229.2, "MB"),
    _table_one("communication per round", "FL", 15.8, "MB"),
    _table_one("communication per round", "SFL ViT-B/32", 61.3, "MB"),
    _table_one("communication per round", "SFL ViT-B/16", 233.5, "MB"),
    _table_one("device memory", "SFL ViT-B/32", 1.1, "GB"),
    _table_one("device memory", "SFL ViT-B/16", 2.3, "GB"),
    *_table_two("devices 0-2", 0.05, 0.08),
    *_table_two("devices 3-6", 0.10, 0.10),
    *_table_two("devices 7-9", 0.15, 0.12),
    PaperValue("device memory", "limit", 4.0, "GB", f"{_PAPER}, Fig. 4a", "printed"),
    PaperValue("uplink rate", "latency by method", 10.0, "Mbps", f"{_PAPER}, Fig. 4c", "printed"),
    PaperValue("uplink rate", "latency by rate, lowest", 5.0, "Mbps", f"{_PAPER}, Fig. 4d", "printed"),
    PaperValue("uplink rate", "latency by rate, highest", 20.0, "Mbps", f"{_PAPER}, Fig. 4d", "printed"),
    PaperValue("communication reduction", "TSFLora vs uncompressed SFL", 6.8, "x", f"{_PAPER}, text", "printed"),
    PaperValue("saving", "TSFLora vs uncompressed SFL", 41.0, "%", f"{_PAPER}, text", "printed"),
    _setting("rounds", 50.0, "", "printed"),
    _setting("device instances on the testbed", 10.0, "", "printed"),
    _setting("image side", 224.0, "px", "secondary"),
    _setting("population", 50.0, "devices", "secondary"),
    _setting("participants per round", 10.0, "devices", "secondary"),
    _setting("learning rate", 0.1, "", "secondary"),
    _setting("batch size", 64.0, "images", "secondary"),
    _setting("LoRA rank", 32.0, "", "secondary"),
    _setting("Dirichlet alpha", 0.5, "", "secondary"),
    _setting("samples per device and round", 400.0, "images", "inferred"),
    _setting("local epochs", 1.0, "", "inferred"),
    _setting("cut layer", 2.0, "blocks", "inferred"),
)


def paper_frame() -> pd.DataFrame:
    """`VALUES` as a frame, one row each."""
    return pd.DataFrame([asdict(value) for value in VALUES])


def paper_value(quantity: str, subject: str) -> float:
    """One number of `VALUES`, in its printed unit.

    Raises:
        ConfigError: the paper has no such number.
    """
    for value in VALUES:
        if (value.quantity, value.subject) == (quantity, subject):
            return value.value
    raise ConfigError(f"paper value: given {quantity!r} of {subject!r}; allowed: the rows of paper_frame()")


def full_tokens(n_patches: int, convention: Literal["paper", "plain"]) -> int:
    """Tokens that count as uncompressed: CLS + patches (`plain`), or one more, a merged token of nothing (`paper`).

    With 49 patches the plain count is 50. Only 51 gives both of the paper's headline numbers, 6.8x and 41 %, with 30
    transmitted tokens; that the paper counts so is inferred from this arithmetic, it does not say it.
    """
    return n_patches + (2 if convention == "paper" else 1)


def compression_ratio(n_patches: int, n_tokens: int, bits: int, convention: Literal["paper", "plain"]) -> float:
    """Payload of fp32 activations over the compressed one, (full tokens · 32) / (n_tokens · bits), no headers.

    `n_tokens` is the number transmitted, CLS and merged token in: K + 2 of equation (9).

    Raises:
        ConfigError: `n_tokens` or `bits` is out of range.
    """
    _check_tokens(n_patches, n_tokens, convention)
    if not 1 <= bits <= FULL_BITS:
        raise ConfigError(f"bits: given {bits}; allowed: 1 to {FULL_BITS}")
    return full_tokens(n_patches, convention) * FULL_BITS / (n_tokens * bits)


def token_saving(n_patches: int, n_tokens: int, convention: Literal["paper", "plain"]) -> float:
    """Fraction of tokens that need not be sent or computed on, 1 - n_tokens / (full tokens).

    Raises:
        ConfigError: `n_tokens` is out of range.
    """
    _check_tokens(n_patches, n_tokens, convention)
    return 1 - n_tokens / full_tokens(n_patches, convention)


def _check_tokens(n_patches: int, n_tokens: int, convention: Literal["paper", "plain"]) -> None:
    most = full_tokens(n_patches, convention)
    if n_patches < 1 or not 1 <= n_tokens <= most:
        raise ConfigError(f"n_tokens: given {n_tokens} with {n_patches} patches; allowed: 1 to {most}, patches from 1")
