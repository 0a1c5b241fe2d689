import io

import pytest
from rich.console import Console

from whisperfold.runtime.captions import Captions, level_bar
from whisperfold.runtime.microphone import MicrophoneStatus
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.transcript import Word


def event(kind, committed, tentative="", lag_s=0.0, words=()):
    return StreamEvent(kind, 0, 1.0, 2.0, committed, tentative, words, "en", -0.1, 0.01, lag_s)


class Terminal:
    """A terminal without colours; `shown` is what was drawn since the last look."""

    def __init__(self, width=100, height=24, encoding="utf-8"):
        self.raw = io.BytesIO()
        file = io.TextIOWrapper(self.raw, encoding=encoding, write_through=True)
        self.console = Console(file=file, force_terminal=True, no_color=True, width=width, height=height)
        self.encoding = encoding

    def shown(self):
        text = self.raw.getvalue().decode(self.encoding)
        self.raw.seek(0)
        self.raw.truncate()
        return text


def test_committed_and_tentative_differ_without_colours():
    terminal = Terminal()
    with Captions("USB Mic", console=terminal.console) as captions:
        captions.event(event("partial", "ask what you can do", " for your"))
        shown = terminal.shown()
    assert "ask what you can do" in shown and "‹for your›" in shown


def test_a_terminal_of_ascii_gets_ascii():
    terminal = Terminal(encoding="ascii")
    with Captions("USB Mic", console=terminal.console) as captions:
        captions.event(event("partial", "ask", "what"))
        captions.chunk(-30.0, True, 2.0, 0)
        shown = terminal.shown()
    assert "<what>" in shown and "[##########" in shown


def test_a_final_stays_on_the_terminal_and_the_open_line_is_empty_again():
    terminal = Terminal()
    with Captions("USB Mic", console=terminal.console) as captions:
        captions.event(event("partial", "ask not", "what"))
        captions.event(event("final", "Ask not what."))
        assert "Ask not what." in terminal.shown()
        captions.chunk(-30.0, False, 3.0, 0)
        assert "sk not" not in terminal.shown()


def test_the_next_start_clears_what_gave_no_final():
    terminal = Terminal()
    with Captions("USB Mic", console=terminal.console) as captions:
        captions.event(event("partial", "", "noise"))
        assert "noise" in terminal.shown()
        captions.event(event("start", ""))
        assert "noise" not in terminal.shown()


def test_the_last_line_tells_level_delay_lag_losses_and_recording():
    terminal = Terminal()
    with Captions("USB Mic", is_recording=True, console=terminal.console) as captions:
        captions.chunk(-31.4, True, 2.5, 3)
        captions.event(event("partial", "ask", lag_s=1.25, words=(Word(1.0, 1.9, " ask", 0.9),)))
        shown = terminal.shown()
    for expected in ("-31 dBFS", "speech", "delay 0.6 s", "lag 1.2 s", "lost blocks 3", "RECORDING", "USB Mic"):
        assert expected in shown


def test_the_end_of_a_long_utterance_is_what_fits():
    terminal = Terminal(width=20, height=6)
    with Captions("mic", console=terminal.console) as captions:
        terminal.shown()
        captions.event(event("partial", "\n".join(["old"] * 30) + " new", "newest"))
        shown = terminal.shown()
    assert "‹newest›" in shown and shown.count("old") <= 3


def test_status_is_shown_among_the_utterances():
    terminal = Terminal()
    with Captions("USB Mic", console=terminal.console) as captions:
        captions.status(MicrophoneStatus("lost", "'USB Mic' has vanished", 3.0))
        assert "['USB Mic' has vanished]" in terminal.shown()


@pytest.mark.parametrize(("dbfs", "filled"), [(-120.0, 0), (-60.0, 0), (-30.0, 5), (0.0, 10), (6.0, 10)])
def test_the_bar_is_linear_in_decibels_and_keeps_its_width(dbfs, filled):
    for is_ascii, full in ((True, "#"), (False, "█")):
        bar = level_bar(dbfs, 10, is_ascii).plain
        assert bar.count(full) == filled and len(bar) == 12


def test_the_bar_has_eighths():
    assert level_bar(-57.0, 10).plain == "▕▌         ▏"
