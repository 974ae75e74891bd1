"""Accuracy of every candidate on the same labelled pictures, beside the teacher and the PyTorch student."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.bench.labels import class_numbers
from edgekit.bench.metrics import agreement, classification_scores, correct, embedding_cosine, kl_divergence
from edgekit.bench.readable import LeftOut
from edgekit.bench.results import Answers, BenchRow
from edgekit.bench.significance import ScoreError, compare_accuracy
from edgekit.bench.state import State
from edgekit.bench.truth import Truth
from edgekit.data import Sample
from edgekit.errors import DataError, EdgekitError, UsageError
from edgekit.export.contained import call_contained
from edgekit.export.export_clips import frames_of
from edgekit.export.session import FloatArray, Outputs
from edgekit.preprocess import Preprocess, load_batch

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
_CHUNK = 64


def number_classes(states: Sequence[State], truth: Truth, given: Sequence[str] | None) -> None:
    """Find out which of each model's scores the data's classes are; a model that does not know one fails.

    Args:
        states: the candidates.
        truth: the data.
        given: labels for files that no manifest tells of; None asks those files themselves.

    A position alone would not do for anyone: of a folder that was renamed all later classes would be others.
    """
    for state in states:
        candidate = state.candidate
        told = candidate.kind == "teacher" and truth.teacher is not None and state.row.status == "ok"
        if not (told or (state.alive and candidate.scored)):
            continue
        try:
            labels = candidate.classes or given or _own_labels(candidate.path)
            state.classes = tuple(labels) if labels else None
            if labels is not None:
                state.labels = class_numbers(truth.classes, labels)[truth.labels]
        except EdgekitError as e:
            state.fail(str(e))


def _own_labels(path: Path | None) -> Sequence[str] | None:
    if path is None or path.is_dir():
        return None
    found: list[str] | None = call_contained("edgekit.bench.labels:labels_in", str(path.absolute()))
    return found


def run_pictures(states: Sequence[State], truth: Truth, bar: Progress) -> Truth:
    """Run every picture through every candidate; return the truth of those that could be read.

    Each picture is decoded once per contract.

    Raises:
        DataError: more pictures than are tolerated cannot be read.
    """
    running = [state for state in states if state.alive and state.candidate.scored]
    parts: dict[str, list[Outputs]] = {state.candidate.name: [] for state in running}
    left_out = LeftOut(len(truth.samples), truth.kind)
    with bar("accuracy", len(truth.samples)) as advance:
        for at in range(0, len(truth.samples), _CHUNK):
            part = truth.samples[at : at + _CHUNK]
            _run_part([state for state in running if state.alive], (at, part), truth.frames, left_out, parts)
            advance(len(part))
    truth = _without(truth, left_out, states)
    for state in running:
        if state.alive:
            found = parts[state.candidate.name]
            state.outputs = _scores(state, {name: np.concatenate([p[name] for p in found]) for name in found[0]})
    for state in states:
        if state.candidate.kind == "teacher" and state.row.status == "ok":
            state.outputs = truth.teacher
    return truth


def _run_part(
    running: Sequence[State],
    part: tuple[int, Sequence[Sample]],
    frames: int,
    left_out: LeftOut,
    parts: Mapping[str, list[Outputs]],
) -> None:
    """Run some pictures, which begin at a position, through every candidate that is still alive."""
    at, samples = part
    batches: dict[Preprocess, FloatArray] = {}
    for state in running:
        contract = state.contract
        try:
            if contract not in batches:
                batches[contract] = _inputs(samples, frames, contract)
        except DataError:  # what one contract cannot read none can, so the first one finds them all
            samples = left_out.readable(samples, at, lambda some: _inputs(some, frames, contract))  # noqa: B023
            if not samples:
                return
            batches[contract] = _inputs(samples, frames, contract)
        try:
            assert state.worker is not None
            parts[state.candidate.name].append(state.worker(batches[contract]))
        except EdgekitError as e:  # the other candidates go on
            state.fail(str(e))


def _without(truth: Truth, left_out: LeftOut, states: Sequence[State]) -> Truth:
    """Return the truth of the pictures that were read; so are the states' right classes."""
    if not left_out.reasons:
        return truth
    rows = np.array([row for row in range(len(truth.samples)) if row not in left_out.reasons], np.int64)
    for state in states:
        state.labels = None if state.labels is None else state.labels[rows]
    return replace(
        truth,
        samples=tuple(truth.samples[row] for row in rows),
        labels=truth.labels[rows],
        teacher=None if truth.teacher is None else {name: said[rows] for name, said in truth.teacher.items()},
        notes=(*truth.notes, *left_out.notes),
    )


def _scores(state: State, outputs: Outputs) -> Outputs:
    """Return outputs with one row of logits a picture, whatever shape and scale the file gives them in."""
    if "logits" not in outputs:
        told = f"its outputs are {', '.join(sorted(outputs))}, none of which are class scores: no accuracy"
        if "embedding" not in outputs:
            state.row = replace(state.row, notes=(*state.row.notes, told))
        return outputs
    values = outputs["logits"].reshape(len(outputs["logits"]), -1)
    if state.candidate.claimed is None and state.candidate.kind == "artifact" and _are_shares(values):
        state.row = replace(state.row, notes=(*state.row.notes, "gives probabilities; their logarithms were scored"))
        values = np.log(np.maximum(values, values[values > 0].min() / 2))  # where rounding left 0
    return {**outputs, "logits": values}


def _are_shares(values: FloatArray) -> bool:
    """Whether rows are probabilities; 8-bit ones add up to 1 within a few steps of 1/256."""
    return bool(values.size and (values >= 0).all() and (np.abs(values.sum(axis=1) - 1) < 0.05).all())


def _inputs(samples: Sequence[Sample], frames: int, contract: Preprocess) -> FloatArray:
    """Return pictures, or the frames of clips one clip after the other, as (N, 3, S, S) float32 in [0, 1]."""
    if frames > 1:
        return frames_of(samples, frames, contract)
    return load_batch([sample.path for sample in samples], contract)


def answers(states: Sequence[State], truth: Truth) -> dict[str, Answers]:
    """Return which pictures every scored candidate got right."""
    digest = hashlib.sha256("".join(f"{s.key}\0{s.label}\n" for s in truth.samples).encode()).hexdigest()
    found = {}
    for state in states:
        if state.row.scores is not None and state.outputs is not None:
            found[state.candidate.name] = Answers.of(_right(state, state.outputs, truth), digest)
    return found


def score(states: Sequence[State], truth: Truth, baseline: str) -> None:
    """Fill the accuracy columns of every row whose candidate gave outputs."""
    by_kind = {state.candidate.kind: state for state in states}
    beside = _Beside(by_kind.get("teacher"), by_kind.get("student"))
    scored = [state for state in states if state.outputs is not None and "logits" in state.outputs]
    for state in scored:
        _fill(state, truth, beside)
    # only now: a baseline that cannot be scored must not take the others with it
    first = next((s for s in scored if s.candidate.name == baseline and s.row.scores is not None), None)
    if first is None or first.outputs is None:
        return
    reference = _right(first, first.outputs, truth)
    for state in scored:
        if state is not first and state.row.scores is not None and state.outputs is not None:
            change = compare_accuracy(_right(state, state.outputs, truth), reference)
            state.row = replace(state.row, accuracy=change)


def _right(state: State, outputs: Outputs, truth: Truth) -> NDArray[np.bool_]:
    """Return (N,) whether the class of the highest score is the right one."""
    return correct(outputs["logits"], _labels(state, truth))


def _labels(state: State, truth: Truth) -> NDArray[np.int64]:
    """Return (N,) the right classes as numbers of the model's own scores.

    Raises:
        UsageError: it gives as many scores as neither the data nor its labels have classes.
    """
    assert state.outputs is not None
    scores = state.outputs["logits"].shape[1]
    if state.classes is not None and state.labels is not None:
        if scores != len(state.classes):
            raise UsageError(
                f"it gives {scores} scores, but there are {len(state.classes)} labels; give its own labels"
            )
        return state.labels
    if scores != len(truth.classes):
        raise UsageError(
            f"it gives {scores} scores, the data has {len(truth.classes)} classes; give the data it was made for, or "
            "the labels of its scores with --labels"
        )
    return truth.labels


@dataclass(frozen=True)
class _Beside:
    """The models whose answers others are compared with, where they are there."""

    teacher: State | None
    student: State | None


def _fill(state: State, truth: Truth, beside: _Beside) -> None:
    try:
        state.row = _scored(state, truth, beside)
    except (ScoreError, UsageError) as e:
        state.fail(str(e))


def _scored(state: State, truth: Truth, beside: _Beside) -> BenchRow:
    """Return the row with every accuracy column that the model's own answers give."""
    assert state.outputs is not None
    logits = state.outputs["logits"]
    row = replace(state.row, scores=classification_scores(logits, _labels(state, truth)))
    said, teacher, student = truth.teacher, beside.teacher, beside.student
    if said is not None and teacher is not state and _alike(state, teacher, said, truth):
        row = replace(
            row,
            agreement_teacher=agreement(logits, said["logits"]),
            kl_teacher=kl_divergence(said["logits"], logits),
        )
        if "embedding" in state.outputs and state.outputs["embedding"].shape == said["embedding"].shape:
            row = replace(row, embedding_cosine=embedding_cosine(said["embedding"], state.outputs["embedding"]))
    judged = student is not None and student is not state and student.row.status == "ok"
    if judged and student is not None and student.outputs and _alike(state, student, student.outputs, truth):
        row = replace(row, agreement_student=agreement(logits, student.outputs["logits"]))
    return row


def _alike(state: State, other: State | None, said: Outputs, truth: Truth) -> bool:
    """Whether the scores of two models are of the same classes in the same order."""
    theirs = (other.candidate.classes if other is not None else ()) or truth.classes
    assert state.outputs is not None
    same = "logits" in said and said["logits"].shape == state.outputs["logits"].shape
    return same and (state.classes or truth.classes) == theirs
