"""Export a run: convert, quantize, open again, compare with PyTorch on real pictures, and bundle what passed."""

from __future__ import annotations

import datetime
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.data import ImageDataset
from edgekit.errors import LoadError, UsageError, VerificationError
from edgekit.export.attempt import Attempt as Attempt
from edgekit.export.attempt import Workshop
from edgekit.export.calibration.statistics import Histograms
from edgekit.export.calibration.trained import read_trained
from edgekit.export.choice.auto import choose_precision
from edgekit.export.choice.candidates import ChoiceConfig
from edgekit.export.choice.table import COLUMNS, table_rows, title
from edgekit.export.config import ExportConfig
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.export_clips import ExportClips
from edgekit.export.export_data import run_dataset
from edgekit.export.export_pictures import ExportPictures
from edgekit.export.exporters import DYNAMIC_BATCH, Conversion
from edgekit.export.golden import prove_golden, write_golden
from edgekit.export.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    STATISTICS_FILES,
    InputContract,
    Manifest,
    layouts,
    sha256_of,
    statistics_name,
)
from edgekit.export.model_card import model_card
from edgekit.export.records import LIBRARIES, record_of, run_facts, versions_of
from edgekit.export.session import run_batched
from edgekit.listing import name_some
from edgekit.models.checkpoint import load_student, student_file
from edgekit.models.complexity import measure_complexity
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student
from edgekit.terminal import Terminal, human_bytes


def export_run(config: ExportConfig, terminal: Terminal, *, overwrite: bool = False) -> list[Attempt]:
    """Write a bundle with every file that proves to compute what the student computes.

    A file that cannot be made, or that fails its gate, is not in the bundle; the others are.

    Raises:
        VerificationError: not one file passed; no bundle is left.
        EdgekitError: the run, the data or the output are not usable.
    """
    atomic.refuse_existing(config.output, overwrite=overwrite)
    student = load_student(config.run)
    model = DeployModel(student, config.outputs).eval()
    if config.dynamic_batch and student.spec.frames > 1:
        raise UsageError("--dynamic-batch is for pictures: the file of a clip student takes one clip; leave it out")
    dataset = run_dataset(config, terminal, student.spec.frames)
    _check_classes(student, dataset)
    atomic.refuse_replacing(config.output, (config.run, *(sample.path for sample in (*dataset.train, *dataset.val))))
    pictures = _choose(config, student.spec, dataset)
    reference = TorchSession(model, threads=1)
    expected = run_batched(reference, pictures.comparison)
    _announce(student.spec, dataset, pictures, terminal)
    with (
        atomic.atomic_folder(config.output, overwrite=overwrite) as bundle,
        tempfile.TemporaryDirectory(prefix="edgekit-export-") as work,
    ):
        trained = read_trained(config.run)
        conversion = Conversion(model, pictures.calibration, Path(work), _texts(student), config.dynamic_batch, trained)
        write_golden(bundle / GOLDEN_FILE, pictures.golden(reference))
        golden = prove_golden(bundle / GOLDEN_FILE, student.spec.preprocess)
        workshop = Workshop(conversion, (pictures.comparison, expected), golden)
        attempts = _make_all(config, workshop, _labels(dataset, pictures), terminal)
        if all(attempt.problems for attempt in attempts):
            raise VerificationError(f"no file passed, so no bundle was written to {config.output}")
        for attempt in attempts:
            if not attempt.problems:
                shutil.move(str(workshop.path(attempt)), bundle / attempt.name)
        for form in {attempt.format for attempt in attempts if not attempt.problems}:
            keep_statistics(Path(work) / statistics_name(form), bundle, terminal)
        _write_bundle(bundle, config, student, pictures, attempts)
    return attempts


def _announce(spec: StudentSpec, dataset: ImageDataset, pictures: ExportPictures, terminal: Terminal) -> None:
    terminal.say(
        f"student  {spec.arch} at {spec.image_size} px, {spec.num_classes} classes; INT8 ranges from "
        f"{len(pictures.calibration_hashes)} training {dataset.kind}, compared on {len(pictures.comparison_hashes)} "
        f"validation {dataset.kind}" + (f", {spec.frames} frames each" if spec.frames > 1 else "")
    )


def keep_statistics(file: Path, bundle: Path, terminal: Terminal) -> None:
    """Move the statistics that a format's ranges come from to the bundle; say which activations are always zero."""
    if not file.exists():  # nothing of this format has ranges
        return
    dead = Histograms.load(file).always_zero
    if dead:
        terminal.warn(f"dead activations, zero for every calibration picture: {name_some(dead)} ({file.name})")
    shutil.move(file, bundle / file.name)


def _make_all(config: ExportConfig, workshop: Workshop, labels: NDArray[np.int64], terminal: Terminal) -> list[Attempt]:
    """Make the files that were asked for, and those that `auto` chooses; a file of both is there once."""
    found: dict[str, Attempt] = {}
    for form in config.formats:
        if config.dynamic_batch and not DYNAMIC_BATCH[form]:
            terminal.warn(f"--dynamic-batch is not for {form}; the batch stays 1")
        for precision in config.precisions:
            attempt = workshop.make(form, precision)
            found[attempt.name] = attempt
        if config.auto:
            choice = choose_precision(workshop, form, labels, ChoiceConfig(config.max_drop))
            terminal.table(COLUMNS, table_rows(choice), title=title(choice))
            found[choice.attempt.name] = choice.attempt
    for attempt in found.values():
        terminal.detail(f"{attempt.name}  {human_bytes(attempt.size_bytes)}  {attempt.recipe}")
        if attempt.problems:
            terminal.say(f"{attempt.name}  FAILED: {'; '.join(attempt.problems)}")
    return list(found.values())


def _choose(config: ExportConfig, spec: StudentSpec, dataset: ImageDataset) -> ExportPictures:
    counts = (config.calibration_images, config.comparison_images)
    if spec.frames > 1:
        return ExportClips.choose_clips(dataset, spec.preprocess, spec.frames, counts, config.seed)
    return ExportPictures.choose(dataset, spec.preprocess, counts, config.seed)


def _labels(dataset: ImageDataset, pictures: ExportPictures) -> NDArray[np.int64]:
    """Return the classes of the comparison pictures, in their order."""
    by_key = {sample.key: sample.label for sample in dataset.val}
    return np.array([by_key[key] for key in pictures.comparison_hashes], np.int64)


def _check_classes(student: Student, dataset: ImageDataset) -> None:
    known, found = student.spec.classes, dataset.classes
    if known != found:
        raise LoadError(
            f"the student knows {len(known)} classes ({', '.join(known[:3])}, …), the data has {len(found)} "
            f"({', '.join(found[:3])}, …); pass --data with the pictures it was trained on"
        )


def _texts(student: Student) -> dict[str, str]:
    """Return what a file says about itself."""
    clip = student.spec.frames > 1
    return {
        "classes": json.dumps(student.spec.classes),
        "preprocess": json.dumps(student.spec.preprocess.to_dict()),
        "input": "RGB in [0, 1]; normalisation is inside" + ("; the frames of one clip" if clip else ""),
    }


def _write_bundle(
    bundle: Path,
    config: ExportConfig,
    student: Student,
    pictures: ExportPictures,
    attempts: Sequence[Attempt],
) -> None:
    facts = run_facts(config.run)
    manifest = Manifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgekit_version=metadata.version("edgekit"),
        versions=versions_of(LIBRARIES),
        model={"arch": student.spec.arch, "embed_dim": student.spec.embed_dim}
        | asdict(measure_complexity(student, student.spec.image_size, student.spec.frames)),
        teacher=facts.get("teacher"),
        training={k: facts[k] for k in ("seed", "data", "summary") if k in facts}
        | {"checkpoint_sha256": sha256_of(student_file(config.run))},
        input=InputContract(
            frames=student.spec.frames,
            layout=dict(layouts(student.spec.frames)),
            preprocess=student.spec.preprocess.to_dict(),
        ),
        outputs=config.outputs,
        classes=student.spec.classes,
        files=tuple(record_of(bundle, attempt) for attempt in attempts if not attempt.problems),
        golden_sha256=sha256_of(bundle / GOLDEN_FILE),
        calibration=pictures.calibration_hashes,
        statistics={path.name: sha256_of(path) for path in sorted(bundle.glob(STATISTICS_FILES))},
        verification=pictures.comparison_hashes,
        choices=tuple(dict(attempt.choice) for attempt in attempts if attempt.choice is not None),
    )
    atomic.write_text(bundle / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
    atomic.write_text(bundle / "MODEL_CARD.md", model_card(manifest))
