"""Where and how tensors are computed: device, precision, seeds."""

import hashlib
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

EVALUATION_BATCH = 1024
CACHED_PIXELS = 128 * 32 * 32
CHANNELS_LAST_SIDE = 16


@dataclass(frozen=True)
class Compute:
    """A device and the arithmetic to use on it."""

    device: torch.device
    bfloat16: bool = False
    compile: bool = False

    def layout(self, images: torch.Tensor) -> torch.memory_format:
        """Channels-last, for tensor cores and wide vectors. On a CPU it does not pay for tiny images, and these keep
        the plain layout (benchmarks/layout.py)."""
        if self.device.type == "cpu" and min(images.shape[-2:]) < CHANNELS_LAST_SIDE:
            return torch.contiguous_format
        return torch.channels_last

    def evaluation_batch(self, images: torch.Tensor) -> int:
        """Images ``[N, C, H, W]`` of one forward pass: on a CPU as many as leave its activations in the cache."""
        if self.device.type == "cpu":
            return max(1, min(EVALUATION_BATCH, CACHED_PIXELS // (images.shape[-2] * images.shape[-1])))
        return EVALUATION_BATCH

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()


def choose_compute(device: str, precision: Literal["auto", "float32", "bfloat16"], compile: bool) -> Compute:
    """Resolve "auto" to what this machine has, and make the device deterministic.

    Raises ValueError if a GPU is asked for and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' is not available on this worker; 'cpu' or 'auto' is")
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        # float32 shall mean it: SSIM takes differences of squares of gray levels, for which TF32 has too few bits.
        torch.backends.cudnn.allow_tf32 = False
    # A GPU operator without a deterministic form warns instead of ending a run of hours.
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    # By default that also fills every new tensor with NaN, a pass over memory for each operation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    bfloat16 = precision == "bfloat16" or (precision == "auto" and device == "cuda")
    return Compute(torch.device(device), bfloat16, compile)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on all of ``parts``, so that streams for different purposes never meet."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded_generator(device: torch.device, *parts: object) -> torch.Generator:
    """A generator seeded from ``parts``. One is made anew for each epoch, so resuming needs no RNG state."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))
