"""Costs as frames, tables and figures: the paper's numbers come out, orderings hold, feasibility is computed."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from drawn import bars, xs, ys
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tsflora.analysis.costs import TESTBED, Deployment, DeviceClass, VitShape, Workload, device_memory, plan_of, traffic
from tsflora.analysis.costs.cases import (
    PHASES,
    Case,
    Scenario,
    backbone_label,
    cost_frame,
    deployments,
    latency_frame,
    phases_s,
)
from tsflora.analysis.costs.grid import at_setting, pareto_front, settings_grid, with_latency
from tsflora.analysis.figures.costs import (
    accuracy_by_latency,
    communication_by_method,
    communication_by_settings,
    latency_by_method,
    latency_by_uplink,
    memory_by_method,
)
from tsflora.analysis.figures.style import COLUMN_IN, DOUBLE_COLUMN_IN
from tsflora.analysis.paper import paper_value
from tsflora.analysis.runs.naming import METHODS
from tsflora.analysis.tables.costs import (
    headline_numbers,
    headline_table,
    latency_table,
    paper_deployment,
    table_one,
    table_one_numbers,
    table_two,
)
from tsflora.analysis.tables.writers import write_table
from tsflora.errors import ConfigError
from tsflora.models import LoraConfig
from tsflora.models.micro import MICRO_NAME
from tsflora.study import StudyConfig

ROOT = Path(__file__).parents[1]
STUDY = StudyConfig.read(ROOT / "params.yaml")
TINY = VitShape.of("vit_tiny_patch16_224", n_classes=100, image_size=112)
MICRO = VitShape.of(MICRO_NAME, n_classes=100)
LARGER = VitShape.of(MICRO_NAME, n_classes=100, image_size=36)
BASE = paper_deployment()
WORK = Workload(n_samples=16, batch_size=8)
CASES = deployments(STUDY, [LARGER, MICRO], WORK, cut=2, methods=METHODS)
SETTINGS = pd.DataFrame(
    [
        {
            "dataset": dataset,
            "partition": "iid",
            "n_tokens": n,
            "bits": bits,
            "mean": m,
            "low": m - 0.1,
            "diverged": 0,
            "high": m + 0.1,
        }
        for dataset in ("a", "b", "c")
        for (n, bits), m in {
            (10, 2): 0.3,
            (30, 8): 0.6,
            (50, 8): 0.5,
            (50, 32): 0.7,
            (20, 4): 0.2,
            (40, 4): 0.2,
        }.items()
    ]
)


@pytest.fixture(scope="module")
def costs() -> pd.DataFrame:
    return cost_frame(CASES)


def of(costs: pd.DataFrame, backbone: str = MICRO_NAME) -> dict[str, pd.Series]:
    return {str(row["method"]): row for _, row in costs[costs["backbone"] == backbone].iterrows()}


# deployments


def test_every_method_becomes_its_deployment() -> None:
    assert [case.method for case in CASES] == [*METHODS, *METHODS]
    by_key = {case.method: case for case in CASES if case.deployment.vit is MICRO}
    plans = [by_key[key].deployment.plan for key in METHODS]
    assert [plan.runs for plan in plans] == ["everything"] * 2 + ["front"] * 6
    assert [plan.adapter is not None for plan in plans] == [False, *[True] * 7]
    assert [key for key in METHODS if by_key[key].in_turn] == ["split_lora"]
    thirty = by_key["tsflora_8bit_30"]
    assert (thirty.label, thirty.deployment.n_tokens) == ("TSFLora (8-bit, 30 tokens)", 30)
    assert thirty.deployment.plan == STUDY.methods["tsflora_8bit_30"].plan
    assert (thirty.deployment.lora, thirty.deployment.workload) == (STUDY.lora, WORK)


def test_a_methods_own_cut_wins_and_the_others_can_be_set() -> None:
    own = STUDY.methods["sflora"].model_copy(update={"cut": 5})
    assert Deployment.of(own, TINY, LoraConfig(), 2).cut == 5
    assert Deployment.of(STUDY.methods["sflora"], TINY, LoraConfig(), 3).cut == 3
    (case,) = deployments(STUDY, [TINY], lora=LoraConfig(rank=3), cut=4, methods=["sflora"])
    assert (case.deployment.lora.rank, case.deployment.cut, case.deployment.workload) == (3, 4, Workload())


def test_what_has_no_cost_is_refused_or_left_out_aloud(caplog: pytest.LogCaptureFixture) -> None:
    methods = {
        "photos": {"algorithm": {"name": "central", "image": "jpeg"}},
        "pixels": {"algorithm": {"name": "central", "image": "raw"}},
        "ragged": {"algorithm": "sflora", "tokens": {"name": "attention_mass", "mass": 0.5}},
    }
    values = STUDY.model_dump(mode="json", exclude_unset=True)
    study = StudyConfig.parse({**values, "sweeps": {}, "methods": methods}, "test")
    with caplog.at_level(logging.WARNING):
        assert [case.method for case in deployments(study, [TINY, MICRO])] == ["pixels", "pixels"]
    photos, ragged = caplog.messages
    assert photos.endswith("in codec 'jpeg' depends on the data; it is measured in a run's record: photos")
    assert ragged.endswith("in codec 'tokens' depends on the data; it is measured in a run's record: ragged")
    for key in ("photos", "ragged"):
        with pytest.raises(ConfigError, match=f"method {key}: the size of .* is measured in a run's record"):
            deployments(study, [TINY], methods=["pixels", key])
    with pytest.raises(ConfigError, match=r"unknown method 'sflorra'.*sflora"):
        deployments(STUDY, [TINY], methods=["sflorra"])
    with pytest.raises(ConfigError, match="at least one"):
        cost_frame([])


def test_backbones_are_named_as_papers_do() -> None:
    assert backbone_label(BASE.vit) == "ViT-B/32"
    assert backbone_label(TINY) == "ViT-Ti/16 at 112 px"
    assert backbone_label(MICRO) == MICRO_NAME


# costs


def test_communication_orders_the_methods_as_their_settings_do(costs: pd.DataFrame) -> None:
    for backbone in (MICRO_NAME, f"{MICRO_NAME} at 36 px"):
        row = of(costs, backbone)
        assert row["local_lora"]["total_mib"] == 0
        for count in ("paper_uplink_mib", "uplink_mib", "total_mib"):
            falling = [row[key][count] for key in ("sflora", "sflora_8bit", "tsflora_8bit_40", "tsflora_8bit_30")]
            assert falling == sorted(set(falling), reverse=True), count
            assert row["split_lora"][count] == row["sflora"][count]
    # 4 bits of 50 tokens are fewer than 8 bits of 40 on the uplink; the gradients of 50 tokens come back whole.
    row = of(costs)
    assert row["sflora_4bit"]["uplink_mib"] < row["tsflora_8bit_40"]["uplink_mib"]
    assert row["sflora_4bit"]["total_mib"] > row["tsflora_8bit_40"]["total_mib"]
    assert (costs["total_mib"] == costs["uplink_mib"] + costs["downlink_mib"]).all()


def test_memory_and_work_lie_where_the_plan_says(costs: pd.DataFrame) -> None:
    row = of(costs)
    for key in ("local_lora", "fed_lora"):
        assert row[key]["device_memory_gb"] > 2 * row["sflora"]["device_memory_gb"]
        assert row[key]["server_gflop"] == 0
        assert row[key]["device_gflop"] > row["sflora"]["device_gflop"]
    assert (
        row["sflora"]["server_gflop"] > row["tsflora_8bit_40"]["server_gflop"] > row["tsflora_8bit_30"]["server_gflop"]
    )
    for side in ("device", "server"):
        parts = [f"{side}_{part}_mib" for part in ("weights", "adapters", "gradients", "optimizer", "activations")]
        sums_gb = costs[[*parts, f"{side}_inputs_mib"]].sum(axis=1) * 2**20 / 1e9
        assert sums_gb.to_numpy() == pytest.approx(costs[f"{side}_memory_gb"].to_numpy())
    assert (
        of(costs)["sflora"]["device_memory_gb"] == device_memory(CASES[len(METHODS) + 3].deployment).total_bytes / 1e9
    )


def test_latency_is_the_sum_of_its_phases_and_falls_with_the_rate(costs: pd.DataFrame) -> None:
    phases = [f"latency_{phase}_s" for phase in PHASES]
    assert costs["latency_s"].to_numpy() == pytest.approx(costs[phases].sum(axis=1).to_numpy())
    row = of(costs)
    assert row["sflora"]["latency_uplink_s"] == pytest.approx(row["sflora"]["uplink_mib"] * 2**20 * 8 / 10e6)
    falling = [row[key]["latency_s"] for key in ("sflora", "sflora_8bit", "tsflora_8bit_40", "tsflora_8bit_30")]
    assert falling == sorted(set(falling), reverse=True)

    frame = latency_frame(CASES, [5, 10, 20])
    at_ten = frame[frame["uplink_mbps"] == 10].drop(columns="uplink_mbps").reset_index(drop=True)
    pd.testing.assert_frame_equal(at_ten, costs)
    for _, line in frame.groupby(["backbone", "method"]):
        steps = line.sort_values("uplink_mbps")["latency_s"].diff().dropna()
        assert (steps == 0).all() if line["total_mib"].iloc[0] == 0 else (steps < 0).all()
    fixed = latency_frame(CASES, [5, 20], downlink_mbps=7)
    for _, line in fixed.groupby(["backbone", "method"]):
        assert line["latency_downlink_s"].nunique() == 1


def test_devices_that_take_turns_add_up_and_others_wait_for_the_slowest() -> None:
    sflora = next(case for case in CASES if case.method == "sflora")
    parallel, turns = phases_s(sflora, Scenario()), phases_s(replace(sflora, in_turn=True), Scenario())
    assert turns["uplink"] == pytest.approx(len(TESTBED) * parallel["uplink"])
    assert turns["server"] == pytest.approx(parallel["server"])
    # A slow device has a third of a fast one's speed, a middle one two thirds: 3 + 4/2 + 3/3 slow devices' time.
    assert turns["device"] == pytest.approx((3 + 4 * 0.5 + 3 / 3) * parallel["device"])
    alone = Scenario(testbed=TESTBED[:1])
    assert phases_s(sflora, alone) == phases_s(replace(sflora, in_turn=True), alone)


def test_feasibility_is_computed_from_memory(costs: pd.DataFrame) -> None:
    assert costs["feasible"].all()
    row = of(costs)
    need_gb, less_gb = row["fed_lora"]["device_memory_gb"], row["sflora"]["device_memory_gb"]
    accelerator = Scenario().accelerator
    share = (need_gb + less_gb) / 2 * 1e9 / accelerator.memory_bytes
    small = DeviceClass(name="small", compute_fraction=0.05, memory_fraction=share)
    large = DeviceClass(name="large", compute_fraction=0.05, memory_fraction=1)
    scenario = Scenario(testbed=(large, small, small))
    cases = [case for case in CASES if case.deployment.vit is MICRO]
    narrow = of(cost_frame(cases, scenario))
    assert [key for key in METHODS if not narrow[key]["feasible"]] == ["local_lora", "fed_lora"]
    assert (narrow["fed_lora"]["held_by"], narrow["sflora"]["held_by"]) == ("large", "large, small")
    held = table_two(cases, scenario).set_index("Class")
    assert held[f"Holds with {MICRO_NAME}"].to_dict() == {"large": "all", "small": "all but LocalLoRA, FedLoRA"}
    assert held["Devices"].to_dict() == {"large": "0", "small": "1, 2"}
    cells = latency_table(cost_frame(cases, scenario))["Round latency (s)", MICRO_NAME]
    assert [label for label, cell in cells.items() if cell.startswith("infeasible")] == ["LocalLoRA", "FedLoRA"]
    figure = latency_by_method(cases, scenario)
    assert sum("infeasible" in text.get_text() for text in figure.axes[0].texts) == 2
    assert sum(bool(patch.get_hatch()) for patch in figure.axes[0].patches) == 2
    roomy = latency_by_method(cases, Scenario(testbed=(large,)))
    assert not any("infeasible" in text.get_text() for text in roomy.axes[0].texts)
    assert not any(patch.get_hatch() for patch in roomy.axes[0].patches)


def test_the_whole_large_model_fits_no_device_of_the_testbed() -> None:
    large = replace(BASE, vit=VitShape.of("vit_large_patch32_224", n_classes=100), plan=plan_of("fed_lora"))
    assert not any(device.holds(device_memory(large).total_bytes) for device in TESTBED)


# the paper's tables


def test_table_one_beside_the_printed_numbers() -> None:
    numbers = table_one_numbers().set_index("setting")
    assert numbers["printed_mb"].to_dict() == {"CL": 229.2, "FL": 15.8, "SFL ViT-B/32": 61.3, "SFL ViT-B/16": 233.5}
    ours = numbers["paper_count_mib"]
    assert ours["FL"] == 15.75
    assert ours["SFL ViT-B/32"] == pytest.approx(61.22, abs=0.005)
    assert ours["SFL ViT-B/16"] == pytest.approx(233.48, abs=0.005)
    assert ours["CL"] == pytest.approx(229.69, abs=0.005)
    assert numbers["all_mib"]["SFL ViT-B/32"] == pytest.approx(122.44, abs=0.01)
    memory = numbers["memory_gb"]
    assert memory["SFL ViT-B/32"] < paper_value("device memory", "SFL ViT-B/32") < memory["FL"]
    assert memory["SFL ViT-B/16"] / memory["SFL ViT-B/32"] == pytest.approx(2.3 / 1.1, rel=0.6)
    assert numbers["printed_memory_gb"].isna().to_list() == [True, True, False, False]
    assert "0.2 % from the 229.2 printed" in numbers["note"]["CL"]
    assert numbers["note"]["FL"] == "Printed is 15.75 MiB rounded up."
    for name in ("SFL ViT-B/32", "SFL ViT-B/16"):
        assert "rounded up" in numbers["note"][name]
        assert "GB less than printed" in numbers["note"][name]


def test_printed_numbers_are_the_ones_that_the_testbed_has() -> None:
    for devices, device in (("devices 0-2", TESTBED[0]), ("devices 3-6", TESTBED[3]), ("devices 7-9", TESTBED[9])):
        assert paper_value("compute share", devices) == device.compute_fraction
        assert paper_value("memory share", devices) == device.memory_fraction
    with pytest.raises(ConfigError, match="paper_frame"):
        paper_value("device memory", "CL")


def test_only_one_reading_gives_both_headlines() -> None:
    table = headline_table()
    assert table.iloc[:, -1].tolist() == ["yes", "no", "no", "no"]
    assert table["Activations"].tolist() == ["6.80×", "6.67×", "6.38×", "6.25×"]
    assert table["Tokens saved"].tolist() == ["41.2 %", "40.0 %", "37.3 %", "36.0 %"]
    assert table["All tokens"].tolist() == ["51", "50", "51", "50"]
    numbers = headline_numbers()
    assert numbers["uplink_ratio"].isna().tolist() == [True, False, True, False]
    real = numbers.dropna()
    assert (real["total_ratio"] < real["uplink_ratio"]).all()
    assert (real["uplink_ratio"] < real["payload_ratio"]).all()
    before, after = traffic(BASE), traffic(at_setting(BASE, 30, 8))
    assert real["total_ratio"].iloc[0] == before.total_bytes / after.total_bytes


def test_tables_can_be_written(tmp_path: Path, costs: pd.DataFrame) -> None:
    for name, table in {
        "one": table_one(),
        "two": table_two(CASES),
        "headline": headline_table(),
        "latency": latency_table(costs),
    }.items():
        paths = write_table(table, tmp_path / name)
        assert all(path.stat().st_size > 100 for path in paths)
        assert "nan" not in paths[1].read_text()


# settings


def test_full_precision_with_all_tokens_is_the_uncompressed_deployment() -> None:
    assert traffic(at_setting(BASE, 50, 32)) == traffic(BASE)
    for n_tokens, bits in ((51, 8), (1, 8), (30, 0), (30, 33)):
        with pytest.raises(ConfigError):
            at_setting(BASE, n_tokens, bits)


def test_the_grid_rises_with_tokens_and_bits_and_stays_below_full_precision() -> None:
    sixteen = paper_deployment("vit_base_patch16_224")
    grid = settings_grid([sixteen, BASE], (30, 40, 50), (2, 4, 8)).set_index(["backbone", "n_tokens", "bits"])
    for column in ("paper_uplink_mib", "total_mib"):
        for backbone, n, bits in itertools.product(("ViT-B/16", "ViT-B/32"), (30, 40), (2, 4)):
            here = grid[column][backbone, n, bits]
            assert here < grid[column][backbone, n + 10, bits]
            assert here < grid[column][backbone, n, 2 * bits]
        assert (grid[column] < grid[f"full_{column}"]).all()
    found = [grid["paper_uplink_mib"]["ViT-B/32", n, bits] for n, bits in ((50, 8), (40, 8), (30, 8), (40, 4), (30, 4))]
    assert found == pytest.approx([17.27, 14.34, 11.41, 8.48, 7.02], abs=0.005)
    # The patch size only changes what sending everything takes.
    assert grid["paper_uplink_mib"]["ViT-B/16", 30, 8] == grid["paper_uplink_mib"]["ViT-B/32", 30, 8]
    assert grid["full_paper_uplink_mib"]["ViT-B/16", 30, 8] == pytest.approx(233.48, abs=0.005)


def test_latency_of_a_setting_is_that_of_its_deployment() -> None:
    found = with_latency(SETTINGS, BASE)
    for row in found.to_dict("records"):
        case = Case("", "", at_setting(BASE, row["n_tokens"], row["bits"]))
        assert row["latency_s"] == sum(phases_s(case, Scenario()).values())
    eight = replace(BASE, plan=plan_of("sflora", gradient_quantizer={"name": "uniform", "bits": 8}))
    assert (with_latency(SETTINGS, eight)["latency_s"] < found["latency_s"]).all()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_point_beats(pairs: list[tuple[int, int]]) -> None:
    points = pd.DataFrame(pairs, columns=["latency_s", "mean"])
    front = pareto_front(points)
    kept = set(zip(front["latency_s"], front["mean"], strict=True))
    for cost, gain in set(pairs):
        beaten = any((c <= cost and g > gain) or (c < cost and g >= gain) for c, g in pairs)
        assert ((cost, gain) in kept) != beaten
    assert len(kept) == len(front)


# figures


@pytest.mark.parametrize("width_in", [COLUMN_IN, DOUBLE_COLUMN_IN])
@pytest.mark.parametrize(
    "draw",
    [
        lambda width_in: communication_by_settings([BASE], (30, 50), (2, 8), width_in),
        lambda width_in: communication_by_settings([BASE], (30, 50), (2, 8), width_in, count="all"),
        lambda width_in: memory_by_method(CASES, width_in=width_in),
        lambda width_in: communication_by_method(CASES, width_in=width_in),
        lambda width_in: latency_by_method(CASES, width_in=width_in),
        lambda width_in: latency_by_uplink(CASES, (5, 20), width_in=width_in),
        lambda width_in: accuracy_by_latency(SETTINGS, BASE, width_in=width_in),
        lambda width_in: accuracy_by_latency(SETTINGS.iloc[:0], BASE, width_in=width_in),
    ],
)
def test_figures_are_drawn_at_their_width(draw, width_in: float) -> None:
    figure = draw(width_in)
    assert isinstance(figure, Figure)
    assert figure.get_figwidth() == width_in
    assert not plt.get_fignums()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    inside = figure.get_tightbbox(canvas.get_renderer())
    assert inside.x0 > -0.02
    assert inside.x1 < width_in + 0.02


def test_bars_are_the_costs(costs: pd.DataFrame) -> None:
    figure = memory_by_method(CASES)
    drawn = [bar.get_width() for axis in figure.axes for bar in bars(axis)]
    assert drawn == pytest.approx(costs["device_memory_gb"].tolist())
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars(figure.axes[1])]
    assert [names[round(place)] for place in middles] == costs["label"].tolist()[len(METHODS) :]
    assert middles == pytest.approx(range(len(METHODS)))
    assert all(4.0 in xs(line) for axis in figure.axes for line in axis.lines)
    sent = bars(communication_by_method(CASES).axes[1])
    small = costs[costs["backbone"] == MICRO_NAME]
    assert [bar.get_width() for bar in sent[::2]] == pytest.approx(small["paper_uplink_mib"].tolist())
    assert [bar.get_width() for bar in sent[1::2]] == pytest.approx(small["total_mib"].tolist())
    stacks = bars(latency_by_method(CASES).axes[1])
    ends = [bar.get_x() + bar.get_width() for bar in stacks[len(PHASES) - 1 :: len(PHASES)]]
    assert ends == pytest.approx(small["latency_s"].tolist())


def test_the_line_of_a_scatter_joins_its_front() -> None:
    figure = accuracy_by_latency(SETTINGS, BASE)
    (line, *_) = figure.axes[0].lines
    assert ys(line).tolist() == pytest.approx([30, 60, 70])
    assert figure.axes[0].get_title() == "a · IID"
    empty = accuracy_by_latency(SETTINGS.iloc[:0], BASE)
    assert [text.get_text() for text in empty.texts] == ["no runs yet"]


def test_assumptions_are_said() -> None:
    scenario = Scenario().with_rates(10, 40)
    for figure in (latency_by_method(CASES, scenario), accuracy_by_latency(SETTINGS, BASE, scenario)):
        note = figure.get_supxlabel().replace("\n", " ")
        for part in ("10 Mbps up, 40 Mbps down", "5–15 % of the speed", "A100", "40 % of it reached", "do not overlap"):
            assert part in note
    assert Scenario().rates == "10 Mbps each way"
    assert "SplitLoRA: devices take turns" in latency_by_method(CASES).get_supxlabel().replace("\n", " ")
