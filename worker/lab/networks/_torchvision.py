"""Import torchvision even if its compiled operators do not match torch.

A torchvision built for CUDA beside a CPU build of torch cannot load its detection operators, and then its import fails
because it registers shapes for two of them (`nms`, `qnms`). Only models and datasets are needed here, so declaring
these operators' signatures is enough. Where the operators load, nothing is declared.
"""

from types import ModuleType

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a Library's declarations live as long as it does


def torchvision_models() -> ModuleType:
    """The module ``torchvision.models``."""
    try:
        from torchvision import models  # noqa: PLC0415
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _declared:
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + _SIGNATURE)
        _declared.append(library)
        from torchvision import models  # noqa: PLC0415
    module: ModuleType = models
    return module
