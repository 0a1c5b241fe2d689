/* The device's own microphone -> /v1/captions -> caption events, shared with everybody who listens to it.
 *
 * The records are StreamEvent.record() of runtime/stream.py and the level and status records of
 * runtime/microphone_source.py. Their times count from the start of the device's stream, which may be days ago: they
 * are moved to this recording's clock, which starts with the first connection.
 */

import { ReconnectingSocket } from "./connection.js";

const WELL = ["listening", "back"];

export class DeviceSource {
  /** @param handlers {onEvent, onBreak, onLevel, onLatency, onState, onLost, onNotice} */
  constructor(handlers) {
    this.handlers = handlers;
    this.started_ms = performance.now();
    this.connections = 0;
    this.shift_s = null; // from the device's clock to ours, known with the first record that has a time
    this.heard_s = null; // how far the device has heard, in its own time
  }

  /** Seconds since listening began. */
  get clock_s() {
    return (performance.now() - this.started_ms) / 1000;
  }

  async start() {
    this.socket = new ReconnectingSocket("v1/captions", {
      onOpen: () => this.begin(),
      onMessage: (record) => this.read(record),
      onState: (state, text) => {
        if (state === "waiting") this.handlers.onBreak();
        this.handlers.onState(state, text);
      },
    });
  }

  async stop() {
    this.socket.close();
    this.handlers.onBreak();
    return "";
  }

  begin() {
    this.connections += 1;
    this.shift_s = null; // the device may have been restarted
  }

  read(record) {
    switch (record.type) {
      case "level":
        this.heard_s = record.heard_s ?? null;
        this.handlers.onLevel(record.dbfs);
        break;
      case "status":
        this.handlers.onNotice(WELL.includes(record.status) ? "" : `Microphone of the device: ${record.message}`);
        break;
      case "start":
      case "partial":
      case "final":
        this.caption(record);
        break;
    }
  }

  caption(record) {
    this.shift_s ??= this.clock_s - record.end_s;
    if (this.heard_s !== null && record.type === "partial") this.handlers.onLatency(this.heard_s - record.end_s);
    this.handlers.onEvent({
      type: record.type,
      utterance: `${this.connections}:${record.utterance}`,
      start_s: Math.max(0, record.start_s + this.shift_s),
      end_s: Math.max(0, record.end_s + this.shift_s),
      committed: record.committed,
      tentative: record.tentative,
    });
  }
}
