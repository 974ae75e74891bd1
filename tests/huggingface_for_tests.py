"""A tiny BERT with its own WordPiece vocabulary, as `save_pretrained` writes it: real files, random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from texts_for_tests import reviews


def write_encoder(folder: Path, model_vocabulary: int | None = None) -> Path:
    """Write config.json, model.safetensors and tokenizer.json; `model_vocabulary` differs from the tokenizer's."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    cutter = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    cutter.normalizer = normalizers.BertNormalizer()
    cutter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    cutter.train_from_iterator(
        [text for text, _ in reviews(60, 5)],
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=marks, show_progress=False),
    )
    cutter.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.utils.logging.disable_progress_bar()
    transformers.PreTrainedTokenizerFast(tokenizer_object=cutter, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=model_vocabulary or cutter.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=48,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder
