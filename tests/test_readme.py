"""What the README shows is what is there: its example runs, its tables are those of the results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tsflora import plugins
from tsflora.compression import Kind, TensorCodec, quantizers
from tsflora.conformance import check_quantizer
from tsflora.errors import FrameError
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def my_codec(tmp_path):
    """The compressor example, in the file that the README says it goes to."""
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Quantizer" in block)
    (tmp_path / "my_codec.py").write_text(example)
    return tmp_path / "my_codec.py"


def test_the_compressor_example_conforms(my_codec):
    plugins.load_plugins([my_codec.name], my_codec.parent)
    check_quantizer("sign", {})
    sign = quantizers.build("sign")
    codec = TensorCodec(sign, Kind.ACTIVATIONS)
    x = torch.randn(4, 30, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    frame = codec.encode(x, torch.Generator())
    assert torch.equal(codec.decode(frame).sign(), x.sign())
    assert len(frame) < 4 * 30 * 64 / 8 + 64
    half = sign.dequantize(sign.quantize(x.to(torch.bfloat16), torch.Generator()))
    assert half.dtype == torch.float32, "also from a model in half precision"
    _, scale = sign.quantize(x, torch.Generator())
    scale.values[0] = float("nan")
    with pytest.raises(FrameError, match="finite"):
        sign.dequantize([sign.quantize(x, torch.Generator())[0], scale])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_compressor_example_takes_tensors_of_a_gpu(my_codec):
    plugins.load_plugins([my_codec.name], my_codec.parent)
    sign, x = quantizers.build("sign"), torch.randn(3, 5)
    there = sign.forward(x.cuda(), torch.Generator("cuda"))
    assert there.is_cuda
    assert torch.equal(there.cpu(), sign.forward(x, torch.Generator()))


def test_a_study_that_names_the_example_plans_it(my_codec):
    (line,) = re.findall(r"^plugins: .*$", README, re.MULTILINE)
    mine = "    algorithm: sflora\n    quantizer: sign"
    params = (ROOT / "params.yaml").read_text().replace("    algorithm: fed_lora", mine)
    (my_codec.parent / "params.yaml").write_text(f"{line}\n{params}")
    study = StudyConfig.read(my_codec.parent / "params.yaml")
    assert {cell.method.quantizer.name for cell in study.cells(methods="fed_lora")} == {"sign"}


def test_the_conformance_suite_takes_the_file_as_the_readme_says(my_codec):
    (command,) = re.findall(r"`pytest (tests/test_components\.py --plugin my_codec\.py)`", README)
    arguments = [*command.replace("my_codec.py", str(my_codec)).split(), "-k", "sign-"]

    def outcome():
        command = [sys.executable, "-m", "pytest", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert "1 passed" in outcome().stdout
    my_codec.write_text(my_codec.read_text().replace("if not scale.isfinite()", "if False"))
    assert "1 failed" in outcome().stdout
    my_codec.write_text("1 / 0")
    assert outcome().stderr.strip() == f"ERROR: plugins: ZeroDivisionError: division by zero ({my_codec}:1)"


@pytest.mark.parametrize("table", ["digits/report/table_3/accuracy.md", "cifar/report/table_3/accuracy.md"])
def test_tables_are_those_of_the_committed_results(table):
    assert (ROOT / "results" / table).read_text().strip() in README


def test_pictures_and_files_that_it_names_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
