"""The log that the method warns in."""

from __future__ import annotations

import logging

# Below BasicSR's, whose handlers write the log of a run; without these Python writes to stderr.
LOGGER = logging.getLogger("basicsr.adabm")
