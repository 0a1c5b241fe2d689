/* The browser's microphone -> blocks of PCM16 at 24 kHz with their level; and what is wrong when there is none. */

import { pageUrl } from "./connection.js";

/** A microphone that cannot be used; the message says what the person can do about it. */
export class MicrophoneProblem extends Error {}

const PROBLEMS = {
  NotAllowedError:
    "This page may not use the microphone. Allow it in the browser's site settings (the icon beside the address), " +
    "then start again.",
  NotFoundError: "No microphone was found. Connect one, then start again.",
  NotReadableError: "The microphone is used by another program, or was unplugged. Free it, then start again.",
  OverconstrainedError: "The chosen microphone is gone. Choose another one.",
};

const INSECURE =
  "Browsers give the microphone only to pages that come over https:// or from localhost. Put a TLS proxy in front of " +
  "this server, or forward its port to your own computer, for example: ";

/** Why no microphone can be had from this page at all, or null. */
export function whyImpossible() {
  if (navigator.mediaDevices?.getUserMedia) return null;
  const port = location.port || "80";
  return `${INSECURE}ssh -L ${port}:localhost:${port} ${location.hostname}`;
}

/** Open the microphone.
 *
 * @param inputId deviceId of an input, or "" for the browser's choice.
 * @param onBlock called with {pcm, dbfs} every 40 ms.
 * @param onLost called when the microphone is unplugged or its permission is taken back.
 * @returns {label, stop()}
 */
export async function openMicrophone(inputId, onBlock, onLost) {
  const impossible = whyImpossible();
  if (impossible) throw new MicrophoneProblem(impossible);
  const stream = await getStream(inputId);
  const context = new AudioContext({ latencyHint: "interactive" });
  try {
    await context.audioWorklet.addModule(pageUrl("static/pcm_worklet.js"));
    await context.resume(); // iOS starts it suspended
  } catch (error) {
    stopTracks(stream);
    await context.close();
    throw new MicrophoneProblem(`This browser cannot record audio here: ${error.message}`);
  }
  const worklet = new AudioWorkletNode(context, "pcm-worklet", { numberOfOutputs: 0 });
  worklet.port.onmessage = ({ data }) => onBlock(data);
  context.createMediaStreamSource(stream).connect(worklet);
  const [track] = stream.getAudioTracks();
  track.addEventListener("ended", onLost);
  return {
    label: track.label,
    async stop() {
      track.removeEventListener("ended", onLost);
      worklet.port.onmessage = null;
      stopTracks(stream);
      await context.close();
    },
  };
}

/** The audio inputs that the browser shows: names only after permission was given. */
export async function listInputs() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return devices.filter((device) => device.kind === "audioinput" && device.label);
}

async function getStream(inputId) {
  // Noise suppression is made for ears and takes away what the recogniser needs.
  const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
  if (inputId) audio.deviceId = { exact: inputId };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new MicrophoneProblem(PROBLEMS[error.name] ?? `The microphone cannot be opened: ${error.message}`);
  }
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}
