"""The page as a thing to read and to use: nothing from elsewhere, contrast, names, keyboard, widths, scrolling."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from chromium import Page

WEB = Path(__file__).parents[3] / "runtime" / "web"
CONTROLS = {"button", "link", "textbox", "radio", "combobox", "checkbox", "meter", "progressbar", "log", "dialog"}


def test_page_needs_nothing_from_elsewhere_and_nothing_inline() -> None:
    html = (WEB / "index.html").read_text()
    assert not re.search(r"\bon\w+=|\bstyle=|<style|javascript:", html)
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    for path in WEB.iterdir():
        addresses = re.findall(r"https?://(?!www\.w3\.org/2000/svg|from |$)[\w.]+", path.read_text())
        assert addresses == [], path.name
    for name in re.findall(r'(?:src|href)="static/([^"]+)"', html):
        assert (WEB / name).is_file(), name


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(theme: int) -> None:
    css = (WEB / "style.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css.split(":root {")[1]))
    if theme:
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css.split(":root {")[2]))
    pairs = [(ink, paper) for ink in ("ink", "muted", "stop", "warn") for paper in ("paper", "raised")]
    pairs += [("accent-ink", "accent"), ("ink", "accent-soft"), ("muted", "accent-soft"), ("ink", "warn-soft")]
    for ink, paper in pairs:
        assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    for mark in ("accent", "control", "good"):
        assert contrast(colours[mark], colours["paper"]) >= 3.0, mark


def contrast(first: str, second: str) -> float:
    """WCAG's ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("view", ["live", "files"])
def test_every_control_has_a_name_and_the_page_has_landmarks(page: Page, view: str) -> None:
    page.run(f"location.hash = '{view}'")
    page.wait_for(f"!document.querySelector('[data-view={view}]').hidden")
    nodes = list(page.accessible_nodes())
    assert [node for node in nodes if node[0] in CONTROLS and not node[1]] == []
    roles = [role for role, _ in nodes]
    assert {"banner", "navigation", "main", "heading", "status"} <= set(roles)
    assert page.run("document.querySelector('nav a[aria-current]').hash") == f"#{view}"
    assert page.run("document.documentElement.lang") == "en"


def test_keyboard_alone_reaches_and_works_the_controls(page: Page) -> None:
    reached = []
    for _ in range(8):
        page.key("Tab", 9)
        if page.run("document.activeElement === document.body"):
            break
        reached.append(page.run("document.activeElement.id || document.activeElement.hash || 'radio'"))
        assert page.run(_IS_FOCUS_SHOWN), reached[-1]
    assert {"#main", "#live", "#files", "listen"} <= set(reached)
    page.run("document.querySelector('nav a[href=\"#files\"]').focus()")
    page.key("Enter", 13, "\r")
    page.wait_for("!document.getElementById('view-files').hidden")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_sticks_out_sideways(page: Page, width: int) -> None:
    page.resize(width, 700)
    for view in ("live", "files"):
        page.run(f"location.hash = '{view}'")
        page.wait_for(f"!document.querySelector('[data-view={view}]').hidden")
        assert page.run("document.documentElement.scrollWidth") <= width


def test_captions_follow_the_speech_until_the_reader_scrolls_up(page: Page) -> None:
    page.run(
        """import("/static/captions.js").then(({ Captions }) => {
          const list = document.getElementById("captions");
          list.hidden = false;
          document.getElementById("live-empty").hidden = true;
          window.say = (n) => captions.apply({ type: "final", utterance: n, start_s: n, end_s: n + 1,
            committed: `This is sentence number ${n}.`, tentative: "" });
          window.captions = new Captions(list, document.getElementById("to-latest"), () => {});
          for (let n = 0; n < 80; n++) say(n);
        })"""
    )
    at_end = "captions.isAtEnd()"
    page.wait_for(at_end)
    page.run("document.getElementById('captions').scrollTop = 100")
    page.wait_for("!document.getElementById('to-latest').hidden")
    page.run("say(80)")
    assert page.run("document.getElementById('captions').scrollTop") == 100
    page.press("Go to the latest words")
    page.wait_for(at_end)
    page.run("say(81)")
    page.wait_for(at_end + " && document.getElementById('to-latest').hidden")


_IS_FOCUS_SHOWN = """[document.activeElement, document.activeElement.nextElementSibling].some(
  (element) => element && getComputedStyle(element).outlineStyle !== "none")"""
