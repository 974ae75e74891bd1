"""Read tensors from files that nobody vouches for: safetensors, or `.pt` without unpickling code; and write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekit import atomic
from edgekit.errors import LoadError, first_line


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
    """Write tensors and, as JSON under "edgekit", what they belong to; whole or not at all, and without a copy of them.

    Raises:
        WriteError: the disk refused it.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic.atomic_path(path) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(plain, temporary, metadata={"edgekit": json.dumps(header)})
        except SafetensorError as e:  # it says the system's error in words alone
            raise OSError(first_line(e)) from e
        temporary.chmod(mode)  # safetensors 0.8 puts a file of its own in the place


def read_checkpoint(
    path: Path, what: str, parts: Sequence[str], newest: int, optional: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint of edgekit, and parts of its header.

    Args:
        path: the file.
        what: it should hold, for the messages, e.g. "student".
        parts: names of what is wanted of its header.
        newest: schema version that this edgekit knows.
        optional: names of what is wanted as well, where it is there.

    Raises:
        LoadError: not there, damaged, of something else, or of a newer edgekit.
    """
    tensors, metadata = read_safetensors(path)
    try:
        header = json.loads(metadata["edgekit"])
        version = int(header["schema_version"])
        wanted = {name: header[name] for name in parts} if version <= newest else {}
        wanted |= {name: header[name] for name in optional if name in header}
    except (KeyError, TypeError, ValueError) as e:
        raise LoadError(f"{path} is not an edgekit {what}: its metadata has no header of one ({e!r:.120})") from e
    if version > newest:
        raise LoadError(f"{path} was written by a newer edgekit (schema {version} > {newest}); update edgekit")
    return tensors, wanted


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, arch: str) -> None:
    """Load the tensors of the checkpoint `path` into a model.

    Raises:
        LoadError: they are another architecture's than `arch`, which the checkpoint names.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as e:
        reason = " ".join(str(e).split())[:200]
        raise LoadError(f"{path} does not fit the architecture it names, {arch}: {reason}") from e


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors`, `.pt`, `.pth` or `.bin` file, on the CPU.

    A `.pt` is read with `weights_only=True`: it can hold tensors and plain containers, no code. The usual nestings
    (`state_dict`, `model`, `ema`) are opened.

    Raises:
        LoadError: not there, truncated, or not such a file.
    """
    if not path.is_file():
        raise LoadError(f"{path} is not there; give a .safetensors or .pt file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Fed with broken files, the unpickler raises nearly anything: TypeError, IndexError, AttributeError, …
    except Exception as e:
        raise LoadError(
            f"{path} cannot be read as plain weights ({first_line(e)[:120]}). edgekit never unpickles code; save the "
            f"state_dict alone, best as .safetensors"
        ) from e
    for key in ("state_dict_ema", "state_dict", "model", "ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise LoadError(f"{path} holds no tensors by name; save a state_dict")
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        LoadError: not there, truncated, or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            # clone: the file may be replaced while its memory map is still in use
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise LoadError(f"{path} is not a readable safetensors file ({first_line(e)})") from e
    return tensors, metadata
