"""A method of every kind, for tests that hold for all of them."""

from typing import Any

Method = dict[str, Any]

TSFLORA: Method = {
    "algorithm": "sflora",
    "tokens": {"name": "top_k_merge", "n_tokens": 30},
    "quantizer": {"name": "uniform", "bits": 8},
}
EVERY_ALGORITHM: dict[str, Method] = {
    "local_lora": {"algorithm": "local_lora"},
    "fed_lora": {"algorithm": "fed_lora"},
    "split_lora": {"algorithm": "split_lora"},
    "split_lora_periodic": {"algorithm": {"name": "split_lora", "mode": "periodic", "average_every": 4}},
    "sflora": {"algorithm": "sflora"},
    "sflora_sequential": {"algorithm": {"name": "sflora", "order": "sequential"}},
    "sflora_v1": {"algorithm": {"name": "sflora", "server": "averaged"}},
    "tsflora": TSFLORA,
}
CENTRAL: dict[str, Method] = {
    "central_raw": {"algorithm": "central"},
    "central_jpeg": {"algorithm": {"name": "central", "image": "jpeg"}},
}
