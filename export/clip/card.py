"""MODEL_CARD.md of a CLIP's bundle. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgekit.export.clip.bundle import TOWERS, ClipRecord, read_clip_record
from edgekit.export.manifest import FileRecord, Manifest, TextManifest, read_any_manifest
from edgekit.terminal import human_bytes, human_count


def clip_card(bundle: Path) -> str:
    """Return the card as Markdown.

    Raises:
        LoadError: the record or a manifest cannot be read.
    """
    record = read_clip_record(bundle)
    image, text = (read_any_manifest(bundle / name) for name in TOWERS)
    assert isinstance(image, Manifest) and isinstance(text, TextManifest), "a fresh bundle's towers"
    size = image.input.preprocess["image_size"]
    logit = f"times {record.scale:.2f}" + ("" if record.bias is None else f" plus {record.bias:.2f}")
    parameters = [human_count(manifest.model["parameters"]) for manifest in (image, text)]
    lines = [
        f"# {image.model['arch']} and {text.model['arch']}, one space of {record.embed_dim} dimensions",
        "",
        f"Image tower: {parameters[0]} parameters, {human_count(image.model['macs'])} MACs per picture. Text tower: "
        f"{parameters[1]} parameters. Made by edgekit {image.edgekit_version} on {image.created[:10]}.",
        "",
        "## Training",
        *_training(image),
        "",
        "## Files",
        "| file | size | recipe | SNR | cosine with PyTorch | ran on |",
        "|---|---|---|---|---|---|",
        *_files("image", image.files),
        *_files("text", text.files),
        "",
        *_retrieval(record, len(image.verification)),
        "",
        "## Use",
        f"Input `image`: RGB in [0, 1], {size} × {size}; resize the short side to {image.input.preprocess['resize']} "
        f"({image.input.preprocess['interpolation']}, antialiased), cut the centre. Normalisation is inside.",
        f"Input `tokens`: {text.input.dtype} ids (1, {text.input.length}) of `text/{text.input.tokenizer}`.",
        "Output of both: `embedding`, a unit row. The product of two is their cosine; "
        f"{logit} it is the logit that was trained.",
        "",
        "## Known limits",
        f"- R@1 above is among {len(image.verification)} pictures; it falls as the gallery grows.",
        *_interpreted((*image.files, *text.files)),
    ]
    return "\n".join([*lines, ""])


def _training(manifest: Manifest) -> list[str]:
    data, summary = manifest.training.get("data"), manifest.training.get("summary")
    if data is None or summary is None:
        return ["Nothing is known of its training: it was exported from a bare checkpoint."]
    return [
        f"- data: {data['train']} training pictures with {data['labelled']} captions, {data['val']} held out with "
        f"{data['val_captions']}; seed {manifest.training['seed']}, epoch {summary['best_epoch']}",
        f"- R@1 among all that were held out, which also chose the epoch: {100 * summary['text_r1']:.1f} % image to "
        f"text, {100 * summary['image_r1']:.1f} % text to image",
    ]


def _files(tower: str, files: Iterable[FileRecord]) -> list[str]:
    rows = []
    for file in files:
        snr = file.parity["snr_db"]
        note = f" ({file.runtime['note']})" if file.runtime["runtime"] == "mil" else ""
        rows.append(
            f"| {tower}/{file.path} | {human_bytes(file.size_bytes)} | {file.recipe} | "
            f"{'exact' if snr is None else f'{snr:.1f} dB'} | {file.parity['cosine']:.5f} | "
            f"{file.runtime['runtime']}{note} |"
        )
    return rows


def _retrieval(record: ClipRecord, pairs: int) -> list[str]:
    return [
        f"| both towers, {pairs} pairs | R@1 image to text | R@1 text to image |",
        "|---|---|---|",
        *(
            f"| {name} | {100 * row['image_to_text_r1']:.1f} % | {100 * row['text_to_image_r1']:.1f} % |"
            for name, row in record.retrieval.items()
        ),
    ]


def _interpreted(files: Iterable[FileRecord]) -> list[str]:
    if not any(file.runtime["runtime"] == "mil" for file in files):
        return []
    return [
        "- Core ML files were interpreted, not run on Apple hardware: run `edgekit verify` on a Mac before shipping."
    ]
