"""Runs a file in a runtime as a program of others does, with nothing of this project.

``python run_elsewhere.py RUNTIME MODEL IMAGE.npy OUTPUT.npy``
"""

import sys

import numpy as np


def run_onnxruntime(model, image):
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return session.run(None, {name: image})[0]


def run_openvino(model, image):
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", options)(image)[0]


def run_opencv(model, image):
    import cv2

    network = cv2.dnn.readNetFromONNX(model)
    network.setInput(image)
    return network.forward()


def run_ncnn(model, image):
    import ncnn

    network = ncnn.Net()
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{option}", False)
    assert network.load_param(model) == 0
    assert network.load_model(model.replace(".param", ".bin")) == 0
    extractor = network.create_extractor()
    extractor.input("data", ncnn.Mat(image[0]))
    status, output = extractor.extract("output")
    assert status == 0
    return np.array(output)[None]


RUNTIMES = {
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
    "opencv": run_opencv,
    "ncnn": run_ncnn,
}

if __name__ == "__main__":
    runtime, model, taken, made = sys.argv[1:]
    np.save(made, RUNTIMES[runtime](model, np.load(taken)))
