"""The C library's memory allocator, told that what is freed will be wanted again in a moment."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def keep_freed_memory() -> None:
    """Keep large buffers that are freed, instead of handing them back to the kernel (glibc only, else nothing).

    By default every buffer above 32 MiB is mapped anew, and zeroed page by page, at each use: about a tenth
    of a training step. The price is that the process stays as large as it has once been.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, -1)
