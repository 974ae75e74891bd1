"""MODEL_CARD.md: what a person should know before shipping the model. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.export.manifest import FileRecord, Manifest
from edgekit.interval import wilson
from edgekit.terminal import human_bytes, human_count


def model_card(manifest: Manifest) -> str:
    """Return the card as Markdown."""
    model = manifest.model
    lines = [
        f"# {model['arch']}, {len(manifest.classes)} classes",
        "",
        f"{human_count(model['parameters'])} parameters, {human_count(model['macs'])} MACs per {_one(manifest)}. "
        f"Made by edgekit {manifest.edgekit_version} on {manifest.created[:10]}.",
        "",
        "## Training",
        *_training(manifest),
        "",
        "## Files",
        *file_table(manifest.files),
        "",
        f"Compared on {len(manifest.verification)} validation {_one(manifest)}s; INT8 ranges from "
        f"{len(manifest.calibration)} training {_one(manifest)}s.",
        "",
        "## Use",
        f"Input `image`: RGB in [0, 1], {manifest.input.preprocess['image_size']} × "
        f"{manifest.input.preprocess['image_size']}; resize the short side to {manifest.input.preprocess['resize']} "
        f"({manifest.input.preprocess['interpolation']}, antialiased), cut the centre. Normalisation is inside. "
        f"NCHW in ONNX, NHWC in TFLite, {'a picture' if manifest.input.frames == 1 else 'an array NCHW'} in Core ML.",
        *_clip(manifest),
        f"Outputs: {', '.join(manifest.outputs)}. Classes: {', '.join(manifest.classes)}.",
        "",
        "## Known limits",
        f"- It knows only the classes above and gives one of them for any {_one(manifest)}.",
        "- Accuracy was measured on the validation split that also chose the checkpoint, so it is slightly optimistic.",
        *interpreted(manifest.files),
        "",
    ]
    return "\n".join(lines)


def _one(manifest: Manifest) -> str:
    return "clip" if manifest.input.frames > 1 else "picture"


def _clip(manifest: Manifest) -> list[str]:
    frames = manifest.input.frames
    if frames == 1:
        return []
    return [
        f"It takes one clip: {frames} pictures in the order of time, in the place of the batch (N = {frames}), and "
        f"gives one row. Take the pictures that are on the screen in the middles of {frames} equal spans of the clip.",
    ]


def _training(manifest: Manifest) -> list[str]:
    training, lines = manifest.training, []
    data, summary = training.get("data"), training.get("summary")
    if data is None or summary is None:
        return ["Nothing is known of its training: it was exported from a bare checkpoint."]
    lines.append(
        f"- data: {data['train']} training {_one(manifest)}s ({data['labelled']} labelled), {data['val']} validation "
        f"{_one(manifest)}s"
    )
    if manifest.teacher:
        teacher = manifest.teacher
        lines.append(
            f"- teacher: {teacher['name']}, {100 * teacher['val_acc']:.2f} % by {teacher['class_scores']} on the same "
            f"{_one(manifest)}s"
        )
    accuracy = wilson(round(summary["val_acc"] * data["val"]), data["val"])
    lines.append(
        f"- accuracy: {100 * accuracy.value:.2f} % (95 % interval {100 * accuracy.low:.1f} to "
        f"{100 * accuracy.high:.1f}), "
        f"seed {training['seed']}, epoch {summary['best_epoch']}"
    )
    return lines


def file_table(files: Sequence[FileRecord]) -> list[str]:
    """Return the rows of the table of files, with its header."""
    header = ["| file | size | recipe | agreement with PyTorch | SNR | ran on |", "|---|---|---|---|---|---|"]
    return [*header, *(_file(record) for record in files)]


def _file(record: FileRecord) -> str:
    parity = record.parity
    agreement, snr = parity["agreement"], parity["snr_db"]
    same = (
        f"{100 * agreement['value']:.1f} % ({100 * agreement['low']:.1f}–{100 * agreement['high']:.1f})"
        if agreement
        else "–"
    )
    ran = record.runtime["runtime"] + (f" ({record.runtime['note']})" if record.runtime["runtime"] == "mil" else "")
    return (
        f"| {record.path} | {human_bytes(record.size_bytes)} | {record.recipe} | {same} | "
        f"{'exact' if snr is None else f'{snr:.1f} dB'} | {ran} |"
    )


def interpreted(files: Sequence[FileRecord]) -> list[str]:
    """Return the line that says that Core ML files ran nowhere but in the interpreter, if they did."""
    if not any(record.runtime["runtime"] == "mil" for record in files):
        return []
    return [
        "- Core ML files were interpreted, not run on Apple hardware: run `edgekit verify` on a Mac before shipping."
    ]
