"""Pages in a headless Chromium, where there is one: on PATH, or named by TORCH_GRADCHECK_BROWSER."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reporting.render.samples import DRAWN_FACTS, SAMPLES
from torch_gradcheck.reporting.palette import WRONG
from torch_gradcheck.reporting.render.html import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("TORCH_GRADCHECK_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH, and none named by TORCH_GRADCHECK_BROWSER"),
]

LONG = replace(DRAWN_FACTS.parameters[0], name="model.decoder.layers.31.self_attn.rotary_embedding.in_proj.weight" * 2)
PAGES = {
    "drawn": DRAWN_FACTS,
    "long names": replace(DRAWN_FACTS, parameters=(LONG, *DRAWN_FACTS.parameters[1:]), notes=["x" * 300]),
    **{name: SAMPLES[name] for name in ("odd_shapes_and_figures", "two_hundred_tensors", "broken_contract")},
}

MEASURED = """
onload = () => {
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle(page.body);
    const bar = page.querySelector(".bar");
    return {
      wide: page.documentElement.scrollWidth, high: page.documentElement.scrollHeight,
      words: page.body.innerText, background: style.backgroundColor, color: style.color,
      bar: bar ? bar.getBoundingClientRect().width : 0,
    };
  }));
};
"""


def frames(found: dict[str, Any], *sizes: tuple[int, str]) -> str:
    """A document that shows every page in frames of these widths and color schemes."""
    shown = [
        f'<iframe style="width:{width}px; height:800px; border:0; color-scheme:{scheme}" '
        f'srcdoc="{escape(page(facts, name))}"></iframe>'
        for name, facts in found.items()
        for width, scheme in sizes
    ]
    return f"<!DOCTYPE html><style>body {{ margin: 0; white-space: nowrap }}</style>{''.join(shown)}"


def run(document: str, folder: Path, *flags: str) -> str:
    """What the browser writes on opening the document."""
    (folder / "frames.html").write_text(document, encoding="utf-8")
    plain = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command = [str(BROWSER), *plain, *flags, (folder / "frames.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_every_page_fits_phones_and_screens_in_light_and_dark(tmp_path: Path) -> None:
    sizes = ((390, "light"), (1280, "light"), (390, "dark"))
    document = frames(PAGES, *sizes) + f"<script>{MEASURED}</script>"
    title = re.search("<title>(.*?)</title>", run(document, tmp_path, "--dump-dom"), re.DOTALL)
    assert title is not None
    measured = json.loads(unescape(title[1]))
    assert len(measured) == 3 * len(PAGES)
    for at, shown in enumerate(measured):
        assert shown["wide"] == sizes[at % 3][0], "nothing stands out on the right"
        assert shown["high"] > 400
        assert shown["bar"] > 60
        assert "status" in shown["words"]
    light, _, dark = measured[:3]
    assert [light["background"], light["color"]] == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert light["background"] != dark["background"] != dark["color"] == "rgb(255, 255, 255)"


def test_a_screenshot_is_not_blank_and_dark_where_the_browser_is(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    document = frames({"drawn": DRAWN_FACTS}, (700, "light"), (700, "dark"))
    run(document, tmp_path, f"--screenshot={tmp_path / 'seen.png'}", "--window-size=1400,800")
    pixels = np.round(255 * image.imread(tmp_path / "seen.png")[..., :3]).astype(int)
    light, dark = pixels[:, :700], pixels[:, 700:]
    assert np.median(light) > 240
    assert np.median(dark) < 40
    wrong = [int(WRONG[at : at + 2], 16) for at in (1, 3, 5)]
    for half in (light, dark):
        assert (half == wrong).all(axis=-1).sum() > 500, "the badge of what is wrong"
        assert len(np.unique(half @ np.array([65536, 256, 1]))) > 50
