"""The report page as a browser shows it: at a desk and on a phone, in light and dark, without a network."""

import contextlib
import html
import json
import re
import shutil
import socketserver
import subprocess
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_page import HOSTILE, describe, make_report, planned, ran

from tsflora.analysis.page.page import Runs, build_page
from tsflora.analysis.page.sections import Item
from tsflora.analysis.tables.writers import write_table

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --disable-extensions "
    "--disable-domain-reliability --disable-client-side-phishing-detection --hide-scrollbars "
    "--disable-features=NetworkTimeServiceQuerying,OptimizationHints"
)
# Whatever the flags, a browser asks its maker for updates, sign-in and the time. No page is served from these.
ITS_OWN_HOSTS = {"accounts.google.com", "clients2.google.com", "update.googleapis.com", "www.google.com"}
DESKTOP, PHONE = 1280, 400
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n')

PROBE = """<script>
addEventListener("load", () => {
  const width = innerWidth, outside = [];
  for (const element of document.querySelectorAll("body *")) {
    const box = element.parentElement.closest(".card, .scroll");
    const skip = element.matches(".skip");
    if (box || skip || element.getBoundingClientRect().right <= width + 0.5) continue;
    outside.push(element.outerHTML.slice(0, 80));
  }
  parent.postMessage({
    title: document.title,
    width: width,
    scrollWidth: document.documentElement.scrollWidth,
    outside: outside,
    images: [...document.images].map(image => [image.complete, image.naturalWidth, image.clientWidth]),
    boxes: [...document.querySelectorAll(".scroll")].map(box => [box.clientWidth, box.scrollWidth]),
    unseen: [...document.querySelectorAll("tbody th, td")].filter(cell => {
      const box = cell.getBoundingClientRect();
      return cell.textContent && (box.width < 8 || box.height < 8 || box.left < 0);
    }).length,
    broken: [...document.querySelectorAll("td span, th span")].filter(word => word.getClientRects().length > 1).length,
    words: document.querySelectorAll("tbody th span").length,
    labels: [...document.querySelectorAll("td")].map(cell => getComputedStyle(cell, "::before").content)
      .filter(label => !["none", "normal", '""'].includes(label)).length,
    cells: document.querySelectorAll("td").length,
    resources: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !/^data:/.test(name)),
  }, "*");
});
</script></body>"""
# A window has a smallest width; a frame in it has none. The frame is the phone.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<style>body{{margin:0}}pre{{display:none}}iframe{{border:0;display:block}}</style><pre></pre>
<script>addEventListener("message", event => document.querySelector("pre").textContent = JSON.stringify(event.data))
</script><iframe src="{name}" width="{width}" height="{height}"></iframe>"""


def browse(profile, path, *options):
    """What the browser prints for a local file, in a profile of its own."""
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={profile}", *options, path.as_uri()]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    return outcome.stdout


def screenshot(folder, path, width, height, *options):
    frame = folder / f"frame_{width}.html"
    frame.write_text(FRAME.format(name=path.name, width=width, height=height))
    target = folder / f"{width}.png"
    size = f"--window-size={max(width, 500)},{height}"
    browse(folder / "profile", frame, size, f"--screenshot={target}", *options)
    return np.asarray(Image.open(target).convert("RGB"))[:, :width]


def probe(folder, page, width, *options):
    """What a script finds in a copy of the page that lets it run: without the policy that forbids every script."""
    text, n_policies = POLICY.subn("", page.decode())
    assert n_policies == 1
    (folder / "probed.html").write_text(text.replace("</body>", PROBE))
    (folder / "frame.html").write_text(FRAME.format(name="probed.html", width=width, height=900))
    waiting = ["--virtual-time-budget=10000", f"--window-size={max(width, 500)},900"]
    dom = browse(folder / "profile", folder / "frame.html", "--dump-dom", *waiting, *options)
    (said,) = re.findall(r"<pre>(.*?)</pre>", dom, re.DOTALL)
    return json.loads(html.unescape(said))


@contextlib.contextmanager
def listener():
    """A proxy that answers nothing and keeps the host of every request; with the options that lead to it."""
    hosts = set()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            if asked := re.match(rb"\w+ (?:\w+://)?([^/:\s]+)", self.rfile.readline()):
                hosts.add(asked[1].decode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        yield hosts, (f"--proxy-server={address}", "--proxy-bypass-list=<-loopback>")
        server.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """An incomplete study: narrow and wide figures, a table wider than a desk, a long word, a missing item."""
    folder = make_report(tmp_path_factory.mktemp("study") / "report")
    describe(
        folder / "costs",
        Item(stem="traffic", title="Traffic of one device"),
        Item(stem="energy", title="Energy_" * 20, caption="x" * 200),
    )
    runs = Runs([planned("sflora", 0), planned("sflora_8bit", 0)], [ran()])
    settings = {"Backbone": "vit_" * 30}
    return build_page(folder, "digits", runs, settings, order=["table_3"]).html


@pytest.mark.parametrize("width", [DESKTOP, PHONE, 320])
def test_the_page_fits_and_every_figure_is_decoded(tmp_path, page, width):
    found = probe(tmp_path, page, width)
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["outside"] == []
    assert len(found["images"]) == 2
    assert all(complete and natural > 0 and shown > 0 for complete, natural, shown in found["images"])
    assert found["resources"] == []


@pytest.mark.parametrize("width", [DESKTOP, PHONE, 320])
def test_tables_can_be_read_at_any_width(tmp_path, page, width):
    found = probe(tmp_path, page, width)
    assert found["unseen"] == 0
    assert found["words"] > 0
    assert found["broken"] == 0
    if width == DESKTOP:
        assert found["labels"] == 0
    else:  # nothing to scroll to: each value stands under the name of its column
        assert all(inner <= outer for outer, inner in found["boxes"])
        assert found["labels"] == found["cells"] > 14


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_is_not_blank_and_follows_the_colour_scheme(tmp_path, page, width):
    (tmp_path / "page.html").write_bytes(page)
    light = screenshot(tmp_path, tmp_path / "page.html", width, 1500)
    dark = screenshot(tmp_path, tmp_path / "page.html", width, 1500, "--blink-settings=preferredColorScheme=0")
    figure = (light == (0xD5, 0x5E, 0x00)).all(axis=2)  # the colour of the fixture's curve
    assert figure.sum() > 200
    assert (light < 128).all(axis=2).mean() > 0.005  # text
    assert light[2, 2].min() > 240
    assert dark[2, 2].max() < 60
    assert (dark > 220).all(axis=2).mean() > 0.05  # figures keep their white ground
    rows, columns = np.nonzero((dark == (0xD5, 0x5E, 0x00)).all(axis=2))
    assert len(rows) > 200
    assert dark[rows.min() - 12, columns[0]].min() > 220


def test_the_page_asks_nobody_for_anything(tmp_path, page):
    with listener() as (hosts, options):
        probe(tmp_path, page, DESKTOP, *options)
        (tmp_path / "page.html").write_bytes(page)
        browse(tmp_path / "profile", tmp_path / "page.html", "--dump-dom", *options)
        assert hosts - ITS_OWN_HOSTS == set()
        # The same listener hears a page that does ask.
        asking = (
            b'<link rel="preconnect" href="https://fonts.invalid"><img alt="" src="http://asks.invalid/x.png"></main>'
        )
        probe(tmp_path, page.replace(b"</main>", asking), DESKTOP, *options)
        assert hosts >= {"asks.invalid", "fonts.invalid"}


def test_no_label_runs_with_or_without_the_policy(tmp_path, page):
    folder = tmp_path / "report"
    describe(folder, Item(stem="t", title=HOSTILE, caption=HOSTILE))
    write_table(pd.DataFrame({HOSTILE: [HOSTILE]}), folder / "t")
    hostile = build_page(folder, HOSTILE, settings={HOSTILE: HOSTILE}).html
    assert probe(tmp_path, hostile, DESKTOP)["title"] == f"{HOSTILE} · tsflora report"
    # And where a label did become markup, the page's own policy would stop it.
    injected = page.replace(b"</main>", b"<script>document.title='owned'</script></main>")
    (tmp_path / "injected.html").write_bytes(injected)
    dom = browse(tmp_path / "profile", tmp_path / "injected.html", "--dump-dom")
    assert "<title>digits · tsflora report</title>" in dom
    (tmp_path / "injected.html").write_text(POLICY.sub("", injected.decode()))
    dom = browse(tmp_path / "profile", tmp_path / "injected.html", "--dump-dom")
    assert "<title>owned</title>" in dom
