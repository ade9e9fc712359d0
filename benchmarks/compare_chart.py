"""The chart of AP against labels on the page of `boxwise compare`, as a picture that stands alone.

    python benchmarks/compare_chart.py COMPARE OUT.svg

COMPARE is a folder that `boxwise compare` wrote. Below the page's own chart stands a name for each start.
"""

from __future__ import annotations

import json
import re
import sys
from html import escape
from pathlib import Path

import boxwise.report
from boxwise.report.charts import HEIGHT, LEFT, WIDTH

STYLE = Path(boxwise.report.__file__).with_name("style.css")
LEGEND = 25
"""Height of the names below, in the chart's units."""
CHART = re.compile(rf'<svg viewBox="0 0 {WIDTH} {HEIGHT}"[^>]*>(.*?)</svg>', re.DOTALL)


def picture(folder: Path) -> str:
    """The first chart of the page in `folder`."""
    chart = CHART.search((folder / "compare.html").read_text(encoding="utf-8"))
    if chart is None:
        raise ValueError(f"{folder / 'compare.html'}: holds no chart")
    arms = json.loads((folder / "results.json").read_text(encoding="utf-8"))["arms"]
    column = (WIDTH - LEFT) // len(arms)
    names = "".join(
        f'<circle class="dot s{i}" cx="{LEFT + 6 + i * column}" cy="{HEIGHT + 10}" r="4"/>'
        f'<text x="{LEFT + 15 + i * column}" y="{HEIGHT + 14}">{escape(arm)}</text>'
        for i, arm in enumerate(arms)
    )
    whole = f'width="{WIDTH}" height="{HEIGHT + LEGEND}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + LEGEND}">'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
        f'<rect {whole} fill="var(--card)"/>{chart[1]}{names}</svg>\n'
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(picture(Path(sys.argv[1])), encoding="utf-8")
