"""Everything that decides how a student is trained: a recipe from YAML, changed by flags, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgekit.compress.guard.guard import Action
from edgekit.compress.training.checkpointing import Cadence
from edgekit.compress.training.schedule import ScheduleConfig
from edgekit.errors import UsageError, did_you_mean

_Model = TypeVar("_Model", bound=BaseModel)
SIZE_STEP = 32
"""Growing pictures keep to multiples of what most backbones halve a picture down by."""

Beta = Annotated[float, Field(ge=0, lt=1)]
FeatureLoss = Literal["cosine", "mse"]
ResponseLoss = Literal["kl", "decoupled", "standardised"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AugmentConfig(_Frozen):
    """Random views of a training picture; the teacher sees the same view where it runs on views.

    Attributes:
        crop_scale: smallest and largest share of the picture's area that a crop keeps; (1, 1) is no crop.
        crop_ratio: smallest and largest width/height of a crop, in pixels; 1 is square.
        flip: probability of a horizontal flip.
        brightness, contrast, saturation: factors are drawn from [1 − x, 1 + x].
        erase: probability that a rectangle of 2–20 % of the area is set to the mean (student only).
        randaugment: operations per view (`edgekit.compress.pictures.randaugment`); 0 is off.
        magnitude: of these operations, 0 to 30.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = Field(default=0.0, ge=0, le=1)
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, lt=1)
    erase: float = Field(default=0.0, ge=0, le=1)
    randaugment: int = Field(default=0, ge=0, le=8)
    magnitude: float = Field(default=9.0, ge=0, le=30)

    @model_validator(mode="after")
    def _ranges_in_order(self) -> AugmentConfig:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {list(self.crop_scale)}: needed is 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)}: needed is 0 < smallest <= largest")
        return self


class FitConfig(_Frozen):
    """What the training loop itself needs, whatever the task.

    Attributes:
        epochs: passes over the training set.
        batch_size: samples per optimizer step (over all processes).
        accumulate: micro-batches that a step is computed in, one after the other, to save memory. Their weighted
            gradients sum to the whole batch's; batch norm sees each micro-batch alone, so with it the result differs.
        lr: peak learning rate.
        optimizer: "adamw"; "muon" (`edgekit.compress.training.muon`), AdamW with orthogonal updates of matrices; or
            "sgd" with `momentum`, and Nesterov's where `nesterov`. `betas` are AdamW's.
        weight_decay: decoupled with AdamW, L2 with SGD; not applied to biases, norms and other vectors when
            `decay_matrices_only`.
        schedule: learning-rate factor over time.
        ema_decay: exponential moving average of the weights, used for evaluation and export; 0 is off.
        clip_norm: largest global gradient norm; 0 is off.
        seed: all randomness is a function of (seed, epoch, sample index).
        device: "auto" takes cuda, then mps, then cpu.
        precision: "bf16" runs autocast; "fp32" does not.
        compile: fuse the student's operators with `torch.compile`; costs a minute or more at the start, for every size
            of picture, and pays in runs that are much longer.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        channels_last: memory format of the pictures and weights; faster convolutions on CPUs and tensor cores.
        checkpoint_every: save within epochs, too: every "200" steps, "60s" or "5m"; None saves at their ends only.
        guard: what to do at serious trouble (`edgekit.compress.guard.guard`): "warn", "rollback" to the last good state
            with half the rate, or "stop".
        patience: evaluations without a better metric after which training ends; 0 is off.
        tensorboard: write TensorBoard events to the run folder, too.
        allow_restarts: train even where the planned rate jumps up after warm-up (`edgekit.compress.guard.plan_ahead`).
    """

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=3e-4, gt=0)
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    decay_matrices_only: bool = False
    schedule: ScheduleConfig = ScheduleConfig(name="cosine")
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    clip_norm: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    evaluate_every: int = Field(default=1, ge=1)
    checkpoint_every: str | None = None
    guard: Action = "warn"
    patience: int = Field(default=0, ge=0)
    tensorboard: bool = False
    allow_restarts: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> FitConfig:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer: sgd and a momentum above 0")
        return self

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def _an_interval(cls, value: object) -> object:
        if value is not None:
            Cadence.parse(str(value))
            return str(value)
        return None


class Recipe(_Frozen):
    """A distillation recipe: loss weights, optimisation, augmentation.

    The loss is α·feature + β·response + γ·task (`edgekit.compress.distill.losses`), and where they are asked for losses
    over the pairs of a batch (`edgekit.compress.distill.relations`).

    Attributes:
        alpha, beta, gamma: weights of the feature, response and task losses.
        temperature: T of the response loss.
        feature_loss: "cosine" or "mse".
        response_loss: "kl", "decoupled" or "standardised".
        affinity, contrastive: weights of the two losses over pairs; with `fit.accumulate`, pairs of a micro-batch.
        label_smoothing: of the task loss.
        mixup, cutmix: a of the Beta(a, a) that the share of a mixed picture is drawn from; 0 is off, and where both are
            set each step is the one or the other (`edgekit.compress.pictures.mixing`).
        views: augmented views per picture that the teacher embeds once; training cycles through them. 0 means that
            the teacher sees only the plain picture while the student's view is augmented afresh.
        init_classifier: start the student's classifier from the teacher's class weights.
        grow_from: share of the image size that training begins with; 1 trains at the full size all the time.
        grow_until: share of the epochs after which the size is full; small pictures cost less, and the last epochs
            see what the student will (progressive learning, EfficientNetV2, arXiv 2104.00298, §4).
        freeze: early stages of the backbone, the stem being the first, that stay as they come, batch norms included.
        freeze_backbone: keep a backbone that comes trained as it comes, all of it; one from scratch trains.
        dropout: share of the embedding that the classifier does not see in a step.
    """

    name: str
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=4.0, gt=0)
    feature_loss: FeatureLoss = "cosine"
    response_loss: ResponseLoss = "kl"
    affinity: float = Field(default=0.0, ge=0)
    contrastive: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    views: int = Field(default=0, ge=0, le=1000)
    init_classifier: bool = False
    freeze: int = Field(default=0, ge=0)
    freeze_backbone: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    grow_from: float = Field(default=1.0, gt=0, le=1)
    grow_until: float = Field(default=0.5, ge=0, le=1)
    augment: AugmentConfig = AugmentConfig()
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _something_to_learn(self) -> Recipe:
        if not any(self.weights.values()):
            raise ValueError("alpha, beta and gamma are all 0: there is no loss; set at least one")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss reads the teacher."""
        return any(weight > 0 for name, weight in self.weights.items() if name != "task")

    def without_teacher(self) -> Recipe:
        """Return the same recipe on the labels alone."""
        return self.model_validate(self.model_dump() | dict.fromkeys(("alpha", "beta", "affinity", "contrastive"), 0.0))

    def train_size(self, epoch: int, full: int) -> int:
        """Return the side in pixels of the pictures of a 1-based epoch: multiples of 32, the last one `full`."""
        growing = self.grow_until * self.fit.epochs
        if self.grow_from == 1 or epoch > growing:
            return full
        share = self.grow_from + (1 - self.grow_from) * (epoch - 1) / growing
        return min(full, max(SIZE_STEP, round(share * full / SIZE_STEP) * SIZE_STEP))

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each part of the loss, by its name in metrics.jsonl."""
        return {
            "feature": self.alpha,
            "response": self.beta,
            "task": self.gamma,
            "affinity": self.affinity,
            "contrastive": self.contrastive,
        }


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with edgekit."""
    folder = resources.files("edgekit.compress.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Return a shipped recipe, or one from a YAML file, with `changes` merged over it.

    Args:
        name: a shipped recipe's name, or the path of a YAML file.
        changes: nested values, e.g. {"alpha": 0.5, "fit": {"epochs": 3}}; None values are left out. α and β of 0 mean
            no teacher: the recipe's losses over pairs are then 0, too.

    Raises:
        UsageError: unknown name, unreadable file, or values that do not fit; all of them are named at once.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"--recipe {name} cannot be read: {e}") from e
    elif name in recipe_names():
        text = (resources.files("edgekit.compress.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UsageError(f"--recipe '{name}' is neither known nor a YAML file; {did_you_mean(name, recipe_names())}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UsageError(f"--recipe {name} is not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(values, dict):
        raise UsageError(f"--recipe {name} holds no settings; expected 'name: value' lines")
    values.setdefault("name", path.stem)
    if changes and changes.get("alpha") == changes.get("beta") == 0:
        changes = {"affinity": 0.0, "contrastive": 0.0, **changes}
    return validate(Recipe, _merge(values, changes or {}), f"recipe {name}")


def validate(model: type[_Model], values: Mapping[str, Any], what: str) -> _Model:
    """Check `values` against a settings model and report every error at once, each with its option's name.

    Raises:
        UsageError: one line per error.
    """
    try:
        return model.model_validate(values)
    except ValidationError as e:
        lines = [f"  {_place(error)}{error['msg']}{_given(model, error)}" for error in e.errors()]
        raise UsageError(f"{what} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from e


def _place(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    return f"{place}: " if place else ""


def _given(model: type[BaseModel], error: Any) -> str:
    """Return what ends an error's line: the value given, or for an unknown name the nearest known one."""
    if error["type"] == "extra_forbidden":
        *path, name = error["loc"]
        return f"; {did_you_mean(str(name), _fields_at(model, path))}"
    return "" if error["type"] in ("missing", "value_error") else f" (given: {error['input']!r})"


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for part in path:
        inner = model.model_fields[str(part)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel), "only settings models forbid unknown names"
        model = inner
    return list(model.model_fields)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `changes` over `base`, mapping by mapping; None means "not given"."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            if below is None or isinstance(below, Mapping):  # else it is wrong, and `validate` says so
                merged[key] = _merge(below or {}, value)
        elif value is not None:
            merged[key] = value
    return merged
