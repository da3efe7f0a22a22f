"""Records in; frames, tables, figures and LaTeX out. Nothing here trains, and nothing here changes a record."""

from tsflora.report.collection import Records, load_records, read_jsonl, write_jsonl
from tsflora.report.dataframes import bytes_frame, rounds_frame, runs_frame
from tsflora.report.figures import accuracy_by_bytes, accuracy_by_round, bytes_per_round, final_accuracy
from tsflora.report.naming import METHODS, REFERENCE, partition_label
from tsflora.report.paper import compression_ratio, paper_frame, token_saving
from tsflora.report.statistics import Interval, PairedDifference, mean_interval, paired_difference
from tsflora.report.style import COLUMN_IN, DOUBLE_COLUMN_IN, MethodStyle, save_figure, style_of, theme
from tsflora.report.tables import (
    accuracy_differences,
    accuracy_means,
    accuracy_table,
    difference_table,
    traffic_means,
    traffic_table,
)
from tsflora.report.writers import write_table

__all__ = [
    "COLUMN_IN",
    "DOUBLE_COLUMN_IN",
    "METHODS",
    "REFERENCE",
    "Interval",
    "MethodStyle",
    "PairedDifference",
    "Records",
    "accuracy_by_bytes",
    "accuracy_by_round",
    "accuracy_differences",
    "accuracy_means",
    "accuracy_table",
    "bytes_frame",
    "bytes_per_round",
    "compression_ratio",
    "difference_table",
    "final_accuracy",
    "load_records",
    "mean_interval",
    "paired_difference",
    "paper_frame",
    "partition_label",
    "read_jsonl",
    "rounds_frame",
    "runs_frame",
    "save_figure",
    "style_of",
    "theme",
    "token_saving",
    "traffic_means",
    "traffic_table",
    "write_jsonl",
    "write_table",
]
