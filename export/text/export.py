"""Export a text run: convert, open again, compare with PyTorch on real texts, and bundle what passed."""

from __future__ import annotations

import datetime
import hashlib
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import yaml

from edgekit import atomic
from edgekit.errors import UsageError, VerificationError
from edgekit.export.attempt import Attempt
from edgekit.export.config import ExportConfig
from edgekit.export.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    TextManifest,
    TokenContract,
    sha256_of,
)
from edgekit.export.parity import Precision
from edgekit.export.records import record_of, run_facts, versions_of
from edgekit.export.runtimes import Format
from edgekit.export.text.attempt import TextComparison, attempt_text
from edgekit.export.text.card import text_card
from edgekit.export.text.convert import NO_HALF_TABLES, TEXT_PRECISIONS, TextConversion, texts_about
from edgekit.export.text.deploy import DeployText, TorchTextSession
from edgekit.export.text.golden import TOKENIZER_FILE, TextGolden, keep_proof
from edgekit.export.text.session import run_texts
from edgekit.models.text_classifier import TextClassifier, load_text_classifier, text_file
from edgekit.terminal import Terminal
from edgekit.text_data import TextSplit, limited, load_split, load_texts
from edgekit.text_files import TextFiles

MOST_TEXTS = 2000
"""Compared with PyTorch; texts cost less than pictures."""
_LIBRARIES = ("edgekit", "torch", "transformers", "onnx", "onnxruntime", "coremltools", "litert-torch")


def export_text_run(config: ExportConfig, terminal: Terminal, *, overwrite: bool = False) -> list[Attempt]:
    """Write a bundle with every file that proves to compute what the classifier computes; the tokenizer is in it.

    A file that cannot be made, or that fails its gate, is not in the bundle; the others are.

    Raises:
        VerificationError: not one file passed; no bundle is left.
        EdgekitError: the run, the data or the output are not usable.
    """
    atomic.refuse_existing(config.output, overwrite=overwrite)
    wanted = wanted_texts(config, terminal)
    classifier, tokenizer = load_text_classifier(config.run)
    model = DeployText(classifier, config.outputs).eval()
    texts = limited(comparison_texts(config, classifier), MOST_TEXTS)
    ids = tokenizer(texts.texts).ids
    expected = run_texts(TorchTextSession(model, threads=1), ids)
    spec = classifier.spec
    terminal.say(
        f"text     {spec.arch}, {len(spec.classes)} classes, {spec.max_length} ids per text; "
        f"compared on {len(texts)} texts"
    )
    with (
        atomic.atomic_folder(config.output, overwrite=overwrite) as bundle,
        tempfile.TemporaryDirectory(prefix="edgekit-export-") as work,
    ):
        about = texts_about(model, tokenizer.to_dict())
        conversion = TextConversion(model, Path(work), about, config.dynamic_batch)
        golden = keep_proof(bundle, TextGolden.first(ids, expected, texts.texts), tokenizer)
        comparison = TextComparison(texts, ids, expected, golden=golden)
        attempts = [
            attempt_text(conversion, form, precision, bundle, comparison, terminal) for form, precision in wanted
        ]
        if all(attempt.problems for attempt in attempts):
            raise VerificationError(f"no file passed, so no bundle was written to {config.output}")
        _write_bundle(bundle, config, classifier, texts, attempts)
    return attempts


def wanted_texts(config: ExportConfig, terminal: Terminal) -> list[tuple[Format, Precision]]:
    """Return the files of texts to make.

    Raises:
        UsageError: a precision that is not for texts, or nothing is left.
    """
    for precision in config.precisions:
        if precision not in TEXT_PRECISIONS:
            raise UsageError(f"--precision {precision} is for pictures; texts have {', '.join(TEXT_PRECISIONS)}")
    if config.auto:
        raise UsageError(f"--precision auto is for pictures; texts have {', '.join(TEXT_PRECISIONS)}")
    wanted = [(form, precision) for form in config.formats for precision in config.precisions]
    if len(wanted) > 1 and ("tflite", "fp16") in wanted:
        terminal.warn(f"model.fp16.tflite is left out: {NO_HALF_TABLES}")
        wanted.remove(("tflite", "fp16"))
    return wanted


def comparison_texts(config: ExportConfig, classifier: TextClassifier) -> TextSplit:
    """Return labelled texts that the model was not trained on: those given, else the run's test or validation texts.

    Raises:
        UsageError: the run does not say what it was trained on, or that is not there any more.
        DataError: the texts cannot be used.
    """
    classes = classifier.spec.classes
    if config.data is not None:
        return load_split(config.data, TextFiles(config.data), classes)
    folder = config.run if config.run.is_dir() else config.run.parent
    try:
        trained = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        text_column, label_column = trained["columns"]
        val, test = (Path(trained[name]) if trained[name] else None for name in ("val", "test"))
        files = TextFiles(
            Path(trained["data"]),
            val,
            test,
            trained["val_fraction"],
            tuple(trained["classes"]),
            text_column,
            label_column,
        )
        seed = int(trained["recipe"]["fit"]["seed"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as e:
        raise UsageError(
            f"{config.run} does not say what it was trained on; pass --data FILE with labelled texts"
        ) from e
    if test is not None or val is not None:
        path = test or val
        assert path is not None
        if not path.exists():
            raise UsageError(f"the texts of {config.run} are not at {path.absolute()} any more; pass --data FILE")
        return load_split(path, files, classes)
    if not files.train.exists():
        raise UsageError(f"the texts of {config.run} are not at {files.train.absolute()} any more; pass --data FILE")
    return load_texts(files, seed).val


def _write_bundle(
    bundle: Path,
    config: ExportConfig,
    classifier: TextClassifier,
    texts: TextSplit,
    attempts: Sequence[Attempt],
) -> None:
    spec = classifier.spec
    facts = run_facts(config.run)
    parameters = sum(p.numel() for p in classifier.deployed().parameters())
    manifest = TextManifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgekit_version=metadata.version("edgekit"),
        versions=versions_of(_LIBRARIES),
        model={"arch": spec.arch, "embed_dim": classifier.features, "parameters": parameters},
        teacher=facts.get("teacher"),
        training={k: facts[k] for k in ("seed", "data", "summary", "judged") if k in facts}
        | {"checkpoint_sha256": sha256_of(text_file(config.run))},
        input=TokenContract(
            length=spec.max_length,
            padding=spec.padding,
            tokenizer=TOKENIZER_FILE,
            tokenizer_sha256=sha256_of(bundle / TOKENIZER_FILE),
        ),
        outputs=config.outputs,
        classes=spec.classes,
        files=tuple(record_of(bundle, attempt) for attempt in attempts if not attempt.problems),
        golden_sha256=sha256_of(bundle / GOLDEN_FILE),
        calibration={},
        verification={str(row): hashlib.sha256(text.encode()).hexdigest() for row, text in enumerate(texts.texts)},
    )
    atomic.write_text(bundle / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
    atomic.write_text(bundle / "MODEL_CARD.md", text_card(manifest))
