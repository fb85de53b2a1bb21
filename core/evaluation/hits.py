"""Which evaluation images a network classifies correctly after its last training step, as a result of a run. Imports no torch."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

HITS = "hits"  # kind of result: hits/METHOD/WIDTH


def packed(hits: NDArray[np.bool_]) -> dict[str, Any]:
    """JSON values: a bit for each image. hits: bool `(N,)`."""
    return {"images": len(hits), "bits": base64.b64encode(np.packbits(hits).tobytes()).decode("ascii")}


def unpacked(values: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The reverse of `packed`."""
    bits = np.frombuffer(base64.b64decode(values["bits"]), np.uint8)
    return np.unpackbits(bits, count=values["images"]).astype(bool)
