import numpy as np
import pytest

from whisperfold.runtime.errors import AudioError
from whisperfold.runtime.pcm import PcmFormat, PcmStream


@pytest.mark.parametrize("width_bytes", [1, 2, 3, 4])
@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (44100, 2), (8000, 3)])
def test_pcm_of_any_format_in_odd_pieces_is_the_same_sound(width_bytes, rate_hz, channels):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)
    scale = 2 ** (8 * width_bytes - 1)
    integers = np.round(tone * (scale - 1)).astype("<i8") + (128 if width_bytes == 1 else 0)
    frames = np.repeat(integers[:, None], channels, axis=1)
    data = frames[..., None].view(np.uint8)[..., :width_bytes].tobytes()
    stream = PcmStream(PcmFormat(rate_hz, width_bytes, channels))
    pieces = [stream.convert(data[i : i + 1001]) for i in range(0, len(data), 1001)] + [stream.finish()]
    samples = np.concatenate(pieces)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert samples.dtype == np.float32
    assert abs(samples.size - 16000) <= 1
    assert np.abs(samples[200:-200] - expected[200 : samples.size - 200]).max() < 0.01


@pytest.mark.parametrize(
    "values", [(0, 2, 1), (10**6, 2, 1), (16000, 5, 1), (16000, 2, 64), (16000.0, 2, 1), (True, 2, 1)]
)
def test_impossible_pcm_is_refused(values):
    with pytest.raises(AudioError, match="expected a whole number"):
        PcmFormat(*values)
