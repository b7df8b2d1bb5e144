"""Random numbers for a batch of environments: those of one environment do not depend on the others in the batch."""

from collections.abc import Callable, Sequence

import torch as th

Generators = th.Generator | Sequence[th.Generator] | None
"""Source of random numbers; None is PyTorch's global stream. A sequence of G generators serves G equal blocks of rows. Each
block gets the numbers that it would get alone, so that a batch of environments equals a loop over them."""


def randn(shape: Sequence[int], generator: Generators, device: th.device | str) -> th.Tensor:
    """
    :param shape: shape of the result, whose first dimension is a multiple of the number of generators
    :param generator: source of the numbers
    :param device: device of the result and of the generators
    :return: standard normal numbers
    """
    return _in_blocks(lambda block, source: th.randn(block, generator=source, device=device), shape, generator)


def rand(shape: Sequence[int], generator: Generators, device: th.device | str) -> th.Tensor:
    """
    :param shape: shape of the result, whose first dimension is a multiple of the number of generators
    :param generator: source of the numbers
    :param device: device of the result and of the generators
    :return: uniform numbers in [0, 1)
    """
    return _in_blocks(lambda block, source: th.rand(block, generator=source, device=device), shape, generator)


def randint(high: int, shape: Sequence[int], generator: Generators, device: th.device | str) -> th.Tensor:
    """
    :param high: one more than the largest integer
    :param shape: shape of the result, whose first dimension is a multiple of the number of generators
    :param generator: source of the numbers
    :param device: device of the result and of the generators
    :return: uniform integers in [0, high), long
    """
    return _in_blocks(lambda block, source: th.randint(high, block, generator=source, device=device), shape, generator)


def _in_blocks(
    draw: Callable[[tuple[int, ...], th.Generator | None], th.Tensor], shape: Sequence[int], generator: Generators
) -> th.Tensor:
    if generator is None or isinstance(generator, th.Generator):
        return draw(tuple(shape), generator)
    rows, remainder = divmod(shape[0], len(generator))
    if remainder > 0:
        raise ValueError(f"{len(generator)} generators serve equal blocks of rows; {shape[0]} rows cannot be divided equally.")
    return th.cat([draw((rows, *shape[1:]), source) for source in generator])
