"""Sweeps: which runs stand at which setting, read from what they recorded, whatever method or sweep they ran under."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tsflora.analysis.runs.coverage import PlannedRun
from tsflora.analysis.runs.dataframes import runs_frame
from tsflora.analysis.runs.naming import in_order
from tsflora.compression import Quantizer, TokenCodec, TokenReducer, quantizers, token_reducers
from tsflora.compression.gradients import QuantizedGradient
from tsflora.compression.tokens import AllTokens, SelectAndMerge
from tsflora.config import Registry
from tsflora.errors import ConfigError, DataError
from tsflora.records import RunRecord, config_digest

PANEL = ["dataset", "partition"]
POINT = ["cut", "selection", "merge", "n_tokens", "bits"]
"""What a point of a sweep's figure is, within its panel."""
_DIGITS = 12

_NAMES = [*PANEL, "method", "label", "sweep", "seed"]
_COUNTS = ["cut", "n_tokens", "n_patches", "bits", "gradient_bits"]
_OTHERS = ["quantizer", "selection_options", "rest", "setting"]
_RESULTS = ["accuracy", "uplink_mib_per_device_round", "total_mib_per_device_round"]
_COLUMNS = [*_NAMES, "algorithm", *POINT, "n_patches", "gradient_bits", *_RESULTS, *_OTHERS]


def method_records(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs of a study's methods, without the points of its sweeps."""
    return [run for run in records if run.config.get("sweep") is None]


def settings_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per run: its setting, from the resolved configuration, and its final accuracy and traffic.

    `n_tokens` are transmitted tokens, class and merged token in; a reducer that keeps all M + 1 is `all`, whatever its
    name. `bits` and `gradient_bits` are per entry. What a component that is not installed would send is missing, as is
    every number of tokens and bits of a run that sends no activations. `quantizer` and `selection_options` are the
    other options of those two; `rest` is a digest of all that no other column says, `setting` one of everything but
    names and seed. A setting that ran as a method and as a point of a sweep is one row, the method's.

    Raises:
        DataError: two runs of one setting and seed with different results, or as `runs_frame`.
    """
    if not records:
        return pd.DataFrame(columns=_COLUMNS)
    runs = runs_frame(records)
    settings = pd.DataFrame([_recorded(run) for run in in_order(records)])
    frame = _typed(pd.concat([runs, settings], axis=1))
    same = [*PANEL, "setting", "seed"]
    twice = frame[frame.duplicated(same, keep=False)]
    for _, group in twice.groupby(same):
        if len(group[["accuracy", "uplink_bytes", "total_bytes"]].drop_duplicates()) > 1:
            first = group.iloc[0]
            raise DataError(
                f"{first['dataset']}, {first['partition']}, seed {first['seed']}: {', '.join(group['method'])} are one "
                f"setting with different results (accuracies {group['accuracy'].tolist()}); run them again"
            )
    methods_first = frame.sort_values("sweep", key=lambda names: names.notna(), kind="stable")
    return methods_first.drop_duplicates(same).sort_index().reset_index(drop=True)[_COLUMNS]


def planned_frame(planned: Sequence[PlannedRun], records: Sequence[RunRecord]) -> pd.DataFrame:
    """The settings of planned runs, columns as `settings_frame` without results, one row per setting and seed.

    A plan does not say how many patches its backbone has: that is taken from a record with the same backbone, else
    the number of tokens of `all` is missing.
    """
    # By digest: a record that was on disk may have its keys in another order.
    n_patches = {
        config_digest(_options(run.config.get("backbone"))): run.geometry.n_patches for run in records if run.geometry
    }
    rows = []
    for cell in planned:
        config = cell.dump()
        row = dict(zip(_NAMES, _names(cell), strict=True))
        rows.append(row | _setting(config, n_patches.get(config_digest(_options(config["backbone"])))))
    frame = _typed(pd.DataFrame(rows, columns=[name for name in _COLUMNS if name not in _RESULTS]))
    return frame.drop_duplicates([*PANEL, "setting", "seed"]).reset_index(drop=True)


def _names(cell: PlannedRun) -> tuple[str, str, str, str, str | None, int]:
    return cell.dataset_name, cell.partition_name, cell.method_key, cell.label, cell.sweep, cell.seed


def _recorded(run: RunRecord) -> dict[str, Any]:
    row = _setting(run.config, None if run.geometry is None else run.geometry.n_patches) | {
        "sweep": run.config.get("sweep"),
        "cut": None if run.geometry is None else run.geometry.cut,
    }
    if not any(entry.uplink_bytes.get("activations") for entry in run.history):
        row |= dict.fromkeys(("selection", "merge", "n_tokens", "bits"))
    if not any(entry.downlink_bytes.get("gradients") for entry in run.history):
        row["gradient_bits"] = None
    return row


def _setting(config: Mapping[str, Any], n_patches: int | None) -> dict[str, Any]:
    """What a resolved configuration says of the codec and the cut; None where it or the registries do not."""
    method = _in_short(_options(config.get("method")))
    tokens, quantizer = _options(method.get("tokens")), _options(method.get("quantizer"))
    reducer = _built(token_reducers, tokens)
    n_tokens = _n_transmitted(reducer, n_patches)
    if isinstance(reducer, SelectAndMerge) and n_patches is not None and n_tokens == n_patches + 1:
        tokens = {"name": AllTokens.name}
    everything = _without(config, "seed", "sweep", "method_key", "dataset_key", "partition_key")
    rest = _without(everything, "cut")
    if method:  # the cut of a method is that of the run by now, and a label changes nothing
        everything["method"] = _without(method, "label", "cut") | {"tokens": tokens}
        rest["method"] = _without(method, "label", "cut", "tokens", "quantizer")
    return {
        "algorithm": _options(method.get("algorithm")).get("name"),
        "cut": config.get("cut"),
        "selection": tokens.get("name"),
        "merge": tokens.get("merge"),
        "n_tokens": n_tokens,
        "n_patches": n_patches,
        "bits": _bits(quantizer),
        "gradient_bits": _bits(_options(method.get("gradient_quantizer"))),
        "quantizer": _text(_without(quantizer, "bits")),
        "selection_options": _text(_without(tokens, "name", "n_tokens", "merge")),
        "rest": config_digest(rest)[:_DIGITS],
        "setting": config_digest(everything)[:_DIGITS],
    }


def _in_short(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method whose codecs are named in full as one that names their parts; parts that a codec does not have go."""
    short = dict(method)
    codec, gradient = _options(method.get("codec")), _options(method.get("gradient"))
    if codec:
        short |= {"tokens": codec.get("tokens"), "quantizer": codec.get("quantizer")}
    if gradient:
        short["gradient_quantizer"] = gradient.get("quantizer")
    if codec.get("name") == TokenCodec.name:
        short["codec"] = None
    if gradient.get("name") == QuantizedGradient.name:
        short["gradient"] = None
    return short


def _options(component: object) -> dict[str, Any]:
    """A component's name and options; none where a configuration does not have it."""
    return dict(component) if isinstance(component, Mapping) else {}


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items()))


def _built(registry: Registry[Any], options: Mapping[str, Any]) -> Any:
    """A component, None where it is not installed or no longer takes these options."""
    try:
        return registry.build(options)
    except ValueError:
        return None


def _n_transmitted(reducer: TokenReducer | None, n_patches: int | None) -> int | None:
    if isinstance(reducer, SelectAndMerge):
        return reducer.n_tokens
    try:
        return None if reducer is None or n_patches is None else reducer.n_transmitted(n_patches)
    except ConfigError:
        return None


def _bits(options: Mapping[str, Any]) -> int | None:
    quantizer: Quantizer | None = _built(quantizers, options)
    return None if quantizer is None else quantizer.bits_per_entry


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers that may be missing, and missing names as None."""
    frame = frame.astype(dict.fromkeys(_COUNTS, "Int64"))
    for column in ("sweep", "algorithm", "selection", "merge"):
        names = frame[column].astype(object)
        frame[column] = names.where(names.notna(), None)
    return frame


def accuracies_of(records: Sequence[RunRecord], dataset: str, partition: str) -> pd.DataFrame:
    """`settings_frame` of the runs that a prediction is about: tokens by CLS attention and merged, or all of them.

    Raises:
        DataError: as `settings_frame`.
    """
    found = settings_frame(records)
    by_attention = found["selection"].eq("top_k_merge") & found["merge"].eq("attention")
    here = found["dataset"].eq(dataset) & found["partition"].eq(partition)
    return found[here & (by_attention | found["selection"].eq("all"))]
