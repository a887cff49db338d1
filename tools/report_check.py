#!/usr/bin/env python3
"""Opens pages of `engine report` in headless Chromium, on a phone and on a desk, dark and light, and fails if a page asks the
network for anything, says anything on the console, breaks a rule of its own content policy, is wider than the window, or shows
no values under the pointer; also if its curves and pictures need JavaScript.

    tools/report_check.py REPORT.html ... [--shots DIR] [--chromium /usr/bin/chromium]

Needs Chromium (Debian's package `chromium`) and `pip install playwright`, which drives it. tests/training/report.png shows what
it saw of a short run of configs/tiny/ram_geneval.toml.
"""

import argparse
import pathlib
import shutil
import sys

from playwright.sync_api import sync_playwright

WINDOWS = {"phone": (360, 740), "desk": (1280, 900)}
SCHEMES = ["light", "dark"]
# Debian's Chromium looks for hosts of its own at every start.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# What sticks out of the window, other than what scrolls by itself.
WIDEST = """() => {
  const width = document.documentElement.clientWidth, out = [];
  if (document.documentElement.scrollWidth > width) out.push('the page is ' + document.documentElement.scrollWidth + ' wide');
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !e.closest('.scroll, .blocks, svg'))
      out.push(e.tagName + '.' + e.className + ' ends at ' + Math.round(box.right));
  }
  return out.slice(0, 5);
}"""
# Curves that have points and pictures that have pixels.
DRAWN = """() => ({
  curves: [...document.querySelectorAll('.plot path.line')].filter(p => p.getBoundingClientRect().width > 0).length,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth).length,
})"""


def check(context, path, shot, has_script):
    """The faults of the page at `path`; writes a picture of it to `shot`."""
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    own = path.resolve().as_uri()
    page.on("request", lambda r: r.url not in (own,) and not r.url.startswith("data:") and faults.append(f"asks for {r.url}"))
    page.goto(own)
    for image in page.query_selector_all("img[loading=lazy]"):
        image.scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, 0)")
    faults += page.evaluate(WIDEST)
    drawn = page.evaluate(DRAWN)
    if drawn["broken"]:
        faults.append(f"{drawn['broken']} pictures are broken")
    if shot:
        page.screenshot(path=shot, full_page=True)
    if not drawn["curves"]:
        page.close()
        return faults + ["no curve is drawn"]
    # The switch of the x axis needs no script.
    for axis in ("time", "images", "epochs"):
        page.click(f"label[for=axis-{axis}]")
        shown = [e for e in page.query_selector_all(".choice") if e.is_visible()]
        if [e.get_attribute("class").split("-")[-1] for e in shown] != [axis]:
            faults.append(f"the chart over {axis} does not show")
    plot = page.query_selector(".choice.of-epochs .plot")
    if has_script and plot:
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        for share in (0.02, 0.5, 0.98):
            page.mouse.move(box["x"] + share * box["width"], box["y"] + 20)
            tip = page.query_selector(".tip")
            if not tip or not tip.query_selector(".row b").inner_text():
                faults.append(f"no value at {share:.0%} of the chart")
            faults += page.evaluate(WIDEST)
    page.close()
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("reports", nargs="+", type=pathlib.Path, metavar="REPORT.html")
    parser.add_argument("--shots", type=pathlib.Path, metavar="DIR", help="folder for pictures of the pages")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium", metavar="FILE")
    args = parser.parse_args()
    failed = 0
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=args.chromium, args=FLAGS)
        for report in args.reports:
            for window, (width, height) in WINDOWS.items():
                for scheme in SCHEMES:
                    for has_script in (True, False):
                        context = browser.new_context(
                            viewport={"width": width, "height": height},
                            color_scheme=scheme,
                            java_script_enabled=has_script,
                            device_scale_factor=2 if window == "phone" else 1,
                            offline=True,
                        )
                        name = f"{report.stem}-{window}-{scheme}.png"
                        shot = args.shots / name if args.shots and has_script else None
                        faults = check(context, report, shot, has_script)
                        context.close()
                        script = "" if has_script else ", no script"
                        print(f"{report.name}, {window}, {scheme}{script}: {'; '.join(faults) or 'fine'}")
                        failed += bool(faults)
        browser.close()
    sys.exit(f"{failed} page(s) failed" if failed else 0)


if __name__ == "__main__":
    main()
