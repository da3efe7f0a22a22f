"""Lets timm import torchvision where torchvision's compiled operators do not load.

timm imports torchvision, whose Linux wheels expect CUDA libraries. On a CPU build of torch its extension does not
load, and the import then fails because it registers Python kernels for `torchvision::nms`, an operator nobody
declared. Nothing here uses detection operators, so declaring their schemas is enough. Import this module before timm.
"""

import torch

_declared: torch.library.Library | None = None

try:
    import torchvision  # noqa: F401
except RuntimeError:
    _declared = torch.library.Library("torchvision", "DEF")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
