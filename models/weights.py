"""Read tensors from files that nobody vouches for: safetensors, or `.pt` without unpickling code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgekit.errors import LoadError, first_line


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
