"""What a caption says of a study is what its parameters say."""

from pathlib import Path

from tsflora.analysis.runs import setting, setting_sentence
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent


def test_a_caption_says_exactly_what_was_run():
    study = StudyConfig.read(ROOT / "pipelines" / "cifar.yaml")
    assert setting_sentence(study) == (
        "4 rounds, 10 of 50 devices a round, 200 images each in batches of 50, 1,000 test images, seeds 0, 1, 2; "
        "vit_tiny_patch16_224 at 112 px, cut 2, LoRA rank 32, SGD at 0.02, momentum 0.9, bf16."
    )


def test_settings_that_differ_within_a_study_are_all_said():
    study = StudyConfig.read(ROOT / "params.yaml")
    values = study.model_dump(mode="json", exclude_unset=True)
    values["sweeps"] = {}
    values["partitions"] = {"a": {"name": "iid"}, "b": {"name": "iid", "min_samples": 4, "max_samples": 9}}
    values["training"] |= {"local_epochs": 2, "optimizer": {"name": "adamw", "lr": 0.001}}
    said = setting(StudyConfig.parse(values, "test"))
    assert said["Images per device and round"] == "all of a shard's or 4 to 9"
    assert said["Optimiser"] == "AdamW at 0.001"
    assert said["Backbone"] == "vit_micro_patch4_28"
