"""What an exported ONNX file says of a picture: `python classify_onnx.py network.onnx picture.jpg`.

Prints the five most probable classes, and with `--seconds 5` how long an image takes. Needs onnxruntime, NumPy and Pillow only, so that the
script can be copied beside the file to the machine where it is to run.
"""

import argparse
import json
import statistics
import time

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(path, session):
    """The picture as the network takes it: (1, C, H, W), cropped to the middle."""
    about = session.get_modelmeta().custom_metadata_map
    _, channels, height, width = session.get_inputs()[0].shape
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    picture = ImageOps.fit(ImageOps.exif_transpose(Image.open(path)).convert(mode), (width, height), Image.Resampling.BICUBIC)
    values = np.asarray(picture).reshape(height, width, channels)
    if session.get_inputs()[0].type == "tensor(uint8)":  # the file normalizes
        return np.ascontiguousarray(values.transpose(2, 0, 1))[None]
    values = values.astype(np.float32) / 255
    values = (values - np.array(json.loads(about["mean"]), np.float32)) / np.array(json.loads(about["std"]), np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))[None]


def milliseconds(session, images, seconds):
    """The median time of one image."""
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 10 or time.perf_counter() < end:
        began = time.perf_counter()
        session.run(None, {"images": images})
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[5:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="an .onnx file written by `export`")
    parser.add_argument("picture", help="any picture that Pillow reads")
    parser.add_argument("--seconds", type=float, default=0.0, help="measure the time of an image for so long")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(arguments.network, options, providers=["CPUExecutionProvider"])
    images = pixels(arguments.picture, session)
    scores = session.run(None, {"images": images})[0][0]
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    for index in np.argsort(-scores, kind="stable")[:5]:
        print(f"{100 * shares[index]:6.2f} %  {classes[index]}")
    if arguments.seconds:
        print(f"{milliseconds(session, images, arguments.seconds):.3f} ms per image, {arguments.threads} thread(s)")


if __name__ == "__main__":
    main()
