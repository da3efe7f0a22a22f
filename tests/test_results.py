"""Committed tables are those of the committed records, as today's code makes them."""

from pathlib import Path

import pytest

from tsflora import report
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent
STUDIES = {"digits": ROOT, "cifar": ROOT / "pipelines" / "cifar", "rounds": ROOT / "pipelines" / "rounds"}


@pytest.mark.parametrize("name", STUDIES)
def test_tables_follow_from_the_records(name, tmp_path):
    study = StudyConfig.read(STUDIES[name] / "params.yaml")
    committed = ROOT / "results" / name
    runs = report.read_jsonl(committed / "records.jsonl").complete
    methods, planned = report.method_records(runs), study.cells()
    tables = {
        "table_3/accuracy": (report.accuracy_table(methods, planned=planned), report.accuracy_means(methods)),
        "table_3/differences_uncompressed": (
            report.difference_table(methods, planned=planned, compressed=False),
            report.accuracy_differences(methods, planned=planned, compressed=False),
        ),
        "controls/traffic": (report.traffic_table(methods), report.traffic_means(methods)),
        "controls/selection_differences": (
            report.selection_table(runs, planned=study.all_cells()),
            report.selection_differences(runs, planned=study.all_cells()),
        ),
    }
    for stem, (table, numbers) in tables.items():
        for path in report.write_table(table, tmp_path / Path(stem).name, numbers):
            assert path.read_bytes() == (committed / "report" / stem).with_suffix(path.suffix).read_bytes(), stem
