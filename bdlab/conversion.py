"""Torch checkpoints as safetensors, on the user's own machine: the service never unpickles anything."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdlab.errors import UnsuitableFileError
from bdlab.files import WORKER
from bdlab.optional import optional_import

if TYPE_CHECKING:
    from torch import Tensor

MOST_DEPTH = 4  # dictionaries within one another that are searched
USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "ema", "backbone")


def convert_checkpoint(source: Path, target: Path, key: str | None = None) -> str:
    """Write the state dict in ``source``, a file of ``torch.save``, to ``target`` as safetensors.

    ``key`` names the entry to take, with dots between nested ones; by default the first state dict is taken, usual
    names first. Returns one line that says what was taken. Raises UnsuitableFileError, MissingPackageError.
    """
    torch, safetensors = optional_import("torch", WORKER), optional_import("safetensors.torch", WORKER)
    try:
        # Only tensors and plain containers: unpickling anything else could run code.
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UnsuitableFileError(
            f"{source}: not a file of torch.save with tensors and plain values only "
            f"({type(error).__name__}: {_first_line(error)}); save model.state_dict() instead"
        ) from error
    found = dict(_find_state_dicts(loaded, torch.Tensor))
    if key is not None and key not in found:
        raise UnsuitableFileError(
            f"{source}: --key {key!r} is not a dictionary of tensors; {_list_keys(found)}"
        )
    if not found:
        kind = type(loaded).__name__
        inside = f" with {', '.join(map(repr, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else ""
        raise UnsuitableFileError(
            f"{source}: there is no dictionary of tensors in it; it is a {kind}{inside}"
        )
    key = key if key is not None else min(found, key=_rank)
    # Copies, since tensors that share memory, as tied weights do, cannot be written.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in found[key].items()}
    _write(target, lambda path: safetensors.save_file(tensors, path, metadata=_read_normalization(loaded)))
    where = f"{key!r} of {source}" if key else str(source)
    others = [other for other in found if other != key]
    more = f"; not taken: {', '.join(map(repr, others))} (--key)" if others else ""
    return f"{len(tensors)} tensors of {where} written to {target}{more}"


def _write(target: Path, save: Callable[[Path], None]) -> None:
    """Have ``save`` write a file beside ``target`` that then replaces it, so that a failure leaves the old one."""
    try:
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    except OSError as error:
        raise UnsuitableFileError(f"{target}: cannot be written: {error.strerror}") from error
    os.close(handle)
    try:
        save(Path(partial))
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _find_state_dicts(
    value: Any, tensor: type["Tensor"], path: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, "Tensor"]]]:
    """Every dictionary of tensors in ``value``, by its path; those within one that is found are not looked for."""
    if not isinstance(value, Mapping) or depth > MOST_DEPTH:
        return
    tensors = {str(name): part for name, part in value.items() if isinstance(part, tensor)}
    # A state dict has names such as "fc.weight"; a training checkpoint may hold a tensor or two beside it.
    if any("." in name and part.ndim for name, part in tensors.items()):
        yield path, tensors
        return
    for name, part in value.items():
        yield from _find_state_dicts(part, tensor, f"{path}.{name}" if path else str(name), depth + 1)


def _rank(path: str) -> tuple[int, int]:
    """Usual names first, then those that are less deep."""
    last = path.rpartition(".")[2]
    return (USUAL_KEYS.index(last) if last in USUAL_KEYS else len(USUAL_KEYS), path.count("."))


def _read_normalization(loaded: Any) -> dict[str, str] | None:
    """Lists ``mean`` and ``std`` beside the state dict, as the metadata that an upload reads."""
    if not isinstance(loaded, Mapping):
        return None
    lists = {
        name: json.dumps([float(number) for number in loaded[name]])
        for name in ("mean", "std")
        if isinstance(loaded.get(name), list | tuple)
        and all(isinstance(number, int | float) for number in loaded[name])
    }
    return lists if len(lists) == 2 else None


def _list_keys(found: Mapping[str, Any]) -> str:
    return f"those are {', '.join(map(repr, found))}" if found else "there is none"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
