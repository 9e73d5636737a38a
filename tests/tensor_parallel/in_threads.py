"""Runs all ranks of a model as threads of this process, over the same sockets and memory as processes."""

import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llama3.config import ModelConfig
from llama3.model.lora import Adapter
from llama3.model.split import split_adapters
from llama3.model.weights import Weights
from llama3.tensor_parallel.channel import Channel
from llama3.tensor_parallel.cpu import RankModel
from llama3.tensor_parallel.group import FirstGroup, OtherGroup, map_memory, open_memory


def groups_of(ranks: int) -> list[Any]:
    """The groups of all ranks, connected."""
    memory = open_memory(ranks)
    pairs = [socket.socketpair() for _ in range(ranks - 1)]
    first = FirstGroup([Channel(a) for a, _ in pairs], map_memory(memory, ranks))
    others = [OtherGroup(i, Channel(b), map_memory(memory, ranks)) for i, (_, b) in enumerate(pairs, 1)]
    os.close(memory)
    return [first, *others]


def in_threads(work: Callable[[int, Any], Any], groups: list[Any]) -> list[Any]:
    """work(rank, group) in a thread for each rank -> what each returned. If one fails, all end."""
    found: list[Any] = [None] * len(groups)
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(rank, groups[rank])
        except BaseException as error:
            errors.append(error)
            for channel in [*groups[0].channels, *(group.channel for group in groups[1:])]:
                channel.socket.shutdown(socket.SHUT_RDWR)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return found


def models_of(
    config: ModelConfig, weights: Weights, adapters: Mapping[str, Adapter], groups: list[Any], **more: Any
) -> list[RankModel]:
    n = len(groups)
    return [
        RankModel(config, weights, split_adapters(adapters, rank, n), rank, n, group, **more)
        for rank, group in enumerate(groups)
    ]


def begin(groups: list[Any]) -> None:
    """Count one more step in every rank."""
    for group in groups:
        group.step += 1


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The relative error of a whole array."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
