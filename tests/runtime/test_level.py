import numpy as np
import pytest

from whisperfold.runtime.level import FLOOR_DBFS, LevelMeter, level_dbfs


def noise(dbfs: float, n: int = 4800, channels: int = 1) -> np.ndarray:
    samples = np.random.default_rng(0).standard_normal((n, channels))
    return (samples * 10 ** (dbfs / 20) / samples.std()).astype(np.float32)


def push(meter: LevelMeter, block: np.ndarray, seconds: float) -> list[str]:
    warnings = [meter.push(block, 0.1) for _ in range(round(seconds / 0.1))]
    return [warning for warning in warnings if warning]


def test_level_is_rms_in_dbfs():
    assert level_dbfs(np.ones(100, np.float32)) == pytest.approx(0.0)
    assert level_dbfs(noise(-30.0)) == pytest.approx(-30.0, abs=0.1)
    assert level_dbfs(np.zeros(100, np.float32)) == FLOOR_DBFS
    assert level_dbfs(np.zeros(0, np.float32)) == FLOOR_DBFS


def test_zeros_are_a_muted_microphone_even_after_speech():
    meter = LevelMeter()
    assert push(meter, noise(-30.0), 3.0) == []
    assert push(meter, np.zeros(4800, np.float32), 4.8) == []
    (warning,) = push(meter, np.zeros(4800, np.float32), 10.0)
    assert "only zeros" in warning and meter.problem == warning
    meter.push(noise(-30.0), 0.1)
    assert meter.problem == ""


def test_a_microphone_that_never_gets_loud_is_too_quiet():
    (warning,) = push(LevelMeter(), noise(-70.0), 20.0)
    assert "-60 dBFS" in warning


def test_a_quiet_night_is_no_fault():
    meter = LevelMeter()
    push(meter, noise(-30.0), 1.0)
    assert push(meter, noise(-70.0), 60.0) == []


def test_clipping_needs_more_than_one_click():
    meter = LevelMeter()
    loud = np.clip(noise(3.0, channels=2), -1.0, 1.0)
    assert push(meter, loud, 0.2) == []
    (warning,) = push(meter, loud, 5.0)
    assert "clips" in warning
    assert push(meter, noise(-20.0), 61.0) == [] and meter.problem == ""


def test_a_warning_comes_again_only_after_a_minute():
    meter = LevelMeter()
    assert len(push(meter, np.zeros(4800, np.float32), 60.0)) == 1
    assert len(push(meter, np.zeros(4800, np.float32), 60.0)) == 1
