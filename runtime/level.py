"""Blocks of a microphone -> its level, and a warning when it cannot be understood: silent, too quiet, clipping.

Levels are RMS over one block in dBFS: 0 is a full-scale square wave, speech at a good distance has -35 to -15.
"""

import numpy as np

FLOOR_DBFS = -120.0
"""Level of digital zero."""
QUIET_DBFS = -60.0
"""A microphone that never gets louder hears nobody."""
CLIPPED = 0.999
"""|sample| that counts as cut off."""
CLIPPED_SHARE = 0.001
"""Share of cut-off samples that makes a block a clipped one."""


def level_dbfs(samples: np.ndarray) -> float:
    """Return the RMS level of float32 samples (any shape) in dBFS, FLOOR_DBFS for silence or nothing."""
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0
    return max(FLOOR_DBFS, 20.0 * float(np.log10(rms))) if rms > 0.0 else FLOOR_DBFS


class LevelMeter:
    """Follows one open device.

    Args:
        silence_s: zeros for this long are worth a warning.
        clipping_blocks: clipped blocks within clipping_s that are worth a warning.
        clipping_s: see there.
        repeat_s: the same warning again only after so much audio.

    Attributes:
        dbfs: level of the last block.
        peak: largest |sample| of the last block.
        problem: what is wrong now, for people; empty when nothing is.
    """

    def __init__(
        self, silence_s: float = 5.0, clipping_blocks: int = 3, clipping_s: float = 10.0, repeat_s: float = 60.0
    ) -> None:
        self._silence_s, self._repeat_s = silence_s, repeat_s
        self._clipping_blocks, self._clipping_s = clipping_blocks, clipping_s
        self.dbfs, self.peak, self.problem = FLOOR_DBFS, 0.0, ""
        self._heard_s = self._zero_s = self._quiet_s = 0.0
        self._has_been_loud = False
        self._clipped_at_s: list[float] = []
        self._warned_at_s: dict[str, float] = {}

    def push(self, block: np.ndarray, duration_s: float) -> str:
        """Measure a block.

        Args:
            block: float32, any shape, as the device gave it: clipping does not survive mixing and resampling.
            duration_s: its length.

        Returns:
            A warning to show now, or nothing.
        """
        self.dbfs, self.peak = level_dbfs(block), float(np.abs(block).max(initial=0.0))
        self._heard_s += duration_s
        self._zero_s = 0.0 if self.peak > 0.0 else self._zero_s + duration_s
        self._quiet_s = 0.0 if self.dbfs >= QUIET_DBFS else self._quiet_s + duration_s
        self._has_been_loud |= self.dbfs >= QUIET_DBFS
        if float(np.mean(np.abs(block) >= CLIPPED)) > CLIPPED_SHARE:
            self._clipped_at_s.append(self._heard_s)
        self._clipped_at_s = [at_s for at_s in self._clipped_at_s if self._heard_s - at_s < self._clipping_s]
        self.problem = self._find_problem()
        return self._once(self.problem)

    def _find_problem(self) -> str:
        """What is wrong with the level, worst first.

        A room that is quiet after somebody spoke is a quiet room; only zeros are still a fault then.
        """
        if self._zero_s >= self._silence_s:
            return "the microphone delivers only zeros: muted, or not the device that you mean"
        if self._quiet_s >= self._silence_s and not self._has_been_loud:
            return f"the microphone is below {QUIET_DBFS:.0f} dBFS: turn up its gain (alsamixer), or take another"
        if len(self._clipped_at_s) >= self._clipping_blocks:
            return "the microphone clips: turn down its gain (alsamixer), or speak from further away"
        return ""

    def _once(self, problem: str) -> str:
        """The problem, unless it was shown a short while ago."""
        shown_at_s = self._warned_at_s.get(problem)
        if not problem or (shown_at_s is not None and self._heard_s - shown_at_s < self._repeat_s):
            return ""
        self._warned_at_s[problem] = self._heard_s
        return problem
