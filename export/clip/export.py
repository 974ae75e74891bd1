"""Export a CLIP as two artifacts, image tower and text tower: each converted, compared with PyTorch, and bundled."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import atomic
from edgekit.errors import UsageError, VerificationError
from edgekit.export.attempt import Attempt, Workshop
from edgekit.export.clip.bundle import CLIP_RECORD, TOWERS, ClipRecord, TowerRecord
from edgekit.export.clip.card import clip_card
from edgekit.export.clip.deploy import OUTPUTS, CaptionTower, ImageTower
from edgekit.export.clip.pairs import ExportPairs, retrieval, run_captions
from edgekit.export.config import ExportConfig
from edgekit.export.deploy import TorchSession
from edgekit.export.export import keep_statistics
from edgekit.export.exporters import DYNAMIC_BATCH, Conversion
from edgekit.export.golden import prove_golden, write_golden
from edgekit.export.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    STATISTICS_FILES,
    InputContract,
    Manifest,
    TextManifest,
    TokenContract,
    layouts,
    sha256_of,
    statistics_name,
)
from edgekit.export.precisions import PRECISIONS
from edgekit.export.records import LIBRARIES, record_of, run_facts, versions_of
from edgekit.export.session import Outputs, run_batched
from edgekit.export.text.attempt import TextComparison, attempt_text
from edgekit.export.text.convert import TextConversion
from edgekit.export.text.deploy import TorchTextSession
from edgekit.export.text.export import wanted_texts
from edgekit.export.text.golden import TOKENIZER_FILE, TextGolden, keep_proof
from edgekit.export.text.session import run_texts
from edgekit.models.caption_tokenizer import CaptionTokenizer
from edgekit.models.clip import Clip, load_clip
from edgekit.models.clip_run import clip_file
from edgekit.models.complexity import count_parameters, measure_complexity
from edgekit.models.teacher import weights_hash
from edgekit.terminal import Terminal, human_bytes, percent
from edgekit.text_data import TextSplit


@dataclass(frozen=True)
class _Export:
    """What both towers' exports need.

    Attributes:
        config: what to make.
        clip, tokenizer: of the run.
        pairs: what it is compared on.
        shared: fields of the manifests that are alike.
    """

    config: ExportConfig
    clip: Clip
    tokenizer: CaptionTokenizer
    pairs: ExportPairs
    shared: dict[str, Any]


@dataclass(frozen=True)
class _Made:
    """One tower's files, PyTorch's outputs for the comparison inputs, and each file's."""

    attempts: list[Attempt]
    expected: Outputs
    found: dict[str, Outputs]


def export_clip_run(config: ExportConfig, terminal: Terminal, *, overwrite: bool = False) -> list[Attempt]:
    """Write a bundle with a bundle for each tower, in them every file that proves to compute what the tower computes.

    A file that cannot be made, or that fails its gate, is not in the bundle; the others are. The names of the attempts
    begin with the tower's folder.

    Raises:
        VerificationError: a tower has not one file that passed; no bundle is left.
        EdgekitError: the run, the data or the output are not usable.
    """
    atomic.refuse_existing(config.output, overwrite=overwrite)
    _check(config)
    clip, tokenizer = load_clip(config.run)
    spec, counts = clip.spec, (config.calibration_images, config.comparison_images)
    pairs = ExportPairs.choose(run_captions(config, terminal), spec.preprocess, counts, config.seed)
    export = _Export(config, clip, CaptionTokenizer(tokenizer), pairs, _shared(config, clip))
    terminal.say(
        f"CLIP     {spec.vision} at {spec.preprocess.image_size} px, {spec.context_length} ids per text, "
        f"{spec.embed_dim} dimensions; INT8 ranges from {len(pairs.pictures.calibration)} training pictures, compared "
        f"on {len(pairs.captions)} validation pictures with a caption each"
    )
    with atomic.atomic_folder(config.output, overwrite=overwrite) as bundle:
        for name in TOWERS:
            (bundle / name).mkdir()
        image = _image(export, bundle / "image", terminal)
        text = _text(export, bundle / "text", terminal)
        for name, made in (("image", image), ("text", text)):
            if all(attempt.problems for attempt in made.attempts):
                raise VerificationError(
                    f"no file of the {name} tower passed, so no bundle was written to {config.output}"
                )
        _write_image(export, bundle / "image", image)
        _write_text(export, bundle / "text", text)
        _write_record(export, bundle, image, text, terminal)
    return [
        replace(attempt, name=f"{name}/{attempt.name}")
        for name, made in (("image", image), ("text", text))
        for attempt in made.attempts
    ]


def _check(config: ExportConfig) -> None:
    """Refuse what a CLIP's files cannot be.

    Raises:
        UsageError: a precision or an output that is not for CLIPs.
    """
    if config.auto or not set(config.precisions) <= set(PRECISIONS):
        raise UsageError(f"a CLIP is exported as {', '.join(PRECISIONS)}; give one or more with --precision")
    if config.outputs != OUTPUTS:
        raise UsageError("a CLIP's towers give embeddings; leave --outputs out")


def _shared(config: ExportConfig, clip: Clip) -> dict[str, Any]:
    facts = run_facts(config.run)
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "edgekit_version": versions_of(("edgekit",))["edgekit"] or "",
        "versions": versions_of(LIBRARIES),
        "teacher": None,
        "training": {k: facts[k] for k in ("seed", "data", "summary") if k in facts}
        | {"checkpoint_sha256": sha256_of(clip_file(config.run)), "fingerprint": weights_hash(clip)},
        "outputs": OUTPUTS,
        "classes": (),
    }


def _image(export: _Export, folder: Path, terminal: Terminal) -> _Made:
    """Make the image tower's files; those that pass lie in `folder`."""
    config, pictures = export.config, export.pairs.pictures
    model = ImageTower(export.clip).eval()
    about = {
        "preprocess": json.dumps(export.clip.spec.preprocess.to_dict()),
        "input": "RGB in [0, 1]; normalisation is inside",
    }
    reference = TorchSession(model, threads=1)
    expected = run_batched(reference, pictures.comparison)
    write_golden(folder / GOLDEN_FILE, pictures.golden(reference))
    golden = prove_golden(folder / GOLDEN_FILE, pictures.contract)
    with tempfile.TemporaryDirectory(prefix="edgekit-export-") as work:
        conversion = Conversion(model, pictures.calibration, Path(work), about, config.dynamic_batch)
        workshop = Workshop(conversion, (pictures.comparison, expected), golden)
        attempts = []
        for form in config.formats:
            if config.dynamic_batch and not DYNAMIC_BATCH[form]:
                terminal.warn(f"--dynamic-batch is not for {form}; the batch stays 1")
            attempts += [workshop.make(form, precision) for precision in config.precisions]
        for attempt in attempts:
            if attempt.problems:
                terminal.say(f"image/{attempt.name}  FAILED: {'; '.join(attempt.problems)}")
                continue
            terminal.say(f"image/{attempt.name}  {human_bytes(attempt.size_bytes)}")
            shutil.move(str(workshop.path(attempt)), folder / attempt.name)
        for form in {attempt.format for attempt in attempts if not attempt.problems}:
            keep_statistics(Path(work) / statistics_name(form), folder, terminal)
    return _Made(attempts, expected, workshop.found)


def _text(export: _Export, folder: Path, terminal: Terminal) -> _Made:
    """Make the text tower's files; those that pass lie in `folder`."""
    model, captions = CaptionTower(export.clip).eval(), export.pairs.captions
    ids = export.tokenizer(captions).ids
    expected = run_texts(TorchTextSession(model, threads=1), ids)
    unlabelled = TextSplit(captions, np.zeros((len(captions), 1), np.float32))
    golden = keep_proof(folder, TextGolden.first(ids, expected, captions), export.tokenizer)
    comparison = TextComparison(unlabelled, ids, expected, "text/", golden)
    kind = export.tokenizer.tokenizer.to_dict()["kind"]
    about = {"input": f"int32 ids of the tokenizer in the bundle ({kind}), padded with 0"}
    with tempfile.TemporaryDirectory(prefix="edgekit-export-") as work:
        conversion = TextConversion(model, Path(work), about, export.config.dynamic_batch)
        attempts = [
            attempt_text(conversion, form, precision, folder, comparison, terminal)
            for form, precision in wanted_texts(export.config, terminal)
        ]
    return _Made(attempts, expected, comparison.found)


def _write_image(export: _Export, folder: Path, made: _Made) -> None:
    spec, pictures = export.clip.spec, export.pairs.pictures
    tower = ImageTower(export.clip)
    manifest = Manifest(
        **export.shared,
        model={"arch": spec.vision, "embed_dim": spec.embed_dim}
        | asdict(measure_complexity(tower, spec.preprocess.image_size)),
        input=InputContract(layout=dict(layouts()), preprocess=spec.preprocess.to_dict()),
        files=tuple(record_of(folder, attempt) for attempt in made.attempts if not attempt.problems),
        golden_sha256=sha256_of(folder / GOLDEN_FILE),
        calibration=pictures.calibration_hashes,
        statistics={path.name: sha256_of(path) for path in sorted(folder.glob(STATISTICS_FILES))},
        verification=pictures.comparison_hashes,
    )
    atomic.write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def _write_text(export: _Export, folder: Path, made: _Made) -> None:
    spec, captions = export.clip.spec, export.pairs.captions
    parameters = count_parameters(CaptionTower(export.clip))
    manifest = TextManifest(
        **export.shared,
        model={"arch": f"{spec.family}-text", "embed_dim": spec.embed_dim, "parameters": parameters},
        input=TokenContract(
            length=spec.context_length,
            padding=0,
            tokenizer=TOKENIZER_FILE,
            tokenizer_sha256=sha256_of(folder / TOKENIZER_FILE),
        ),
        files=tuple(record_of(folder, attempt) for attempt in made.attempts if not attempt.problems),
        golden_sha256=sha256_of(folder / GOLDEN_FILE),
        calibration={},
        verification={str(row): digest for row, digest in enumerate(_hashes(captions))},
    )
    atomic.write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def _hashes(texts: Iterable[str]) -> list[str]:
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def _write_record(export: _Export, bundle: Path, image: _Made, text: _Made, terminal: Terminal) -> None:
    """Tie the towers together, and show how well each pair of files retrieves."""
    passed = [_passed(made.attempts, made.found) for made in (image, text)]
    rows = retrieval((image.expected, text.expected), (passed[0], passed[1]))
    clip = export.clip
    record = ClipRecord(
        embed_dim=clip.spec.embed_dim,
        scale=clip.scale().item(),
        bias=None if clip.logit_bias is None else clip.logit_bias.item(),
        towers={name: TowerRecord(manifest_sha256=sha256_of(bundle / name / MANIFEST_FILE)) for name in TOWERS},
        retrieval=rows,
    )
    atomic.write_text(bundle / CLIP_RECORD, record.model_dump_json(indent=2) + "\n")
    atomic.write_text(bundle / "MODEL_CARD.md", clip_card(bundle))
    terminal.table(
        ("both towers", "image to text", "text to image"),
        [(name, percent(row["image_to_text_r1"]), percent(row["text_to_image_r1"])) for name, row in rows.items()],
        title=f"R@1 among {len(export.pairs.captions)} validation pairs",
    )


def _passed(attempts: Sequence[Attempt], found: dict[str, Outputs]) -> dict[str, Outputs]:
    return {attempt.name: found[attempt.name] for attempt in attempts if not attempt.problems}
