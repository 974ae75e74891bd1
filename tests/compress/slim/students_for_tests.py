"""Students whose every weight matters, and pictures to calibrate them on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import ConvNormAct
from timm.models.mobilevit import MobileVitV2Block
from torch import nn

from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, student_preprocess
from tests.export.nets_for_tests import pictures, randomised

SIZE = 64


def student(arch: str = "mobilevit_xxs", size: int = SIZE, seed: int = 0) -> Student:
    """Return a student in eval mode with random norm statistics, affines and biases."""
    torch.manual_seed(seed)
    made = Student(StudentSpec(arch, 32, ("cat", "dog", "fish", "owl"), student_preprocess(arch, size)))
    made.backbone = randomised(arch, 0, seed).requires_grad_(True)
    torch.manual_seed(seed)
    for head in (made.projection, made.classifier):
        assert isinstance(head, nn.Linear)
        nn.init.normal_(head.bias, std=0.2)
    return made.eval()


def shallow_student(arch: str = "mobilevit_xxs") -> Student:
    """Return a student of the first three stages, one block of tokens among them; of a v2 net, that block as two of one
    layer each, with the second of which it ends, as v2 nets do.

    Through the whole net a code that falls to the other side moves so many others that two runtimes end 6 dB nearer to
    each other than to the float net; that says little about a simulation.
    """
    made = student(arch)
    backbone: Any = made.backbone
    torch.manual_seed(1)
    backbone.stages = backbone.stages[:3]
    tokens = backbone.stages[2][1]
    if isinstance(tokens, MobileVitV2Block):
        second = copy.deepcopy(tokens)
        tokens.transformer, second.transformer = tokens.transformer[:1], second.transformer[1:]
        backbone.stages[2].append(second)
        made.projection = nn.Linear(tokens.conv_proj.conv.out_channels, made.spec.embed_dim)
    else:
        last = tokens.conv_fusion
        backbone.final_conv = ConvNormAct(last.conv.out_channels, backbone.num_features, act_layer=nn.SiLU)
    return made.eval()


def some(count: int = 32, size: int = SIZE, seed: int = 0) -> NDArray[np.float32]:
    """Return smooth pictures (count, 3, size, size) whose pixels are multiples of 1/255, as decoded ones are."""
    values = pictures(count, size, seed).mul(255).round().div(255).numpy()
    return values.astype(np.float32)


def batches(images: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for at in range(len(images)):
        yield images[at : at + 1]
