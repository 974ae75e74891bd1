"""What the demo's captions say, in many ways, about a drawing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_SIZES = {"small": ("small", "little", "tiny"), "medium": ("medium-sized", "", ""), "large": ("large", "big", "huge")}
_TEXTURES = {
    "plain": ("plain", "solid", ""),
    "striped": ("striped", "stripy"),
    "checkered": ("checkered", "chequered"),
    "dotted": ("dotted", "spotted"),
    "shaded": ("shaded", "fading"),
}
_OPENINGS = (
    *("", "", "a drawing of ", "a picture of ", "this is ", "a photo of ", "a sketch of ", "here is ", "i drew "),
    *("we see ", "there is ", "an image of ", "look at "),
)
_BEFORE = ("on", "over", "in front of", "against")
_CLUTTER = {1: (" with a stray line", " and one stroke"), 2: (" and some lines", " with scribbles", " among clutter")}


@dataclass(frozen=True)
class Scene:
    """What is on a drawing, in words.

    Attributes:
        label: class name, e.g. "crescent_moon".
        size: "small", "medium" or "large".
        texture: texture of the shape.
        colour: colour of the shape.
        place: e.g. "on the left", "at the top right", "in the middle".
        background: colour of the background.
        background_texture: texture of the background.
        clutter: strokes that do not belong to the shape.
    """

    label: str
    size: str
    texture: str
    colour: str
    place: str
    background: str
    background_texture: str
    clutter: int


def caption_of(scene: Scene, rng: np.random.Generator) -> str:
    """Say what is on the drawing. The class is always named, everything else now and then.

    With much of the rest, the captions of a batch can be told apart by colours alone, and a CLIP that trains for a
    minute learns colours before it learns shapes.
    """

    def choose(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    def perhaps(text: str, probability: float) -> str:
        return text if rng.random() < probability else ""

    shape = (
        perhaps(choose(_SIZES[scene.size]), 0.2),
        perhaps(choose(_TEXTURES[scene.texture]), 0.2),
        perhaps(scene.colour, 0.25),
        scene.label.replace("_", " "),
    )
    opening = choose(_OPENINGS)
    place = perhaps(f" {scene.place}", 0.15)
    clutter = perhaps(choose(_CLUTTER[min(scene.clutter, 2)]), 0.3) if scene.clutter else ""
    behind = (perhaps(choose(_TEXTURES[scene.background_texture]), 0.3), scene.background, "background")
    backdrop = perhaps(f" {choose(_BEFORE)} {_with_article(behind)}", 0.15)
    return f"{opening}{_with_article(shape)}{place}{clutter}{backdrop}"


def _with_article(words: Iterable[str]) -> str:
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
