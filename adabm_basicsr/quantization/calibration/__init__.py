"""Steps 1 and 2: ranges, bits and rounding from low-resolution images.

`calibrate.calibrate` is the flow. What it calls, in that order:

- ``folding``: scales of channels go into the weights, where engines have none (with
  ``channel_noise``);
- ``statistics``: what every activation quantizer sees of the images (with ``observers``);
- ``equalisation``: a scale and a zero point for each input channel;
- ``allocation`` and ``budget``: how many bits each layer gets;
- ``reconstruction``: fits each layer to the output it has in full precision;
- ``clipping``: step 2 of the recipe ``paper``, once fine-tuning begins.
"""
