"""Whole nets: what the interpreter gives for a converted package against PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mil_for_tests import assert_same, ct, cto
from mil_nets_for_tests import FP32_MAX_ABS, converted, exported, only_output, pictures, run, snr_db, stored, student
from torch import nn

from edgekit.export.mil.interpreter import MilProgram
from edgekit.export.quiet import quiet

FP16_SNR_DB = {"mobilevit_xxs": 50.0, "mobilevitv2_050": 45.0}  # v2 divides by a rounded standard deviation 21 times


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


def test_mobilevit_in_fp32_and_fp16(net: nn.Module, net_fp32: Any, net_fp16: Any, tmp_path: Path) -> None:
    want = run(net, pictures())
    assert np.abs(only_output(stored(tmp_path, net_fp32, "fp32"), pictures()) - want).max() <= FP32_MAX_ABS
    # above the upper bound, nothing would have been rounded
    assert (
        FP16_SNR_DB["mobilevit_xxs"] <= snr_db(want, only_output(stored(tmp_path, net_fp16, "fp16"), pictures())) < 90.0
    )


def test_mobilevitv2_in_fp32_and_fp16(tmp_path: Path) -> None:
    module = student("mobilevitv2_050")
    want, program = run(module, pictures()), exported(module, (torch.from_numpy(pictures()),))
    assert np.abs(only_output(stored(tmp_path, converted(program), "v2 fp32"), pictures()) - want).max() <= FP32_MAX_ABS
    fp16 = stored(tmp_path, converted(program, compute_precision=ct.precision.FLOAT16), "v2 fp16")
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
def test_compressed_weights_act_as_coremltools_decompresses_them(
    name: str, tmp_path: Path, small: dict[str, Any]
) -> None:
    target, operation, compress = COMPRESSIONS[name]
    with quiet():
        compressed = compress(small[target])
        plain = cto.decompress_weights(compressed)
    path, reference = stored(tmp_path, compressed, name), stored(tmp_path, plain, f"{name} plain")
    kinds = Counter(op.type for op in MilProgram.load(path).operations)
    assert kinds[f"constexpr_{operation}"] >= 2
    assert not any("constexpr" in op.type for op in MilProgram.load(reference).operations)
    x = pictures(side=16)
    assert_same(only_output(path, x), only_output(reference, x), 1e-6)
    assert np.abs(only_output(path, x) - run(Small(), x)).max() > 1e-6  # the compression lost something


@pytest.mark.parametrize(("name", "decibels"), [("w8 symmetric", 25.0), ("palette of 6 bits", 15.0)])
def test_compressed_mobilevit_stays_close_to_pytorch(
    name: str, decibels: float, tmp_path: Path, net: nn.Module, net_fp32: Any
) -> None:
    with quiet():
        compressed = COMPRESSIONS[name][2](net_fp32)
    got = only_output(stored(tmp_path, compressed, f"{name} net"), pictures())
    assert decibels <= snr_db(run(net, pictures()), got) < 60.0


def test_w8a8_calibrated_by_the_interpreter(
    tmp_path: Path, net: nn.Module, net_fp16: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import coremltools.optimize.coreml._post_training_quantization as ptq

    program = MilProgram.load(stored(tmp_path, net_fp16, "for calibration"))
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
    path = stored(tmp_path, model, "w8a8")
    kinds = Counter(op.type for op in MilProgram.load(path).operations)
    assert kinds["quantize"] > 30
    assert kinds["dequantize"] > 30
    assert 10.0 <= snr_db(run(net, pictures()), only_output(path, pictures())) < 50.0


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_clip_towers(target: str, tmp_path: Path) -> None:
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
        program = MilProgram.load(stored(tmp_path, model, f"clip {text} {target}"))
        kinds = {op.type for op in program.operations}
        assert ("scaled_dot_product_attention" in kinds) == (target == "iOS18")
        (got,) = program.run({next(iter(program.inputs)): x}).values()
        assert_same(got, run(Tower(text), x))


def test_a_bert_text_classifier(tmp_path: Path) -> None:
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
    program = MilProgram.load(stored(tmp_path, model, "bert"))
    (got,) = program.run(dict(zip(program.inputs, (ids, mask), strict=True))).values()
    assert_same(got, run(module, ids, mask))
