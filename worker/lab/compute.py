"""Device, precision, memory layout and seeds."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from app.specs.facts import Shape
from app.specs.training import Precision

EVALUATION_BATCH = 1024  # images
CACHED_PIXELS = 128 * 32 * 32  # of one forward pass, so that its activations fit into a CPU's cache
MOST_FLOATS = 2**25  # values of several images, 128 MiB
LAYOUT = torch.channels_last
"""Of networks and images: tensor cores and vector units prefer it (benchmarks/layout.py)."""
BFLOAT16_SIDE = 16  # smallest side of images, in pixels, from which bfloat16 pays on a CPU


class Shaped(Protocol):
    """Images ``[N, C, H, W]`` of any kind."""

    @property
    def shape(self) -> torch.Size: ...


@dataclass(frozen=True)
class Compute:
    """A device and the arithmetic to use on it."""

    device: torch.device
    bfloat16: bool = False
    compile: bool = False

    @property
    def precision(self) -> Precision:
        return "bfloat16" if self.bfloat16 else "float32"

    def to_input(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images as networks take them: float in [0, 1], channels-last."""
        return images.to(torch.float32, memory_format=LAYOUT).div_(255)

    def evaluation_batch(self, images: Shaped) -> int:
        """Images ``[N, C, H, W]`` per forward pass in evaluation; fewer on a CPU, see `CACHED_PIXELS`."""
        if self.device.type == "cpu":
            return max(1, min(EVALUATION_BATCH, CACHED_PIXELS // (images.shape[-2] * images.shape[-1])))
        return EVALUATION_BATCH

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def full_precision(self) -> AbstractContextManager[object]:
        """Inside `autocast`, for images: bfloat16 has fewer levels between 0 and 1 than they have."""
        return torch.autocast(self.device.type, enabled=False) if self.bfloat16 else nullcontext()


def has_native_bfloat16() -> bool:
    """Whether the processor itself multiplies bfloat16 numbers; torch emulates it slowly where it does not."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_precision(device: str, precision: Literal["auto", Precision], shape: Shape) -> Precision:
    """What a precision stands for on a device, "auto" being a valid value of both, for images of ``shape``.

    Accuracy and attack success differ by chance only, as far as measured (docs/results/precision.md). Tiny images on
    a CPU are no faster in bfloat16 (docs/results/speed.md).
    """
    if precision != "auto":
        return precision
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return "bfloat16"
    return (
        "bfloat16" if min(shape.height, shape.width) >= BFLOAT16_SIDE and has_native_bfloat16() else "float32"
    )


def choose_compute(
    device: str, precision: Literal["auto", Precision], compile: bool, shape: Shape | None = None
) -> Compute:
    """Resolve "auto" to what this machine has, and make the device deterministic.

    ``shape`` is that of the images; the precision "auto" requires it.

    Raises ValueError if "cuda" is requested and not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' is not available on this worker; 'cpu' or 'auto' is")
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        # TF32 has too few bits where full float32 is expected: SSIM subtracts squares of gray levels.
        torch.backends.cudnn.allow_tf32 = False
    # On a GPU an operator without a deterministic implementation warns: an error would end a run after hours.
    if compile:
        torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    else:  # the same without importing the compiler, which takes a second
        torch.set_deterministic_debug_mode("warn" if device == "cuda" else "error")
    # Deterministic mode also fills every new tensor with NaN by default, a pass over memory per operation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if precision == "auto":
        assert shape is not None
        precision = choose_precision(device, precision, shape)
    return Compute(torch.device(device), precision == "bfloat16", compile)


def images_at_once(images: Shaped, most: int, floats: int) -> int:
    """How many of ``images`` to hold as floats: ``most``, or as many large ones as have ``floats`` values together."""
    values = math.prod(images.shape[1:])
    return most if most * values <= MOST_FLOATS else max(1, floats // values)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed hashed from all of ``parts``, so that streams for different purposes are independent."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded_global_generator(device: torch.device, *parts: object) -> Iterator[None]:
    """Seed torch's global generators from ``parts``, and restore them at the end.

    Initial weights, dropout and stochastic depth have no argument for a generator.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(*parts))
        yield


def seeded_generator(device: torch.device, *parts: object) -> torch.Generator:
    """A generator seeded from ``parts``. Training makes a new one for each epoch, so checkpoints need no RNG state."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))
