"""`edgekit export`: convert a student, a text classifier or a CLIP, and prove the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgekit.atomic import refuse_existing, refuse_replacing
from edgekit.cli.options import EXISTING, make_terminal, output_options, talk_options
from edgekit.errors import EXIT_NEGATIVE, EXIT_OK, UsageError
from edgekit.terminal import human_bytes, print_json

if TYPE_CHECKING:
    from edgekit.export.attempt import Attempt
    from edgekit.export.config import ExportConfig

Kind = Literal["student", "text", "clip"]


@click.command()
@click.argument("run", type=EXISTING)
@click.option(
    "--format",
    "formats",
    default="all",
    show_default=True,
    help="onnx, coreml (mlpackage), tflite (litert), saved_model (fp32); several with commas; all is the first three.",
)
@click.option(
    "--precision",
    "precisions",
    help="auto (the best quantized file, by measurement), fp32, fp16, int8, mixed, dynamic, w8, w8a8, palette8/6/4 "
    "(Core ML); several with commas; all is fp32, fp16 and int8.  [default: fp32,int8; saved_model: fp32]",
)
@click.option("--int8", is_flag=True, help="The same as --precision auto, or auto beside the precisions named there.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    help="Points of accuracy that auto may give up against fp32.",
)
@click.option("--data", type=EXISTING, help="Pictures for calibration and comparison.  [default: the run's own]")
@click.option(
    "--val-fraction", type=float, help="As for distill, of --data that do not come split.  [default: the run's]"
)
@click.option(
    "--outputs", help="What the files give, in order.  [default: logits,embedding; of a CLIP's towers embedding]"
)
@click.option(
    "--calibration-images",
    type=click.IntRange(8),
    default=256,
    show_default=True,
    help="Training pictures for INT8 ranges.",
)
@click.option(
    "--comparison-images",
    type=click.IntRange(8),
    default=256,
    show_default=True,
    help="Validation pictures compared with PyTorch.",
)
@click.option("--dynamic-batch", is_flag=True, help="Any batch size, where the format can (ONNX).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of pictures.")
@output_options("bundle", "Bundle folder")
@talk_options
def export(**options: Any) -> int:
    """Convert what RUN (a run folder or checkpoint) holds and prove the files.

    A student, an image or text classifier; a CLIP becomes two artifacts, an image and a text tower, with its
    tokenizer.

    Every file is opened again and compared with PyTorch on real validation pictures. One that fails is not in the
    bundle, and the exit code is 1.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])

    kind = _kind(Path(options["run"]))
    config = _config(options, kind)
    refuse_replacing(config.output, (config.run, config.data, _data_of(config.run)))
    refuse_existing(config.output, overwrite=options["overwrite"])
    attempts = _exporter(kind)(config, terminal, overwrite=options["overwrite"])
    terminal.table(
        ("file", "size", "max abs", "SNR dB", "cosine", "agreement", "ran on", "result"),
        [_row(attempt) for attempt in attempts],
        title="compared with PyTorch",
    )
    if any(attempt.runtime and attempt.runtime["runtime"] == "mil" for attempt in attempts):
        terminal.say("mil: Core ML files are interpreted here, not run on Apple hardware")
    good = sum(not attempt.problems for attempt in attempts)
    terminal.say(f"{good} of {len(attempts)} files proven, in {config.output}")
    if options["as_json"]:
        print_json("export", {"bundle": str(config.output), "files": [attempt.to_dict() for attempt in attempts]})
    return EXIT_OK if good == len(attempts) else EXIT_NEGATIVE


def _kind(run: Path) -> Kind:
    from edgekit.models.clip_run import is_clip_run
    from edgekit.models.text_run import is_text_run

    return "clip" if is_clip_run(run) else "text" if is_text_run(run) else "student"


def _data_of(run: Path) -> str | None:
    """Return where a run's data lie, as it records that; None where it does not."""
    import yaml

    folder = run if run.is_dir() else run.parent
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    source = settings.get("data") if isinstance(settings, Mapping) else None
    return source if isinstance(source, str) else None


def _exporter(kind: Kind) -> Callable[..., list[Attempt]]:
    """Return what exports a run of this kind."""
    if kind == "clip":
        from edgekit.export.clip.export import export_clip_run

        return export_clip_run
    if kind == "text":
        from edgekit.export.text.export import export_text_run

        return export_text_run
    from edgekit.export.export import export_run

    return export_run


def _config(options: Mapping[str, Any], kind: Kind) -> ExportConfig:
    """Return what the options ask for.

    Raises:
        UsageError: an unknown name, or a precision or output that a format, a text classifier or a CLIP cannot have.
    """
    from edgekit.export.config import ExportConfig, chosen_outputs
    from edgekit.export.precisions import AUTO, PRECISIONS, default_precisions, parse_precisions
    from edgekit.export.runtimes import FORMATS, parse_formats

    best = AUTO if kind == "student" else "int8"  # the choice measures classes of pictures; of others there is one
    formats = parse_formats(options["formats"])
    if kind != "student" and not set(formats) <= set(FORMATS):
        raise UsageError(f"CLIPs and text classifiers are exported as {', '.join(FORMATS)}; choose with --format")
    given: str = options["outputs"] or ("embedding" if kind == "clip" else "logits,embedding")
    outputs = tuple(part.strip() for part in given.split(","))
    if kind != "clip":  # whose towers have outputs of their own
        chosen_outputs(outputs)
    named: list[str] = [name for name in (options["precisions"], best if options["int8"] else None) if name is not None]
    requests = parse_precisions(",".join(named) if named else default_precisions(formats), formats, outputs)
    if kind == "text" and not set(requests) <= set(PRECISIONS):
        raise UsageError(f"text classifiers are exported as {', '.join(PRECISIONS)}; give one or more with --precision")
    _refuse_ignored(options, kind)
    return ExportConfig(
        run=Path(options["run"]),
        output=Path(options["output"]),
        formats=formats,
        precisions=tuple(request for request in requests if request != AUTO),
        auto=AUTO in requests,
        max_drop=options["max_drop"],
        data=options["data"],
        val_fraction=options["val_fraction"],
        outputs=outputs,
        calibration_images=options["calibration_images"],
        comparison_images=options["comparison_images"],
        dynamic_batch=options["dynamic_batch"],
        seed=options["seed"],
    )


def _refuse_ignored(options: Mapping[str, Any], kind: Kind) -> None:
    """Refuse an option that would change nothing.

    Raises:
        UsageError: naming it.
    """
    if options["val_fraction"] is not None and options["data"] is None:
        raise UsageError("--val-fraction is for --data; without it a run's own data are cut as they were. Leave it out")
    if options["val_fraction"] is not None and kind == "text":
        raise UsageError("--val-fraction is for pictures; of a text classifier, all texts of --data are compared on")


def _row(attempt: Any) -> tuple[str, ...]:
    if attempt.parity is None:
        return (attempt.name, "–", "–", "–", "–", "–", "–", "failed")
    parity = attempt.parity
    agreement = f"{100 * parity.agreement.value:.1f} %" if parity.agreement else "–"
    return (
        attempt.name,
        human_bytes(attempt.size_bytes),
        f"{parity.max_abs:.2g}",
        f"{parity.snr_db:.1f}",
        f"{parity.cosine:.5f}",
        agreement,
        attempt.runtime["runtime"],
        "failed" if attempt.problems else "proven",
    )
