"""What to distill: the settings of one run, checked together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgekit.compress.recipe import Recipe
from edgekit.compress.store.format import is_store
from edgekit.compress.training.run_folder import plain_settings
from edgekit.errors import UsageError
from edgekit.models.prompts import TEMPLATES
from edgekit.models.student import check_arch, has_fixed_size

MOST_FRAMES = 64
"""Of one clip; each goes through the whole backbone."""


@dataclass(frozen=True)
class DistillConfig:
    """What to distill.

    Attributes:
        data: folder or CSV (`edgekit.data.load_dataset`).
        output: the run folder.
        recipe: loss weights, optimisation, augmentation.
        student: timm name; one with a tag ("mobilevit_xxs.cvnets_in1k") starts from timm's hub weights.
        image_size: side of the student's input in pixels.
        student_weights: local weights that the backbone starts from.
        init_from: run folder or checkpoint whose whole student this run starts from, as its next phase; clips also
            start from a still student (`edgekit.compress.video.start`).
        teachers: see `edgekit.models.teacher.load_teacher`; several are joined.
        teacher_mode: "store" runs the teacher once and trains from what it said; "online" runs it inside the loop, on
            the very view that the student sees.
        teacher_weights: of several teachers; empty for equal ones.
        teacher_embeddings: precomputed embeddings, instead of a teacher.
        templates: prompt templates with a {} for the class name.
        val_fraction: where the data has no validation split of its own.
        split_seed: which pictures that fraction is; None takes the recipe's seed.
        max_broken: share of unreadable pictures that is tolerated.
        embed_dim: of a student without a teacher; else it is the teacher's.
        teacher_cache: a teacher store, or the folder where stores are kept; None puts them beside the run folder.
        frames: of each clip that the student sees; 1 trains on still pictures.
        positions: let a clip's frames be told apart by their place.
    """

    data: Path
    output: Path
    recipe: Recipe
    student: str = "mobilevit_xxs"
    image_size: int = 256
    student_weights: Path | None = None
    init_from: Path | None = None
    teachers: tuple[str, ...] = ()
    teacher_weights: tuple[float, ...] = ()
    teacher_mode: Literal["store", "online"] = "store"
    teacher_embeddings: Path | None = None
    templates: tuple[str, ...] = TEMPLATES
    val_fraction: float | None = None
    split_seed: int | None = None
    max_broken: float = 0.01
    embed_dim: int = 512
    teacher_cache: Path | None = None
    frames: int = 1
    positions: bool = False

    @property
    def teacher(self) -> str | None:
        """The first teacher."""
        return self.teachers[0] if self.teachers else None

    def split_facts(self) -> dict[str, Any]:
        """Return how pictures were held out, for run.json: files of the run are not judged on the others."""
        return {"val_fraction": self.val_fraction, "split_seed": self.own_split_seed}

    @property
    def own_split_seed(self) -> int:
        """What decides which pictures are held out, where the data do not come split."""
        return self.recipe.fit.seed if self.split_seed is None else self.split_seed

    @property
    def pretrained(self) -> bool:
        """Whether the backbone comes with weights."""
        return self.init_from is not None or self.student_weights is not None or "." in self.student

    def check(self) -> None:
        """Refuse what cannot work, before any work is done.

        Raises:
            UsageError: the teacher is missing, double, or not used; or the student is unknown.
        """
        given = [o for o, v in (("--teacher", self.teachers), ("--teacher-embeddings", self.teacher_embeddings)) if v]
        if len(given) > 1:
            raise UsageError("--teacher and --teacher-embeddings exclude each other; give one")
        if self.recipe.needs_teacher and not given and not (self.teacher_cache and is_store(self.teacher_cache)):
            raise UsageError(
                "no teacher given: pass --teacher ARCH:TAG, --teacher FILE.onnx, --teacher-embeddings FILE.npz, or the "
                "--teacher-store that `edgekit teach` made; or train without one with --alpha 0 --beta 0"
            )
        if given and not self.recipe.needs_teacher:
            raise UsageError(f"{given[0]} is given, but with --alpha 0 --beta 0 nothing learns from it; leave it out")
        if self.teacher_mode == "online" and (not self.teachers or self.frames > 1):
            raise UsageError(
                "--teacher-mode online runs the teacher inside the loop, on pictures: give --teacher, and no --frames"
            )
        if self.init_from is not None and self.student_weights is not None:
            raise UsageError("--init-from and --student-weights exclude each other; give one")
        check_arch(self.student)
        if self.recipe.freeze and not self.pretrained:
            raise UsageError(
                f"--freeze {self.recipe.freeze} would hold random weights: give --student NAME.TAG, --student-weights "
                f"or --init-from, or leave it out"
            )
        self._check_clips()

    def _check_clips(self) -> None:
        if not 1 <= self.frames <= MOST_FRAMES:
            raise UsageError(f"--frames is {self.frames}; it must lie between 1 (still pictures) and {MOST_FRAMES}")
        if self.frames == 1 and self.positions:
            raise UsageError("--positions tells the frames of clips apart; give --frames 8 with it, or leave it out")
        if self.frames > 1 and self.teacher_embeddings is not None:
            raise UsageError(
                "--teacher-embeddings holds one embedding for each picture; a clip needs one for each frame that "
                "training may draw. Give --teacher, which embeds them once"
            )
        if self.frames > 1 and len(self.teachers) != 1 and self.recipe.needs_teacher:
            raise UsageError(f"--teacher is given {len(self.teachers)} times; clips learn from one: give it once")

    def fitted(self) -> DistillConfig:
        """Return the settings with what this student cannot do left out: nets of one input size see no smaller one."""
        if self.recipe.grow_from == 1 or not has_fixed_size(self.student):
            return self
        return replace(self, recipe=self.recipe.model_copy(update={"grow_from": 1.0}))

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved settings, for config.yaml."""
        return plain_settings(vars(self))
