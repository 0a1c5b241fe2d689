/* The browser's microphone -> /v1/realtime -> caption events. Audio is kept until its text is final.
 *
 * Out, through the handlers: caption events {type: "start" | "partial" | "final", utterance, start_s, end_s, committed,
 * tentative}, times in seconds of this recording. When the connection breaks, recording goes on; the next connection
 * gets everything from the end of the last final text on, so that no word is lost.
 */

import { ReconnectingSocket } from "./connection.js";
import { openMicrophone } from "./microphone.js";

const SAMPLE_RATE_HZ = 24000;
const MESSAGE_SAMPLES = SAMPLE_RATE_HZ; // a backlog goes in messages of one second, 64 kB of base64
const SOCKET_LIMIT_BYTES = 256 * 1024;
const KEEP_OPEN_S = 600; // audio kept for an utterance that is not final: 29 MB
const KEEP_SILENCE_S = 30; // audio kept when nobody speaks: what a slow server may not have looked at yet
const FINAL_WAIT_MS = 10_000;

const SESSION = {
  type: "transcription",
  audio: { input: { format: { type: "audio/pcm", rate: SAMPLE_RATE_HZ }, turn_detection: { type: "server_vad" } } },
};

export class BrowserSource {
  /** @param handlers {onEvent, onBreak, onLevel, onLatency, onState, onLost, onNotice} */
  constructor(handlers) {
    this.handlers = handlers;
    this.blocks = []; // {start_samples, pcm: Int16Array}, oldest first
    this.next = 0; // index of the first block that this connection has not got
    this.captured_samples = 0;
    this.base_samples = 0; // where this connection's audio starts in the recording
    this.connections = 0;
    this.items = new Map(); // item_id -> the caption event as far as it is known
  }

  /** Seconds recorded so far. */
  get clock_s() {
    return this.captured_samples / SAMPLE_RATE_HZ;
  }

  /** Open microphone and socket; a MicrophoneProblem is thrown before anything is sent. */
  async start(inputId) {
    const { onLost } = this.handlers;
    this.microphone = await openMicrophone(inputId, (block) => this.take(block), onLost);
    this.socket = new ReconnectingSocket("v1/realtime?intent=transcription", {
      onOpen: () => this.begin(),
      onMessage: (message) => this.read(message),
      onState: (state, text) => {
        if (state === "waiting") this.breakOff();
        this.handlers.onState(state, text);
      },
    });
  }

  /** Stop recording, wait for the text of what was said, and close; return what the person should know. */
  async stop() {
    await this.microphone.stop();
    const { isOpen } = this.socket;
    if (isOpen) {
      this.isStopping = true;
      this.pump(Infinity);
      this.socket.send({ type: "input_audio_buffer.commit" });
      this.socket.send({ type: "input_audio_buffer.clear" });
      await this.cleared();
    }
    this.socket.close();
    return isOpen ? "" : "There was no connection when you stopped: the last words are not transcribed.";
  }

  /** Resolves with the answer to "clear": events come in order, so all text is here; or after FINAL_WAIT_MS. */
  cleared() {
    return new Promise((resolve) => {
      this.onCleared = resolve;
      setTimeout(resolve, FINAL_WAIT_MS);
    });
  }

  take({ pcm, dbfs }) {
    const samples = new Int16Array(pcm);
    this.blocks.push({ start_samples: this.captured_samples, pcm: samples });
    this.captured_samples += samples.length;
    this.handlers.onLevel(dbfs);
    this.forget(this.captured_samples - (this.items.size ? KEEP_OPEN_S : KEEP_SILENCE_S) * SAMPLE_RATE_HZ);
    if (this.socket?.isOpen) this.pump(SOCKET_LIMIT_BYTES);
  }

  /** A new connection: everything that is not final is sent again. */
  begin() {
    this.connections += 1;
    this.next = 0;
    this.base_samples = this.blocks[0]?.start_samples ?? this.captured_samples;
    this.socket.send({ type: "session.update", session: SESSION });
    this.pump(SOCKET_LIMIT_BYTES);
  }

  breakOff() {
    if (this.items.size) this.handlers.onBreak();
    this.items.clear();
  }

  /** Send what waits, as long as the socket takes it. */
  pump(limit_bytes) {
    while (this.next < this.blocks.length && this.socket.waiting_bytes < limit_bytes) {
      const batch = [];
      for (let count = 0; count < MESSAGE_SAMPLES && this.next < this.blocks.length; this.next += 1) {
        batch.push(this.blocks[this.next].pcm);
        count += this.blocks[this.next].pcm.length;
      }
      this.socket.send({ type: "input_audio_buffer.append", audio: toBase64(batch) });
    }
  }

  /** Drop the blocks that end before a place in the recording; what the server has not got yet is kept longer. */
  forget(end_samples) {
    const oldest_samples = this.captured_samples - KEEP_OPEN_S * SAMPLE_RATE_HZ;
    let count = 0;
    for (; count < this.blocks.length; count += 1) {
      const { start_samples, pcm } = this.blocks[count];
      const isSent = this.socket?.isOpen && count < this.next;
      if (start_samples + pcm.length > (isSent ? end_samples : oldest_samples)) break;
    }
    this.blocks.splice(0, count);
    this.next = Math.max(0, this.next - count);
  }

  /** One event of the server, in OpenAI's realtime transcription shapes. */
  read(message) {
    switch (message.type) {
      case "input_audio_buffer.speech_started":
        this.items.clear(); // one at a time: what is still open was noise
        this.update(message, "start");
        break;
      case "input_audio_buffer.speech_stopped":
        this.update(message, "partial");
        break;
      case "conversation.item.input_audio_transcription.delta":
        this.update(message, "partial", { committed: this.item(message).committed + message.delta });
        break;
      case "whisperfold.tentative":
        if (message.audio_end_ms) this.handlers.onLatency(this.clock_s - this.place_s(message.audio_end_ms));
        this.update(message, "partial", { tentative: message.tentative });
        break;
      case "conversation.item.input_audio_transcription.completed":
        this.update(message, "final", { committed: message.transcript, tentative: "" });
        this.close(message);
        break;
      case "conversation.item.input_audio_transcription.failed":
        this.close(message);
        this.handlers.onNotice(message.error?.message ?? "An utterance could not be transcribed.");
        break;
      case "input_audio_buffer.cleared":
        this.onCleared?.();
        break;
      case "error": // at the end it is only that there is nothing to commit
        if (!this.isStopping) this.handlers.onNotice(message.error.message);
        break;
    }
  }

  /** The open item of a message, made when it is new. */
  item({ item_id }) {
    if (!this.items.has(item_id)) {
      const utterance = `${this.connections}:${item_id}`;
      const now_s = this.clock_s;
      this.items.set(item_id, { utterance, start_s: now_s, end_s: now_s, committed: "", tentative: "" });
    }
    return this.items.get(item_id);
  }

  update(message, type, changes = {}) {
    const item = this.item(message);
    Object.assign(item, changes);
    if (message.audio_start_ms !== undefined) item.start_s = this.place_s(message.audio_start_ms);
    if (message.audio_end_ms !== undefined) item.end_s = this.place_s(message.audio_end_ms);
    this.handlers.onEvent({ ...item, type });
  }

  /** An item is final: its audio is not needed any more. */
  close(message) {
    const { end_s } = this.item(message);
    this.items.delete(message.item_id);
    this.forget(end_s * SAMPLE_RATE_HZ);
  }

  /** Milliseconds of this connection's audio -> seconds of the recording. */
  place_s(audio_ms) {
    return this.base_samples / SAMPLE_RATE_HZ + audio_ms / 1000;
  }
}

/** Blocks of int16 -> base64 of their little-endian bytes. */
function toBase64(blocks) {
  let binary = "";
  for (const block of blocks) binary += String.fromCharCode(...new Uint8Array(block.buffer));
  return btoa(binary);
}
