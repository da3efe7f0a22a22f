"""tsflora: a benchmark suite for token-compressed split fine-tuning of Vision Transformers.

Start at `tsflora.experiment.run` for one run, at `tsflora.runs.run_cells` for many.
"""
