"""MODEL_CARD.md of a text classifier. Knows no torch."""

from __future__ import annotations

from edgekit.export.manifest import TextManifest
from edgekit.export.model_card import file_table, interpreted
from edgekit.terminal import human_count


def text_card(manifest: TextManifest) -> str:
    """Return the card as Markdown."""
    contract = manifest.input
    lines = [
        f"# {manifest.model['arch']}, {len(manifest.classes)} classes of text",
        "",
        f"{human_count(manifest.model['parameters'])} parameters. Made by edgekit {manifest.edgekit_version} on "
        f"{manifest.created[:10]}.",
        "",
        "## Training",
        *_training(manifest),
        "",
        "## Files",
        *file_table(manifest.files),
        "",
        f"Compared on {len(manifest.verification)} texts.",
        "",
        "## Use",
        f"Input `{contract.name}`: {contract.dtype} ids (1, {contract.length}) of `{contract.tokenizer}`, padded with "
        f"{contract.padding} at the end; longer texts lose their end. The mask is made from the padding inside.",
        f"Outputs: {', '.join(manifest.outputs)}. Classes: {', '.join(manifest.classes)}.",
        "",
        "## Known limits",
        "- It knows only the classes above and gives one of them for any text, be it empty or in another language.",
        *interpreted(manifest.files),
        "",
    ]
    return "\n".join(lines)


def _training(manifest: TextManifest) -> list[str]:
    training = manifest.training
    data, judged = training.get("data"), training.get("judged")
    if data is None or judged is None:
        return ["Nothing is known of its training: it was exported from a bare checkpoint."]
    lines = [f"- data: {data['train']} training texts, {data['val']} validation texts, seed {training['seed']}"]
    if manifest.teacher:
        lines.append(f"- teacher: {manifest.teacher['name']}, {100 * manifest.teacher['val_acc']:.2f} % on validation")
    for name, numbers in judged.items():
        found = numbers["accuracy"]
        note = "; this split chose the checkpoint, so it is slightly optimistic" if name == "val" else ""
        lines.append(
            f"- {name} accuracy: {100 * found['value']:.2f} % (95 % interval {100 * found['low']:.1f} to "
            f"{100 * found['high']:.1f}), macro-F1 {100 * numbers['macro_f1']['value']:.2f} %{note}"
        )
    return lines
