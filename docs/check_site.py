#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""python docs/check_site.py SITE: opens every page of a built site in Chromium, on a desk and on a phone.

It prints what is wider than the window and does not scroll in itself, links that lead nowhere, and errors of the
console, and exits with 1 where there are any, with 2 where there is no Chromium (Debian's package is `chromium`).
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urlsplit

WIDTHS = 1300, 390  # pixels of the window: a desk, a phone
DRAWN = "index.html", "api.html", "zh/index.html"  # pages that --pictures draws

# Finds elements that reach beyond the window. Those in a box that scrolls, and is itself inside it, are allowed.
# The text as a whole is no such box, although the theme lets it scroll on a phone. The theme's drawers are outside of
# the text: they lie beside the window until they are opened.
PROTRUDING = """
(() => {
  const window_ = document.documentElement.clientWidth;
  const protrudes = (e) => e.getBoundingClientRect().right > window_ + 1;
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const found = [];
  for (const e of document.querySelectorAll("article *")) {
    let box = e.parentElement;
    while (box.tagName !== "ARTICLE" && !scrolls(box)) box = box.parentElement;
    if (protrudes(e) && (box.tagName === "ARTICLE" || protrudes(box)) && found.length < 3)
      found.push(e.tagName.toLowerCase() + " " + JSON.stringify((e.textContent || "").trim().slice(0, 60)));
  }
  const whole = document.documentElement.scrollWidth;
  return whole > window_ ? [`the page is ${whole} pixels wide`, ...found] : found;
})()
"""
LINKS = "[...document.querySelectorAll('a[href]')].map((a) => a.href)"
IDS = "[...document.querySelectorAll('[id]')].map((e) => e.id)"


class Page(NamedTuple):
    faults: list[str]
    links: set[str]  # whole addresses
    ids: set[str]


class Browser:
    """Headless Chromium, driven by DevTools' messages over a pair of pipes."""

    def __init__(self, program: str, profile_dir: str) -> None:
        (commands, self._commands), (self._answers, answers) = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [
                *_with_pipes(commands, answers), program, "--headless=new", "--no-sandbox", "--disable-gpu",
                "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile_dir}",
            ],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._messages = self._read()
        self._last_id = 0
        self._session: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        self._last_id += 1
        command = {"id": self._last_id, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        for message in self._messages:
            if message.get("id") == self._last_id:
                if "error" in message:
                    raise RuntimeError(f"Chromium refuses {method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self._events.append(message)
        raise RuntimeError(f"Chromium has ended, with exit status {self._process.wait()}")

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def resize(self, width: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def open(self, address: str) -> list[str]:
        """Opens a page, and returns the errors that its console shows."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(next(self._messages))
        self.evaluate("0")  # what the page's programs have thrown by now comes before the answer
        return [text for event in self._events if (text := _console_error(event))]

    def draw(self, file: Path, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._session = {}
        self.call("Browser.close")
        self._process.wait(timeout=30)

    def _read(self) -> Iterator[dict[str, Any]]:
        rest = b""
        while piece := os.read(self._answers, 1 << 16):
            *whole, rest = (rest + piece).split(b"\0")
            yield from map(json.loads, whole)


def _with_pipes(commands: int, answers: int) -> list[str]:
    """Runs a program whose file descriptors 3 and 4 are these, which is where Chromium looks."""
    return ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash"]


def _console_error(event: dict[str, Any]) -> str | None:
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        details = params["exceptionDetails"]
        return f"{details['text']} {details.get('exception', {}).get('description', '')}"
    if method == "Runtime.consoleAPICalled" and params["type"] == "error":
        return " ".join(str(argument.get("value", argument.get("description"))) for argument in params["args"])
    if method == "Log.entryAdded" and params["entry"]["level"] == "error":
        address = params["entry"].get("url", "")
        asked_by_itself = address.endswith("/favicon.ico")
        return None if asked_by_itself else f"{params['entry']['text']} {address}"
    return None


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def visit(browser: Browser, address: str) -> Page:
    browser.resize(WIDTHS[0])
    faults = [f"console: {error}" for error in browser.open(address)]
    for width in WIDTHS:
        browser.resize(width)
        faults += [f"at {width} pixels: {what}" for what in browser.evaluate(PROTRUDING)]
    return Page(faults, set(browser.evaluate(LINKS)), set(browser.evaluate(IDS)))


def dead_links(site: Path, root: str, pages: dict[str, Page]) -> Iterator[tuple[str, str]]:
    """(page, link) of each link into the site that has no file there, or no place of that name in the page."""
    for name, page in pages.items():
        for link in sorted(page.links):
            if not link.startswith(root):
                continue
            address, place = urldefrag(link)
            path = unquote(urlsplit(address).path).lstrip("/")
            leads_to = site / path / "index.html" if (site / path).is_dir() else site / path
            reached = pages.get(str(leads_to.relative_to(site)))
            if not leads_to.is_file() or (place and reached and unquote(place) not in reached.ids):
                yield name, link.removeprefix(root)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="what sphinx-build has made")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draws some pages, in light and dark, into DIR")
    arguments = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        print("expected chromium on PATH, found none; on Debian: apt-get install chromium", file=sys.stderr)
        return 2
    site: Path = arguments.site.resolve()
    names = sorted(str(page.relative_to(site)) for page in site.rglob("*.html"))
    if not names:
        print(f"expected pages that sphinx-build has made, found none in {site}", file=sys.stderr)
        return 2

    began = time.monotonic()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile_dir:
        browser = Browser(program, profile_dir)
        pages = {name: visit(browser, root + name) for name in names}
        if arguments.pictures:
            draw(browser, root, arguments.pictures)
        browser.close()

    faults = [(name, fault) for name, page in pages.items() for fault in page.faults]
    faults += [(name, f"leads nowhere: {link}") for name, link in dead_links(site, root, pages)]
    for name, fault in faults:
        print(f"{name}: {fault}")
    links = sum(link.startswith(root) for page in pages.values() for link in page.links)
    print(
        f"{len(pages)} pages at {' and '.join(map(str, WIDTHS))} pixels, {links} links within the site: "
        f"{len(faults)} faults, {time.monotonic() - began:.0f} s"
    )
    return bool(faults)


def draw(browser: Browser, root: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    for name in DRAWN:
        for width in WIDTHS:
            browser.resize(width)
            browser.open(root + name)
            for scheme in ("light", "dark"):
                browser.draw(into / f"{name.removesuffix('.html').replace('/', '-')}-{width}-{scheme}.png", scheme)


if __name__ == "__main__":
    sys.exit(main())
