"""Planned runs at their settings: how many tokens, at how many bits, behind which block, and what came of them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tsflora.analysis.runs.dataframes import runs_frame
from tsflora.compression import TokenCodec
from tsflora.planned import ExperimentConfig
from tsflora.records import RunRecord, config_digest
from tsflora.study import StudyConfig

PANEL = ["dataset", "partition"]
POINT = ["cut", "selection", "merge", "n_tokens", "bits"]
"""What a point of a sweep's figure is, within its panel."""
ALL_TOKENS = "all"

_OTHERS = ["quantizer", "selection_options", "rest"]
_COLUMNS = [*PANEL, "method", "sweep", "seed", *POINT, *_OTHERS, "accuracy", "diverged"]


def settings_frame(records: Sequence[RunRecord], study: StudyConfig) -> pd.DataFrame:
    """One row for each planned run that sends tokens: its setting, and what its record says, by configuration.

    `n_tokens` are transmitted tokens, class and merged token in; a reducer that keeps all M + 1 is `all`, whatever its
    name. `bits` are per entry. Both are missing where they depend on the data, and the number of `all` while no record
    says how many patches there are. `quantizer` and `selection_options` are the other options of those two, `rest` a
    digest of all that no other column says. `accuracy` is after the last round, as a fraction, missing where the run
    is not in. A setting that is a method and a point of sweeps is one row, the method's.

    Raises:
        DataError: as `runs_frame`.
    """
    n_patches = next((run.geometry.n_patches for run in records if run.geometry is not None), None)
    runs_frame(records)  # for its checks
    found = {config_digest(run.config): {"accuracy": run.final.accuracy, "diverged": run.diverged} for run in records}
    rows = []
    for cell in study.all_cells():
        codec = cell.method.plan.codec
        if isinstance(codec, TokenCodec):
            rows.append(_setting(cell, codec, n_patches) | _merging(cell) | found.get(cell.digest, {}))
    frame = pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(["cut", "n_tokens", "bits"], "Int64"))
    for column in ("sweep", "merge"):
        frame[column] = frame[column].astype(object).where(frame[column].notna(), None)
    frame = frame.sort_values(
        "accuracy", key=lambda found: found.isna(), kind="stable"
    )  # of two names the one that ran
    return frame.drop_duplicates([*PANEL, *POINT, *_OTHERS, "seed"]).sort_index().reset_index(drop=True)


def _setting(cell: ExperimentConfig, codec: TokenCodec, n_patches: int | None) -> dict[str, Any]:
    tokens, quantizer = codec.tokens.model_dump(mode="json"), codec.quantizer.model_dump(mode="json")
    n_tokens = tokens.get("n_tokens") if n_patches is None else codec.n_transmitted(n_patches)
    if n_patches is not None and n_tokens == n_patches + 1:
        tokens = {"name": ALL_TOKENS}
    rest = cell.without_names().dump()
    for name in ("cut", "seed", "dataset_key", "partition_key"):
        del rest[name]
    rest["method"] = {
        key: value for key, value in rest["method"].items() if key not in ("tokens", "quantizer", "codec")
    }
    return {
        "dataset": cell.dataset_name,
        "partition": cell.partition_name,
        "method": cell.method_key,
        "sweep": cell.sweep,
        "seed": cell.seed,
        "cut": cell.cut,
        "selection": tokens.pop("name"),
        "merge": tokens.pop("merge", None),
        "n_tokens": n_tokens,
        "bits": codec.quantizer.bits_per_entry,
        "quantizer": _text({name: value for name, value in quantizer.items() if name != "bits"}),
        "selection_options": _text({name: value for name, value in tokens.items() if name != "n_tokens"}),
        "rest": config_digest(rest)[:12],
    }


def _merging(cell: ExperimentConfig) -> dict[str, Any]:
    """What merging before the cut makes of a setting: another selection, of tokens whose number only a run can tell."""
    merging = cell.method.merging
    return {} if merging is None else {"selection": f"merging {merging.name}", "n_tokens": None}


def _text(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items()))


def accuracies_of(records: Sequence[RunRecord], study: StudyConfig, dataset: str, partition: str) -> pd.DataFrame:
    """`settings_frame` of the runs that are in and that a prediction is about: tokens by CLS attention, merged, or all.

    Raises:
        DataError: as `settings_frame`.
    """
    found = settings_frame(records, study).dropna(subset="accuracy")
    by_attention = found["selection"].eq("top_k_merge") & found["merge"].eq("attention")
    here = found["dataset"].eq(dataset) & found["partition"].eq(partition)
    return found[here & (by_attention | found["selection"].eq(ALL_TOKENS))]
