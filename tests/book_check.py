"""Build the book on a given result folder, and what every page of it must hold to, found in the HTML alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]


def build(folder, results):
    """Build the book in a copy of `book/` below `folder`; returns the HTML folder and what the command printed."""
    source = Path(folder) / "book"
    shutil.copytree(ROOT / "book", source, ignore=shutil.ignore_patterns("_build", "*-*-*.md", "__pycache__"))
    environment = os.environ | {"MEDQ_RESULTS": str(results), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    environment.pop("MEDQ_BOOK", None)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", source]
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, timeout=600, **said)
    assert done.returncode == 0 and "Finished generating HTML" in done.stdout, done.stdout[-4000:]
    return source / "_build" / "html", done.stdout


def warnings(output):
    """Lines of a build's output that warn, without what Jupyter's kernels say of their own connection."""
    lines = [line for line in output.splitlines() if not line.lstrip().startswith("[IPKernelApp]")]
    return [line for line in lines if re.search(r"\bWARNING\b|\bERROR\b", line)]


def pages(html):
    """{path of a page relative to the book: its parsed HTML}."""
    found = sorted(p for p in html.rglob("*.html") if "_static" not in p.parts)
    return {p.relative_to(html).as_posix(): BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser") for p in found}


def outside(html, parsed):
    """What a page would load from another host: (page, address)."""
    found = []
    for name, soup in parsed.items():
        tags = [
            (t, t.get("src")) for t in soup.find_all(["script", "img", "iframe", "source", "video", "audio", "embed"])
        ]
        tags += [(t, t.get("href")) for t in soup.find_all("link") if "canonical" not in (t.get("rel") or [])]
        found += [(name, address) for _, address in tags if address and re.match(r"(https?:)?//", address)]
    for sheet in html.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8", errors="replace")
        found += [(sheet.name, a) for a in re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)", text)]
        found += [(sheet.name, a) for a in re.findall(r"@import\s+['\"]((?:https?:)?//[^'\"]+)", text)]
    return found


def broken_links(html, parsed):
    """Internal links, images, scripts and anchors that lead nowhere: (page, address)."""
    anchors = {
        name: {t["id"] for t in soup.find_all(id=True)} | {t["name"] for t in soup.find_all("a", attrs={"name": True})}
        for name, soup in parsed.items()
    }
    found = []
    for name, soup in parsed.items():
        addresses = [t.get(k) for t in soup.find_all(True) for k in ("href", "src") if t.get(k)]
        for address in dict.fromkeys(addresses):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or address.startswith("javascript"):
                continue
            target = (html / name).parent / unquote(parts.path) if parts.path else html / name
            inside = os.path.relpath(os.path.normpath(target), html)
            if not target.is_file() or inside.startswith(".."):
                found.append((name, address))
            elif parts.fragment and inside in anchors and unquote(parts.fragment) not in anchors[inside]:
                found.append((name, address))
    return found


def plain_images(parsed):
    """Images without alternative text, width or height: (page, tag)."""
    return [
        (name, str(tag)[:120])
        for name, soup in parsed.items()
        for tag in soup.find_all("img")
        if not (tag.get("alt") or "").strip() or not tag.get("width") or not tag.get("height")
    ]
