/* One sentence read aloud: microphone -> blocks -> the pause after the sentence -> a WAV file; and playing it back.
 *
 * Speech is what is well above the quietest moment of the last seconds. That only decides when recording ends: the
 * server cuts the silence off and looks at what is said.
 */

import { toWav } from "./decode.js";
import { openMicrophone } from "./microphone.js";

const RATE_HZ = 24000; // of the worklet's blocks
const BLOCK_S = 0.04;
const SMOOTHED_BLOCKS = 5;
const FLOOR_BLOCKS = 100; // 4 s: speech has a gap in any of them
const ABOVE_FLOOR_DB = 12;
const QUIETEST_SPEECH_DBFS = -55;
const MIN_SPEECH_S = 0.4;
const END_SILENCE_S = 1.6;
const WAIT_S = 15; // nobody speaks for so long: it ends
const MARGIN_S = 0.8; // of the longest sentence, for the silence that stays around it

export class Recorder {
  /** @param onLevel called with the level of each block, dBFS. */
  constructor(onLevel) {
    this.onLevel = onLevel;
  }

  /** Open the microphone; `finished` resolves to a WAV file, or null if the microphone is lost.
   *
   * @param max_s longest sentence.
   */
  async start(max_s) {
    this.max_s = max_s;
    this.blocks = [];
    this.levels = [];
    this.speech_s = this.silence_s = this.sentence_s = 0;
    this.finished = new Promise((resolve) => (this.finish = resolve));
    this.microphone = await openMicrophone("", (block) => this.take(block), () => this.end(null));
  }

  /** The person has finished. */
  stop() {
    return this.end(this.file());
  }

  take({ pcm, dbfs }) {
    this.onLevel(dbfs);
    this.blocks.push(new Int16Array(pcm));
    this.levels.push(dbfs);
    const smoothed = this.levels.slice(-SMOOTHED_BLOCKS);
    const level_db = smoothed.reduce((sum, level) => sum + level, 0) / smoothed.length;
    const floor_db = Math.min(...this.levels.slice(-FLOOR_BLOCKS));
    const isSpeech = level_db > Math.max(floor_db + ABOVE_FLOOR_DB, QUIETEST_SPEECH_DBFS);
    this.speech_s += isSpeech ? BLOCK_S : 0;
    this.silence_s = isSpeech ? 0 : this.silence_s + BLOCK_S;
    this.sentence_s += this.speech_s ? BLOCK_S : 0;
    const isSaid = this.speech_s >= MIN_SPEECH_S && this.silence_s >= END_SILENCE_S;
    const isLost = this.speech_s < MIN_SPEECH_S && this.blocks.length * BLOCK_S >= WAIT_S;
    if (isSaid || isLost || this.sentence_s >= this.max_s - MARGIN_S) this.stop();
  }

  async end(file) {
    const { microphone } = this;
    this.microphone = null;
    await microphone?.stop();
    this.onLevel(-Infinity);
    this.finish(file);
  }

  file() {
    const samples = new Float32Array(this.blocks.reduce((sum, block) => sum + block.length, 0));
    let place = 0;
    for (const block of this.blocks) {
      for (const sample of block) samples[place++] = sample / 32767;
    }
    return new File([toWav(samples, RATE_HZ)], "take.wav", { type: "audio/wav" });
  }
}

/** Plays one sound at a time. */
export class Player {
  /** Resolves at the end, or when it is stopped. */
  async play(buffer) {
    this.stop();
    const context = new AudioContext();
    this.context = context;
    const source = new AudioBufferSourceNode(context, { buffer: await context.decodeAudioData(buffer) });
    source.connect(context.destination);
    await new Promise((resolve) => {
      source.onended = resolve;
      this.resolve = resolve;
      source.start();
    });
    await context.close();
  }

  stop() {
    this.resolve?.();
    this.resolve = null;
  }
}
