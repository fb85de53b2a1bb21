"""torchao's PT2E quantization, calibrated with a set of images: `python -m examples.calibrate_torchao set.npz`.

The set is of the embedded resnet20_cifar10. Prints the top-1 of the float and of the 8-bit network, in percent.
"""

import sys

import numpy as np
import torch
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from core.data.labeled import load_evaluation_set
from core.models.full_precision import load_model


def top1(network):
    scores = torch.cat([network(batch) for batch in images.split(100)])
    return 100 * (scores.argmax(dim=1) == evaluation.labels).double().mean()


model = load_model("resnet20_cifar10", "cpu")
evaluation = load_evaluation_set("embedded", model.spec)
images = model.normalize(evaluation.images)
with torch.no_grad():
    program = torch.export.export(model.network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    for batch in torch.from_numpy(np.load(sys.argv[1])["images"]).split(32):  # float32, normalized as the network takes them
        prepared(batch)
    quantized = convert_pt2e(prepared)
    print(f"top-1: float {top1(model.network):.2f}, 8 bits {top1(quantized):.2f}")
