"""A page of topics: one file of HTML that asks for nothing else, for screens of any size.

What the documents say is text here, never markup: all of it is escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from streamlearn.model import Model
from streamlearn.online.lda import LdaSolver
from streamlearn.topic_model import TopWords

__all__ = ["curves_of", "topic_page"]

_POINTS_MAX: Final = 2000
# The picture of a curve, in its own units.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 280, 76, 18, 14, 38
_CURVES: Final = (
    ("log_likelihood_per_token", "learned", "learned tokens, each given all others"),
    ("held_out_log_likelihood_per_token", "held", "held-out documents, by completion"),
)
_STYLE: Final = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--soft:#59636e;--line:#d8dee4;
--bar:#9ecbff;--fill:#ddf0ff;--one:#0b6bcb;--two:#b35900}
@media (prefers-color-scheme:dark){:root{--back:#0f1318;--text:#e6edf3;--soft:#9aa5b1;
--line:#2d343c;--bar:#1f5f9e;--fill:#16324d;--one:#6cb6ff;--two:#f0a35e}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:70rem;background:var(--back);
color:var(--text);font:16px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.5rem;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2rem 0 .6rem}
p{margin:.2rem 0;color:var(--soft)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.6rem 1rem;
margin:1.2rem 0 0}dl div{border-left:3px solid var(--bar);padding-left:.6rem}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-variant-numeric:tabular-nums}
svg{display:block;width:100%;height:auto;max-width:56rem}
svg text{fill:var(--soft);font-size:12px;font-family:inherit}
svg .grid{stroke:var(--line);stroke-width:1}
svg polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.learned{stroke:var(--one)}.held{stroke:var(--two)}svg circle.held{fill:var(--two)}
svg circle.learned{fill:var(--one)}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.85rem;color:var(--soft)}
.key span::before{content:"";display:inline-block;width:1.4em;border-top:3px solid;
margin-right:.5em;vertical-align:middle}.key .learned::before{border-color:var(--one)}
.key .held::before{border-color:var(--two)}
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:600;font-size:.85rem;
color:var(--soft);padding:.3rem .5rem;border-bottom:2px solid var(--line);white-space:nowrap;
position:sticky;top:0;background:var(--back)}
td{padding:.45rem .5rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.size{min-width:8.5rem;font-variant-numeric:tabular-nums}
.size i{display:block;height:.5rem;margin-top:.25rem;border-radius:2px;background:var(--bar);
min-width:1px}
.words span{display:inline-block;margin:0 .3rem .3rem 0;padding:.05rem .4rem;border-radius:4px;
overflow-wrap:anywhere;border:1px solid var(--line);
background:linear-gradient(to right,var(--fill) var(--p),transparent var(--p))}
@media (max-width:44rem){thead{display:none}svg text{font-size:22px}
tr{display:flex;flex-wrap:wrap;align-items:baseline;gap:.15rem .9rem;padding:.8rem 0;
border-bottom:1px solid var(--line)}td{border:0;padding:0}td.n::before{
content:attr(data-name) " ";color:var(--soft);font-size:.85rem}td.id{font-weight:600}
td.size{flex:1 0 60%}td.words{flex:1 0 100%;margin-top:.3rem}}
"""


def topic_page(
    directory: Path,
    model: Model,
    told: Mapping[str, Any],
    topics: Sequence[Mapping[str, Any]],
    found: TopWords,
) -> str:
    """Return a page of a model's topics.

    Parameters
    ----------
    directory : Path
        Whose ``report.json``, where there is one, says how the passes went.
    told, topics
        What ``topic_model`` says of the model and of each topic, the largest first.
    found : TopWords
        By whose counts words are weighed.
    """
    solver = model.solver
    assert isinstance(solver, LdaSolver)
    priors = solver.priors
    norms = priors.totals + max(priors.words, 1) * priors.beta
    name = directory.resolve().name or str(directory)
    title = escape(f"Topics of {name}")
    shown = [(label, told.get(key)) for key, label in _FIGURES]
    figures = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{_number(value)}</dd></div>"
        for label, value in shown
        if value is not None
    )
    measures = [one for one in _MEASURES if any(one[0] in topic for topic in topics)]
    heads = "".join(f'<th class="n" title="{about}">{label}</th>' for _, label, about in measures)
    largest = max((topic["share"] for topic in topics), default=0.0) or 1.0
    rows = "".join(
        _row(topic, measures, largest, (found.counts[topic["topic"]] + priors.beta)
             / norms[topic["topic"]])
        for topic in topics
    )  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{title}</h1><p>Snapshot {escape(str(model.resumed_from or ''))}</p>"
        f"<dl>{figures}</dl>\n{_curves(curves_of(directory))}"
        "<h2>Topics, the largest first</h2>\n<table><thead><tr>"
        f'<th class="n">topic</th><th>share of tokens</th>{heads}<th>words, by probability</th>'
        f"</tr></thead><tbody>\n{rows}</tbody></table>\n</body></html>\n"
    )


_FIGURES: Final = (
    ("topics", "topics"),
    ("vocabulary", "words with topics"),
    ("documents", "documents"),
    ("tokens", "tokens"),
    ("alpha_sum", "sum of alpha"),
    ("beta", "beta"),
    ("npmi", "mean NPMI"),
    ("umass", "mean UMass"),
    ("coherence_documents", "documents for coherence"),
)
_MEASURES: Final = (
    ("alpha", "alpha", "prior of the topic in a document"),
    ("exclusivity", "exclusivity", "how much its words are its own, 0 to 1"),
    ("npmi", "NPMI", "coherence, -1 to 1"),
    ("umass", "UMass", "coherence, 0 at best"),
)


def _row(
    topic: Mapping[str, Any],
    measures: Sequence[tuple[str, str, str]],
    largest: float,
    probabilities: Sequence[float],
) -> str:
    share, most = topic["share"], float(probabilities[0]) or 1.0
    words = "".join(
        f'<span style="--p:{100 * float(p) / most:.0f}%" title="{float(p):.4g}">'
        f"{escape(word)}</span>"
        for word, p in zip(topic["words"], probabilities, strict=False)
    )
    cells = "".join(
        f'<td class="n" data-name="{label}">{_number(topic.get(key))}</td>'
        for key, label, _ in measures
    )
    return (
        f'<tr><td class="n id" data-name="topic">{topic["topic"]}</td><td class="size">'
        f'{100 * share:.2f} %<i style="width:{100 * share / largest:.1f}%"></i></td>{cells}'
        f'<td class="words">{words}</td></tr>\n'
    )


def curves_of(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what ``report.json`` says of the passes: (pass, value) by figure, where it has some.

    A report that cannot be read, or is not of passes, has none.
    """
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        passes = list(report["passes"])
        found = {
            figure: [
                (int(one["pass"]), float(one[figure]))
                for one in passes
                if isinstance(one.get(figure), int | float) and math.isfinite(one[figure])
            ]
            for figure, _, _ in _CURVES
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {figure: _thinned(points) for figure, points in found.items() if len(points) > 1}


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    step = -(-len(points) // _POINTS_MAX)
    return points[:-1:step] + points[-1:]


def _curves(curves: Mapping[str, list[tuple[int, float]]]) -> str:
    """Return the picture of the passes; nothing where there is nothing to show."""
    if not curves:
        return ""
    every = [point for points in curves.values() for point in points]
    first, last = min(p for p, _ in every), max(p for p, _ in every)
    ticks = _ticks(min(v for _, v in every), max(v for _, v in every))
    low, high = ticks[0], ticks[-1]
    across = (_WIDTH - _LEFT - _RIGHT) / max(last - first, 1)
    down = (_HEIGHT - _TOP - _BOTTOM) / (high - low)

    def place(number: float, value: float) -> tuple[float, float]:
        return _LEFT + (number - first) * across, _HEIGHT - _BOTTOM - (value - low) * down

    parts = []
    for value in ticks:
        _, y = place(first, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" '
                     f'y2="{y:.1f}"/><text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
                     f"{value:g}</text>")  # fmt: skip
    for number in _whole_ticks(first, last):
        x, _ = place(number, low)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{number}</text>')
    keys = []
    for figure, kind, about in _CURVES:
        if figure not in curves:
            continue
        points = [place(*point) for point in curves[figure]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        x, y = points[-1]
        parts.append(f'<polyline class="{kind}" points="{path}"/>'
                     f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')  # fmt: skip
        value = curves[figure][-1][1]
        keys.append(f'<span class="{kind}">{about}: {value:.4f} '
                    f"(perplexity {math.exp(-value):,.0f})</span>")  # fmt: skip
    return (
        '<h2>Log-likelihood per token, by pass</h2>\n'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Log-likelihood per token, by pass">{"".join(parts)}</svg>\n'
        f'<div class="key">{"".join(keys)}</div>\n'
    )  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers, evenly spaced, that begin at or below ``low`` and end above."""
    span = max(high - low, 1e-6)
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= span / 4)
    start, end = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(start, max(end, start + 1) + 1)]


def _whole_ticks(first: int, last: int) -> Iterable[int]:
    step = max(1, round(_ticks(0, max(last - first, 1) / 2)[1]))
    whole = range(-(-first // step) * step, last + 1, step)
    return whole or (first,)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
