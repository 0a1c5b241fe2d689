"""Headless Chromium over the DevTools protocol: open a page, run script in it, wait, press, read what it asked for.

    with Browser(microphone=Path("speech.wav")) as browser:
        page = browser.open("http://127.0.0.1:8080/")
        page.press("Start listening")
        page.wait_for("document.querySelector('.captions .committed')")

One WebSocket, one thread; events are kept while a reply is awaited.
Protocol: chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 30.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)


# Looks every 25 ms, at most 0.2 s long: a script that waits for ever would hide what the page says meanwhile.
_LOOK = """new Promise((resolve) => {
  let looks = 0;
  const look = () => {
    const value = (%s);
    if (value || ++looks > 8) resolve(value instanceof Node ? true : value);
    else setTimeout(look, 25);
  };
  look();
})"""


_KEEP_SOCKETS = """window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(...args) { super(...args); sockets.push(this); }
};
"""


class PageError(AssertionError):
    """The page threw, or a condition did not come true."""


class Browser:
    """One Chromium process with its own empty profile; a context manager.

    Attributes:
        microphone: WAV file that is played once into the fake microphone; None leaves Chromium's beeps.
        names: host names and the addresses that they shall mean.
    """

    def __init__(self, microphone: Path | None = None, names: dict[str, str] | None = None) -> None:
        self.microphone, self.names = microphone, names or {}
        self._count = self._n_saved = 0
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Browser:
        assert CHROMIUM is not None, "no chromium"
        with ExitStack() as stack:
            profile = stack.enter_context(TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True))
            flags = [*FLAGS, f"--user-data-dir={profile}"]
            if self.microphone is not None:
                flags.append(f"--use-file-for-fake-audio-capture={self.microphone}%noloop")
            if self.names:
                rules = ",".join(f"MAP {name} {address}" for name, address in self.names.items())
                flags.append(f"--host-resolver-rules={rules}")
            quiet = subprocess.DEVNULL
            process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stdout=quiet, stderr=quiet)
            stack.callback(_end, process)
            address = _announced(Path(profile) / "DevToolsActivePort", process)
            self._socket = stack.enter_context(connect(address, max_size=None, compression=None))
            stack.callback(self.call, "Browser.close")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def open(self, url: str, before: str = "", **media: str) -> Page:
        """Open a page and wait until it has loaded.

        Args:
            url: its address.
            before: script that runs in the page before its own; `sockets` holds the page's WebSockets.
            media: media features, for example prefers_color_scheme="dark".
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            page.call(f"{domain}.enable")
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=_KEEP_SOCKETS + before)
        page.call("Page.navigate", url=url)
        self.wait_until_loaded(page)
        return page

    def wait_until_loaded(self, page: Page) -> None:
        """Hand on events until the page and what it names have come."""
        while not page.is_loaded:
            self._receive()

    @contextmanager
    def saving_to(self, folder: Path) -> Iterator[Callable[[str], str]]:
        """Let pages save files into a folder; yield a function that waits for the next one and returns its text."""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
        n_before = self._n_saved

        def saved(pattern: str) -> str:
            while self._n_saved == n_before:
                self._receive()
            (path,) = folder.glob(pattern)
            return path.read_text(encoding="utf-8")

        yield saved
        self.call("Browser.setDownloadBehavior", behavior="default")

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come before it are handed to their pages."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while (reply := self._receive()).get("id") != self._count:
            pass
        if "error" in reply:
            raise PageError(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        """One message; an event is handed to its page first."""
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=REPLY_TIMEOUT_S))
        if message.get("method") == "Browser.downloadProgress" and message["params"]["state"] == "completed":
            self._n_saved += 1
        elif "method" in message and message.get("sessionId") in self._pages:
            self._pages[message["sessionId"]].on_event(message["method"], message["params"])
        return message


def _announced(path: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait for the port that Chromium chose; return the address of its socket."""
    end_s = time.monotonic() + START_TIMEOUT_S
    while not (path.exists() and len(lines := path.read_text().split()) == 2):
        if process.poll() is not None or time.monotonic() > end_s:
            raise PageError(f"chromium did not start, exit status {process.poll()}")
        time.sleep(0.05)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process; end it when it does not go."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Page:
    """One tab.

    Attributes:
        errors: exceptions, console errors and the browser's own complaints, in order.
        requests: every address that the page asked for, sockets too.
        is_loaded: the page and what it names have come.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.is_loaded = False

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command of the protocol to this tab."""
        return self._browser.call(method, self._session, **params)

    def reload(self) -> None:
        """Load the page anew and wait for it; a script that calls location.reload() may lose its own reply."""
        self.is_loaded = False
        self.call("Page.reload")
        self._browser.wait_until_loaded(self)

    def on_event(self, method: str, params: dict[str, Any]) -> None:
        """Keep what tests ask about."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
        elif method == "Page.loadEventFired":
            self.is_loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])

    def run(self, script: str) -> Any:
        """Return the value of an expression; promises are awaited."""
        reply = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in reply:
            details = reply["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return reply["result"].get("value")

    def wait_for(self, condition: str, timeout_s: float = 10.0) -> Any:
        """Return the first true value of an expression."""
        end_s = time.monotonic() + timeout_s
        while True:
            value = self.run(_LOOK % condition)
            if value:
                return value
            if time.monotonic() > end_s:
                raise PageError(f"not true within {timeout_s} s: {condition}; the page says: {self.text()[-2000:]}")

    def text(self, selector: str = "body") -> str:
        """Return the visible text of an element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def press(self, name: str) -> None:
        """Click the visible button, link or label with an accessible name, with the mouse, in its middle."""
        middle = self.run(
            f"""(() => {{
              const named = [...document.querySelectorAll("button, a, label")].filter((element) =>
                (element.getAttribute("aria-label") ?? element.textContent).trim() === {json.dumps(name)}
                && element.checkVisibility() && !element.disabled);
              if (named.length !== 1) throw new Error(named.length + " visible controls have this name");
              named[0].scrollIntoView({{ block: "nearest" }});
              const box = named[0].getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=middle[0], y=middle[1], button="left", buttons=1, clickCount=1
            )

    def key(self, key: str, code: int, text: str = "") -> None:
        """Press and release one key."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, code=key, **typed)

    def choose_files(self, selector: str, *files: Path) -> None:
        """Put files into a file input, as the person's file dialog would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], nodeId=node)

    def type(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def accessible_nodes(self) -> Iterator[tuple[str, str]]:
        """Yield (role, name) of everything that assistive technology sees."""
        for node in self.call("Accessibility.getFullAXTree")["nodes"]:
            if not node.get("ignored"):
                yield node.get("role", {}).get("value", ""), node.get("name", {}).get("value", "").strip()

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Set the size of the window, CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def screenshot(self, path: Path) -> None:
        """Write what is visible as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Close the tab."""
        self.call("Page.close")
