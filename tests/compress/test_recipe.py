"""Recipes: the shipped ones carry the numbers they claim, and a wrong one names all its mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgekit.compress.recipe import Recipe, load_recipe, recipe_names
from edgekit.errors import UsageError


def refusal(name: str, changes: dict[str, Any] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load_recipe(name, changes)
    return str(caught.value)


def test_the_shipped_recipes_load_under_their_own_names() -> None:
    assert {"edge", "v2", "v3"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.needs_teacher


@pytest.mark.parametrize(
    ("name", "alpha", "beta", "gamma", "temperature", "lr", "epochs"),
    [("v2", 1.0, 1.0, 0.5, 4.0, 3e-4, 15), ("v3", 0.5, 1.0, 1.0, 3.0, 5e-5, 20)],
)
def test_the_recipes_of_the_origin_are_as_they_were_written(
    name: str, alpha: float, beta: float, gamma: float, temperature: float, lr: float, epochs: int
) -> None:
    recipe = load_recipe(name)
    assert (recipe.alpha, recipe.beta, recipe.gamma, recipe.temperature) == (alpha, beta, gamma, temperature)
    assert (recipe.fit.lr, recipe.fit.epochs, recipe.fit.batch_size) == (lr, epochs, 32)
    assert recipe.fit.weight_decay == 0.01
    assert not recipe.fit.decay_matrices_only  # AdamW as it comes: everything decays
    assert recipe.fit.schedule.name == "cosine"
    assert recipe.fit.ema_decay == recipe.fit.clip_norm == 0


def test_changes_lie_over_the_file_and_none_means_not_given() -> None:
    recipe = load_recipe("v2", {"alpha": 0.25, "beta": None, "fit": {"epochs": 3, "lr": None}})
    assert (recipe.alpha, recipe.beta) == (0.25, 1.0)
    assert (recipe.fit.epochs, recipe.fit.lr) == (3, 3e-4)


def test_a_file_is_a_recipe_and_a_dump_of_one_loads_again(tmp_path: Path) -> None:
    recipe = load_recipe("edge", {"fit": {"seed": 5}})
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    assert load_recipe(str(file)) == recipe
    file.write_text("gamma: 2\nfit: {lr: 3e-4}\n", encoding="utf-8")  # PyYAML reads 3e-4 as text
    assert load_recipe(str(file)).name == "mine"
    assert load_recipe(str(file)).fit.lr == 3e-4


def test_all_mistakes_are_named_at_once_each_with_its_place() -> None:
    message = refusal("edge", {"alpha": -1, "fit": {"lr": 0, "epochs": 1.5, "device": "gpu"}, "augment": {"flip": 2}})
    assert message.startswith("recipe edge has 5 wrong setting(s):")
    for place in ("alpha: ", "fit.lr: ", "fit.epochs: ", "fit.device: ", "augment.flip: "):
        assert place in message
    assert "(given: -1)" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aplha": 1}, "aplha: Extra inputs are not permitted; did you mean 'alpha'?"),
        ({"fit": {"ephocs": 1}}, "fit.ephocs: Extra inputs are not permitted; did you mean 'epochs'?"),
        ({"fit": {"schedule": {"nmae": "cosine"}}}, "did you mean 'name'?"),
        ({"alpha": 0, "beta": 0, "gamma": 0}, "there is no loss"),
        ({"augment": {"crop_scale": [0, 1]}}, "0 < smallest <= largest <= 1"),
        ({"augment": {"crop_scale": [0.9, 0.1]}}, "0 < smallest <= largest <= 1"),
        ({"augment": {"crop_ratio": [0, 1]}}, "0 < smallest <= largest"),
        ({"fit": {"betas": [0.9, 1.0]}}, "fit.betas.1"),
        ({"fit": {"seed": -1}}, "fit.seed"),
        ({"fit": {"seed": 2**64}}, "fit.seed"),
        ({"fit": {"lr": float("nan")}}, "fit.lr"),
        ({"fit": {"lr": float("inf")}}, "fit.lr"),
        ({"temperature": 0}, "temperature"),
        ({"views": -1}, "views"),
    ],
)
def test_what_cannot_train_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal("edge", changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpha: [", "not valid YAML"),
        ("- alpha\n", "holds no settings"),
        ("", "holds no settings"),
        ("fit: 5\n", "fit: "),  # with flags for `fit` laid over it, too
        ("\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    message = refusal(str(file), {"fit": {"epochs": 3, "lr": None}})
    assert words in message
    assert "mine.yaml" in message


def test_unknown_names_and_missing_files() -> None:
    assert "did you mean 'edge'?" in refusal("edg")
    assert "cannot be read" in refusal("nowhere/mine.yaml")


def test_settings_cannot_be_changed_in_passing() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("edge").alpha = 3.0  # type: ignore[misc]


def test_a_teacher_is_needed_where_a_loss_reads_it() -> None:
    assert not Recipe(name="alone", alpha=0, beta=0).needs_teacher
    assert Recipe(name="pairs", alpha=0, beta=0, contrastive=1).needs_teacher
    for name in recipe_names():
        assert load_recipe(name).needs_teacher
        assert not load_recipe(name).without_teacher().needs_teacher
        assert not load_recipe(name, {"alpha": 0, "beta": 0}).needs_teacher
    assert load_recipe("edge", {"alpha": 0, "beta": 0, "contrastive": 1}).needs_teacher
    assert Recipe(name="feature", alpha=1, beta=0).needs_teacher
    assert Recipe(name="response", alpha=0, beta=1).needs_teacher


def test_pictures_grow_to_the_full_size_and_stay_there() -> None:
    grow = load_recipe("edge", {"grow_from": 0.5, "grow_until": 0.5, "fit": {"epochs": 20}})
    sizes = [grow.train_size(epoch, 256) for epoch in range(1, 21)]
    assert sizes[0] == 128
    assert sizes == sorted(sizes)
    assert set(sizes) == {128, 160, 192, 224, 256}
    assert sizes[10:] == [256] * 10
    steady = load_recipe("edge", {"grow_from": 1.0})
    assert {steady.train_size(epoch, 250) for epoch in range(1, 21)} == {250}
    assert grow.train_size(1, 40) == 32
    assert load_recipe("edge", {"grow_from": 0.1, "grow_until": 0.0}).train_size(1, 128) == 128
