"""Errors of whisperfold: one class per thing that the caller can act on.

Every message says what was found, what was expected and what to do.
"""

from __future__ import annotations


class WhisperfoldError(Exception):
    """Base of every error that whisperfold raises on purpose."""


class AudioError(WhisperfoldError, ValueError):
    """Samples or an audio file that cannot be transcribed."""


class BundleError(WhisperfoldError):
    """A bundle that is missing, damaged, too new, or cannot be written."""


class ConfigError(WhisperfoldError, ValueError):
    """An option or a configuration value that does not make sense."""


class BusyError(WhisperfoldError):
    """The server has no room for more work now; the same request may succeed a moment later.

    Attributes:
        reason: one word for logs and metrics: queue, connections or stopping.
    """

    def __init__(self, message: str, reason: str = "queue") -> None:
        super().__init__(message)
        self.reason = reason


class ServerError(WhisperfoldError):
    """The server cannot start: a port in use, a socket that cannot be made, a missing extra."""


class MicrophoneError(WhisperfoldError):
    """No usable input device."""


class SourceError(WhisperfoldError):
    """A checkpoint that cannot be found, read or trusted."""


class CompileError(WhisperfoldError):
    """A stage of the compiler that cannot go on."""


class EnrollmentError(WhisperfoldError):
    """Recordings that cannot be learned from, or an adaptation that had to stop; the profile in use stays."""


class ProfileError(WhisperfoldError):
    """A profile that does not exist, is damaged, belongs to another bundle, or cannot be written."""
