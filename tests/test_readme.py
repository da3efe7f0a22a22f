"""What the README shows is what is there: its example runs, its tables are those of the results."""

import re
from pathlib import Path

import pytest
import torch

from tsflora.compression import Kind, TensorCodec, quantizers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_compressor_example_works_as_written(monkeypatch):
    monkeypatch.setattr(quantizers, "_classes", quantizers.classes())
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Quantizer" in block)
    exec(example, {})
    codec = TensorCodec(quantizers.build("sign"), Kind.ACTIVATIONS)
    x = torch.randn(4, 30, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator()
    frame = codec.encode(x, generator)
    assert torch.equal(codec.decode(frame), codec.forward(x, generator))
    assert torch.equal(codec.decode(frame).sign(), x.sign())
    assert len(frame) < 4 * 30 * 64 / 8 + 64


@pytest.mark.parametrize("table", ["digits/report/table_3/accuracy.md", "cifar/report/table_3/accuracy.md"])
def test_tables_are_those_of_the_committed_results(table):
    assert (ROOT / "results" / table).read_text().strip() in README


def test_pictures_and_files_that_it_names_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
