"""CaptureError, of everything that ends a capture or a verification."""

from __future__ import annotations

from kd.errors import SpanwiseError


class CaptureError(SpanwiseError, ValueError):
    """Capture that cannot continue; the message says why, what is kept, and what to do."""
