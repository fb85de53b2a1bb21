"""The classes that networks predict for some images, as a result of a run: answers/METHOD/WIDTH. Imports no torch.

The result has {"real": ..., "held_out": ...}: on the evaluation images, at most as many as scores of the full-precision network are kept
(real.py), and on the held-out ones; each, where the run has such images, with the answers of FULL_PRECISION, CALIBRATED and TRAINED, the
last one only after a training, and "labels", `packed_numbers`, where there are any. All are of the same images in the same order.
"""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANSWERS = "answers"  # kind of result
FULL_PRECISION, CALIBRATED, TRAINED, LABELS = "full precision", "calibrated", "trained", "labels"
DISAGREEMENTS = "disagreements.safetensors"  # in the folder of a saved network: images to which it and full precision give other classes


@dataclass(frozen=True, eq=False)
class Answers:
    """classes: int32 `(N,)`, the predicted ones. confidence: float16 `(N,)`, their softmax, 0 to 1."""

    classes: NDArray[np.int32]
    confidence: NDArray[np.float16]

    def packed(self) -> dict[str, Any]:
        """JSON values."""
        return {"classes": packed_numbers(self.classes), "confidence": packed_numbers(self.confidence)}

    @classmethod
    def unpacked(cls, values: Mapping[str, Any]) -> "Answers":
        """The reverse of `packed`."""
        return cls(unpacked_numbers(values["classes"], np.int32), unpacked_numbers(values["confidence"], np.float16))


def packed_numbers(values: NDArray[Any]) -> str:
    """An array as text."""
    return base64.b64encode(zlib.compress(values.tobytes())).decode("ascii")


def unpacked_numbers(text: str, dtype: Any = np.int32) -> NDArray[Any]:
    """The reverse of `packed_numbers`: `(N,)`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
