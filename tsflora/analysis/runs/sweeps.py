"""Runs of a sweep's figure: those at its settings, from methods and sweeps alike, and how many of the plan they are."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from tsflora.analysis.runs.coverage import PlannedRun
from tsflora.analysis.runs.points import PANEL, POINT, planned_frame, settings_frame
from tsflora.analysis.runs.statistics import mean_interval
from tsflora.analysis.units import FULL_BITS
from tsflora.compression.tokens import AllTokens
from tsflora.records import RunRecord

CLS_ATTENTION = ("top_k_merge", "attention")
"""Selection and merged token of TSFLora, which other choices are compared with."""
_SEEDS = [*PANEL, "setting", "seed"]


@dataclass(frozen=True)
class Selected:
    """The runs of one figure: at its fixed settings, and alike in all that it does not show."""

    runs: pd.DataFrame
    """Rows of `settings_frame`: the sweep's points, and the reference of full precision if the figure has one."""
    fixed: Mapping[str, int]
    """Settings that the figure does not vary, e.g. `cut`; empty where there is neither run nor plan."""
    n_left_out: int
    """Runs at the figure's settings that differ from the others in something it does not show."""
    n_planned: int
    """Planned runs of the sweep's points, without the reference; 0 where no plan was given."""
    n_in: int
    """Those of them that are among `runs`, by configuration."""
    n_unplanned: int
    """Runs of the sweep's points that are not among the planned ones."""

    @property
    def sentence(self) -> str:
        """What is said where nothing can be drawn."""
        return f"No runs of this sweep yet{f': 0 of {self.n_planned} planned' if self.n_planned else ''}."

    @property
    def means(self) -> pd.DataFrame:
        """Final accuracy at each point: mean and 95 % t-interval over n seeds, as fractions."""
        rows = []
        for key, seeds in self.runs.groupby([*PANEL, *POINT], dropna=False, sort=False):
            interval = mean_interval(seeds["accuracy"])
            rows.append((*key, interval.mean, interval.low, interval.high, interval.n))
        frame = pd.DataFrame(rows, columns=[*PANEL, *POINT, "mean", "low", "high", "n"])
        merge = frame["merge"].astype(object)  # groupby made None a NaN
        frame["merge"] = merge.where(merge.notna(), None)
        return frame.sort_values([*PANEL, *POINT], kind="stable").reset_index(drop=True)


def bits_runs(records: Sequence[RunRecord], cut: int | None = None, planned: Sequence[PlannedRun] = ()) -> Selected:
    """Quantised runs at one cut, CLS attention or all tokens, and full precision at the same cut.

    `cut` None takes the one of most runs, of the planned ones where a plan is given.

    Raises:
        DataError: as `settings_frame`; so do all functions here.
    """

    def pick(frame: pd.DataFrame, fixed: Mapping[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
        return _at(_quantised(frame), fixed), _at(_uncompressed(frame), fixed)

    return _selected(records, planned, _quantised, pick, {"cut": cut}, ["setting", "seed"], ["bits"])


def cut_runs(records: Sequence[RunRecord], n_tokens: int | None = None, planned: Sequence[PlannedRun] = ()) -> Selected:
    """Quantised runs with one number of tokens at every cut, and full precision with all tokens at every cut.

    `n_tokens` None takes the one with most combinations of cut and bits, planned ones where a plan is given.
    """

    def pick(frame: pd.DataFrame, fixed: Mapping[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
        return _at(_quantised(frame), fixed), _uncompressed(frame)

    return _selected(records, planned, _quantised, pick, {"n_tokens": n_tokens}, ["cut", "bits"], ["cut"])


def selection_runs(
    records: Sequence[RunRecord],
    n_tokens: int | None = None,
    bits: int | None = None,
    planned: Sequence[PlannedRun] = (),
) -> Selected:
    """Runs that choose among the tokens, in any way, with one number of tokens and of bits, at every cut.

    None takes the values with most combinations of choice and cut, planned ones where a plan is given.
    """

    def choosing(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["selection"].notna() & (frame["selection"] != AllTokens.name)]

    def pick(frame: pd.DataFrame, fixed: Mapping[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
        return _at(choosing(frame), fixed), frame.iloc[:0]

    fixed = {"n_tokens": n_tokens, "bits": bits}
    choice = ["selection", "merge"]
    return _selected(records, planned, choosing, pick, fixed, ["cut", *choice], choice)


def _quantised(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs below full precision that send all tokens, or choose them as TSFLora does."""
    tsflora = (frame["selection"] == CLS_ATTENTION[0]) & (frame["merge"] == CLS_ATTENTION[1])
    return frame[((frame["selection"] == AllTokens.name) | tsflora) & (frame["bits"] < FULL_BITS)]


def _uncompressed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["selection"] == AllTokens.name) & (frame["bits"] == FULL_BITS)]


def _at(frame: pd.DataFrame, fixed: Mapping[str, int]) -> pd.DataFrame:
    for name, value in fixed.items():
        frame = frame[frame[name] == value]
    return frame


def _alike(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs that agree with most of their panel in what no figure shows, e.g. rounding, learning rate or rounds."""
    for column, within in (("rest", PANEL), ("quantizer", PANEL), ("selection_options", [*PANEL, "selection"])):
        usual = frame.groupby(within)[column].transform(lambda values: Counter(values).most_common(1)[0][0])
        frame = frame[frame[column] == usual]
    return frame


def _selected(
    records: Sequence[RunRecord],
    planned: Sequence[PlannedRun],
    eligible: Callable[[pd.DataFrame], pd.DataFrame],
    pick: Callable[[pd.DataFrame, Mapping[str, int]], tuple[pd.DataFrame, pd.DataFrame]],
    wanted: Mapping[str, int | None],
    varied: list[str],
    across: list[str],
) -> Selected:
    """Settle what the figure fixes, take its runs, and count those of the plan.

    A panel without two values `across`, in the plan if there is one, is left out: it has a method and no sweep. If
    none has two, all of them stay.
    """
    runs, plan = settings_frame(records), planned_frame(planned, records)
    given = {name: value for name, value in wanted.items() if value is not None}
    pools = [_at(eligible(frame), given).dropna(subset=list(wanted)) for frame in (plan, runs)]
    pool = pools[0] if not pools[0].empty else pools[1]
    if pool.empty:
        fixed = given
        points = reference = found = runs.iloc[:0]
        expected = plan.iloc[:0]
    else:

        def spread(values: Mapping[str, int]) -> tuple[int, int]:
            rows = _at(pool, values)
            return len(rows.drop_duplicates(varied)), len(rows)

        candidates = pool[list(wanted)].drop_duplicates().sort_values(list(wanted)).to_dict("records")
        # Most varied first, then most runs; the smallest values where both are equal.
        fixed = max(({name: int(values[name]) for name in wanted} for values in candidates), key=spread)
        panels = _at(pool, fixed)[[*PANEL, *across]].drop_duplicates().groupby(PANEL).size()
        swept = panels[panels >= min(2, panels.max())].index.to_frame(index=False)
        found, reference = pick(runs.merge(swept, on=PANEL), fixed)
        points, expected = _alike(found), _alike(pick(plan.merge(swept, on=PANEL), fixed)[0])
        reference = reference.merge(points[[*PANEL, "rest"]].drop_duplicates(), on=[*PANEL, "rest"])
    n_in = len(expected[_SEEDS].merge(points[_SEEDS], on=_SEEDS))
    extra, left_out = len(points) - n_in, len(found) - len(points)
    return Selected(pd.concat([points, reference], ignore_index=True), fixed, left_out, len(expected), n_in, extra)
