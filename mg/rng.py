"""Random numbers as a pure function of a seed, a name and counters."""

import hashlib

import numpy as np


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """Return the generator that belongs to a seed, a stream's name and up to three counters.

    Named streams are independent, so that adding one never shifts another; nothing is stored, so that a resumed run
    draws what an uninterrupted one would have drawn.

    Args:
        seed: the run's seed, 0 or greater.
        name: what the numbers are for, `"augment"` for instance.
        counters: up to three integers, 0 or greater: step, micro-step, sample.

    Raises:
        ValueError: more than three counters, or a negative number.
    """
    if len(counters) > 3 or min((seed, *counters)) < 0:
        raise ValueError(f"seed={seed}, counters={counters}: use up to three counters, none of them negative")
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    key = np.frombuffer(digest[:16], np.uint64)
    # The lowest word of the counter is Philox's own: it advances as numbers are drawn.
    words = np.array([0, *counters, *[0] * (3 - len(counters))], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=words))
