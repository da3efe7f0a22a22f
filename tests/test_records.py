import json
import re

import pytest
import torch
from factories import make_basis, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tsflora.errors import DataError, StorageError
from tsflora.records import CODE_SHA256, RunRecord, config_digest, provenance


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = make_record(accuracies=[0.1, None, 0.1 + 0.2], seed=3, error=None)
    record.write(tmp_path / "deep" / "run.json")
    assert RunRecord.read(tmp_path / "deep" / "run.json") == record


def test_the_same_record_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_record(accuracies=[0.1, 0.3]).write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes().endswith(b"}\n")


def test_a_failed_record_keeps_its_error(tmp_path):
    make_record(accuracies=[], status="failed", error="NumericsError: round 3", geometry=None).write(tmp_path / "run")
    assert RunRecord.read(tmp_path / "run").error == "NumericsError: round 3"


def test_final_is_the_last_round_and_never_the_best():
    assert make_record(accuracies=[0.2, 0.9, 0.4]).final.accuracy == 0.4


def test_a_record_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        setattr(make_record(), "seed", 5)  # noqa: B010 (a checker refuses the plain one)


@settings(deadline=None, max_examples=40)
@given(keep=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_named_in_one_error(tmp_path_factory, keep):
    path = tmp_path_factory.mktemp("damage") / "run.json"
    make_record().write(path)
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=re.escape(str(path))):
        RunRecord.read(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema_version": 1}, "schema_version"),
        ({"status": "running"}, "status"),
        ({"sead": 3}, "sead: unknown key; did you mean 'seed'"),
        ({"seed": "three"}, "seed"),
        ({"history": [{"round": 1}]}, "participants: is required"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(tmp_path, change, expected):
    content = make_record().model_dump(mode="json") | change
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=re.escape(expected)) as caught:
        RunRecord.read(tmp_path / "run.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe\x00", b'{"seed": 1}'])
def test_other_content_is_not_a_record(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match="is not a run record"):
        RunRecord.read(tmp_path / "run.json")


def test_a_missing_file_and_a_folder_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            RunRecord.read(path)


def test_a_failed_write_leaves_the_old_record(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        make_record().write(tmp_path / "taken" / "run.json")
    assert (tmp_path / "taken").read_text() == "a file, not a folder"


def test_comparable_leaves_out_clocks_memory_and_host_and_nothing_else():
    record = make_record(accuracies=[0.1, 0.2])
    elsewhere = record.model_copy(
        update={
            "started_at": "2027-05-05T05:05:05+00:00",
            "seconds": 99.0,
            "basis": make_basis(threads=9),
            "peak_memory_mib": 1.0,
            "provenance": record.provenance.model_copy(update={"host": {"cores": "64"}}),
            "history": tuple(entry.model_copy(update={"seconds": {"train": 9.0}}) for entry in record.history),
        }
    )
    assert elsewhere.comparable() == record.comparable()
    kept = set(RunRecord.model_fields) - {
        "started_at",
        "seconds",
        "peak_memory_mib",
        "provenance",
        "basis",
        "traceback",
    }
    assert set(record.comparable()) == kept
    assert "seconds" not in record.comparable()["history"][0]


@pytest.mark.parametrize(
    "other",
    [
        make_record(accuracies=[0.1, 0.2000001]),
        make_record(accuracies=[0.1, 0.2], seed=1),
        make_record(accuracies=[0.1, 0.2], uplink_bytes={"activations": 1}),
        make_record(accuracies=[0.1, 0.2], participants=(1, 0)),
        make_record(accuracies=[0.1, 0.2], shard_sizes=(400, 401)),
    ],
)
def test_comparable_sees_every_difference_that_is_not_a_clock(other):
    assert make_record(accuracies=[0.1, 0.2]).comparable() != other.comparable()


def test_comparable_does_not_change_the_record():
    record = make_record()
    record.comparable()
    assert record.history[0].seconds == {"train": 1.0, "evaluate": 0.5}


def test_config_digest_depends_on_content_and_not_on_order():
    assert config_digest({"a": 1, "b": 2}) == config_digest({"b": 2, "a": 1})
    assert config_digest({"a": 1, "b": 2}) != config_digest({"a": 1, "b": 3})


def test_provenance_names_versions_and_code():
    made = provenance(torch.device("cpu"), 1)
    assert made.versions["torch"] == torch.__version__.split("+")[0] or made.versions["torch"] == torch.__version__
    assert made.code_sha256 == CODE_SHA256
    assert re.fullmatch("[0-9a-f]{64}", made.code_sha256)
    assert made.host["device"] == "cpu"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, None),
        ({"trajectory": 2}, "trajectory: 1 then, 2 now"),
        ({"revisions": {"Algorithm.sflora": 2}}, "revisions Algorithm.sflora: 1 then, 2 now"),
        ({"revisions": {"Algorithm.sflora": 1, "Codec.tokens": 1}}, None),
        ({"revisions": {"Algorithm.sflora": 1, "Codec.tokens": 2}}, "revisions Codec.tokens: 1 then, 2 now"),
        ({"sources": {"Quantizer.mine": "f"}}, "sources Quantizer.mine: None then, f now"),
        ({"images_sha256": "3"}, f"images_sha256: {'2' * 64} then, 3 now"),
        ({"versions": {"torch": "2.14.0"}}, "versions torch: 2.13.0 then, 2.14.0 now"),
        ({"threads": 2}, "threads: 1 then, 2 now"),
    ],
    ids=str,
)
def test_what_a_record_depends_on_differs_by_name(changes, line):
    assert make_basis().difference(make_basis(**changes)) == line
