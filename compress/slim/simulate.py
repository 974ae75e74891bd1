"""Which tensors each runtime's int8 file holds in 8 bits, put as fake quantization into a folded student.

The tables of the exporters, said in terms of modules: `edgekit.export.tflite.plan` for LiteRT,
`edgekit.export.onnx.int8.choose` for ONNX Runtime, `edgekit.export.coreml.activations` for Core ML's W8A8.

| tensor | LiteRT | ONNX Runtime | Core ML |
|---|---|---|---|
| convolution: input, weights, output (of the ReLU after it) | int8 | int8, thin leading ones float | int8 |
| output of a SiLU | int8 | float, unless a convolution reads it | as ONNX Runtime |
| sum of a residual block | int8 | int8 where a convolution reads it | as ONNX Runtime |
| linear layer of tokens: input, weights | int8; v2's values, projection by row | int8 | int8; v2's projection float |
| its output | int8; of these two float | float | int8; of v2's attention float |
| queries, keys, values | int8 | float | int8, as outputs of the layer that makes them |
| scores (of v1), probabilities | int8 | float | float |
| residual stream of tokens, norms, softmax | float | float | float |
| heads | int8 weights, input by row | int8 weights | int8 weights |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
from timm.layers import ConvMlp, Mlp
from timm.models.mobilevit import LinearSelfAttention
from torch import Tensor, nn

from edgekit.compress.slim.codes import ActivationCodes, CodedSiLU, RowCodes, code_input, code_output, take_out
from edgekit.compress.slim.weight_codes import code_weights
from edgekit.export.onnx.int8 import Int8Config
from edgekit.export.rewrites.layers import BmmCore, ConvAct
from edgekit.export.rewrites.mobilevit import TokenMobileVitBlock, TokenTransformer
from edgekit.export.rewrites.mobilevitv2 import (
    KeyOfSum,
    TokenLinearAttention,
    TokenLinearTransformer,
    TokenMobileVitV2Block,
)
from edgekit.export.rewrites.pooled_attention import TokenPooledAttention
from edgekit.export.tflite.repair import SILU_FLOOR
from edgekit.models.int8_student import Int8MobileVitBlock, Residual
from edgekit.models.student import Student

Runtime = Literal["tflite", "onnx", "coreml"]
Precision = Literal["int8", "mixed"]


class CodedCore(BmmCore):
    """Attention whose operands, scores, probabilities and result are in 8 bits; keys and values around zero."""

    def __init__(self, core: BmmCore, name: str) -> None:
        super().__init__(core.heads, core.scale)
        self.codes = nn.ModuleDict(
            {part: ActivationCodes(f"{name}.{part}", symmetric=part in ("key", "value")) for part in _PARTS}
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map q (G, N, heads · d), k and v (G, M, heads · d) to (G, N, heads · d)."""
        q, k, v = self.codes["query"](q), self.codes["key"](k), self.codes["value"](v)
        groups, tokens, _ = q.shape
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        scores = self.codes["scores"](q @ k.transpose(-2, -1) * self.scale)
        mixed = self.codes["probabilities"](torch.softmax(scores, dim=-1)) @ v
        coded: Tensor = self.codes["mixed"](mixed.transpose(1, 2).reshape(groups, tokens, -1))
        return coded


class CodedKeyOfSum(KeyOfSum):
    """The context vector of scores in 8 bits."""

    def __init__(self, context: KeyOfSum, name: str) -> None:
        super().__init__(context.k)
        self.codes = ActivationCodes(f"{name}.probabilities")

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        """Map tokens (G, N, d) and scores (G, N, 1), which sum to 1 over N, to contexts (G, 1, d)."""
        return super().forward(x, self.codes(scores))


_PARTS = ("query", "key", "value", "scores", "probabilities", "mixed")


def simulate(student: Student, runtime: Runtime) -> Student:
    """Put the fake quantization of one runtime's int8 file into `student`, `folded` for that runtime; in place."""
    PUT_IN[runtime](student)
    for head in _heads(student):
        code_weights(head)
    return student


def _for_tflite(student: Student) -> None:
    backbone = student.backbone
    for name in [name for name, module in backbone.named_modules() if isinstance(module, nn.SiLU)]:
        backbone.set_submodule(name, CodedSiLU())
    split = [m for m in backbone.modules() if isinstance(m, TokenPooledAttention)]
    coded_by_core = {id(part) for attention in split for part in (attention.q, attention.k, attention.v)}
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.Conv2d):
            code_input(module, ActivationCodes(f"{name}.in"))
            code_weights(module)
        elif isinstance(module, ConvAct) and id(module) not in coded_by_core:
            _code_output_of(module, name)
        elif is_residual(module):
            code_output(cast(nn.Module, module.act), ActivationCodes(f"{name}.sum"))
        elif isinstance(module, Residual):
            code_output(module, ActivationCodes(f"{name}.sum"))
        elif isinstance(module, TokenPooledAttention):
            assert isinstance(module.core, BmmCore)
            module.core = CodedCore(module.core, name)
        elif isinstance(module, (TokenMobileVitBlock, TokenMobileVitV2Block)):
            _code_tokens(module, name)
    _end_in_float(backbone)
    for head in _heads(student):
        code_input(head, RowCodes())


def _code_output_of(unit: ConvAct, name: str) -> None:
    """Code what LiteRT makes of a convolution and its activation; a ReLU is the clamp at the convolution's end."""
    if not _is_clamp(unit.act):
        floor = SILU_FLOOR if isinstance(unit.act, CodedSiLU) else -float("inf")
        code_output(unit.conv, ActivationCodes(f"{name}.conv", floor=floor))
    if not isinstance(unit.act, nn.Identity):
        code_output(unit.act, ActivationCodes(f"{name}.act"))


def _code_tokens(block: TokenMobileVitBlock | TokenMobileVitV2Block, name: str) -> None:
    """Code everything on tokens but the residual stream, norms and softmax."""
    centred = isinstance(block, TokenMobileVitBlock)
    code_input(block.project_in, ActivationCodes(f"{name}.project_in.in"))
    code_weights(block.project_in, centred=centred)
    code_output(block.project_in, ActivationCodes(f"{name}.project_in"))
    for number, layer in enumerate(block.transformer):
        place = f"{name}.transformer.{number}"
        if isinstance(layer, TokenTransformer):
            attention = layer.attention
            for linear in (attention.q, attention.k, attention.v):
                code_weights(linear)
            assert isinstance(attention.core, BmmCore)
            attention.core = CodedCore(attention.core, f"{place}.attention")
            code_output(layer.norm1, ActivationCodes(f"{place}.norm1"))
            code_weights(attention.proj, centred=True)
            code_output(attention.proj, ActivationCodes(f"{place}.attention.proj"))
        else:
            assert isinstance(layer, TokenLinearTransformer)
            _code_linear_attention(layer.attention, place)
        code_output(layer.norm2, ActivationCodes(f"{place}.norm2"))
        code_weights(layer.fc1)
        code_output(layer.fc1, ActivationCodes(f"{place}.fc1", floor=SILU_FLOOR))
        code_output(layer.act, ActivationCodes(f"{place}.act"))
        code_weights(layer.fc2, centred=centred)
        code_output(layer.fc2, ActivationCodes(f"{place}.fc2"))
    code_output(block.norm, ActivationCodes(f"{name}.norm"))
    code_weights(block.project_out)
    floor = SILU_FLOOR if isinstance(block.act, CodedSiLU) else -float("inf")
    code_output(block.project_out, ActivationCodes(f"{name}.project_out", floor=floor))
    code_output(block.act, ActivationCodes(f"{name}.act"))


def _code_linear_attention(attention: TokenLinearAttention, place: str) -> None:
    """Code a v2 block's attention: values and projection read and give float, by row; the softmax is float, too."""
    assert isinstance(attention.context, KeyOfSum)
    name = f"{place}.attention"
    attention.context = CodedKeyOfSum(attention.context, name)
    key = attention.context.k
    for linear in (attention.q, key, attention.v, attention.proj):
        code_weights(linear)
    # the sum over tokens is a product, with these for its second operand
    tokens = ActivationCodes(f"{place}.norm1", symmetric=True)
    code_input(attention.q, tokens)
    code_input(attention.context, tokens)
    code_output(attention.q, ActivationCodes(f"{name}.q"))
    code_input(key, ActivationCodes(f"{name}.context.k.in"))
    code_output(key, ActivationCodes(f"{name}.context.k"))
    code_input(attention.v, RowCodes())
    code_input(attention.proj, RowCodes())


def _end_in_float(backbone: nn.Module) -> None:
    """Let the last layer of a net that ends with a v2 block give float, by row: no convolution wants its codes."""
    blocks = [(n, m) for n, m in backbone.named_modules() if isinstance(m, TokenMobileVitV2Block)]
    convolutions = [n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)]
    if not blocks or not convolutions[-1].startswith(f"{blocks[-1][0]}."):
        return
    _, last = blocks[-1]
    for module in (last.norm, last.project_out, last.act):
        take_out(module)
    code_input(last.project_out, RowCodes())


def _for_onnx(student: Student) -> None:
    layers = [(n, m) for n, m in student.backbone.named_modules() if isinstance(m, nn.Conv2d)]
    thin = [_is_thin(conv) for _, conv in layers[1:]]
    leading = 1 + (thin.index(False) if False in thin else len(thin))
    for _, conv in layers[:leading]:
        code_weights(conv, as_half=True)
    coded = dict(layers[leading:])
    ends = ends_of(student)
    for name, conv in coded.items():
        code_input(conv, ActivationCodes(f"{name}.in"))
        code_weights(conv)
        code_output(ends[conv], ActivationCodes(f"{name}.out"))
    for name, module in list(student.backbone.named_modules()):
        first = coded.get(f"{name}.conv1_1x1.conv".lstrip("."), coded.get(f"{name}.conv_kxk.conv"))
        if first is not None and (is_residual(module) or isinstance(module, TokenMobileVitBlock | Int8MobileVitBlock)):
            # what goes past the first convolution to a sum or a concatenation is rounded as for the convolution
            code_input(module, cast(nn.Module, first.input_codes))
        elif isinstance(module, Residual):
            code_output(module, ActivationCodes(f"{name}.sum"))
        elif isinstance(module, nn.Linear):
            code_input(module, ActivationCodes(f"{name}.in"))
            code_weights(module, centred=_writes_stream(student.backbone, name))


def _for_coreml(student: Student) -> None:
    modules = list(student.backbone.named_modules())
    floored = {id(layer) for _, module in modules for layer in _read_by_silu(module)}
    ends = ends_of(student)
    attentions = [module for _, module in modules if isinstance(module, LinearSelfAttention)]
    parts, projections = {id(a.qkv_proj) for a in attentions}, {id(a.out_proj) for a in attentions}
    for name, module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            code_weights(module)
            if id(module) in projections:
                continue
            code_input(module, ActivationCodes(f"{name}.in"))
            if id(module) in parts:
                continue
            floor = SILU_FLOOR if id(module) in floored else -float("inf")
            code_output(ends[module], ActivationCodes(f"{name}.out", floor=floor))


def _read_by_silu(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a module whose outputs nothing but a SiLU of the module reads."""
    if not isinstance(getattr(module, "act", None), nn.SiLU):
        return []
    if isinstance(module, ConvAct):
        return [module.conv]
    return [module.fc1] if isinstance(module, Mlp | ConvMlp) and isinstance(module.norm, nn.Identity) else []


def ends_of(student: Student) -> dict[nn.Module, nn.Module]:
    """Return by layer what its output is coded after: the ReLU that clamps it, or itself."""
    modules = list(student.backbone.modules())
    layers = {module: module for module in modules if isinstance(module, nn.Conv2d | nn.Linear)}
    return layers | {unit.conv: end_of(unit) for unit in modules if isinstance(unit, ConvAct)}


def end_of(unit: ConvAct) -> nn.Module:
    """Return after what the output of a unit's convolution is coded: the ReLU that clamps it, or itself."""
    return unit.act if _is_clamp(unit.act) else unit.conv


def _is_clamp(act: nn.Module) -> bool:
    return isinstance(act, nn.ReLU | nn.ReLU6)


def _is_thin(conv: nn.Conv2d) -> bool:
    most = Int8Config().thin_channels
    return conv.out_channels <= most and conv.weight[0].numel() <= most


def _writes_stream(backbone: nn.Module, name: str) -> bool:
    """Return whether a linear layer of a v1 block writes to its residual stream."""
    blocks = [n for n, m in backbone.named_modules() if isinstance(m, TokenMobileVitBlock)]
    inside = any(name.startswith(f"{block}.") for block in blocks)
    return inside and name.endswith((".project_in", ".attention.proj", ".fc2"))


def is_residual(module: nn.Module) -> bool:
    """Return whether a module is a timm bottleneck that adds its input to its result, `act` being what comes after."""
    return getattr(module, "shortcut", None) is not None and isinstance(getattr(module, "act", None), nn.Module)


def _heads(student: Student) -> list[nn.Linear]:
    """Return the linear layers that read one row per picture."""
    return [layer for layer in (student.projection, student.classifier) if isinstance(layer, nn.Linear)]


PUT_IN: Mapping[Runtime, Callable[[Student], None]] = {
    "tflite": _for_tflite,
    "onnx": _for_onnx,
    "coreml": _for_coreml,
}
