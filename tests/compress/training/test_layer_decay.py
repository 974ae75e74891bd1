"""Each layer trains slower than the next one: which layer a weight is of, and that the rate really arrives."""

from __future__ import annotations

import pytest
import timm
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from edgekit.cli.train import train as command
from edgekit.compress.image.recipe import image_recipe
from edgekit.compress.recipe import FitConfig
from edgekit.compress.text.recipe import load_text_recipe
from edgekit.compress.training.layer_decay import rate_factors, split_by_factor
from edgekit.compress.training.step import Steps
from edgekit.compress.training.training_state import TrainingState, make_optimizer
from edgekit.errors import UsageError


class Net(nn.Module):
    """Embeddings, three numbered blocks, and a head that is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def test_numbered_blocks_are_layers() -> None:
    factors = rate_factors(Net(), 0.5)
    weights = {name.removesuffix(".weight"): factor for name, factor in factors.items() if name.endswith("weight")}
    assert weights == {"embedding": 1 / 16, "blocks.0": 1 / 8, "blocks.1": 1 / 4, "blocks.2": 1 / 2, "head": 1.0}
    assert set(rate_factors(nn.Linear(2, 2), 0.5).values()) <= {0.5, 1.0}


def test_timm_and_hugging_face_tell_their_layers() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("test_vit", num_classes=0)
            self.projection = nn.Linear(64, 8)

    factors = rate_factors(Classifier(), 0.75)
    assert factors["projection.weight"] == 1.0 and factors["backbone.patch_embed.proj.weight"] == min(factors.values())
    blocks = [factors[f"backbone.blocks.{n}.attn.qkv.weight"] for n in range(6)]
    assert blocks == sorted(blocks) and blocks[1] == pytest.approx(blocks[0] / 0.75)

    bert = BertModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=3, num_attention_heads=2))
    factors = rate_factors(bert, 0.5)
    assert factors["embeddings.word_embeddings.weight"] == 1 / 16
    assert [factors[f"encoder.layer.{n}.output.dense.weight"] for n in range(3)] == [1 / 8, 1 / 4, 1 / 2]
    assert factors["pooler.dense.weight"] == 1.0


def test_every_weight_is_in_one_group_with_its_decay() -> None:
    net = Net()
    config = FitConfig(decay_matrices_only=True, weight_decay=0.1)
    groups = make_optimizer(net, config, 0.5).param_groups
    assert sorted((g["lr_scale"], g["weight_decay"]) for g in groups) == sorted(
        (factor, decay) for factor in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0) for decay in (0.0, 0.1)
    )
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, net.parameters()))
    assert "lr_scale" not in make_optimizer(net, config).param_groups[0]
    assert split_by_factor(net, [], {}) == []


class Slope:
    """A task whose every gradient is one, so that SGD moves each weight by its own rate."""

    metric, checkpoint_name, steps_per_epoch = "m", "c", 1

    def __init__(self, decay: float) -> None:
        self.model: nn.Module = Net()
        self.layer_decay = decay

    def loss(self, model: nn.Module, batch: object) -> dict[str, Tensor]:
        return {"loss": torch.stack([p.sum() for p in model.parameters()]).sum()}

    def batch_length(self, batch: object) -> int:
        return 1


class _Unwatched:
    """Looks at nothing, and clips nothing."""

    gradients: object

    def __init__(self) -> None:
        self.gradients = self

    def clip(self, limit: float) -> tuple[float, dict[str, float]]:
        return 0.0, {}

    def loss(self, *given: object) -> None: ...

    gradient = loss


def test_the_rate_arrives_at_the_weights() -> None:
    from edgekit.compress.training.step import Wishes

    task = Slope(0.5)
    config = FitConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0, device="cpu")
    state = TrainingState(task, config)  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in state.plain.named_parameters()}
    steps = Steps(task, state, _Unwatched(), config)  # type: ignore[arg-type]
    steps.take([None], 0.8, 0, Wishes)
    factors = rate_factors(state.plain, 0.5)
    for name, parameter in state.plain.named_parameters():
        moved = before[name] - parameter.detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.8 * factors[name]))


def test_the_recipes_and_commands_have_it() -> None:
    assert load_text_recipe("finetune", {"layer_decay": 0.75}).layer_decay == 0.75
    assert image_recipe({"layer_decay": 0.75}).layer_decay == 0.75 and image_recipe({}).layer_decay == 1.0
    for wrong in (0.0, 1.5):
        with pytest.raises(UsageError, match="layer_decay"):
            load_text_recipe("finetune", {"layer_decay": wrong})
        with pytest.raises(UsageError, match="layer_decay"):
            image_recipe({"layer_decay": wrong})
    for kind in ("image", "text"):
        assert "--layer-decay" in CliRunner().invoke(command, [kind, "--help"]).output
