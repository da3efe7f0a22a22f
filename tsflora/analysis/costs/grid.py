"""Costs over a grid of settings, transmitted tokens by bits: traffic, latency, and which settings no other beats."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from tsflora.analysis.costs.cases import Case, Scenario, backbone_label, phases_s
from tsflora.analysis.costs.deployment import Deployment
from tsflora.analysis.costs.traffic import paper_uplink_mib, traffic
from tsflora.analysis.units import FULL_BITS, MIB
from tsflora.compression import TokenCodec


def at_setting(base: Deployment, n_tokens: int, bits: int) -> Deployment:
    """`base` with that many transmitted tokens, top-K and merged, at that many bits; 32 bits are fp32.

    Raises:
        ConfigError: more tokens than the backbone has, or bits that the quantizer does not have.
    """
    quantizer = {"name": "float32"} if bits == FULL_BITS else {"name": "uniform", "bits": bits}
    return _with_codec(base, {"tokens": {"name": "top_k_merge", "n_tokens": n_tokens}, "quantizer": quantizer})


def settings_grid(bases: Sequence[Deployment], tokens: Sequence[int], bits: Sequence[int]) -> pd.DataFrame:
    """Traffic in MiB of one device in one round per backbone, number of tokens and bits; `full_mib` sends it all."""
    return pd.DataFrame(
        [
            {
                "backbone": backbone_label(base.vit),
                "n_tokens": n_tokens,
                "bits": width,
                "paper_uplink_mib": paper_uplink_mib(at_setting(base, n_tokens, width)),
                "total_mib": traffic(at_setting(base, n_tokens, width)).total_bytes / MIB,
                "full_tokens": base.vit.n_patches + 1,
                "full_paper_uplink_mib": paper_uplink_mib(_uncompressed(base)),
                "full_total_mib": traffic(_uncompressed(base)).total_bytes / MIB,
            }
            for base in bases
            for n_tokens in tokens
            for width in bits
        ]
    )


def with_latency(settings: pd.DataFrame, base: Deployment | None, scenario: Scenario | None = None) -> pd.DataFrame:
    """`settings` with a column `latency_s`, the round of `base` at each row's `n_tokens` and `bits`.

    Without a base it is missing.

    Raises:
        ConfigError: as `at_setting`.
    """
    if base is None:
        return settings.assign(latency_s=math.nan)
    scenario = scenario or Scenario()
    pairs = {(int(n), int(bits)) for n, bits in zip(settings["n_tokens"], settings["bits"], strict=True)}
    known = {pair: sum(phases_s(Case("", "", at_setting(base, *pair)), scenario).values()) for pair in pairs}
    latency_s = [known[int(n), int(bits)] for n, bits in zip(settings["n_tokens"], settings["bits"], strict=True)]
    return settings.assign(latency_s=np.array(latency_s, dtype=float))


def pareto_front(points: pd.DataFrame, cost: str = "latency_s", gain: str = "mean") -> pd.DataFrame:
    """The rows that no other row beats: none costs as little and gains more, or costs less and gains as much."""
    best, kept = -math.inf, []
    for place, row in points.sort_values([cost, gain], ascending=[True, False]).iterrows():
        if row[gain] > best:
            best = row[gain]
            kept.append(place)
    return points.loc[kept]


def _uncompressed(base: Deployment) -> Deployment:
    return _with_codec(base, {})


def _with_codec(base: Deployment, options: Mapping[str, Any]) -> Deployment:
    codec = TokenCodec.parse(options, f"codec {options}")
    return replace(base, plan=base.plan.model_copy(update={"codec": codec}))
