"""Bounds beside what was measured, and the plan beside what was trained, for people."""

import pandas as pd
from scipy.stats import spearmanr

from tsflora.analysis.runs.naming import significant_digits
from tsflora.analysis.tables.methods import MISSING
from tsflora.analysis.theory import Plan
from tsflora.analysis.theory.planning import LIMITS
from tsflora.analysis.units import MIB


def bounds_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Measured beside bounded for people, each relative to the energy or the squared gradient that it changes.

    Lemma 3's column is a prediction: its constant was estimated on other images.
    """
    selection, rounding, gradient = rows["total_signal"], rows["rounding_signal"], rows["gradient_squared"]
    columns: dict[tuple[str, str], pd.Series] = {
        ("Lemma 1, selection", "measured"): rows["selection_measured"] / selection,
        ("Lemma 1, selection", "bound by diameter"): rows["selection_diameter_bound"] / selection,
        ("Lemma 1, selection", "bound by norm"): rows["selection_norm_bound"] / selection,
        ("Lemma 2, rounding", "measured"): rows["rounding_measured"] / rounding,
        ("Lemma 2, rounding", "bound"): rows["rounding_bound"] / rounding,
        ("Lemma 3, gradient", "measured"): rows["scattered_perturbation"] / gradient,
        ("Lemma 3, gradient", "predicted"): rows["perturbation_bound"] / gradient,
        ("Gradient, as sent", "measured"): rows["transmitted_perturbation"] / gradient,
    }
    printed = {name: [significant_digits(value, 3) for value in values] for name, values in columns.items()}
    setting = {("", label): rows[name] for label, name in (("Cut", "cut"), ("Tokens", "n_tokens"), ("Bits", "bits"))}
    return pd.DataFrame({**setting, **printed})


def plan_table(plan: Plan, accuracies: pd.DataFrame) -> pd.DataFrame:
    """What the planner looked at, best first, with the accuracy that training measured where it did.

    `accuracies` as for `ranking`. The last column names what stands against a setting, or `chosen`.
    """
    means = accuracies.groupby(["cut", "n_tokens", "bits"], as_index=False)["accuracy"].agg(["mean", "count"])
    measured = {(row["cut"], row["n_tokens"], row["bits"]): row for row in means.to_dict("records")}
    rows = []
    for each in plan.frame().to_dict("records"):
        setting = (each["cut"], each["n_tokens"], each["bits"])
        found = measured.get(setting)
        verdict = "chosen" if setting == (plan.best.cut, plan.best.n_tokens, plan.best.bits) else ""
        rows.append(
            {
                "Cut": each["cut"],
                "Tokens": each["n_tokens"],
                "Bits": each["bits"],
                "Uplink (KiB per batch)": f"{each['uplink_bits'] / 8 / 1024:,.1f}",
                "Device memory (MiB)": f"{each['device_memory_bytes'] / MIB:,.1f}",
                "Predicted change": significant_digits(each["perturbation"], 3),
                "Accuracy (%)": MISSING if found is None else f"{100 * found['mean']:.1f} ({found['count']})",
                "Verdict": verdict or "; ".join(limit for limit in LIMITS if each[f"breaks_{limit}"]),
            }
        )
    return pd.DataFrame(rows)


def ranking(predicted: pd.DataFrame, accuracies: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """Predicted perturbation beside measured accuracy, and Spearman's correlation of the two.

    `predicted` has `cut`, `n_tokens`, `bits`, `perturbation`; `accuracies` the first three and `accuracy`, any number
    of rows for a setting. A prediction that orders settings as training does has a correlation of -1; NaN with fewer
    than three settings in common.
    """
    setting = ["cut", "n_tokens", "bits"]
    means = accuracies.groupby(setting, as_index=False)["accuracy"].agg(["mean", "min", "max", "count"])
    joined = predicted.merge(means, on=setting).sort_values("perturbation", ignore_index=True)
    if len(joined) < 3:
        return joined, float("nan")
    return joined, float(spearmanr(joined["perturbation"], joined["mean"]).statistic)
