"""The encoder: mathematics from packed ids to token states, and checkpoint names both ways."""

from longspan.model.kernel_cache import bound_kernel_caches

bound_kernel_caches()
