"""What the demo's captions say, in many ways, about a drawing."""

from __future__ import annotations

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
_BACKGROUNDS = (" on a {}", " over a {}", " in front of a {}", " against a {}", ", the background is {}")
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
    """Say what is on the drawing. The class is always named; everything else is sometimes left out."""

    def choose(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    def perhaps(text: str, probability: float) -> str:
        return text if rng.random() < probability else ""

    noun = scene.label.replace("_", " ")
    adjectives = (
        perhaps(choose(_SIZES[scene.size]), 0.2),
        perhaps(choose(_TEXTURES[scene.texture]), 0.2),
        perhaps(scene.colour, 0.25),
    )
    subject = " ".join(word for word in (*adjectives, noun) if word)
    article = "an" if subject[0] in "aeiou" else "a"
    background = choose(_BACKGROUNDS)
    words = choose(_TEXTURES[scene.background_texture])
    shown = " ".join(word for word in (perhaps(words, 0.3), scene.background) if word)
    backdrop = background.format(shown if background.endswith("is {}") else f"{shown} background")
    return "".join(
        (
            choose(_OPENINGS),
            f"{article} {subject}",
            perhaps(f" {scene.place}", 0.15),
            perhaps(backdrop.replace(" a orange", " an orange"), 0.15),
            perhaps(choose(_CLUTTER[min(scene.clutter, 2)]), 0.3) if scene.clutter else "",
        )
    )
