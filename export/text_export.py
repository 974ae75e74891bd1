"""Export a text run: convert, open again, compare with PyTorch on real texts, and bundle what passed."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from edgekit import atomic
from edgekit.errors import EdgekitError, UsageError, VerificationError, first_line
from edgekit.export.attempt import Attempt
from edgekit.export.audit import check_precision
from edgekit.export.export import ExportConfig
from edgekit.export.golden import INPUTS
from edgekit.export.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    FileRecord,
    TextManifest,
    TokenContract,
    sha256_of,
)
from edgekit.export.parity import GATES, Precision, compare_outputs, failures
from edgekit.export.ports import ports_of
from edgekit.export.runtimes import SUFFIX_OF, Format, size_bytes
from edgekit.export.session import Outputs
from edgekit.export.text_card import text_card
from edgekit.export.text_convert import NO_HALF_TABLES, TEXT_EXPORTERS, TEXT_PRECISIONS, TextConversion, texts_about
from edgekit.export.text_deploy import DeployText, TorchTextSession
from edgekit.export.text_golden import TOKENIZER_FILE, TextGolden, write_text_golden
from edgekit.export.text_session import open_text_session, run_texts
from edgekit.interval import wilson
from edgekit.models.text_classifier import TextClassifier, load_text_classifier, text_file
from edgekit.models.text_tokenizer import Ids, TextTokenizer
from edgekit.terminal import Terminal, human_bytes
from edgekit.text_data import TextSplit, limited, load_split, load_texts
from edgekit.text_files import TextFiles

MOST_TEXTS = 2000
"""Compared with PyTorch; texts cost less than pictures."""
MOST_LOST = 0.01
"""Share of the texts by which a file may be right less often than PyTorch."""
_FEW = 2
"""Texts that may always be lost: of 50 texts one is 2 points."""
_LIBRARIES = ("edgekit", "torch", "transformers", "onnx", "onnxruntime", "coremltools", "litert-torch")


@dataclass(frozen=True)
class _Comparison:
    """Labelled texts, their ids, and what PyTorch says of them."""

    texts: TextSplit
    ids: Ids
    expected: Outputs

    def right(self, outputs: Outputs) -> int:
        """Return how many texts get the class of their label."""
        return int((outputs["logits"].argmax(axis=1) == self.texts.labels).sum())


def export_text_run(config: ExportConfig, terminal: Terminal, *, overwrite: bool = False) -> list[Attempt]:
    """Write a bundle with every file that proves to compute what the classifier computes; the tokenizer is in it.

    A file that cannot be made, or that fails its gate, is not in the bundle; the others are.

    Raises:
        VerificationError: not one file passed; no bundle is left.
        EdgekitError: the run, the data or the output are not usable.
    """
    atomic.refuse_existing(config.output, overwrite=overwrite)
    wanted = _wanted(config, terminal)
    classifier, tokenizer = load_text_classifier(config.run)
    model = DeployText(classifier, config.outputs).eval()
    texts = limited(comparison_texts(config, classifier), MOST_TEXTS)
    ids = tokenizer(texts.texts).ids
    comparison = _Comparison(texts, ids, run_texts(TorchTextSession(model, threads=1), ids))
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
        attempts = [_attempt(conversion, form, precision, bundle, comparison, terminal) for form, precision in wanted]
        if all(attempt.problems for attempt in attempts):
            raise VerificationError(f"no file passed, so no bundle was written to {config.output}")
        _write_bundle(bundle, config, (classifier, tokenizer), comparison, attempts)
    return attempts


def _wanted(config: ExportConfig, terminal: Terminal) -> list[tuple[Format, Precision]]:
    """Return the files to make.

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
            raise UsageError(f"the texts of {config.run} are not at {path} any more; pass --data FILE")
        return load_split(path, files, classes)
    if not files.train.exists():
        raise UsageError(f"the texts of {config.run} are not at {files.train} any more; pass --data FILE")
    return load_texts(files, seed).val


def _attempt(
    conversion: TextConversion,
    form: Format,
    precision: Precision,
    bundle: Path,
    comparison: _Comparison,
    terminal: Terminal,
) -> Attempt:
    """Make one file, open it again and compare; it reaches its final name only if it passes."""
    name = f"model.{precision}{SUFFIX_OF[form]}"
    if conversion.dynamic and form != "onnx":
        terminal.warn(
            f"{name}: --dynamic-batch is not for {form}; it takes one text of {conversion.model.max_length} ids"
        )
    made = conversion.work / name
    try:
        recipe = TEXT_EXPORTERS[form](conversion, precision, made)
        session = open_text_session(made)
        found = run_texts(session, comparison.ids)
        parity = compare_outputs(comparison.expected, found)
        problems = (
            *failures(parity, GATES[precision]),
            *check_precision(made, precision),
            *_lost(comparison, found),
        )
        attempt = Attempt(
            name, form, precision, recipe, size_bytes(made), parity, asdict(session.info), *ports_of(made), problems
        )
        if not problems:
            shutil.move(str(made), bundle / name)
    except EdgekitError as e:
        attempt = Attempt(name, form, precision, problems=(str(e),))
    except Exception as e:  # converters raise their own types; one format's failure must not take the others along
        attempt = Attempt(name, form, precision, problems=(f"{type(e).__name__}: {first_line(e)[:300]}",))
        terminal.detail(f"{name}: {e!r}")
    if attempt.problems:
        terminal.say(f"{name}  FAILED: {'; '.join(attempt.problems)}")
    else:
        terminal.say(f"{name}  {human_bytes(attempt.size_bytes)}{_accuracy(comparison, found)}")
    return attempt


def _accuracy(comparison: _Comparison, found: Outputs) -> str:
    if "logits" not in found:
        return ""
    right = wilson(comparison.right(found), len(comparison.ids))
    return f"  {100 * right.value:.2f} % accuracy (95 %: {100 * right.low:.1f} to {100 * right.high:.1f})"


def _lost(comparison: _Comparison, found: Outputs) -> tuple[str, ...]:
    """Say so if a file is right less often than PyTorch by more than `MOST_LOST`."""
    if "logits" not in found:
        return ()
    before, after, count = comparison.right(comparison.expected), comparison.right(found), len(comparison.ids)
    if before - after <= max(_FEW, MOST_LOST * count):
        return ()
    return (f"accuracy falls from {100 * before / count:.2f} to {100 * after / count:.2f} %",)


def _write_bundle(
    bundle: Path,
    config: ExportConfig,
    made_of: tuple[TextClassifier, TextTokenizer],
    comparison: _Comparison,
    attempts: Sequence[Attempt],
) -> None:
    classifier, tokenizer = made_of
    spec = classifier.spec
    outputs = {name: values[:INPUTS] for name, values in comparison.expected.items()}
    golden = TextGolden(comparison.ids[:INPUTS], outputs, comparison.texts.texts[:INPUTS])
    write_text_golden(bundle / GOLDEN_FILE, golden)
    atomic.write_text(bundle / TOKENIZER_FILE, json.dumps(tokenizer.to_dict()))
    facts = _run_facts(config.run)
    parameters = sum(p.numel() for p in classifier.deployed().parameters())
    manifest = TextManifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgekit_version=metadata.version("edgekit"),
        versions={name: _version(name) for name in _LIBRARIES},
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
        files=tuple(_record(bundle, attempt) for attempt in attempts if not attempt.problems),
        golden_sha256=sha256_of(bundle / GOLDEN_FILE),
        calibration={},
        verification={
            str(row): hashlib.sha256(text.encode()).hexdigest() for row, text in enumerate(comparison.texts.texts)
        },
    )
    atomic.write_text(bundle / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
    atomic.write_text(bundle / "MODEL_CARD.md", text_card(manifest))


def _record(bundle: Path, attempt: Attempt) -> FileRecord:
    assert attempt.parity is not None and attempt.runtime is not None
    return FileRecord(
        path=attempt.name,
        format=attempt.format,
        precision=attempt.precision,
        recipe=attempt.recipe,
        sha256=sha256_of(bundle / attempt.name),
        size_bytes=attempt.size_bytes,
        inputs=attempt.inputs,
        outputs=attempt.outputs,
        parity=attempt.parity.to_dict(),
        runtime=dict(attempt.runtime),
    )


def _run_facts(run: Path) -> dict[str, Any]:
    path = (run if run.is_dir() else run.parent) / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a bare checkpoint: the card then says that nothing is known of its training
    return facts if isinstance(facts, dict) else {}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
