"""Two short rounds on real CIFAR-10 images with a real pretrained backbone, where both are at hand."""

import pytest
from conftest import small_config

from tsflora.experiment import run
from tsflora.settings import Settings

PLACES = Settings.from_environment()
WEIGHTS = "vit_tiny_patch16_224.safetensors"
AT_HAND = (
    PLACES.data_dir is not None
    and (PLACES.data_dir / "cifar10_train.parquet").exists()
    and PLACES.weights_dir is not None
    and (PLACES.weights_dir / WEIGHTS).exists()
)


@pytest.mark.skipif(not AT_HAND, reason="set TSFLORA_DATA_DIR (CIFAR-10 parquet) and TSFLORA_WEIGHTS_DIR (ViT-Tiny/16)")
def test_two_rounds_on_real_images_beat_chance_by_far():
    config = small_config(
        {
            "algorithm": "sflora",
            "tokens": {"name": "top_k_merge", "n_tokens": 40},
            "quantizer": {"name": "uniform", "bits": 8},
        },
        dataset={"name": "cifar10", "train_size": 1000, "test_size": 200, "download": False},
        partition={"name": "iid", "min_samples": 80, "max_samples": 80},
        backbone={"name": "vit_tiny_patch16_224", "image_size": 112, "weights": WEIGHTS},
        lora={"rank": 16},
        training={"rounds": 2, "n_devices": 5, "participants": 5, "batch_size": 20, "optimizer": {"lr": 0.01}},
    )
    record = run(config, PLACES)
    assert record.geometry is not None
    assert record.geometry.n_patches == 49
    # Chance is 0.10, with a standard error of 0.02 on 200 images.
    assert record.final.accuracy is not None
    assert record.final.accuracy > 0.5
