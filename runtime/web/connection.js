/* How the page reaches its server: addresses, the access token, and sockets that come back by themselves. */

const TOKEN_KEY = "whisperfold-token";
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
const CLOSED_BY_US = 1000;

/** Answers that a token would change: none or a wrong one, or a host name that is trusted only with one. */
export const NEED_TOKEN = [401, 403];

/** Address beside this page: also right when a proxy serves the page under a sub-path. */
export function pageUrl(path) {
  return new URL(path, document.baseURI);
}

export function savedToken() {
  return sessionStorage.getItem(TOKEN_KEY) ?? "";
}

export function authorization() {
  const token = savedToken();
  return token ? { Authorization: `Bearer ${token}` } : {};
}

let asking = null;

/** Ask the person for the token, once for all who want it. Resolves to false when they decline. */
export function askForToken() {
  asking ??= showTokenDialog().finally(() => (asking = null));
  return asking;
}

function showTokenDialog() {
  const dialog = document.getElementById("token-dialog");
  const field = document.getElementById("token");
  document.getElementById("token-wrong").hidden = !savedToken();
  field.value = "";
  dialog.returnValue = "";
  document.getElementById("token-cancel").onclick = () => dialog.close();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const isGiven = dialog.returnValue === "ok" && field.value.trim() !== "";
        if (isGiven) sessionStorage.setItem(TOKEN_KEY, field.value.trim());
        field.value = "";
        resolve(isGiven);
      },
      { once: true },
    );
  });
}

/** What a plain request says about the server: "ok", "unauthorized", "busy" or "gone". */
export async function probe() {
  try {
    const { status } = await fetch(pageUrl("v1/models"), { headers: authorization(), cache: "no-store" });
    if (NEED_TOKEN.includes(status)) return "unauthorized";
    return status < 500 ? "ok" : "busy";
  } catch {
    return "gone";
  }
}

/** A WebSocket of JSON messages that is opened again, with growing waits, until it is closed on purpose.
 *
 * A browser does not tell a script why a socket was refused, so a plain request is made to find out. The token goes
 * as a sub-protocol, the only header that a browser lets a script choose (OpenAI's convention).
 */
export class ReconnectingSocket {
  /**
   * @param path address beside the page.
   * @param onOpen called each time the socket is open.
   * @param onMessage called with each message, parsed.
   * @param onState called with ("connecting" | "open" | "waiting" | "refused", what to tell the person).
   */
  constructor(path, { onOpen, onMessage, onState }) {
    this.path = path;
    this.handlers = { onOpen, onMessage, onState };
    this.wait_ms = FIRST_WAIT_MS;
    this.isWanted = true;
    this.online = () => this.retryNow();
    window.addEventListener("online", this.online);
    this.connect();
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** Bytes given to the socket and not yet on their way. */
  get waiting_bytes() {
    return this.socket?.bufferedAmount ?? 0;
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  close() {
    this.isWanted = false;
    clearTimeout(this.timer);
    window.removeEventListener("online", this.online);
    this.socket?.close(CLOSED_BY_US);
  }

  connect() {
    this.handlers.onState("connecting", "Connecting");
    const url = pageUrl(this.path);
    url.protocol = url.protocol.replace("http", "ws");
    try {
      this.socket = new WebSocket(url, subprotocols());
    } catch {
      this.refused(); // a token with letters that no header can carry
      return;
    }
    const { socket } = this;
    socket.onopen = () => {
      this.wait_ms = FIRST_WAIT_MS;
      this.handlers.onState("open", "Connected");
      this.handlers.onOpen();
    };
    socket.onmessage = ({ data }) => this.handlers.onMessage(JSON.parse(data));
    socket.onclose = ({ reason }) => {
      if (this.isWanted) this.lost(socket, reason);
    };
  }

  async lost(socket, reason) {
    this.handlers.onState("waiting", "Connection lost");
    const answer = await probe();
    if (!this.isWanted || this.socket !== socket) return;
    if (answer === "unauthorized") {
      await this.refused();
      return;
    }
    const why = { ok: reason || "The server closed the connection.", busy: "The server is busy." }[answer];
    const seconds = Math.max(1, Math.round(this.wait_ms / 1000));
    this.handlers.onState("waiting", `${why ?? "The server does not answer."} Trying again in ${seconds} s.`);
    this.timer = setTimeout(() => this.connect(), this.wait_ms);
    this.wait_ms = Math.min(LONGEST_WAIT_MS, this.wait_ms * 2);
  }

  async refused() {
    const isGiven = await askForToken();
    if (!this.isWanted) return;
    if (isGiven) this.connect();
    else this.handlers.onState("refused", "The server asks for a token.");
  }

  /** The network is back: do not sit out the rest of the wait. */
  retryNow() {
    if (!this.isWanted || this.isOpen || this.socket?.readyState === WebSocket.CONNECTING) return;
    clearTimeout(this.timer);
    this.wait_ms = FIRST_WAIT_MS;
    this.connect();
  }
}

function subprotocols() {
  const token = savedToken();
  return token ? ["realtime", `openai-insecure-api-key.${token}`] : ["realtime"];
}
