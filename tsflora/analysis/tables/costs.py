"""Tables of costs beside what the TSFLora paper (arXiv 2605.23988) prints: its Tables I and II, and its headlines."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from tsflora.analysis.costs import (
    Deployment,
    DeviceClass,
    VitShape,
    Workload,
    device_memory,
    paper_uplink_mib,
    plan_of,
    token_readings,
    traffic,
)
from tsflora.analysis.costs.cases import Case, Scenario, cost_frame
from tsflora.analysis.costs.grid import at_setting
from tsflora.analysis.paper import compression_ratio, full_tokens, paper_value, token_saving
from tsflora.analysis.runs.naming import significant_digits
from tsflora.analysis.tables.methods import MISSING
from tsflora.analysis.units import GIGA, MIB
from tsflora.models import LoraConfig

_CONVENTIONS: tuple[Literal["paper", "plain"], ...] = ("paper", "plain")


class _Row(NamedTuple):
    subject: str
    algorithm: str
    backbone: str
    memory_is_printed: bool


_TABLE_ONE = (
    _Row("CL", "central", "vit_base_patch32_224", False),
    _Row("FL", "fed_lora", "vit_base_patch32_224", False),
    _Row("SFL ViT-B/32", "sflora", "vit_base_patch32_224", True),
    _Row("SFL ViT-B/16", "sflora", "vit_base_patch16_224", True),
)


def paper_deployment(
    backbone: str = "vit_base_patch32_224", algorithm: str = "sflora", n_classes: int = 100
) -> Deployment:
    """The paper's setting without compression: rank 32, cut 2, 400 samples in batches of 64 at 224 px.

    Cut, samples and one epoch are inferred, see `tsflora.analysis.paper`. FP32 all over.
    """
    return Deployment(
        VitShape.of(backbone, n_classes, int(paper_value("setting", "image side"))),
        plan_of(algorithm),
        cut=int(paper_value("setting", "cut layer")),
        lora=LoraConfig(rank=int(paper_value("setting", "LoRA rank"))),
        workload=Workload(
            n_samples=int(paper_value("setting", "samples per device and round")),
            batch_size=int(paper_value("setting", "batch size")),
            local_epochs=int(paper_value("setting", "local epochs")),
        ),
    )


def table_one_numbers(scenario: Scenario | None = None) -> pd.DataFrame:
    """The paper's Table I as numbers: printed ones and ours, per device and round; NaN is not printed.

    `paper_count_mib` counts as the table does (`paper_uplink_mib`), `all_mib` every byte both ways. FL is FedLoRA and
    on ViT-B/32; the table does not name its backbone, and ViT-B/16 has the same adapter.
    """
    config = (scenario or Scenario()).memory
    rows = []
    for row in _TABLE_ONE:
        deployment = paper_deployment(row.backbone, row.algorithm)
        printed_mb = paper_value("communication per round", row.subject)
        printed_gb = paper_value("device memory", row.subject) if row.memory_is_printed else math.nan
        ours_mib, ours_gb = paper_uplink_mib(deployment), device_memory(deployment, config).total_bytes / GIGA
        notes = _traffic_note(row, printed_mb, ours_mib), _memory_note(row, printed_gb, ours_gb)
        rows.append(
            {
                "setting": row.subject,
                "printed_mb": printed_mb,
                "paper_count_mib": ours_mib,
                "all_mib": traffic(deployment).total_bytes / MIB,
                "printed_memory_gb": printed_gb,
                "memory_gb": ours_gb,
                "note": " ".join(note for note in notes if note),
            }
        )
    return pd.DataFrame(rows)


def table_one(scenario: Scenario | None = None) -> pd.DataFrame:
    """`table_one_numbers` as it is printed, with a note wherever ours differs."""
    numbers = table_one_numbers(scenario)
    return pd.DataFrame(
        {
            ("", "Setting"): numbers["setting"],
            ("Communication per device and round", "printed (MB)"): numbers["printed_mb"].map("{:.1f}".format),
            ("Communication per device and round", "ours, paper's count (MiB)"): numbers["paper_count_mib"].map(
                "{:.2f}".format
            ),
            ("Communication per device and round", "ours, every byte (MiB)"): numbers["all_mib"].map("{:.2f}".format),
            ("Device memory", "printed (GB)"): numbers["printed_memory_gb"].map(
                lambda memory_gb: MISSING if math.isnan(memory_gb) else f"{memory_gb:.1f}"
            ),
            ("Device memory", "ours (GB)"): numbers["memory_gb"].map("{:.2f}".format),
            ("", "Note"): numbers["note"],
        }
    )


def table_two(cases: Sequence[Case], scenario: Scenario | None = None) -> pd.DataFrame:
    """The paper's Table II: the testbed's classes, their share in absolute terms, and the methods that each can hold.

    Raises:
        ConfigError: no case.
    """
    scenario = scenario or Scenario()
    costs = cost_frame(cases, scenario)
    rows = []
    for device in dict.fromkeys(scenario.testbed):
        places = [str(place) for place, other in enumerate(scenario.testbed) if other == device]
        memory_gb = device.memory_bytes(scenario.accelerator) / GIGA
        row = {
            "Class": device.name,
            "Devices": ", ".join(places),
            "Compute share": f"{100 * device.compute_fraction:g} %",
            "Memory share": f"{100 * device.memory_fraction:g} %",
            "TFLOP/s reached": significant_digits(device.flop_per_s(scenario.accelerator) / 1e12, 2),
            "Memory (GB)": f"{memory_gb:.1f}",
        }
        for backbone, methods in costs.groupby("backbone", sort=False):
            row[f"Holds with {backbone}"] = _held(methods, device, scenario)
        rows.append(row)
    return pd.DataFrame(rows)


def latency_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Round latency in seconds and a device's radio energy, methods down and backbones across, from a `cost_frame`.

    Where a device of the testbed cannot hold a method, the cell says `infeasible` and how long the round would take.
    """
    cells: dict[tuple[str, str, str], str] = {}
    for row in costs.to_dict("records"):
        seconds = significant_digits(row["latency_s"], 3)
        cells["Round latency (s)", row["backbone"], row["label"]] = (
            seconds if row["feasible"] else f"infeasible ({seconds})"
        )
        cells["Radio energy of a device (J)", row["backbone"], row["label"]] = significant_digits(row["radio_joule"], 3)
    sides = sorted(dict.fromkeys(key[:2] for key in cells), key=lambda side: side[0], reverse=True)
    labels = list(dict.fromkeys(costs["label"]))
    return pd.DataFrame(
        [[cells.get((*side, label), MISSING) for side in sides] for label in labels],
        index=pd.Index(labels, name="Method"),
        columns=pd.MultiIndex.from_tuples(sides),
    )


def headline_numbers(n_tokens: int = 30, bits: int = 8) -> pd.DataFrame:
    """The paper's 6.8x and 41 % under both readings of "30 tokens" and both counts of all tokens, on ViT-B/32.

    `payload_ratio` is of activations alone, `token_saving` of tokens. `uplink_ratio` and `total_ratio` are of all bytes
    of a device's round, adapters, labels and headers in, up and both ways; they compare with what is really sent
    uncompressed, and so are NaN where a token is counted that never is.
    """
    full = paper_deployment()
    n_patches = full.vit.n_patches
    rows = []
    for reading, deployment in token_readings(at_setting(full, n_tokens, bits)).items():
        for convention in _CONVENTIONS:
            n_full = full_tokens(n_patches, convention)
            real = n_full == full.n_tokens
            before, after = traffic(full), traffic(deployment)
            rows.append(
                {
                    "reading": reading,
                    "transmitted": deployment.n_tokens,
                    "full_tokens": n_full,
                    "payload_ratio": compression_ratio(n_patches, deployment.n_tokens, bits, convention),
                    "token_saving": token_saving(n_patches, deployment.n_tokens, convention),
                    "uplink_ratio": before.uplink_bytes / after.uplink_bytes if real else math.nan,
                    "total_ratio": before.total_bytes / after.total_bytes if real else math.nan,
                }
            )
    return pd.DataFrame(rows)


def headline_table(n_tokens: int = 30, bits: int = 8) -> pd.DataFrame:
    """`headline_numbers` as it is printed; the last column says which row gives both of the paper's numbers."""
    numbers = headline_numbers(n_tokens, bits)
    ratio = paper_value("communication reduction", "TSFLora vs uncompressed SFL")
    percent = paper_value("saving", "TSFLora vs uncompressed SFL")
    # Equal once rounded as far as the paper rounds.
    matches = np.isclose(numbers["payload_ratio"].round(1), ratio) & np.isclose(
        (100 * numbers["token_saving"]).round(), percent
    )

    def times(value: float) -> str:
        return MISSING if math.isnan(value) else f"{value:.2f}×"

    return pd.DataFrame(
        {
            f'"{n_tokens} tokens" means': numbers["reading"],
            "All tokens": numbers["full_tokens"].astype(str),
            "Activations": numbers["payload_ratio"].map(times),
            "Tokens saved": numbers["token_saving"].map(lambda share: f"{100 * share:.1f} %"),
            "All uplink bytes": numbers["uplink_ratio"].map(times),
            "All bytes, both ways": numbers["total_ratio"].map(times),
            f"{ratio:g}× and {percent:g} %": np.where(matches, "yes", "no"),
        }
    )


def _held(methods: pd.DataFrame, device: DeviceClass, scenario: Scenario) -> str:
    fits = [device.holds(GIGA * memory_gb, scenario.accelerator) for memory_gb in methods["device_memory_gb"]]
    outside = [label for label, held in zip(methods["label"], fits, strict=True) if not held]
    if not outside:
        return "all"
    return "none" if len(outside) == len(fits) else f"all but {', '.join(outside)}"


def _traffic_note(row: _Row, printed_mb: float, ours_mib: float) -> str:
    if math.isclose(math.ceil(10 * ours_mib) / 10, printed_mb):
        return f"Printed is {ours_mib:.2f} MiB rounded up."
    off = f"{100 * abs(1 - printed_mb / ours_mib):.1f} % from the {printed_mb:.1f} printed"
    if row.algorithm == "central":
        return (
            f"All images once as fp32 pixels at the model's size are {ours_mib:.2f} MiB, {off}, probably a misprint; "
            "every byte counts them as the uint8 pixels that travel, in the first round only."
        )
    return f"Ours is {off}."


def _memory_note(row: _Row, printed_gb: float, ours_gb: float) -> str:
    if not row.memory_is_printed or abs(printed_gb - ours_gb) < 0.05:
        return ""
    return (
        f"Memory is {abs(printed_gb - ours_gb):.1f} GB {'less' if ours_gb < printed_gb else 'more'} than printed: ours "
        "is what the modules hold, counted exactly, without transients of backward and what a runtime takes for itself."
    )
