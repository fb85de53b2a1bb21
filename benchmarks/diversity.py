"""Time of the CLIP similarities of 2,048 images, time and memory of those of 100,000: `python benchmarks/diversity.py`.

Prints one JSON object and writes benchmarks/results/diversity.json. The 100,000 embeddings are random unit vectors, because only the
similarities are measured there.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.machine import write
from core.data.labeled import embedded_images
from core.evaluation.diversity import mean_similarity, similarity_histogram, similarity_matrix
from core.evaluation.encoder import load_encoder


def measure(few: int = 2048, many: int = 100_000) -> dict[str, Any]:
    """Seconds of each part for `few` images; seconds and memory of the similarities of `many`."""
    encoder = load_encoder("embedded", "cpu")
    images, _ = embedded_images()
    images = images.repeat(2, 1, 1, 1)[:few]
    moments = [time.perf_counter()]
    embeddings = encoder.embed_images(images)
    moments.append(time.perf_counter())
    mean_similarity(embeddings), similarity_histogram(embeddings), similarity_matrix(embeddings, torch.arange(few) % 10)
    moments.append(time.perf_counter())
    embeddings = F.normalize(torch.randn(many, embeddings.shape[1], generator=torch.Generator().manual_seed(0)), dim=1)
    before, began = _peak(), time.perf_counter()
    mean_similarity(embeddings), similarity_histogram(embeddings), similarity_matrix(embeddings, torch.arange(many) % 10)
    return {
        "threads": torch.get_num_threads(),
        f"embedding_{few}_seconds": round(moments[1] - moments[0], 3),
        f"similarities_{few}_seconds": round(moments[2] - moments[1], 3),
        f"similarities_{many}_seconds": round(time.perf_counter() - began, 1),
        f"similarities_{many}_megabytes": round(_peak() - before, 1),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    measured = measure()
    write("diversity", measured)
    print(json.dumps(measured, indent=1))
