"""Points of a sweep's figure as raw numbers, and who chooses tokens best: differences paired by seed."""

from collections.abc import Sequence

import pandas as pd

from tsflora.analysis.runs.coverage import PlannedRun
from tsflora.analysis.runs.points import PANEL
from tsflora.analysis.runs.statistics import paired_difference
from tsflora.analysis.runs.summaries import DIFFERENCE, difference_numbers
from tsflora.analysis.runs.sweeps import CLS_ATTENTION, bits_runs, cut_runs, selection_runs
from tsflora.records import RunRecord

CHOICES = {
    CLS_ATTENTION: "CLS attention, merged",
    ("top_k_merge", "none"): "CLS attention, unmerged",
    ("random", "attention"): "Random, merged",
    ("feature_norm", "attention"): "Feature norm, merged",
}
"""Printed names of ways to choose tokens, in print order."""


def choice_name(selection: str, merge: str | None) -> str:
    """The printed name of a way to choose tokens; a reducer that the suite does not know keeps its own."""
    return CHOICES.get((selection, merge or ""), selection if merge is None else f"{selection}, merge {merge}")


def accuracy_by_bits_means(
    records: Sequence[RunRecord], cut: int | None = None, planned: Sequence[PlannedRun] = ()
) -> pd.DataFrame:
    """The points of `accuracy_by_bits`, as fractions."""
    return bits_runs(records, cut, planned).means


def accuracy_by_cut_means(
    records: Sequence[RunRecord], n_tokens: int | None = None, planned: Sequence[PlannedRun] = ()
) -> pd.DataFrame:
    """The points of `accuracy_by_cut`, as fractions."""
    return cut_runs(records, n_tokens, planned).means


def selection_means(
    records: Sequence[RunRecord],
    n_tokens: int | None = None,
    bits: int | None = None,
    planned: Sequence[PlannedRun] = (),
) -> pd.DataFrame:
    """The points of `selection_controls`, as fractions, with the name of each `choice` in print order."""
    means = with_choice(selection_runs(records, n_tokens, bits, planned).means)
    printed = sorted(set(means["choice"]), key=choice_rank)
    ranked = means.assign(rank=[printed.index(name) for name in means["choice"]])
    return ranked.sort_values([*PANEL, "cut", "rank"]).drop(columns="rank").reset_index(drop=True)


def selection_differences(
    records: Sequence[RunRecord],
    n_tokens: int | None = None,
    bits: int | None = None,
    planned: Sequence[PlannedRun] = (),
) -> pd.DataFrame:
    """Final accuracy of each other choice minus that of CLS attention at the same cut, paired by seed, as fractions.

    One row per panel, cut and choice that shares a seed with CLS attention; numbers as in `accuracy_differences`.
    """
    runs = with_choice(selection_runs(records, n_tokens, bits, planned).runs)
    by_seed: dict[tuple[str, str, int, str], dict[int, float]] = {}
    for row in runs.to_dict("records"):
        key = (row["dataset"], row["partition"], row["cut"], row["choice"])
        by_seed.setdefault(key, {})[row["seed"]] = row["accuracy"]
    reference = CHOICES[CLS_ATTENTION]
    rows = []
    for key in sorted(by_seed, key=lambda key: (*key[:3], choice_rank(key[3]))):
        base = by_seed.get((*key[:3], reference), {})
        if key[3] != reference and by_seed[key].keys() & base.keys():
            found = difference_numbers(paired_difference(by_seed[key], base))
            rows.append(dict(zip([*PANEL, "cut", "choice"], key, strict=True)) | {"reference": reference} | found)
    return pd.DataFrame(rows, columns=[*PANEL, "cut", "choice", "reference", *DIFFERENCE])


def with_choice(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the printed name of each row's selection and merged token as `choice`."""
    return frame.assign(choice=[choice_name(*pair) for pair in zip(frame["selection"], frame["merge"], strict=True)])


def choice_rank(name: str) -> tuple[int, str]:
    """Sort key of a choice's printed name: the order of `CHOICES`, then unknown ones by name."""
    names = list(CHOICES.values())
    return (names.index(name), "") if name in names else (len(names), name)
