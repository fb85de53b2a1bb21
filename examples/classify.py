"""What an exported network says of a picture: `python classify.py network.onnx picture.jpg`.

Prints the five most probable classes, and with `--seconds 5` how long an image takes. Needs only NumPy, Pillow, and the program that runs
the file, so that the script can be copied beside it to another machine. That program is onnxruntime for .onnx (with --openvino, OpenVINO),
torch for .pt2, ExecuTorch for .pte, and LiteRT (ai-edge-litert) for .tflite.
"""

import argparse
import json
import statistics
import time
import zipfile

import numpy as np
from PIL import Image, ImageOps


class Network:
    """An opened file. spec: its classes, mean and std; shape: of an image, (C, H, W); run: images (1, C, H, W) -> scores (1, classes)."""

    def __init__(self, spec, shape, run, dtype=np.float32):
        self.spec, self.shape, self.run, self.dtype = spec, shape, run, dtype


def open_onnx(path, threads):
    """An .onnx file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    about, images = session.get_modelmeta().custom_metadata_map, session.get_inputs()[0]
    spec = {name: json.loads(about[name]) for name in ("classes", "mean", "std")}
    dtype = np.uint8 if images.type == "tensor(uint8)" else np.float32
    return Network(spec, images.shape[1:], lambda values: session.run(None, {images.name: values})[0], dtype)


def open_openvino(path, threads):
    """An .onnx file in OpenVINO."""
    import openvino

    model = openvino.Core().read_model(path)
    spec = {name: json.loads(str(model.get_rt_info(["framework", name]).value)) for name in ("classes", "mean", "std")}
    images = model.inputs[0]
    shape, dtype = [axis.get_length() for axis in list(images.partial_shape)[1:]], images.element_type.to_dtype().type
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})
    return Network(spec, shape, lambda values: compiled({0: values})[0], dtype)


def open_torch(path, threads):
    """A .pt2 file in torch."""
    import torch

    torch.set_num_threads(threads)
    extra = {"spec.json": ""}
    program = torch.export.load(path, extra_files=extra)
    (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    dtype = np.uint8 if images.meta["val"].dtype == torch.uint8 else np.float32
    spec, module = json.loads(extra["spec.json"]), program.module()
    return Network(spec, shape_of(spec), lambda values: module(torch.from_numpy(values)).detach().numpy(), dtype)


def open_executorch(path, threads):
    """A .pte file in ExecuTorch."""
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path)
    spec = json.loads(program.load_method("spec").execute([])[0])
    method = program.load_method("forward")
    dtype = np.uint8 if method.metadata.input_tensor_meta(0).dtype() == 0 else np.float32  # torch.uint8 has the number 0
    return Network(spec, shape_of(spec), lambda values: method.execute([torch.from_numpy(values)])[0].numpy(), dtype)


def open_litert(path, threads):
    """A .tflite file in LiteRT. Its input is int8, for which the normalized image is quantized, or uint8."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = taken["quantization"]
    with zipfile.ZipFile(path) as archive:
        spec = json.loads(archive.read("spec.json"))

    def run(values):
        if taken["dtype"] == np.int8:
            values = np.clip(np.round(values / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(taken["index"], values)
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return Network(spec, shape_of(spec), run, np.uint8 if taken["dtype"] == np.uint8 else np.float32)


def shape_of(spec):
    """Of an image, (C, H, W)."""
    size = spec["image_size"]
    return (len(spec["mean"]), *(size if isinstance(size, list) else (size, size)))


OPENERS = {".onnx": open_onnx, ".pt2": open_torch, ".pte": open_executorch, ".tflite": open_litert}


def pixels(path, network):
    """The picture as the network takes it: (1, C, H, W), cropped to the middle."""
    channels, height, width = network.shape
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    picture = ImageOps.fit(ImageOps.exif_transpose(Image.open(path)).convert(mode), (width, height), Image.Resampling.BICUBIC)
    values = np.asarray(picture).reshape(height, width, channels)
    if network.dtype == np.float32:  # otherwise the file normalizes
        mean, std = (np.array(network.spec[name], np.float32) for name in ("mean", "std"))
        values = (values.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1))[None]


def milliseconds(network, images, seconds):
    """The median time of one image."""
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 10 or time.perf_counter() < end:
        began = time.perf_counter()
        network.run(images)
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[5:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a .onnx, .pt2, .pte or .tflite file written by `export`")
    parser.add_argument("picture", help="any picture that Pillow reads")
    parser.add_argument("--openvino", action="store_true", help="run an .onnx file in OpenVINO")
    parser.add_argument("--seconds", type=float, default=0.0, help="measure the time of an image for so long")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    suffix = arguments.network[arguments.network.rfind(".") :]
    if suffix not in OPENERS or (arguments.openvino and suffix != ".onnx"):
        allowed = ".onnx with --openvino" if arguments.openvino else "one of " + ", ".join(OPENERS)
        parser.error(f"network must be {allowed}, got {arguments.network}")
    network = (open_openvino if arguments.openvino else OPENERS[suffix])(arguments.network, arguments.threads)
    images = pixels(arguments.picture, network)
    scores = network.run(images)[0]
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    for index in np.argsort(-scores, kind="stable")[:5]:
        print(f"{100 * shares[index]:6.2f} %  {network.spec['classes'][index]}")
    if arguments.seconds:
        print(f"{milliseconds(network, images, arguments.seconds):.3f} ms per image, {arguments.threads} thread(s)")


if __name__ == "__main__":
    main()
