"""The report's page: its style sheet, its frame, and the parts it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .charts import PALETTE, Style

_CSS = """
:root { color-scheme: light dark; LIGHT }
@media screen and (prefers-color-scheme: dark) { :root { DARK } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui,
  -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 2.5rem) 3rem }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; margin: 0 0 .8rem;
  letter-spacing: -.02em; text-wrap: balance }
h2 { font-size: 1.3rem; margin: 3.2rem 0 .3rem; letter-spacing: -.01em; scroll-margin-top: 1rem }
h3 { font-size: 1rem; margin: 2rem 0 .2rem }
p { max-width: 46rem; margin: .4rem 0 }
.lead { font-size: 1.12rem; text-wrap: pretty }
.note, figcaption { color: var(--muted); font-size: .875rem }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.4rem 0 0; font-size: .9rem }
a { color: inherit; text-decoration-color: var(--muted); text-underline-offset: .25em }
.box { background: var(--surface); border: 1px solid var(--line); border-radius: .6rem }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr));
  margin: 1.6rem 0 1.2rem }
.cards .box { padding: .8rem 1rem }
.cards b { display: block; font-size: 1.35rem; line-height: 1.4; font-weight: 600;
  white-space: nowrap; font-variant-numeric: tabular-nums }
td small { color: var(--muted) }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .45em }
details { padding: .6rem 1rem }
summary { cursor: pointer; font-weight: 600 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; margin: .7rem 0;
  padding: .7rem .9rem; background: var(--page); border-radius: .4rem }
.scroll { overflow-x: auto; margin: .9rem 0 .4rem }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .38rem .8rem; text-align: right; white-space: nowrap; font-weight: 400 }
th:first-child, td:first-child { text-align: left }
thead th { color: var(--muted); font-size: .82rem; border-bottom: 1px solid var(--line) }
tbody + tbody tr:first-child > * { border-top: 1px solid var(--line) }
th[scope=rowgroup] { font-weight: 600; padding-top: .6rem }
.plain td { white-space: normal; overflow-wrap: anywhere; text-align: left }
.plain th { text-align: left; color: var(--muted) }
.charts { display: grid; gap: 1rem; margin: .9rem 0 .4rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }
figure { margin: 0; min-width: 0 }
.charts figure { padding: .9rem .9rem .7rem }
.charts figcaption { margin-top: .3rem }
svg { display: block; width: 100%; height: auto }
svg.chart { max-width: 40rem; margin: 0 auto; overflow: visible }
svg.icon { display: inline-block; width: auto; height: 1.2em; vertical-align: -.2em;
  margin-right: .35em }
.key { display: flex; flex-wrap: wrap; gap: .4rem 1.3rem; align-items: center; margin: .9rem 0;
  font-size: .9rem }
.key span.on { background: #39424e; color: #fff; border-radius: .35rem; padding: .1rem .5rem }
.ramp { display: inline-block; width: 9rem; height: .8em; border-radius: .2em; margin: 0 .5em;
  vertical-align: -.05em }
.panels { display: grid; gap: .7rem; overflow-x: auto; margin: .6rem 0 .4rem;
  grid-template-columns: repeat(var(--n), minmax(15rem, 1fr)) }
.panels svg { border-radius: .35rem; background: #39424e }
.panels figcaption { margin: .25rem 0 0; line-height: 1.35 }
.panels figcaption b { color: var(--ink); font-weight: 600 }
.mark rect { fill: none; stroke: currentColor; stroke-width: 1.8; pointer-events: all }
.mark path, .mark text { pointer-events: none }
.mark rect.halo { stroke: #0009; stroke-width: 3.6 }
.mark text { font: 600 10.5px system-ui, sans-serif; fill: currentColor; stroke: #000c;
  stroke-width: 2.6; stroke-linejoin: round; paint-order: stroke }
.mark path { fill: currentColor; stroke: #000c; stroke-width: 1.2; stroke-linejoin: round }
.mark path + text { font-weight: 800; font-size: 9px; fill: #000; stroke: none;
  text-anchor: middle }
.truth { color: #fff } .hit { color: #7cd0ff } .wrong { color: #ff4d4d }
.miss { color: #ffe033 } .false { color: #22c07a }
.wrong path + text { fill: #fff }
.miss rect { stroke-dasharray: 5 3 } .miss rect.halo { stroke-dasharray: none }
.thin rect { stroke-width: 1; opacity: .9 } .thin rect.halo { stroke-width: 2 }
footer { margin-top: 3.5rem; border-top: 1px solid var(--line); padding-top: .8rem }
@media screen and (max-width: 40rem) {
  th, td { padding: .35rem .5rem }
  th[scope=row] { white-space: normal }
  td small { display: block; font-size: .75rem; line-height: 1.2 }
  .charts figure { padding: .5rem }
}
@media print {
  @page { margin: 14mm }
  body { background: none; font-size: 10.5pt; print-color-adjust: exact;
    -webkit-print-color-adjust: exact }
  main { padding: 0; max-width: none }
  nav { display: none }
  h2, h3, .note, .key { break-after: avoid; break-inside: avoid }
  figure, .cards .box, tbody { break-inside: avoid }
  .panels, .scroll { overflow: visible }
  .panels { grid-template-columns: repeat(var(--n), minmax(0, 1fr)) }
  .charts { grid-template-columns: 1fr 1fr }
  details::details-content { content-visibility: visible; block-size: auto }
}
"""


def page(title: str, body: str, version: str) -> str:
    """The whole document around `body`, which is HTML already."""
    css = _CSS
    for name, column in (("LIGHT", 0), ("DARK", 1)):
        colours = "; ".join(f"--{role}: {pair[column]}" for role, pair in PALETTE.items())
        css = css.replace(name, colours)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f'<footer class="note">Written by ragrad_ext {escape(version)}. This file is complete in '
        "itself: it loads nothing else.</footer>\n</main>\n</body>\n</html>\n"
    )


def section(key: str, heading: str, *parts: str) -> str:
    """A heading that `nav` can point at, and the parts under it."""
    return f'<section>\n<h2 id="{key}">{escape(heading)}</h2>\n' + "\n".join(parts) + "\n</section>"


def note(text: str) -> str:
    """Plain words of explanation, in small print."""
    return f'<p class="note">{escape(text)}</p>'


def dot(style: Style) -> str:
    """The method's colour beside its name."""
    return f'<span class="dot" style="background: var(--{style.role})"></span>{escape(style.label)}'


def chart_row(*items: tuple[str, str]) -> str:
    """Charts (an inline svg and a caption each), side by side where there is room."""
    figures = [
        f'<figure class="box">{svg}<figcaption>{escape(caption)}</figcaption></figure>'
        for svg, caption in items
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def nav(items: Sequence[tuple[str, str]]) -> str:
    """Links to the sections: keys and short names."""
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in items)
    return f"<nav>{links}</nav>"


def cards(items: Sequence[tuple[str, str, str]]) -> str:
    """The figures that matter most: a heading (HTML), a number, a line of small print."""
    boxes = [
        f'<div class="box">{heading}<b>{escape(number)}</b>'
        f'<span class="note">{escape(small)}</span></div>'
        for heading, number, small in items
    ]
    return f'<div class="cards">{"".join(boxes)}</div>'


def table(head: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """Groups of rows, each under its heading; cells are HTML already."""
    html = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    html = f"<thead><tr>{html}</tr></thead>"
    for name, rows in groups:
        html += "<tbody>"
        if name:
            html += f'<tr><th scope="rowgroup" colspan="{len(head)}">{escape(name)}</th></tr>'
        for first, *rest in rows:
            cells = "".join(f"<td>{cell}</td>" for cell in rest)
            html += f'<tr><th scope="row">{first}</th>{cells}</tr>'
        html += "</tbody>"
    return f'<div class="scroll box" tabindex="0"><table>{html}</table></div>'


def details(command: str, settings: Mapping[str, object]) -> str:
    """The command and the settings, folded away; nothing where there is neither."""
    parts = [f"<pre><code>{escape(command)}</code></pre>"] if command else []
    if settings:
        rows = "".join(
            f'<tr><th scope="row">{escape(str(k))}</th><td>{escape(str(v))}</td></tr>'
            for k, v in settings.items()
        )
        parts.append(f'<table class="plain">{rows}</table>')
    if not parts:
        return ""
    return f'<details class="box"><summary>Command and settings</summary>{"".join(parts)}</details>'
