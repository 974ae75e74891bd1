"""A package as a program and as a Session: images, classifiers, free batches, observers, speed and memory."""

from __future__ import annotations

import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mil_for_tests import assert_same, ct
from mil_nets_for_tests import converted, exported, pictures, run, stored, student
from torch import nn

from edgekit.errors import UsageError
from edgekit.export.mil.blob import PackageError
from edgekit.export.mil.interpreter import NOTE, MilProgram, MilSession


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return student("mobilevit_xxs")


@pytest.fixture(scope="module")
def net_fp32(net: nn.Module) -> Any:
    return converted(exported(net, (torch.from_numpy(pictures()),)))


def test_observers_see_every_floating_tensor_by_its_name(net_fp32: Any, tmp_path: Path) -> None:
    program = MilProgram.load(stored(tmp_path, net_fp32, "observed"))
    seen: dict[str, torch.Tensor] = {}
    feeds = {next(iter(program.inputs)): pictures()}
    outputs = program.run_observed(feeds, lambda name, tensor: seen.setdefault(name, tensor))
    named = {name for op in program.operations for name, _ in op.outputs}
    assert set(seen) == named | set(program.inputs)
    first = next(op for op in program.operations if op.type == "silu")
    source = first.inputs["x"][0]
    assert isinstance(source, str)
    assert_same(seen[first.outputs[0][0]].numpy(), torch.nn.functional.silu(seen[source]).numpy())
    for name, array in outputs.items():
        assert_same(seen[name].numpy(), array, 0)


class Tiny(nn.Module):
    """Two outputs, both told apart by the channel order and the scale of the input."""

    def __init__(self, softmax: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.head, self.softmax = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 4), softmax

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = torch.relu(self.conv(image)).mean((2, 3))
        logits = self.head(embedding)
        return (logits.softmax(-1) if self.softmax else logits), embedding


@pytest.mark.parametrize("colors", ["RGB", "BGR"])
def test_an_image_input_gets_eight_bit_pixels_in_its_own_channel_order(colors: str, tmp_path: Path) -> None:
    scale, bias = 1 / (0.226 * 255), [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    layout = getattr(ct.colorlayout, colors)
    image = ct.ImageType("image", shape=(1, 3, 16, 16), scale=scale, bias=bias, color_layout=layout)
    outputs = [ct.TensorType("logits"), ct.TensorType("embedding")]
    module = Tiny()
    model = converted(exported(module, (torch.zeros(1, 3, 16, 16),)), inputs=[image], outputs=outputs)
    session = MilSession(stored(tmp_path, model, f"image {colors}"))
    assert session.input_shape == (1, 3, 16, 16)
    assert (session.info.runtime, session.info.provider, session.info.note) == ("mil", "interpreter", NOTE)
    x = pictures(side=16)
    planes = np.rint(x * 255) if colors == "RGB" else np.rint(x * 255)[:, ::-1]
    with torch.inference_mode():
        logits, embedding = module(torch.from_numpy(planes.copy()) * scale + torch.tensor(bias).reshape(1, 3, 1, 1))
    got = session(x)
    assert set(got) == {"logits", "embedding"}
    assert_same(got["logits"], logits.numpy())
    assert_same(got["embedding"], embedding.numpy())
    assert got["logits"].dtype == np.float32


class OnlyScores(nn.Module):
    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.tiny = Tiny(softmax)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.tiny(image)[0]
        return scores


@pytest.mark.parametrize(("softmax", "name"), [(False, "logits"), (True, "probabilities")])
def test_a_classifier_names_its_best_class(softmax: bool, name: str, tmp_path: Path) -> None:
    classes = ["cat", "dog", "émeu", "4"]
    # one output: coremltools 9.0 fails with an index error on ClassifierConfig and two
    model = converted(
        exported(OnlyScores(softmax), (torch.zeros(1, 3, 16, 16),)), compute_precision=ct.precision.FLOAT16,
        inputs=[ct.ImageType("image", shape=(1, 3, 16, 16), scale=1 / 255)],
        classifier_config=ct.ClassifierConfig(classes),
    )  # fmt: skip
    path = stored(tmp_path, model, f"classifier {softmax}")
    x = pictures(side=16)
    scores = run(OnlyScores(softmax), np.rint(x * 255) / np.float32(255))
    got = MilSession(path)(x)
    assert set(got) == {name}
    assert_same(got[name], scores, 5e-3)
    program = MilProgram.load(path)
    assert program.classes == tuple(classes)
    assert program.operations[-1].type == "classify"
    results = program.run({"image": np.rint(x * 255).astype(np.float32)})
    assert results["classLabel"].tolist() == [classes[int(scores.argmax())]]


def test_a_classifier_may_give_its_embedding_too(tmp_path: Path) -> None:
    model = converted(
        exported(OnlyScores(False), (torch.zeros(1, 3, 16, 16),)),
        inputs=[ct.ImageType("image", shape=(1, 3, 16, 16), scale=1 / 255)],
        classifier_config=ct.ClassifierConfig(list("abcd")),
    )
    path = stored(tmp_path, model)
    embedding = next(op for op in MilProgram.load(path).operations if op.type == "reduce_mean").outputs[0][0]
    specification = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = ct.utils.load_spec(str(specification))
    body = spec.mlProgram.functions["main"]
    body.block_specializations[body.opset].outputs.append(embedding)
    spec.description.output.add().name = embedding
    specification.write_bytes(spec.SerializeToString())
    x = pictures(side=16)
    with torch.inference_mode():
        want = Tiny()(torch.from_numpy(np.rint(x * 255) / np.float32(255)))
    got = MilSession(path)(x)
    assert set(got) == {"logits", embedding}
    assert_same(got["logits"], want[0].numpy())
    assert_same(got[embedding], want[1].numpy())


def test_a_free_batch_takes_any_number_of_pictures(tmp_path: Path) -> None:
    shape = (ct.RangeDim(1, 8, default=2), 3, 16, 16)
    module, free = Tiny(), ({0: torch.export.Dim("batch", min=1, max=8)},)
    model = converted(
        exported(module, (torch.zeros(2, 3, 16, 16),), free),
        inputs=[ct.TensorType("image", shape=shape)], outputs=[ct.TensorType("logits"), ct.TensorType("embedding")],
    )  # fmt: skip
    session = MilSession(stored(tmp_path, model, "free batch"))
    assert session.input_shape == (None, 3, 16, 16)
    for count in (1, 5):
        with torch.inference_mode():
            logits = module(torch.from_numpy(pictures(count, 16)))[0].numpy()
        assert_same(session(pictures(count, 16))["logits"], logits)


def test_wrong_feeds_are_usage_errors(net_fp32: Any, tmp_path: Path) -> None:
    program = MilProgram.load(stored(tmp_path, net_fp32, "fed"))
    name = next(iter(program.inputs))
    with pytest.raises(UsageError, match="the program takes"):
        program.run({"picture": pictures()})
    with pytest.raises(UsageError, match=r"shape \(1, 3, 32, 32\), the program takes \(1, 3, 64, 64\)"):
        program.run({name: pictures(side=32)})


def test_a_session_needs_one_picture_input(tmp_path: Path) -> None:
    model = converted(exported(nn.Linear(4, 2), (torch.zeros(1, 4),)))
    with pytest.raises(PackageError, match=r"exactly one input \(B, 3, H, W\)"):
        MilSession(stored(tmp_path, model, "no picture"))


def test_within_five_times_of_eager_pytorch(net: nn.Module, net_fp32: Any, tmp_path: Path) -> None:
    session = MilSession(stored(tmp_path, net_fp32, "timed"))
    x = pictures()
    seconds: dict[str, list[float]] = {"eager": [], "mil": []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(15):  # interleaved, so that both meet the same noise
            for name, call in (("eager", lambda: run(net, x)), ("mil", lambda: session(x))):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert np.median(seconds["mil"]) <= 5 * np.median(seconds["eager"])


def test_intermediate_tensors_are_dropped_after_their_last_use(net_fp32: Any, tmp_path: Path) -> None:
    program = MilProgram.load(stored(tmp_path, net_fp32))
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def observe(_: str, tensor: torch.Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))

    program.run_observed({next(iter(program.inputs)): pictures()}, observe)
    assert len(alive) > 200
    assert most <= 8
