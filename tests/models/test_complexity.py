"""Parameters and multiply-accumulates against counting by hand."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from edgekit.models.complexity import count_parameters, measure_complexity


def test_a_convolution_costs_what_it_costs_by_hand() -> None:
    net = nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=True)
    cost = measure_complexity(net, 32)
    assert cost.macs == 16 * 16 * 8 * 3 * 5 * 5
    assert cost.parameters == 8 * 3 * 5 * 5 + 8
    assert cost.size_bytes == 4 * cost.parameters


def test_groups_divide_the_cost() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12))
    assert measure_complexity(net, 10).macs == 100 * (12 * 3 + 12 * 9)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(3, 48, 1)

    def forward(self, images: Tensor) -> Tensor:
        q, k, v = self.qkv(images).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        attended: Tensor = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        return attended


def test_attention_counts_as_its_two_products() -> None:
    tokens, dim = 8 * 8, 16
    assert measure_complexity(_Attention(), 8).macs == tokens * 3 * 48 + 2 * tokens * tokens * dim


def test_mobilevit_xxs_is_as_large_as_published() -> None:
    """MobileViT (arXiv 2110.02178) table 4: XXS has 1.3 M parameters; timm lists 0.42 GMACs at 256 px."""
    net = timm.create_model("mobilevit_xxs")
    cost = measure_complexity(net, 256)
    assert round(cost.parameters / 1e6, 1) == 1.3
    assert 0.40e9 < cost.macs < 0.44e9


def test_measuring_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measure_complexity(net, 8)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert count_parameters(net) == 3 * 4 + 4 + 8
