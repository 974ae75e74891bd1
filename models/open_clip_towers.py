"""open_clip's architectures as a CLIP to train: any that takes byte pairs, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import MissingExtraError, UsageError, did_you_mean, first_line
from edgekit.models.clip import Clip, ClipSpec, Tower

_OWN_TOKENIZER = ("hf_model_name", "hf_tokenizer_name")


def open_clip_config(arch: str) -> dict[str, Any]:
    """Return open_clip's description of an architecture that can be trained on byte pairs.

    Raises:
        UsageError: unknown, or it reads another tokenizer or more than pictures and texts.
        MissingExtraError: open_clip is not installed.
    """
    try:
        import open_clip
    except ImportError as e:
        raise MissingExtraError("open_clip_torch", "train", f"the architecture {arch}") from e
    config = open_clip.get_model_config(arch)
    if config is None:
        raise UsageError(f"'{arch}' is not an open_clip architecture; {did_you_mean(arch, open_clip.list_models())}")
    text = config.get("text_cfg", {})
    if any(name in text for name in _OWN_TOKENIZER) or "multimodal_cfg" in config or "audio_cfg" in config:
        raise UsageError(
            f"open_clip's {arch} cannot be trained here: its text tower has a tokenizer of its own, or a third part. "
            f"Take one with CLIP's tokenizer, such as ViT-B-32 or RN50"
        )
    return dict(config)


class OpenClip(Clip):
    """open_clip's towers under edgekit's temperature, checkpoint and preprocessing contract."""

    # open_clip's CLIP holds the parts of its text tower itself, its CustomTextCLIP in `text`
    _OWN: ClassVar[Mapping[Tower, tuple[str, ...]]] = {
        "image": ("towers.visual",),
        "text": tuple(
            f"towers.{name}"
            for name in (
                "text",
                "transformer",
                "token_embedding",
                "positional_embedding",
                "ln_final",
                "text_projection",
            )
        ),
    }

    def _build(self, spec: ClipSpec) -> None:
        from open_clip.model import CLIP, CustomTextCLIP

        config = open_clip_config(spec.vision)
        vision = {**config["vision_cfg"], "image_size": spec.preprocess.image_size}
        text = {**config["text_cfg"], "vocab_size": spec.vocab_size, "context_length": spec.context_length}
        options = {name: config[name] for name in ("quick_gelu",) if name in config}
        make: Any = CustomTextCLIP if config.get("custom_text") else CLIP
        try:
            self.towers: Any = make(spec.embed_dim, vision, text, **options)
        except (AssertionError, RuntimeError, TypeError, ValueError) as e:
            raise UsageError(f"open_clip cannot build {spec.vision} so: {first_line(e)}") from e
        # the temperature and the bias are ours: a parameter without a gradient would only confuse
        del self.towers.logit_scale
        self.towers.logit_bias = None

    @property
    def image_tower(self) -> nn.Module:
        """open_clip's visual tower, its projection included."""
        tower: nn.Module = self.towers.visual
        return tower

    def _embed_image(self, normalised: Tensor) -> Tensor:
        embedding: Tensor = self.towers.encode_image(normalised)
        return embedding

    def _embed_text(self, tokens: Tensor) -> Tensor:
        # open_clip adds its whole table of positions, so the padding that the batch was cut by comes back
        padded = F.pad(tokens, (0, self.spec.context_length - tokens.shape[1]))
        embedding: Tensor = self.towers.encode_text(padded)
        return embedding

    def checkpoint_blocks(self) -> None:
        """Keep no activations inside the towers' blocks; they are computed again on the way back."""
        self.towers.set_grad_checkpointing(True)
