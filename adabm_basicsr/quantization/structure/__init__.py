"""What a network consists of, found by running it, and the replacement of its layers.

In the order in which `QuantizedNetwork` uses them:

- `sizes`: which image sizes the network takes, and mirrored borders for others.
- `preparation`: rewrites layers that are hidden or split (batch normalisation, weight norms).
- `tracing`, `macs`: one run of the network, and what it showed.
- `blocks`: which repeated modules make up the body.
- `roles`: which layers are head, body, trunk end and tail; `roles.find_roles` decides.
- `batches`: which layers don't work on a batch image by image, and so can't follow the image.
- `surgery`: which layers are quantized, at how many bits, and their replacement.
- `blueprint`: all of this together, as files hold it; `blueprint.find_blueprint` finds it.
"""
