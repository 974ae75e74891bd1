"""Training a CLIP from start to end: captions, towers, the one loop, summary."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgekit.compress.clip.data import DecodedCaptions, Decoding, check_captions, load_captioned
from edgekit.compress.clip.recipe import ClipRecipe, build_clip, clip_spec
from edgekit.compress.clip.task import ClipTask
from edgekit.compress.guard.plan_ahead import refuse_restarts
from edgekit.compress.parallel.single_process import refuse_several
from edgekit.compress.recipe import validate
from edgekit.compress.show.progress import TrainingDisplay
from edgekit.compress.show.run_plots import plot_runs
from edgekit.compress.training.changed_settings import Allowed
from edgekit.compress.training.history import read_history
from edgekit.compress.training.loop import FitResult, fit
from edgekit.compress.training.order import steps_per_epoch
from edgekit.compress.training.phases import earlier_epochs
from edgekit.compress.training.run_folder import RunFolder, plain_settings
from edgekit.compress.training.run_lock import locked
from edgekit.compress.training.start import begin, go_on, look
from edgekit.errors import LoadError, UsageError
from edgekit.models.clip import CLIP_FILE, Clip, load_clip
from edgekit.models.student import load_backbone
from edgekit.models.tokenizer import Tokenizer
from edgekit.terminal import Terminal, human_count, percent


@dataclass(frozen=True)
class TrainClipConfig:
    """What CLIP to train on what.

    Attributes:
        data: captions CSV or folder (`edgekit.captions`), or tar shards with captions.
        output: the run folder.
        recipe: towers, tokenizer, loss, optimisation.
        pictures: folder that the CSV's image paths are relative to.
        val_fraction: share of the pictures to hold out, where the data has no split of its own.
        max_broken: share of unreadable pictures that is tolerated.
        vision_weights: local weights that a timm image tower starts from.
        init_from: run folder or checkpoint whose CLIP and tokenizer this run goes on with, as its next phase.
    """

    data: Path
    output: Path
    recipe: ClipRecipe
    pictures: Path | None = None
    val_fraction: float | None = None
    max_broken: float = 0.01
    vision_weights: Path | None = None
    init_from: Path | None = None

    def check(self) -> None:
        """Refuse what cannot work, before any work is done.

        Raises:
            UsageError: options that exclude each other.
        """
        if self.init_from is not None and self.vision_weights is not None:
            raise UsageError("--init-from and --vision-weights exclude each other; give one")
        if self.vision_weights is not None and self.recipe.family != "clip":
            raise UsageError(f"--vision-weights needs a timm image tower; {self.recipe.name} has another")

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved settings, for config.yaml."""
        return plain_settings(vars(self))


def train_clip(
    config: TrainClipConfig,
    terminal: Terminal,
    *,
    overwrite: bool = False,
    resume: bool = False,
    allow_change: Collection[Allowed] = (),
) -> FitResult:
    """Train a CLIP on captioned pictures and leave a run folder that `distill --teacher` takes.

    Args:
        config: what to train.
        terminal: shows it.
        overwrite: replace a run that is there.
        resume: continue a run that is there; begin one where none is.
        allow_change: what may differ from the settings that a resumed run was begun with.

    Raises:
        EdgekitError: any of the errors that data, towers and training name.
    """
    config.check()
    refuse_several("train clip")  # its loss compares all pairs of a batch
    run, recipe = RunFolder(config.output), config.recipe
    start = look(run, config.to_dict(), overwrite=overwrite, resume=resume, allow_change=allow_change)
    captioned = load_captioned(config.data, config.pictures, config.val_fraction, recipe.fit.seed)
    if not start.resume:
        refuse_restarts(recipe.fit, steps_per_epoch(captioned.train_count, recipe.fit.batch_size))
    clip, tokenizer = _build(config, captioned.train_texts())
    for note in (*captioned.notes, *check_captions(captioned.pairs(), tokenizer)):
        terminal.warn(note)
    scratch = config.output.parent
    how = Decoding(recipe, clip.spec.preprocess, tokenizer, scratch, terminal, config.max_broken)
    decoded = captioned.decode(how)
    with locked(run.path):
        if start.resume:
            go_on(run, config.to_dict(), decoded.facts, start.changes, terminal)
        else:
            _begin(run, config, decoded, clip)
        task = ClipTask(clip, tokenizer, recipe, decoded.data)
        _announce(terminal, config, decoded, clip)
        result = fit(task, recipe.fit, run, display=TrainingDisplay(terminal, "pairs"), resume=start.resume)
        _summarise(run, task, result, terminal)
        return result


def _build(config: TrainClipConfig, texts: Iterable[str]) -> tuple[Clip, Tokenizer]:
    """Return the CLIP to train: a new one, or that of the earlier phase."""
    recipe = config.recipe
    if config.init_from is None:
        clip, tokenizer = build_clip(recipe, texts)
        if config.vision_weights is not None:
            load_backbone(clip.vision, config.vision_weights, recipe.vision)
    else:
        clip, tokenizer = load_clip(config.init_from)
        wanted, given = clip_spec(recipe, tokenizer).to_dict(), clip.spec.to_dict()
        # a vocabulary may have the same size and other pieces
        wanted["tokenizer"], given["tokenizer"] = recipe.tokenizer, tokenizer.to_dict()["kind"]
        different = [f"{name} {given[name]}, now {wanted[name]}" for name in wanted if wanted[name] != given[name]]
        if different:
            raise UsageError(
                f"--init-from {config.init_from} holds another CLIP: {'; '.join(different)}. Leave the options that "
                "say so out, or train a new one"
            )
    clip.train()
    if recipe.freeze_vision:
        clip.freeze_vision()
    if recipe.checkpoint_blocks:
        clip.checkpoint_blocks()
    return clip, tokenizer


def recipe_of_run(run: Path) -> ClipRecipe:
    """Return the recipe that a CLIP's run folder was trained with, for its next phase.

    Raises:
        LoadError: it is not the run folder of a CLIP.
    """
    config = RunFolder(run).config_path
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))["recipe"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as e:
        raise LoadError(f"--init-from {run} is not the run folder of a CLIP: {config.name} says no recipe") from e
    return validate(ClipRecipe, values, f"{config}")


def _begin(run: RunFolder, config: TrainClipConfig, decoded: DecodedCaptions, clip: Clip) -> None:
    """Write what is known before the first step."""
    facts = {
        "kind": "clip",
        "seed": config.recipe.fit.seed,
        "data": decoded.facts,
        "clip": {**clip.spec.to_dict(), "parameters": parameters(clip)},
    }
    earlier = earlier_epochs(config.init_from) if config.init_from is not None else None
    begin(run, config.to_dict(), facts, earlier=earlier, left=[run.path / CLIP_FILE])


def parameters(clip: Clip) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in clip.parameters())


def _announce(terminal: Terminal, config: TrainClipConfig, decoded: DecodedCaptions, clip: Clip) -> None:
    facts, recipe = decoded.facts, config.recipe
    terminal.say(
        f"data     {facts['train']} train pictures with {facts['labelled']} captions, {facts['val']} held out with "
        f"{facts['val_captions']}"
    )
    frozen = ", image tower frozen" if clip.frozen_vision else ""
    chunks = f" in chunks of {recipe.chunk_size}" if recipe.chunk_size else ""
    terminal.say(
        f"CLIP     {recipe.name} at {recipe.image_size} px: {human_count(parameters(clip))} parameters{frozen}; "
        f"{clip.spec.vocab_size} ids ({recipe.tokenizer}); {recipe.loss}, batches of {recipe.fit.batch_size}{chunks}"
    )


def _summarise(run: RunFolder, task: ClipTask, result: FitResult, terminal: Terminal) -> None:
    """Record the result, draw it with its earlier phases, and show it."""
    best = next((row for row in result.rows if row["epoch"] == result.best_epoch), {})
    names = ("mean_r1", "text_r1", "image_r1", "val_loss", "scale")
    summary = {"best_epoch": result.best_epoch, "selected_by": task.metric, "seconds": result.seconds}
    run.update_facts({"summary": {**summary, **{name: best.get(name) for name in names}}})
    if result.rows:
        plot_runs([read_history(run.path)], run.plots / "training.png", title=str(run.path))
    terminal.heading("Summary")
    if best:
        terminal.say(
            f"best     epoch {result.best_epoch}: R@1 {percent(best['text_r1'])} image to text, "
            f"{percent(best['image_r1'])} text to image, loss {best['val_loss']:.3f}; gallery of "
            f"{len(task.data.val.samples)} pictures"
        )
    terminal.say(
        f"run      {run.path}  ({result.seconds:.0f} s of training); a teacher for distill --teacher {run.path}"
    )
