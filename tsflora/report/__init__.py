"""Records in; frames, tables, figures and LaTeX out. Nothing here trains, and nothing here changes a record."""

from tsflora.report.collection import Records, load_records, read_jsonl, write_jsonl
from tsflora.report.cost_figures import (
    accuracy_by_latency,
    communication_by_method,
    communication_by_settings,
    latency_by_method,
    latency_by_uplink,
    memory_by_method,
)
from tsflora.report.cost_settings import at_setting, settings_grid, with_latency
from tsflora.report.cost_tables import (
    headline_numbers,
    headline_table,
    latency_table,
    paper_deployment,
    table_one,
    table_one_numbers,
    table_two,
)
from tsflora.report.costs import Case, Scenario, cost_frame, deployments, latency_frame
from tsflora.report.coverage import coverage, coverage_sentence
from tsflora.report.dataframes import bytes_frame, rounds_frame, runs_frame
from tsflora.report.figures import accuracy_by_bytes, accuracy_by_round, bytes_per_round, final_accuracy
from tsflora.report.naming import METHODS, REFERENCE, partition_label
from tsflora.report.output import Output
from tsflora.report.paper import compression_ratio, paper_frame, token_saving
from tsflora.report.plans import plans_frame, plans_table
from tsflora.report.setting import setting, setting_sentence
from tsflora.report.statistics import Interval, PairedDifference, mean_interval, paired_difference
from tsflora.report.style import COLUMN_IN, DOUBLE_COLUMN_IN, MethodStyle, save_figure, style_of, theme
from tsflora.report.sweep_figures import accuracy_by_bits, accuracy_by_cut, selection_controls
from tsflora.report.sweep_points import (
    accuracy_by_bits_means,
    accuracy_by_cut_means,
    selection_differences,
    selection_means,
    selection_table,
)
from tsflora.report.sweeps import method_records, settings_frame
from tsflora.report.tables import (
    accuracy_differences,
    accuracy_means,
    accuracy_table,
    difference_table,
    traffic_means,
    traffic_table,
)
from tsflora.report.tradeoff import accuracy_against_traffic, tradeoff_frame
from tsflora.report.writers import write_table

__all__ = [
    "COLUMN_IN",
    "DOUBLE_COLUMN_IN",
    "METHODS",
    "REFERENCE",
    "Case",
    "Interval",
    "MethodStyle",
    "Output",
    "PairedDifference",
    "Records",
    "Scenario",
    "accuracy_against_traffic",
    "accuracy_by_bits",
    "accuracy_by_bits_means",
    "accuracy_by_bytes",
    "accuracy_by_cut",
    "accuracy_by_cut_means",
    "accuracy_by_latency",
    "accuracy_by_round",
    "accuracy_differences",
    "accuracy_means",
    "accuracy_table",
    "at_setting",
    "bytes_frame",
    "bytes_per_round",
    "communication_by_method",
    "communication_by_settings",
    "compression_ratio",
    "cost_frame",
    "coverage",
    "coverage_sentence",
    "deployments",
    "difference_table",
    "final_accuracy",
    "headline_numbers",
    "headline_table",
    "latency_by_method",
    "latency_by_uplink",
    "latency_frame",
    "latency_table",
    "load_records",
    "mean_interval",
    "memory_by_method",
    "method_records",
    "paired_difference",
    "paper_deployment",
    "paper_frame",
    "partition_label",
    "plans_frame",
    "plans_table",
    "read_jsonl",
    "rounds_frame",
    "runs_frame",
    "save_figure",
    "selection_controls",
    "selection_differences",
    "selection_means",
    "selection_table",
    "setting",
    "setting_sentence",
    "settings_frame",
    "settings_grid",
    "style_of",
    "table_one",
    "table_one_numbers",
    "table_two",
    "theme",
    "token_saving",
    "tradeoff_frame",
    "traffic_means",
    "traffic_table",
    "with_latency",
    "write_jsonl",
    "write_table",
]
