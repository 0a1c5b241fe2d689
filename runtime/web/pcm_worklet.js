/* AudioWorklet: microphone frames at the context's rate -> PCM16 at 24 kHz, 40 ms a message.
 *
 * In: 128-sample float blocks, any number of channels (averaged). Out: {pcm: ArrayBuffer (960 little-endian int16),
 * dbfs: level of the block}. The rate is changed by a windowed sinc whose cut-off is below the lower Nyquist frequency,
 * so that nothing folds back into speech. Resampling here, and not in the AudioContext, works in every browser:
 * Firefox refuses a microphone whose rate is not the context's.
 */

const TARGET_HZ = 24000;
const BLOCK_SAMPLES = 960; // 40 ms
const HALF_TAPS = 24; // zero crossings on each side: 80 dB of stop band with the Blackman window
const PHASES = 64; // tabulated fractions of a sample; -60 dB of phase noise, far below a microphone's

class PcmWorklet extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / TARGET_HZ;
    this.reach = Math.ceil(HALF_TAPS * Math.max(1, this.step));
    this.kernel = this.step === 1 ? null : sincTable(this.reach, Math.min(1, 1 / this.step) * 0.95);
    this.input = new Float32Array(8192); // the last 2 * reach samples and what has not been read
    this.filled = this.reach; // silence before the first sample: the delay of the filter
    this.position = this.reach;
    this.block = new Int16Array(BLOCK_SAMPLES);
    this.written = 0;
    this.energy = 0;
  }

  process([channels]) {
    if (channels.length) {
      this.take(channels);
      if (this.kernel) this.resample();
      else this.copy();
    }
    return true;
  }

  /** Average the channels onto the end of the input. */
  take(channels) {
    const count = channels[0].length;
    for (let i = 0; i < count; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.input[this.filled + i] = sum / channels.length;
    }
    this.filled += count;
  }

  resample() {
    const { kernel, reach, input } = this;
    while (this.position + reach < this.filled) {
      const centre = Math.floor(this.position);
      const row = kernel[Math.round((this.position - centre) * PHASES)];
      let sum = 0;
      for (let tap = 0; tap < row.length; tap++) sum += row[tap] * input[centre - reach + 1 + tap];
      this.put(sum);
      this.position += this.step;
    }
    this.forget(Math.floor(this.position) - reach);
  }

  copy() {
    while (this.position < this.filled) this.put(this.input[this.position++]);
    this.forget(this.position);
  }

  /** Drop the first samples of the input: no output needs them any more. */
  forget(count) {
    this.input.copyWithin(0, count, this.filled);
    this.filled -= count;
    this.position -= count;
  }

  put(sample) {
    const clipped = Math.max(-1, Math.min(1, sample));
    this.block[this.written++] = Math.round(clipped * 32767);
    this.energy += clipped * clipped;
    if (this.written < BLOCK_SAMPLES) return;
    const dbfs = 10 * Math.log10(this.energy / BLOCK_SAMPLES + 1e-12);
    this.port.postMessage({ pcm: this.block.buffer, dbfs }, [this.block.buffer]);
    this.block = new Int16Array(BLOCK_SAMPLES);
    this.written = 0;
    this.energy = 0;
  }
}

/** Rows of 2 * reach taps, one per fraction of a sample; cutoff is relative to the input's Nyquist frequency. */
function sincTable(reach, cutoff) {
  return Array.from({ length: PHASES + 1 }, (_, phase) => {
    const row = new Float32Array(2 * reach);
    let sum = 0;
    for (let tap = 0; tap < row.length; tap++) {
      const x = tap - reach + 1 - phase / PHASES;
      const angle = Math.PI * cutoff * x;
      const window = 0.42 + 0.5 * Math.cos((Math.PI * x) / reach) + 0.08 * Math.cos((2 * Math.PI * x) / reach);
      row[tap] = (x === 0 ? 1 : Math.sin(angle) / angle) * window;
      sum += row[tap];
    }
    return row.map((weight) => weight / sum); // a gain of exactly one
  });
}

registerProcessor("pcm-worklet", PcmWorklet);
