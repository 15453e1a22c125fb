"""Importing this package registers the project's architectures with BasicSR."""

from inhouse.archs import attention_arch, imdn_arch  # noqa: F401
