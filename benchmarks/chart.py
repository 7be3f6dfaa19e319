"""Chart: measured bars as an SVG file. Pure; written by hand, so that the benchmark needs no plotting library."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 860
LABEL_WIDTH = 210
BAR_HEIGHT = 20
ROW_HEIGHT = 30
PANEL_HEAD = 46
MARGIN = 24
FONT = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
OURS, YARDSTICK, OTHERS = "#2563eb", "#64748b", "#cbd5e1"
INK, FAINT = "#0f172a", "#64748b"
# Of the widest bar, so that its figure still fits behind it.
USED = 0.72


@dataclass(frozen=True)
class Bar:
    """One subject; `low` and `high` are the extremes of its rounds."""

    label: str
    value: float
    low: float
    high: float
    kind: str = "ours"


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    bars: Sequence[Bar]


def draw(title: str, panels: Sequence[Panel], foot: str = "") -> str:
    """The panels below one another, as one SVG document."""
    height = MARGIN * 2 + 30 + sum(PANEL_HEAD + ROW_HEIGHT * len(panel.bars) for panel in panels) + 26
    size = f'width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {size} {FONT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(MARGIN, MARGIN + 14, title, size=19, weight=600),
    ]
    top = MARGIN + 30
    for panel in panels:
        parts += _panel(panel, top)
        top += PANEL_HEAD + ROW_HEIGHT * len(panel.bars)
    parts.append(_text(MARGIN, height - MARGIN + 4, foot, size=11, colour=FAINT))
    parts.append("</svg>\n")
    return "\n".join(parts)


def _panel(panel: Panel, top: int) -> list[str]:
    parts = [_text(MARGIN, top + 28, f"{panel.title} ({panel.unit})", size=14, weight=600)]
    largest = max((bar.high for bar in panel.bars), default=0) or 1
    scale = (WIDTH - 2 * MARGIN - LABEL_WIDTH) * USED / largest
    for index, bar in enumerate(panel.bars):
        y = top + PANEL_HEAD + index * ROW_HEIGHT
        left = MARGIN + LABEL_WIDTH
        width = max(1.0, bar.value * scale)
        colour = {"ours": OURS, "yardstick": YARDSTICK}.get(bar.kind, OTHERS)
        middle = y + BAR_HEIGHT / 2
        parts.append(_text(left - 10, y + 14, bar.label, size=13, anchor="end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="3" fill="{colour}"/>'
            f'<line x1="{left + bar.low * scale:.1f}" x2="{left + bar.high * scale:.1f}" y1="{middle}" y2="{middle}" '
            f'stroke="{INK}" stroke-width="1.5"/>'
        )
        parts.append(_text(left + max(width, bar.high * scale) + 8, y + 14, _figure(bar.value), size=13))
    return parts


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _text(
    x: float, y: float, text: str, *, size: int, weight: int = 400, colour: str = INK, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
