"""Which precision each format can have, and what it means there: one table for the command line and the exporters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from edgekit.errors import UsageError, did_you_mean
from edgekit.export.parity import Precision
from edgekit.export.runtimes import Format

Request = Precision | Literal["auto"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""What `--precision all` makes: these exist in every format that "all" formats means."""

AUTO: Literal["auto"] = "auto"
W8A8: Literal["w8a8"] = "w8a8"
"""Activations in 8 bits, too: int8 is that already, but in Core ML packages."""

MEANING: Mapping[Format, Mapping[Precision, str]] = {
    "onnx": {
        "fp32": "float32 weights and arithmetic",
        "fp16": "float16 weights, float32 arithmetic",
        "int8": "static: 8-bit weights per channel and 8-bit activations in convolutions and linear layers, the rest "
        "float",
        "mixed": "static int8, but the layers that cost most accuracy stay float",
        "dynamic": "linear layers in 8 bits with ranges from each picture; convolutions with 8-bit weights, float "
        "arithmetic",
        "w8": "8-bit weights per channel, widened when the file is loaded; float32 arithmetic",
    },
    "tflite": {
        "fp32": "float32 weights and arithmetic",
        "fp16": "float16 weights, float32 arithmetic",
        "int8": "static: 8-bit convolutions, linear layers, attention products and activations; softmax and norms "
        "float; linear layers that read and give float have a range per row",
        "mixed": "static int8, but the convolutions that cost most accuracy stay float",
        "dynamic": "8-bit weights; the runtime quantizes activations anew for each picture",
        "w8": "8-bit weights per channel; float32 arithmetic",
    },
    "saved_model": {"fp32": "float32 weights, as variables, and arithmetic"},
    "coreml": {
        "fp32": "float32 weights and arithmetic",
        "fp16": "float16 weights and arithmetic",
        "int8": "8-bit weights per channel, float16 arithmetic",
        "w8": "8-bit weights per channel, float16 arithmetic",
        "w8a8": "static: 8-bit weights per channel and 8-bit activations in convolutions and linear layers, the rest "
        "float16",
        "mixed": "static as w8a8, but the activations that cost most accuracy stay float16",
        "palette8": "weights from 256 values per layer (k-means), float16 arithmetic",
        "palette6": "weights from 64 values per layer (k-means), float16 arithmetic",
        "palette4": "weights from 16 values per layer (k-means), float16 arithmetic",
    },
}

CANDIDATES: Mapping[Format, tuple[Precision, ...]] = {
    "onnx": ("int8", "mixed", "dynamic", "w8"),
    "tflite": ("int8", "mixed", "dynamic", "w8"),
    "coreml": ("int8", "palette6"),
    "saved_model": (),
}
"""What `auto` tries. palette8 is as large as int8, and k-means to 4 bits lost 20 % of the top classes."""


def parse_precisions(text: str, formats: Sequence[Format], outputs: Sequence[str]) -> tuple[Request, ...]:
    """Return the precisions of a comma-separated list, in which "all" stands for fp32, fp16 and int8.

    Raises:
        UsageError: a name that is no precision, none at all, or one that a format cannot have.
    """
    found: dict[Request, None] = {}
    for given in (part.strip() for part in text.split(",") if part.strip()):
        for name in PRECISIONS if given == "all" else (_named(given),):
            found["int8" if name == W8A8 and "coreml" not in formats else name] = None
    if not found:
        raise UsageError(f"--precision names nothing; give one or more of {', '.join([*_KNOWN, AUTO])}, or all")
    check_pairs(formats, tuple(found), outputs)
    return tuple(found)


def default_precisions(formats: Sequence[Format]) -> str:
    """Return what is made where nothing is asked for: fp32 and int8, of those what all the formats can have."""
    return ",".join(name for name in ("fp32", "int8") if all(name in MEANING[form] for form in formats))


def in_format(form: Format, precision: Precision) -> Precision:
    """Return the name that a precision has in a format: w8a8 is called int8 where int8 codes activations, too."""
    return "int8" if precision == W8A8 and form != "coreml" else precision


def check_pairs(formats: Sequence[Format], precisions: Sequence[Request], outputs: Sequence[str]) -> None:
    """Refuse what a format cannot have.

    Raises:
        UsageError: naming the pair and what is allowed.
    """
    for form in formats:
        for precision in precisions:
            possible = bool(CANDIDATES[form]) if precision == AUTO else in_format(form, precision) in MEANING[form]
            if not possible:
                raise _impossible(form, precision)
    if AUTO in precisions and "logits" not in outputs:
        raise UsageError("--precision auto measures accuracy and needs logits among --outputs; or name a precision")


_KNOWN: Mapping[str, Precision] = {name: name for table in MEANING.values() for name in table}


def _named(given: str) -> Request:
    if given == AUTO:
        return AUTO
    precision = _KNOWN.get(given)
    if precision is None:
        raise UsageError(f"--precision '{given}' is not known; {did_you_mean(given, [*_KNOWN, AUTO, 'all'])}")
    return precision


def _impossible(form: Format, name: str) -> UsageError:
    allowed = [*MEANING[form], AUTO] if CANDIDATES[form] else list(MEANING[form])
    return UsageError(
        f"{form} files cannot be {name}; allowed there: {', '.join(allowed)}. Choose the formats with --format"
    )
