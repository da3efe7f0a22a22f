"""tsflora: a benchmark suite for token-compressed split fine-tuning of Vision Transformers."""
