"""The method: how a network becomes an adaptively quantized one. Imports torch, never BasicSR.

    network        `quantize(network, example, w_bits=4, ...)`     api.py, config.py, recipes.py
    structure      one run finds head, body and tail               structure/
    surgery        their layers become quantized ones              structure/surgery.py, layers/
    calibration    images give ranges, bits and roundings          calibration/calibrate.py
    fine-tuning    they learn to come close to full precision      finetuning/finetune.py
    checkpoint     the result is saved and loaded                  checkpoint.py
    measures       bits, BitOPs, size, coverage, PSNR              measures/

`network.QuantizedNetwork` wraps the network from surgery on. Each of its layers rounds weights and
inputs by quantizers of its own (quantizers/), at bits that follow layer and image: the core idea,
in bit_mapping.py. What differs between recipes is a table in recipes.py. Patterns of layer names
(patterns.py), processes that share the work (distributed.py) and progress bars (progress.py) serve
all steps.
"""
