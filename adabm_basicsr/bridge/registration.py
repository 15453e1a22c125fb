"""Importing this module adds our architectures, model, dataset and metrics to BasicSR's registries."""

from adabm_basicsr.archs import adabm_arch, rdn_arch, spandrel_arch, srresnet_arch  # noqa: F401
from adabm_basicsr.data import calibration_dataset  # noqa: F401
from adabm_basicsr.metrics import similarity  # noqa: F401
from adabm_basicsr.models import adabm_model  # noqa: F401
