/* Recordings that the server cannot read (phones make M4A, browsers WebM) -> WAV, by the browser's own decoders. */

const RATE_HZ = 16000; // what Whisper hears
const SERVER_READS = /\.(wav|flac|ogg|oga|opus|mp3|aiff?|au|caf|w64)$/i;

/** The file to send: itself, or a mono 16 kHz WAV of it. A file that the browser cannot read either goes as it is. */
export async function readable(file) {
  if (SERVER_READS.test(file.name)) return file;
  try {
    const context = new OfflineAudioContext(1, 1, RATE_HZ); // decoding resamples to the rate of its context
    return new File([toWav(mono(await context.decodeAudioData(await file.arrayBuffer())))], `${file.name}.wav`);
  } catch {
    return file;
  }
}

function mono(buffer) {
  const sum = buffer.getChannelData(0);
  for (let channel = 1; channel < buffer.numberOfChannels; channel += 1) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < sum.length; i += 1) sum[i] += samples[i];
  }
  return sum.map((sample) => sample / buffer.numberOfChannels);
}

/** Float samples, mono -> a 16-bit WAV file. */
export function toWav(samples, rate_hz = RATE_HZ) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, letters) => [...letters].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // length of the format block
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate_hz, true);
  view.setUint32(28, 2 * rate_hz, true); // bytes per second
  view.setUint16(32, 2, true); // bytes per frame
  view.setUint16(34, 16, true); // bits
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  for (let i = 0; i < samples.length; i += 1) {
    view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, samples[i])) * 32767), true);
  }
  return view.buffer;
}
