"""The component keeps the contract of its sort, and does what it says."""

import pytest
import torch
from tsflora_nearest import Nearest

from tsflora.compression import Seen, Tokens, token_reducers
from tsflora.conformance import cases


@pytest.mark.parametrize("case", cases(of=[Nearest]), ids=str)
def test_it_conforms(case):
    """Each of its examples, under tsflora's conformance suite."""
    case.check()


def test_the_point_decides_which_patches_travel():
    """Of 9 patches, the middle one by default, and a corner where the point is there."""
    seen = Seen(Tokens(torch.rand(2, 10, 4)), torch.rand(2, 3, 10))
    for options, expected in (({}, 4), ({"row": 1.0, "column": 0.0}, 6)):
        reducer = token_reducers.build({"name": "nearest", "n_tokens": 3, **options})
        assert reducer.reduce(seen, torch.Generator()).kept.tolist() == [[expected]] * 2
