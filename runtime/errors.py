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


class MicrophoneError(WhisperfoldError):
    """No usable input device."""


class SourceError(WhisperfoldError):
    """A checkpoint that cannot be found, read or trusted."""


class CompileError(WhisperfoldError):
    """A stage of the compiler that cannot go on."""
