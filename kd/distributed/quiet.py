"""Words of the libraries: those that say nothing to a person are left out, unless --verbose asks for them.

Nothing here imports a library: it runs before them where it can, and reaches them by environment, logger and warning
filter. Errors are never left out.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

LIBRARIES = ("torch", "deepspeed", "transformers", "accelerate", "huggingface_hub")
_SAY_NOTHING = (
    "Setting accelerator to CPU",  # DeepSpeed, at each start on a machine without a GPU
    "`torch_dtype` is deprecated",
)


def quieten(*, verbose: bool = False) -> None:
    """Leave out deprecations, progress bars in files, and on ranks other than 0 every warning (once)."""
    if verbose:
        return
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not (first and sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        if "transformers" in sys.modules:  # it has read the environment already
            sys.modules["transformers"].utils.logging.disable_progress_bar()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo's and NCCL's connections, line by line
    for name in ("DeepSpeed", "torch", "transformers", "huggingface_hub", "accelerate"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Worth) for one in logger.filters):
            logger.addFilter(_Worth(first))
    if sys.warnoptions:  # what the user asked of Python's own warnings holds
        return
    modules = rf"({'|'.join(LIBRARIES)})(\.|$)"
    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=modules)
    if not first:
        warnings.filterwarnings("ignore", category=UserWarning, module=modules)


class _Worth(logging.Filter):
    """Filter that lets errors pass on every rank, and warnings on rank 0, each text once."""

    def __init__(self, first: bool):
        super().__init__()
        self._first = first
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        text = record.getMessage()
        if not self._first or text in self._seen or text.startswith(_SAY_NOTHING):
            return False
        self._seen.add(text)
        return True
