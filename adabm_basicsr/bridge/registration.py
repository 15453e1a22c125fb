"""Importing this module adds what is ours to BasicSR's registries.

Architectures, model, dataset and metrics.
"""

from adabm_basicsr.archs import adabm_arch, rdn_arch, spandrel_arch, srresnet_arch  # noqa: F401
from adabm_basicsr.data import calibration_dataset, clip_dataset  # noqa: F401
from adabm_basicsr.metrics import similarity  # noqa: F401
from adabm_basicsr.models import adabm_model  # noqa: F401
