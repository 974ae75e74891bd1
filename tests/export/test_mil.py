"""Whole nets: what the interpreter gives for a converted package against PyTorch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mil_for_tests import assert_same, ct, cto, floats
from torch import nn

from edgekit.errors import UsageError
from edgekit.export.mil import NOTE, MilProgram, MilSession
from edgekit.export.mil_blob import PackageError
from edgekit.export.quiet import quiet

FP32_MAX_ABS = 1e-3  # the product's own limit on logits; what is seen is 1e-6
FP16_SNR_DB = {"mobilevit_xxs": 50.0, "mobilevitv2_050": 45.0}  # v2 divides by a rounded standard deviation 21 times
SIDE = 64
Save = Callable[..., Path]


def exported(module: nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Any = None) -> Any:
    """Return the torch program that coremltools converts."""
    with quiet(), torch.no_grad():
        return torch.export.export(module.eval(), examples, dynamic_shapes=dynamic).run_decompositions({})


def converted(program: Any, target: Any = ct.target.iOS17, **how: Any) -> Any:
    """Return a Core ML model of an exported program; fp32 unless told otherwise."""
    how.setdefault("compute_precision", ct.precision.FLOAT32)
    with quiet():
        return ct.convert(
            program, convert_to="mlprogram", minimum_deployment_target=target, skip_model_load=True, **how
        )


def snr_db(reference: np.ndarray, got: np.ndarray) -> float:
    noise = ((reference - got.astype(np.float64)) ** 2).sum()
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / noise)) if noise else np.inf


def pictures(count: int = 1, side: int = SIDE, seed: int = 0) -> np.ndarray:
    return floats((count, 3, side, side), seed, 0.0, 1.0)


def run(module: nn.Module, *inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module.eval()(*[torch.from_numpy(array) for array in inputs]).numpy()


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Return a function that stores a Core ML model and gives its path."""
    folder = tmp_path_factory.mktemp("packages")

    def store(model: Any, name: str) -> Path:
        with quiet():
            model.save(str(folder / f"{name}.mlpackage"))
        return folder / f"{name}.mlpackage"

    return store


def student(architecture: str) -> nn.Module:
    """Return a student with random weights; random BN too, as timm's zero gammas would let converters drop blocks."""
    torch.manual_seed(0)
    net = timm.create_model(architecture, num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return student("mobilevit_xxs")


@pytest.fixture(scope="module")
def program(net: nn.Module) -> Any:
    return exported(net, (torch.from_numpy(pictures()),))


@pytest.fixture(scope="module")
def net_fp32(program: Any) -> Any:
    return converted(program)


@pytest.fixture(scope="module")
def net_fp16(program: Any) -> Any:
    return converted(program, compute_precision=ct.precision.FLOAT16)


def only_output(path: Path, x: np.ndarray) -> np.ndarray:
    program = MilProgram.load(path)
    (array,) = program.run({next(iter(program.inputs)): x}).values()
    return array


def test_mobilevit_in_fp32_and_fp16(net: nn.Module, net_fp32: Any, net_fp16: Any, save: Save) -> None:
    want = run(net, pictures())
    assert np.abs(only_output(save(net_fp32, "fp32"), pictures()) - want).max() <= FP32_MAX_ABS
    # above the upper bound, nothing would have been rounded
    assert FP16_SNR_DB["mobilevit_xxs"] <= snr_db(want, only_output(save(net_fp16, "fp16"), pictures())) < 90.0


def test_mobilevitv2_in_fp32_and_fp16(save: Save) -> None:
    module = student("mobilevitv2_050")
    want, program = run(module, pictures()), exported(module, (torch.from_numpy(pictures()),))
    assert np.abs(only_output(save(converted(program), "v2 fp32"), pictures()) - want).max() <= FP32_MAX_ABS
    fp16 = save(converted(program, compute_precision=ct.precision.FLOAT16), "v2 fp16")
    assert FP16_SNR_DB["mobilevitv2_050"] <= snr_db(want, only_output(fp16, pictures())) < 90.0


class Small(nn.Module):
    """Every kind of weight that is compressed: a stem, a depthwise and a pointwise convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 64, 1),
            nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(image)
        return out


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    program = exported(Small(), (torch.zeros(1, 3, 16, 16),))
    return {name: converted(program, getattr(ct.target, name)) for name in ("iOS17", "iOS18")}


def configured(kind: str, **options: Any) -> Any:
    """Return an optimisation config that compresses every weight, however few elements it has."""
    options.setdefault("weight_threshold", 0)
    return cto.OptimizationConfig(global_config=getattr(cto, kind)(**options))


def quantized(model: Any, joint: bool = False, **options: Any) -> Any:
    return cto.linear_quantize_weights(model, configured("OpLinearQuantizerConfig", **options), joint_compression=joint)


def palettized(model: Any, joint: bool = False, **options: Any) -> Any:
    config = configured("OpPalettizerConfig", mode="uniform", **options)
    return cto.palettize_weights(model, config, joint_compression=joint)


def pruned(model: Any) -> Any:
    return cto.prune_weights(model, configured("OpMagnitudePrunerConfig", target_sparsity=0.5))


COMPRESSIONS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {  # target, operation that must appear, how
    "w8 symmetric": ("iOS17", "affine_dequantize", lambda m: quantized(m, mode="linear_symmetric")),
    "w8 asymmetric": ("iOS17", "affine_dequantize", lambda m: quantized(m, mode="linear")),
    "w8 iOS 18": ("iOS18", "blockwise_shift_scale", lambda m: quantized(m, mode="linear")),
    "w4 in blocks": (
        "iOS18",
        "blockwise_shift_scale",
        lambda m: quantized(m, dtype="int4", granularity="per_block", block_size=4),
    ),
    "palette of 8 bits": ("iOS17", "lut_to_dense", lambda m: palettized(m, nbits=8)),
    "palette of 6 bits": ("iOS17", "lut_to_dense", lambda m: palettized(m, nbits=6)),
    "palette of 4 bits": ("iOS17", "lut_to_dense", lambda m: palettized(m, nbits=4)),
    "palettes of groups": (
        "iOS18",
        "lut_to_dense",
        lambda m: palettized(m, nbits=3, granularity="per_grouped_channel", group_size=4),
    ),
    "pruned": ("iOS17", "sparse_to_dense", pruned),
    "pruned iOS 18": ("iOS18", "sparse_to_dense", pruned),
    "pruned and w8": ("iOS18", "sparse_blockwise_shift_scale", lambda m: quantized(pruned(m), joint=True)),
    "pruned and palette": ("iOS18", "lut_to_sparse", lambda m: palettized(pruned(m), joint=True, nbits=4)),
}


@pytest.mark.parametrize("name", sorted(COMPRESSIONS))
def test_compressed_weights_act_as_coremltools_decompresses_them(name: str, save: Save, small: dict[str, Any]) -> None:
    target, operation, compress = COMPRESSIONS[name]
    with quiet():
        compressed = compress(small[target])
        plain = cto.decompress_weights(compressed)
    path, reference = save(compressed, name), save(plain, f"{name} plain")
    kinds = Counter(op.type for op in MilProgram.load(path).operations)
    assert kinds[f"constexpr_{operation}"] >= 2
    assert not any("constexpr" in op.type for op in MilProgram.load(reference).operations)
    x = pictures(side=16)
    assert_same(only_output(path, x), only_output(reference, x), 1e-6)
    assert np.abs(only_output(path, x) - run(Small(), x)).max() > 1e-6  # the compression lost something


@pytest.mark.parametrize(("name", "decibels"), [("w8 symmetric", 25.0), ("palette of 6 bits", 15.0)])
def test_compressed_mobilevit_stays_close_to_pytorch(
    name: str, decibels: float, save: Save, net: nn.Module, net_fp32: Any
) -> None:
    with quiet():
        compressed = COMPRESSIONS[name][2](net_fp32)
    got = only_output(save(compressed, f"{name} net"), pictures())
    assert decibels <= snr_db(run(net, pictures()), got) < 60.0


def test_w8a8_calibrated_by_the_interpreter(
    save: Save, net: nn.Module, net_fp16: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import coremltools.optimize.coreml._post_training_quantization as ptq

    program = MilProgram.load(save(net_fp16, "for calibration"))
    ranges: dict[str, dict[str, float]] = {}

    def observe(name: str, tensor: torch.Tensor) -> None:
        ranges[name] = {"rmin": float(tensor.min()), "rmax": float(tensor.max())}

    feeds = {next(iter(program.inputs)): pictures()}
    program.run_observed(feeds, observe)
    # coremltools calibrates by running the model, which only macOS can
    monkeypatch.setattr(ptq, "_get_activation_calibration_stats", lambda *_: ranges)
    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric")
    with quiet():
        model = cto.linear_quantize_activations(
            net_fp16, cto.OptimizationConfig(global_config=config, op_type_configs={"add": None}), [feeds]
        )
        model = cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))
    path = save(model, "w8a8")
    kinds = Counter(op.type for op in MilProgram.load(path).operations)
    assert kinds["quantize"] > 30
    assert kinds["dequantize"] > 30
    assert 10.0 <= snr_db(run(net, pictures()), only_output(path, pictures())) < 50.0


def test_observers_see_every_floating_tensor_by_its_name(net_fp32: Any, save: Save) -> None:
    program = MilProgram.load(save(net_fp32, "observed"))
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
def test_an_image_input_gets_eight_bit_pixels_in_its_own_channel_order(colors: str, save: Save) -> None:
    scale, bias = 1 / (0.226 * 255), [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    layout = getattr(ct.colorlayout, colors)
    image = ct.ImageType("image", shape=(1, 3, 16, 16), scale=scale, bias=bias, color_layout=layout)
    outputs = [ct.TensorType("logits"), ct.TensorType("embedding")]
    module = Tiny()
    model = converted(exported(module, (torch.zeros(1, 3, 16, 16),)), inputs=[image], outputs=outputs)
    session = MilSession(save(model, f"image {colors}"))
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
def test_a_classifier_names_its_best_class(softmax: bool, name: str, save: Save) -> None:
    classes = ["cat", "dog", "émeu", "4"]
    # one output: coremltools 9.0 fails with an index error on ClassifierConfig and two
    model = converted(
        exported(OnlyScores(softmax), (torch.zeros(1, 3, 16, 16),)), compute_precision=ct.precision.FLOAT16,
        inputs=[ct.ImageType("image", shape=(1, 3, 16, 16), scale=1 / 255)],
        classifier_config=ct.ClassifierConfig(classes),
    )  # fmt: skip
    path = save(model, f"classifier {softmax}")
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


def test_a_free_batch_takes_any_number_of_pictures(save: Save) -> None:
    shape = (ct.RangeDim(1, 8, default=2), 3, 16, 16)
    module, free = Tiny(), ({0: torch.export.Dim("batch", min=1, max=8)},)
    model = converted(
        exported(module, (torch.zeros(2, 3, 16, 16),), free),
        inputs=[ct.TensorType("image", shape=shape)], outputs=[ct.TensorType("logits"), ct.TensorType("embedding")],
    )  # fmt: skip
    session = MilSession(save(model, "free batch"))
    assert session.input_shape == (None, 3, 16, 16)
    for count in (1, 5):
        with torch.inference_mode():
            logits = module(torch.from_numpy(pictures(count, 16)))[0].numpy()
        assert_same(session(pictures(count, 16))["logits"], logits)


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_clip_towers(target: str, save: Save) -> None:
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
        text_cfg={"context_length": 16, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2},
    )

    class Tower(nn.Module):
        def __init__(self, text: bool) -> None:
            super().__init__()
            self.clip, self.text = clip, text

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            encode = self.clip.encode_text if self.text else self.clip.encode_image
            return encode(x, normalize=True)

    tokens = np.random.default_rng(0).integers(1, 98, (2, 16)).astype(np.int32)
    tokens[:, 10] = 99  # the end of the text: the largest token, whose place the tower looks up
    for text, x in ((False, pictures(side=32)), (True, tokens)):
        model = converted(exported(Tower(text), (torch.from_numpy(x),)), getattr(ct.target, target))
        program = MilProgram.load(save(model, f"clip {text} {target}"))
        kinds = {op.type for op in program.operations}
        assert ("scaled_dot_product_attention" in kinds) == (target == "iOS18")
        (got,) = program.run({next(iter(program.inputs)): x}).values()
        assert_same(got, run(Tower(text), x))


def test_a_bert_text_classifier(save: Save) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=32, num_labels=4,
    )  # fmt: skip

    class Classifier(nn.Module):
        """coremltools 9.0 converts no `new_ones`, which transformers builds masks with, so the mask comes ready."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = BertForSequenceClassification(config)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            length = ids.shape[1]
            added = (1.0 - mask[:, None, None, :].float()) * -3e4
            places, kinds = torch.arange(length)[None], torch.zeros(1, length, dtype=torch.long)
            return self.bert(input_ids=ids, attention_mask=added, position_ids=places, token_type_ids=kinds).logits

    ids = np.random.default_rng(0).integers(1, 99, (2, 16)).astype(np.int32)
    mask = np.ones((2, 16), np.int32)
    mask[0, 9:] = 0
    module = Classifier().eval()
    model = converted(exported(module, (torch.from_numpy(ids), torch.from_numpy(mask))))
    program = MilProgram.load(save(model, "bert"))
    (got,) = program.run(dict(zip(program.inputs, (ids, mask), strict=True))).values()
    assert_same(got, run(module, ids, mask))


def test_wrong_feeds_are_usage_errors(net_fp32: Any, save: Save) -> None:
    program = MilProgram.load(save(net_fp32, "fed"))
    name = next(iter(program.inputs))
    with pytest.raises(UsageError, match="the program takes"):
        program.run({"picture": pictures()})
    with pytest.raises(UsageError, match=r"shape \(1, 3, 32, 32\), the program takes \(1, 3, 64, 64\)"):
        program.run({name: pictures(side=32)})


def test_a_session_needs_one_picture_input(save: Save) -> None:
    model = converted(exported(nn.Linear(4, 2), (torch.zeros(1, 4),)))
    with pytest.raises(PackageError, match=r"exactly one input \(B, 3, H, W\)"):
        MilSession(save(model, "no picture"))


def test_within_five_times_of_eager_pytorch(net: nn.Module, net_fp32: Any, save: Save) -> None:
    session = MilSession(save(net_fp32, "timed"))
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
