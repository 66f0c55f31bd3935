"""Made-up embeddings: deterministic unit vectors, closer for texts that share words."""

import base64
import hashlib
import math
import struct
from collections import Counter

from infinilm_babysitter.mock_engine.prompts import Prompt
from infinilm_babysitter.mock_engine.text import tokenize

# Each distinct token moves so many coordinates by one, up or down.
_TOUCHED = 8


def embed(prompt: Prompt, dimensions: int) -> list[float]:
    """The vector of one input, of length 1."""
    words = tokenize(prompt.text) or [prompt.identity.decode()]
    vector = [0.0] * dimensions
    for word, count in Counter(words).items():
        digest = hashlib.blake2b(
            word.strip().lower().encode("utf-8", "surrogatepass"), digest_size=4 * _TOUCHED
        ).digest()
        for position in struct.unpack(f"<{_TOUCHED}I", digest):
            vector[position // 2 % dimensions] += count if position % 2 else -count
    length = math.hypot(*vector)
    if length == 0.0:  # the moves cancelled each other; any fixed direction will do
        return [1.0] + [0.0] * (dimensions - 1)
    return [value / length for value in vector]


def to_base64(vector: list[float]) -> str:
    """Little-endian 32-bit floats, as OpenAI packs them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
