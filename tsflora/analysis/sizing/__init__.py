"""What a study will take before it is started. The only part of the analysis that runs the training loop."""

from tsflora.analysis.sizing.hours import against_records, hours_frame, size_study
from tsflora.analysis.sizing.throughput import measure_study

__all__ = [
    "against_records",
    "hours_frame",
    "measure_study",
    "size_study",
]
