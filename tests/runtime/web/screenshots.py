"""Pictures of the page for the documentation, from the real server and a fake microphone.

python tests/runtime/web/screenshots.py docs/      writes web-light.png, web-dark.png, web-files.png, web-phone.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import soundfile as sf
from chromium import Browser, Page
from served import serving, with_silence

from whisperfold.runtime.audio import SAMPLE_RATE, load_audio
from whisperfold.runtime.packaged import default_bundle

CLIP = Path(__file__).parents[3] / "runtime" / "samples" / "jfk.flac"
SPOKEN = "/can do for you/i.test(document.querySelector('.captions').textContent)"
TENTATIVE = "document.querySelector('.captions li:last-child .tentative')?.textContent.length > 4"
LIVE = {
    "web-light.png": ((1200, 760), {"prefers_color_scheme": "light"}),
    "web-dark.png": ((1200, 760), {"prefers_color_scheme": "dark"}),
    "web-phone.png": ((390, 780), {"prefers_color_scheme": "light"}),
}


def main(folder: Path) -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as scratch, serving(default_bundle(), Path(scratch)) as server:
        spoken = Path(scratch) / "speech.wav"
        sf.write(spoken, with_silence(load_audio(CLIP)), SAMPLE_RATE)
        with Browser(microphone=spoken) as browser:
            for name, (size, media) in LIVE.items():
                page = browser.open(server.url, **media)
                page.resize(*size, scale=2 if size[0] < 500 else 1)
                listen(page)
                page.screenshot(folder / name)
                page.close()
            page = browser.open(server.url + "#files", prefers_color_scheme="light")
            page.resize(1200, 760)
            page.choose_files("#picker", CLIP)
            page.wait_for("document.querySelector('.job[data-state=done]')", timeout_s=30)
            page.screenshot(folder / "web-files.png")


def listen(page: Page) -> None:
    """Let the page hear the clip until some of its text is still tentative."""
    page.press("Start listening")
    page.wait_for(f"{SPOKEN} && {TENTATIVE}", timeout_s=30)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
