"""From tar shards and a teacher to what the distillation task reads: validation decoded, training streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.data import Prepared
from edgekit.compress.distill.report import describe_teacher
from edgekit.compress.distill.task import DistillData
from edgekit.compress.parallel.processes import joined
from edgekit.compress.pictures.decoding import stored_size
from edgekit.compress.pictures.stream_source import StreamSource
from edgekit.compress.pictures.stream_val import decode_val, listed
from edgekit.compress.store.format import content_digest, picture_ids
from edgekit.compress.store.table import plain_rows
from edgekit.compress.store.teach import Picture
from edgekit.compress.store.teachers import Pictures, Said, ask, class_head
from edgekit.errors import UsageError
from edgekit.images import ImageError, rgb_of
from edgekit.preprocess import Preprocess
from edgekit.shards import ShardDataset, ShardSplit
from edgekit.tars import TarPicture
from edgekit.terminal import Terminal

PROBED = 8192
"""Labelled pictures that a linear probe is fitted on; the first ones, as shards are shuffled when they are written."""


def prepare_stream(
    config: DistillConfig, dataset: ShardDataset, contract: Preprocess, device: torch.device, terminal: Terminal
) -> Prepared:
    """Decode the validation shards and ask the teacher.

    Arguments and errors as `edgekit.compress.distill.data.prepare`.
    """
    if config.teacher_embeddings is not None:
        raise UsageError("--teacher-embeddings names whole files; with tar shards give --teacher or --teacher-store")
    if config.teacher_mode == "online":
        raise UsageError("--teacher-mode online with tar shards: the teacher runs once, into a store; leave it out")
    decoded = decode_val(dataset, contract, config.output.parent, terminal, max_broken=config.max_broken)
    val, facts = decoded.store, decoded.facts
    said = None
    if config.recipe.needs_teacher:
        with joined().main_first():
            said = ask(config, pictures_of_shards(dataset), device, terminal)
    stores = None if said is None else said.stores
    source = StreamSource(
        dataset, stores, config.recipe, contract, size=stored_size(contract), max_broken=config.max_broken
    )
    if said is None:
        return Prepared(DistillData(source, val, None, None), dataset, facts, None, None)
    keys = [sample.key for sample in val.samples]
    ids = _ids([decoded.pictures[sample.path] for sample in val.samples])
    table = said.stores.table("val", keys, ids)
    probed = _Probed(dataset, said)
    head = class_head(said, config, dataset.classes, probed.of_teacher)
    plain = plain_rows(table, len(keys))
    described = describe_teacher(said.facts, said.stores.num_views, plain, head, val)
    return Prepared(DistillData(source, val, plain, head), dataset, facts, described, table.embed_dim)


def pictures_of_shards(dataset: ShardDataset) -> Pictures:
    """Return what teachers are asked about: the pictures of the shards, one tar listed after the other."""
    return Pictures(
        lambda: _to_teach(dataset.train),
        lambda: _to_teach(dataset.val),
        len(dataset.train) + len(dataset.val),
        dataset.classes,
    )


def _to_teach(split: ShardSplit) -> Iterator[Picture]:
    for picture in listed(split):
        yield Picture(picture.key, picture.read)


def _ids(pictures: list[TarPicture]) -> NDArray[np.uint64]:
    return picture_ids([p.key for p in pictures], [content_digest(p.read()) for p in pictures])


@dataclass
class _Probed:
    """The pictures that linear probes are fitted on, read when a teacher without text encoder asks for them."""

    dataset: ShardDataset
    said: Said

    def of_teacher(self, number: int) -> tuple[Tensor, Any]:
        """Return labels and table of the first labelled pictures for one teacher."""
        readable = []
        for picture in islice((p for p in listed(self.dataset.train) if p.label is not None), PROBED):
            try:
                rgb_of(picture.read(), picture.key, at_least=1)
            except ImageError:
                continue  # the teacher could not see it either
            readable.append(picture)
        readable.sort(key=lambda picture: picture.key)  # the probe's sums are those of a folder
        labels = torch.tensor([self.dataset.label_of(picture.label) for picture in readable])
        keys = [picture.key for picture in readable]
        return labels, self.said.stores.one(number).table("train", keys, _ids(readable))
