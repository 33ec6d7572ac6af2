"""The one rule for randomness: a draw is a function of what it is for, never of how often a generator was called before.

The order of an epoch follows from (seed, epoch), what happens to a sample from (seed, epoch, index), what happens to a batch from
(seed, epoch, number of the batch), the initial value of a tensor from (seed, its name), and dropout from (seed, epoch, batch, rank).
So a run that is stopped and resumed, or loaded by another number of workers, makes the same draws.
"""

import hashlib
import random

import numpy as np
import torch
from torch import Tensor


def key(*what: object) -> int:
    """Maps what a draw is for to a 63-bit number, the same on every machine and in every process.

    Args:
        what: Plain values: numbers and strings. Their ``repr`` is hashed (BLAKE2b).
    """
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "little") >> 1


def generator(*what: object) -> torch.Generator:
    """Makes a CPU generator that stands at the beginning of the stream named by ``what``."""
    return torch.Generator().manual_seed(key(*what))


def reseed(*what: object) -> None:
    """Puts the global generators of torch (CPU and the current GPU), numpy and python at the beginning of the stream named by ``what``."""
    number = key(*what)
    # torch.manual_seed takes 100 us, most of it for backends that are not there; this takes 1 us.
    torch.default_generator.manual_seed(number)
    # Before CUDA is in use it would keep the call for later, with its stack trace: 0.3 ms and some memory at every step.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


GOLDEN = 0x9E3779B97F4A7C15  # the step of splitmix64: 2**64 over the golden ratio


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _finalise(words: Tensor) -> Tensor:
    """Mixes every word so that each bit of the result depends on every bit of it, in place; int64, whose products wrap around."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        words ^= (words >> shift) & (2 ** (64 - shift) - 1)  # >> copies the sign, which a logical shift does not
        if factor != 1:
            words *= _signed(factor)
    return words


def bits(stream: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """Draws 64 random bits for each sample and column, (B, count) int64: a function of (stream, epoch, index, column) alone.

    No generator has a state, so neither the rest of the batch nor its order nor the device matters: only integers are involved.
    The finaliser of splitmix64 ("Fast Splittable Pseudorandom Number Generators", Steele, Lea and Flood, OOPSLA 2014) is applied to
    the sample, which gives it a sequence of its own, and then to the columns of that sequence.

    Args:
        stream: What the draws are for, ``key(seed, "purpose")``.
        epoch: Number of the epoch.
        indices: Of the samples in the data set, (B,) int64, on the device of the result.
        count: Draws for each sample. More of them do not change the first ones.
    """
    start = _signed(key(stream, epoch))
    samples = _finalise((indices * _signed(GOLDEN)).add_(start))
    columns = torch.arange(1, count + 1, device=indices.device).mul_(_signed(GOLDEN))
    return _finalise(samples[:, None] + columns)


def uniform(stream: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """Draws numbers in [0, 1) for each sample and column, (B, count) float32: the upper 24 of ``bits``, which float32 holds exactly."""
    return (bits(stream, epoch, indices, count).bitwise_right_shift_(40).bitwise_and_(2**24 - 1)).float().mul_(2.0**-24)
