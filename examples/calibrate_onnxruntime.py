"""onnxruntime's static quantizer, calibrated with a set of images: `python -m examples.calibrate_onnxruntime set.npz`.

The set is of the embedded resnet20_cifar10. Writes float.onnx and 8bit.onnx beside it and prints the top-1 of both, in percent.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from core.data.labeled import load_evaluation_set
from core.models.full_precision import load_model


class SyntheticImages(CalibrationDataReader):
    def __init__(self, path):
        images = np.load(path)["images"]  # float32 (N, 3, H, W), normalized as the network takes them
        self.batches = iter(np.array_split(images, -(-len(images) // 32)))

    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def top1(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores = np.concatenate([session.run(None, {"images": batch.numpy()})[0] for batch in images.split(100)])
    return 100 * np.mean(scores.argmax(axis=1) == evaluation.labels.numpy())


model = load_model("resnet20_cifar10", "cpu")
evaluation = load_evaluation_set("embedded", model.spec)
images = model.normalize(evaluation.images)
full, quantized = (Path(sys.argv[1]).with_name(name) for name in ("float.onnx", "8bit.onnx"))
shapes = ({0: torch.export.Dim("batch")},)
torch.onnx.export(model.network, (images[:2],), full, input_names=["images"], dynamic_shapes=shapes, verbose=False)
# 7 bits of a weight are used, as sums overflow with 8 on processors without VNNI
settings = {"activation_type": QuantType.QUInt8, "per_channel": True, "reduce_range": True}
quantize_static(full, quantized, SyntheticImages(sys.argv[1]), **settings)
print(f"top-1: float {top1(full):.2f}, 8 bits {top1(quantized):.2f}")
