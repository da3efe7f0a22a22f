"""Committed tables are those of the committed records, as today's code makes them."""

from pathlib import Path

import pytest

from tsflora.analysis import runs, tables
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent
STUDIES = {
    "digits": ROOT / "params.yaml",
    "cifar": ROOT / "pipelines" / "cifar.yaml",
    "rounds": ROOT / "pipelines" / "rounds.yaml",
}
"""Studies with the tables of the paper."""


@pytest.mark.parametrize("name", STUDIES)
def test_tables_follow_from_the_records(name, tmp_path):
    study = StudyConfig.read(STUDIES[name])
    committed = ROOT / "results" / name
    done = runs.read_jsonl(committed / "records.jsonl").complete
    methods, planned = runs.method_records(done), study.cells()
    written = {
        "table_3/accuracy": (tables.accuracy_table(methods, planned=planned), runs.accuracy_means(methods)),
        "table_3/differences_uncompressed": (
            tables.difference_table(methods, planned=planned, compressed=False),
            runs.accuracy_differences(methods, planned=planned, compressed=False),
        ),
        "controls/traffic": (tables.traffic_table(methods), runs.traffic_means(methods)),
        "controls/selection_differences": (
            tables.selection_table(done, study),
            runs.selection_differences(done, study),
        ),
    }
    for stem, (table, numbers) in written.items():
        for path in tables.write_table(table, tmp_path / Path(stem).name, numbers):
            assert (
                path.read_bytes() == (committed / "report" / "figures" / stem).with_suffix(path.suffix).read_bytes()
            ), stem
