"""Sweeps: the runs of each figure of settings, the means of its points, and who chooses tokens best."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tsflora.analysis.runs.points import ALL_TOKENS, PANEL, POINT, settings_frame
from tsflora.analysis.runs.statistics import mean_interval, paired_difference
from tsflora.analysis.runs.summaries import DIFFERENCE, difference_numbers
from tsflora.analysis.units import FULL_BITS
from tsflora.records import RunRecord
from tsflora.study import StudyConfig

CLS_ATTENTION = ("top_k_merge", "attention")
"""Selection and merged token of TSFLora, which other choices are compared with."""
CHOICES = {
    CLS_ATTENTION: "CLS attention, merged",
    ("top_k_merge", "none"): "CLS attention, unmerged",
    ("random", "attention"): "Random, merged",
    ("feature_norm", "attention"): "Feature norm, merged",
}
"""Printed names of ways to choose tokens, in print order."""


@dataclass(frozen=True)
class Chosen:
    """The planned runs of one figure: at its fixed settings, and alike in all that it does not show."""

    points: pd.DataFrame
    """Rows of `settings_frame`, those that are not in as well."""
    reference: pd.DataFrame
    """Those of full precision that the figure draws beside them; none where it has no such thing."""
    fixed: Mapping[str, int]
    """Settings that the figure does not vary, e.g. `cut`; empty where nothing is planned."""

    @property
    def runs(self) -> pd.DataFrame:
        """The runs that are in, reference last."""
        return pd.concat([self.points, self.reference], ignore_index=True).dropna(subset="accuracy")

    @property
    def nothing(self) -> bool:
        """Whether none of the points is in."""
        return not self.points["accuracy"].notna().any()

    @property
    def count(self) -> str:
        """How many of the points' runs are in."""
        return f"{self.points['accuracy'].notna().sum()} of {len(self.points)} planned runs"

    @property
    def sentence(self) -> str:
        """What is said where nothing can be drawn."""
        return f"No runs of this sweep yet: {self.count}." if len(self.points) else "This study plans no such sweep."

    @property
    def means(self) -> pd.DataFrame:
        """Final accuracy at each point: mean and 95 % t-interval over n seeds, as fractions; none if any diverged."""
        rows = []
        for key, seeds in self.runs.groupby([*PANEL, *POINT], dropna=False, sort=False):
            interval, n_diverged = mean_interval(seeds["accuracy"]), int(seeds["diverged"].sum())
            numbers = (np.nan,) * 3 if n_diverged else (interval.mean, interval.low, interval.high)
            rows.append((*key, *numbers, interval.n, n_diverged))
        frame = pd.DataFrame(rows, columns=[*PANEL, *POINT, "mean", "low", "high", "n", "diverged"])
        frame["merge"] = frame["merge"].astype(object).where(frame["merge"].notna(), None)  # groupby made None a NaN
        return frame.sort_values([*PANEL, *POINT], kind="stable").reset_index(drop=True)


def bits_runs(records: Sequence[RunRecord], study: StudyConfig) -> Chosen:
    """Quantised runs at the study's cut, CLS attention or all tokens, and full precision there.

    Raises:
        DataError: as `settings_frame`; so do all functions here.
    """
    planned = settings_frame(records, study)
    here = planned[planned["cut"] == study.cut]
    return _chosen(_quantised(here), _uncompressed(here), {"cut": study.cut}, ["bits"])


def cut_runs(records: Sequence[RunRecord], study: StudyConfig) -> Chosen:
    """Quantised runs at every cut with the number of tokens that cut and bits are most varied at.

    Full precision with all tokens stands beside them wherever it was run.
    """
    planned = settings_frame(records, study)
    points, fixed = _most_varied(_quantised(planned), ["n_tokens"], ["cut", "bits"])
    return _chosen(points, _uncompressed(planned), fixed, ["cut"])


def selection_runs(records: Sequence[RunRecord], study: StudyConfig) -> Chosen:
    """Runs that choose among the tokens, in any way, at the tokens and bits that choice and cut are most varied at.

    Where nothing is chosen in two ways there is nothing to compare, and no run.
    """
    planned = settings_frame(records, study)
    choice = ["selection", "merge"]
    points, fixed = _most_varied(planned[planned["selection"] != ALL_TOKENS], ["n_tokens", "bits"], ["cut", *choice])
    found = _chosen(points, planned.iloc[:0], fixed, choice)
    return (
        found
        if len(found.points[choice].drop_duplicates()) > 1
        else _chosen(points.iloc[:0], points.iloc[:0], {}, choice)
    )


def _quantised(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs below full precision that send all tokens, or choose them as TSFLora does."""
    tsflora = (frame["selection"] == CLS_ATTENTION[0]) & (frame["merge"] == CLS_ATTENTION[1])
    return frame[((frame["selection"] == ALL_TOKENS) | tsflora) & (frame["bits"] < FULL_BITS)]


def _uncompressed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["selection"] == ALL_TOKENS) & (frame["bits"] == FULL_BITS)]


def _most_varied(frame: pd.DataFrame, fixed: list[str], varied: list[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows at the values of `fixed` with most combinations of `varied`, then most rows, then the smallest."""
    groups: list[tuple[Any, pd.DataFrame]] = list(frame.dropna(subset=fixed).groupby(fixed))
    if not groups:
        return frame.iloc[:0], {}
    values, rows = max(groups, key=lambda group: (len(group[1].drop_duplicates(varied)), len(group[1])))
    return rows, {name: int(value) for name, value in zip(fixed, values, strict=True)}


def _chosen(points: pd.DataFrame, reference: pd.DataFrame, fixed: Mapping[str, int], across: list[str]) -> Chosen:
    """Points of panels that have two values `across` (all panels where none has), alike in what no figure shows."""
    values = points[[*PANEL, *across]].drop_duplicates().groupby(PANEL).size()
    swept = values[values >= min(2, values.max())].index.to_frame(index=False)
    points = points.merge(swept, on=PANEL)
    for column, within in (("rest", PANEL), ("quantizer", PANEL), ("selection_options", [*PANEL, "selection"])):
        usual = points.groupby(within)[column].transform(lambda texts: Counter(texts).most_common(1)[0][0])
        points = points[points[column] == usual]
    return Chosen(points, reference.merge(points[[*PANEL, "rest"]].drop_duplicates(), on=[*PANEL, "rest"]), fixed)


def accuracy_by_bits_means(records: Sequence[RunRecord], study: StudyConfig) -> pd.DataFrame:
    """The points of `accuracy_by_bits`, as fractions."""
    return bits_runs(records, study).means


def accuracy_by_cut_means(records: Sequence[RunRecord], study: StudyConfig) -> pd.DataFrame:
    """The points of `accuracy_by_cut`, as fractions."""
    return cut_runs(records, study).means


def selection_means(records: Sequence[RunRecord], study: StudyConfig) -> pd.DataFrame:
    """The points of `selection_controls`, as fractions, with the name of each `choice` in print order."""
    means = with_choice(selection_runs(records, study).means)
    ranks = means["choice"].map(choice_rank)
    return means.assign(rank=ranks).sort_values([*PANEL, "cut", "rank"]).drop(columns="rank").reset_index(drop=True)


def selection_differences(records: Sequence[RunRecord], study: StudyConfig) -> pd.DataFrame:
    """Final accuracy of each other choice minus that of CLS attention at the same cut, paired by seed, as fractions.

    One row per panel, cut and choice that shares a seed with CLS attention, in neither of which a run diverged; numbers
    as in `accuracy_differences`.
    """
    runs = with_choice(selection_runs(records, study).runs)
    point = [*PANEL, "cut", "choice"]
    whole = runs.groupby(point).filter(lambda seeds: not seeds["diverged"].any()) if len(runs) else runs
    by_seed: dict[Any, dict[int, float]] = {
        key: dict(zip(of["seed"], of["accuracy"], strict=True)) for key, of in whole.groupby(point)
    }
    reference = CHOICES[CLS_ATTENTION]
    rows = []
    for key in sorted(by_seed, key=lambda key: (*key[:3], choice_rank(key[3]))):
        base = by_seed.get((*key[:3], reference), {})
        if key[3] != reference and by_seed[key].keys() & base.keys():
            found = difference_numbers(paired_difference(by_seed[key], base))
            rows.append(dict(zip(point, key, strict=True)) | {"reference": reference} | found)
    return pd.DataFrame(rows, columns=[*point, "reference", *DIFFERENCE])


def with_choice(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the printed name of each row's selection and merged token as `choice`."""
    names = [
        CHOICES.get((selection, merge or ""), selection if merge is None else f"{selection}, merge {merge}")
        for selection, merge in zip(frame["selection"], frame["merge"], strict=True)
    ]
    return frame.assign(choice=names)


def choice_rank(name: str) -> tuple[int, str]:
    """Sort key of a choice's printed name: the order of `CHOICES`, then unknown ones by name."""
    names = list(CHOICES.values())
    return (names.index(name), "") if name in names else (len(names), name)
