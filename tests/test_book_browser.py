"""Every page of a complete book in Chromium, from the file system: nothing missing, nothing loud, all of it
reachable.
"""

import shutil

import pytest

import book_check
from fixtures import results as fixtures_results

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1800)]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, TABLET, PHONE = ({"width": w, "height": h} for w, h in ((1400, 900), (768, 1024), (390, 844)))
AXE = {"preload": False}  # it would fetch style sheets, which a page from a file may not


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The book on a complete grid with gaps: a missing, a failed, an unsupported cell, and kernels that are
    wrong.
    """
    folder = tmp_path_factory.mktemp("whole book")
    made = fixtures_results.write(
        folder / "whole",
        phantoms=True,
        n=120,
        missing=[("phantom-SkinCancer", "swin_tiny", "qat-qnnpack")],
        failed=[("phantom-ChestXray", "vit_base", "fp16")],
        unsupported=[("phantom-BrainMRI", "convnext_tiny", "ptq-qnnpack")],
        disagree=[("phantom-BrainMRI", "mobilenetv2", "ptq-qnnpack")],
    )
    html, output = book_check.build(folder, made)
    return {"html": html, "output": output, "names": sorted(book_check.pages(html))}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.fail("these tests need Chromium: apt-get install chromium")
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


def opened(browser, viewport=DESKTOP, theme="light"):
    """A fresh page with the theme chosen, and what it complains about."""
    context = browser.new_context(viewport=viewport, color_scheme=theme)
    context.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    page.on(
        "request",
        lambda request: (
            said.append(f"elsewhere: {request.url}")
            if not request.url.startswith(("file:", "data:", "blob:"))
            else None
        ),
    )
    return page, said


def address(site, name):
    return (site["html"] / name).as_uri()


def test_every_page_loads_quietly_and_its_pictures_show(site, browser):
    assert book_check.warnings(site["output"]) == []
    page, said = opened(browser)
    wrong = []
    for name in site["names"]:
        page.goto(address(site, name), wait_until="load")
        empty = page.evaluate(
            """() => [...document.images].filter(i => getComputedStyle(i).display !== 'none' && i.offsetParent
                               && !(i.complete && i.naturalWidth && i.width && i.height)).map(i => i.src)"""
        )
        wrong += [(name, what) for what in [*said, *empty]]
        said.clear()
    assert wrong == []


TOO_WIDE = """() => {
  const wide = document.documentElement.scrollWidth > window.innerWidth + 1 ? ['the page scrolls sideways'] : [];
  const shown = [...document.querySelectorAll('.medq-figure img')].filter(i => i.offsetParent);
  const cut = shown.filter(i => i.getBoundingClientRect().right > window.innerWidth + 1 ||
                                i.getBoundingClientRect().width > i.closest('.medq-scroll').clientWidth + 1);
  return [...wide, ...cut.map(i => i.src)];
}"""
OVERLAP = """() => {
  const blocks = [...document.querySelectorAll('article.bd-article section > :is(p, div, details, figure, ul, dl, pre)')]
    .filter(e => e.offsetParent && e.getBoundingClientRect().height > 0);
  const boxes = blocks.map(e => e.getBoundingClientRect());
  return boxes.flatMap((a, k) => boxes.slice(k + 1, k + 3)
    .filter((b, j) => !blocks[k].contains(blocks[k + 1 + j]) && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
                      Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)
    .map(b => `${blocks[k].className || blocks[k].tagName} at ${Math.round(a.top)}`));
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE], ids=lambda s: str(s["width"]))
def test_no_page_is_wider_than_its_window_and_nothing_overlaps_or_is_cut_off(site, browser, size, theme):
    page, _ = opened(browser, size, theme)
    wrong = {}
    for name in site["names"]:
        if name.startswith("cells/") and name != "cells/index.html":
            continue
        page.goto(address(site, name))
        found = page.evaluate(TOO_WIDE) + page.evaluate(OVERLAP)
        if found:
            wrong[name] = found
    assert wrong == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(site, browser, theme):
    from axe_playwright_python.sync_playwright import Axe

    page, _ = opened(browser, DESKTOP, theme)
    cells = [n for n in site["names"] if n.startswith("cells/") and n != "cells/index.html"]
    found = {}
    for name in [n for n in site["names"] if n not in cells] + cells[::7]:
        page.goto(address(site, name))
        page.wait_for_timeout(250)  # colours fade in
        for rule in Axe().run(page, options=AXE).response["violations"]:
            found.setdefault((rule["id"], rule["nodes"][0]["html"][:140]), []).append(name)
    assert found == {}


def test_search_finds_qnnpack(site, browser):
    page, said = opened(browser)
    page.goto(address(site, "search.html") + "?q=QNNPACK")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    links = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.getAttribute('href'))")
    assert any("relu6" in link for link in links)
    assert said == []


def test_keyboard_reaches_content_search_and_wide_tables(site, browser):
    page, _ = opened(browser, PHONE)
    page.goto(address(site, "results/table1.html"))
    page.keyboard.press("Tab")
    assert "main-content" in page.evaluate("document.activeElement.hash || document.activeElement.id || ''")
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached |= set(page.evaluate("[document.activeElement.tagName, ...document.activeElement.classList]"))
    assert {"SUMMARY", "medq-scroll", "download"} <= reached
    page.goto(address(site, "index.html"))
    page.keyboard.press("Control+k")
    page.wait_for_timeout(400)
    assert page.evaluate("document.activeElement.type") == "search"


def test_theme_decides_which_figure_shows(site, browser):
    for theme in ("light", "dark"):
        page, _ = opened(browser, DESKTOP, theme)
        page.goto(address(site, "results/figure1.html"))
        shown = page.eval_on_selector_all(
            ".medq-figure img", "all => all.filter(i => i.offsetParent).map(i => i.className)"
        )
        assert shown and all(f"only-{theme}" in name and "medq-narrow" not in name for name in shown)
        page, _ = opened(browser, PHONE, theme)
        page.goto(address(site, "results/figure1.html"))
        narrow = page.locator(f".medq-figure img.medq-narrow.only-{theme}").first
        assert narrow.is_visible() and narrow.bounding_box()["width"] > 320, "as large as it was drawn"


def test_tables_sort_and_filter(site, browser):
    page, said = opened(browser)
    page.goto(address(site, "results/claims.html"))
    before = page.locator(".medq-sortable tbody tr").count()
    page.fill(".medq-sortable input[type=search]", "contradicted")
    after = page.locator(".medq-sortable tbody tr").count()
    assert 0 < after < before
    page.goto(address(site, "beyond/longer-training.html"))
    heading = page.locator(".medq-sortable thead th", has_text="Awareness")
    heading.click()
    column = heading.evaluate("h => h.cellIndex")
    values = page.eval_on_selector_all(
        ".medq-sortable tbody tr", f"all => all.map(r => parseFloat(r.cells[{column}].dataset.order))"
    )
    assert len(values) > 3 and values == sorted(values)
    assert said == []


def test_interactive_figures_answer_to_the_mouse(site, browser):
    page, said = opened(browser)
    for name in ("figure2", "figure4"):
        page.goto(address(site, f"results/{name}.html"))
        page.wait_for_selector(".js-plotly-plot .main-svg")
        point = page.locator(".js-plotly-plot .scatterlayer .point").first
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector(".js-plotly-plot .hoverlayer .hovertext", timeout=5000)
    assert said == []
