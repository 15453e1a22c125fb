"""Files for ncnn: a ``.param`` with the layers, a ``.bin`` with weights, a ``.json`` on both."""
