"""Records in; numbers out: frames of runs and rounds, means and paired differences over seeds, coverage of a plan."""

from tsflora.analysis.runs.collection import Records, load_records, method_records, read_jsonl, write_jsonl
from tsflora.analysis.runs.coverage import coverage, coverage_sentence
from tsflora.analysis.runs.dataframes import bytes_frame, rounds_frame, runs_frame
from tsflora.analysis.runs.naming import METHODS, REFERENCE, partition_label
from tsflora.analysis.runs.plans import plans_frame
from tsflora.analysis.runs.points import accuracies_of, settings_frame
from tsflora.analysis.runs.setting import setting, setting_sentence
from tsflora.analysis.runs.statistics import Interval, PairedDifference, mean_interval, paired_difference
from tsflora.analysis.runs.summaries import accuracy_differences, accuracy_means, summary, traffic_means
from tsflora.analysis.runs.sweeps import (
    accuracy_by_bits_means,
    accuracy_by_cut_means,
    selection_differences,
    selection_means,
)
from tsflora.analysis.runs.tradeoff import tradeoff_frame

__all__ = [
    "METHODS",
    "REFERENCE",
    "Interval",
    "PairedDifference",
    "Records",
    "accuracies_of",
    "accuracy_by_bits_means",
    "accuracy_by_cut_means",
    "accuracy_differences",
    "accuracy_means",
    "bytes_frame",
    "coverage",
    "coverage_sentence",
    "load_records",
    "mean_interval",
    "method_records",
    "paired_difference",
    "partition_label",
    "plans_frame",
    "read_jsonl",
    "rounds_frame",
    "runs_frame",
    "selection_differences",
    "selection_means",
    "setting",
    "setting_sentence",
    "settings_frame",
    "summary",
    "tradeoff_frame",
    "traffic_means",
    "write_jsonl",
]
