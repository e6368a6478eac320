"""The frame of a report: HTML skeleton, style and script, all inline. The page loads nothing and sends nothing."""

import html

# Belt and braces: even a hostile string in a run's files could not make the page fetch anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fff; --panel: #f6f7f8; --text: #1b1e23; --soft: #5c646f; --rule: #e2e5e9;
  --good: #18794e; --bad: #b42318; --open: #8a5a00; --accent: #2f5fd0;
  --s1: #2f5fd0; --s2: #c2570c; --s3: #0f7b6c; --s4: #8b3fb5; --s5: #6b7280;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131519; --panel: #1b1e23; --text: #e5e8ec; --soft: #99a2ae; --rule: #2b3037;
    --good: #56c596; --bad: #ff8077; --open: #e0b05a; --accent: #86a9ff;
    --s1: #86a9ff; --s2: #f29d62; --s3: #55c7b3; --s4: #cc9ff2; --s5: #99a2ae;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body {
  margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 1180px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 3rem 0 .35rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: .9rem; font-weight: 600; margin: 0; }
p { margin: .35rem 0; max-width: 46rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel); padding: .6rem .8rem;
  border-radius: 6px; margin: .35rem 0; }
.soft { color: var(--soft); font-size: .87rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-top: 1.2rem; font-size: .9rem; }
.verdict { margin: 1.2rem 0 0; padding: .7rem 1rem; border-left: 4px solid var(--open); background: var(--panel);
  border-radius: 0 6px 6px 0; max-width: none; }
.verdict b { color: var(--open); }
.verdict.good { border-color: var(--good); } .verdict.good b { color: var(--good); }
.verdict.bad { border-color: var(--bad); } .verdict.bad b { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 150px), 1fr)); gap: 1.1rem 1.5rem;
  margin: 1.5rem 0 0; }
.tiles dt { color: var(--soft); font-size: .82rem; }
.tiles dd { margin: 0; font-size: 1.4rem; font-weight: 600; line-height: 1.3; letter-spacing: -.01em; }
.tiles dd small { display: block; font-size: .82rem; font-weight: 400; color: var(--soft); letter-spacing: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 1.6rem 2rem;
  margin-top: 1rem; }
figure { margin: 0; min-width: 0; }
.chart { display: flex; flex-direction: column; }
.chart figcaption { display: flex; align-items: baseline; gap: .6rem; }
.chart .at { color: var(--soft); font-size: .8rem; margin-left: auto; }
.chart button { font-family: inherit; font-size: .72rem; line-height: 1; color: var(--soft); background: none;
  cursor: pointer; border: 1px solid var(--rule); border-radius: 4px; padding: .18rem .4rem; }
.chart .at:empty { flex: 1; }
.chart button[aria-pressed=true] { color: var(--page); background: var(--soft); border-color: var(--soft); }
.chart p { margin: .1rem 0 0; color: var(--soft); font-size: .8rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0 .9rem; list-style: none; margin: .15rem 0 .3rem; padding: 0;
  font-size: .8rem; color: var(--soft); }
.legend output { color: var(--text); font-weight: 600; }
.legend i { display: inline-block; width: 14px; border-top: 2.5px solid; vertical-align: .25em; margin-right: .3rem; }
.legend i.dashed { border-top-style: dotted; }
.chart svg { display: block; width: 100%; height: auto; margin-top: auto; touch-action: pan-y; outline-offset: 2px; }
.chart text { font: 10.5px system-ui, sans-serif; fill: var(--soft); }
.xtick { text-anchor: middle; } .ytick, text.limit { text-anchor: end; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart line.limit { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 1 3; }
.chart .line { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; }
.chart .line.dashed { stroke-dasharray: 5 3; stroke-width: 1.3; }
.chart .band { fill: currentColor; opacity: .14; } .chart .dot { fill: currentColor; }
.chart .cursor { stroke: var(--text); stroke-width: 1; opacity: .55; }
.s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); } .s4 { color: var(--s4); }
.s5 { color: var(--s5); }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; font-weight: 400; }
thead th { color: var(--soft); font-size: .82rem; border-bottom: 1px solid var(--rule); vertical-align: bottom; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
.probes tbody th { white-space: nowrap; }
.time td { text-align: right; padding-left: 1.2rem; } .time svg { width: 10rem; height: .6rem; }
table.probes { min-width: 34rem; width: 100%; } .probes td { min-width: 6.5rem; }
.probes thead tr:first-child th { border: 0; padding-bottom: 0; color: var(--text); font-weight: 600; }
.probes td b { font-weight: 700; } .probes svg { display: block; width: 100%; max-width: 11rem; height: 12px; }
.probes .track { stroke: var(--rule); stroke-width: 2; } .probes .chance { stroke: var(--soft); stroke-width: 1; }
.probes .spread { stroke: currentColor; stroke-width: 2; } .probes line { vector-effect: non-scaling-stroke; }
.probes .mean { stroke: currentColor; stroke-width: 7; stroke-linecap: round; }
table.scores { width: 100%; min-width: 40rem; } .scores thead th:first-child { color: var(--text); font-weight: 600; }
.scores th[scope=row] { width: 32%; } .scores td { min-width: 5rem; } .scores td:last-child { color: var(--soft); }
.scores small { display: block; color: var(--soft); font-size: .78rem; line-height: 1.35; }
.scores td small { white-space: nowrap; font-size: .74rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 1.2rem 2rem;
  margin-top: .8rem; }
.pictures.wide { grid-template-columns: 100%; }
.pictures img { display: block; max-width: 100%; height: auto; border-radius: 3px; }
.pictures.wide img { min-width: min(620px, 170vw); }
.pictures .scroll { margin: 0; }
.pictures figcaption { font-size: .87rem; color: var(--soft); margin-bottom: .35rem; }
.key { display: inline-flex; align-items: center; gap: .35rem; margin-right: 1rem; white-space: nowrap; }
.key i { width: 13px; height: 13px; border-radius: 2px; display: inline-block; }
.groups { columns: 21rem; column-gap: 2.5rem; margin-top: .8rem; }
.groups section { break-inside: avoid; margin-bottom: 1.4rem; }
.groups table { width: 100%; margin-top: .2rem; table-layout: fixed; }
.groups td, .groups th { padding: .2rem .6rem .2rem 0; font-size: .85rem; overflow-wrap: anywhere; }
.groups th { color: var(--soft); width: 52%; }
details { margin-top: .8rem; } summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .82rem; }
@media print { .chart button, nav { display: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""

SCRIPT = """
(() => {
  const format = (v, percent, digits) => {
    if (percent) return Number((v * 100).toPrecision(3)) + "%";
    const a = Math.abs(v);
    if (a >= 1e4 && a < 1e7) return Math.round(v).toLocaleString("en-US");
    if (a === 0 || (a >= 1e-3 && a < 1e4)) return String(Number(v.toPrecision(digits)));
    return Number(v.toPrecision(3)).toExponential();
  };
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (steps[mid] < step) low = mid; else high = mid; }
    return step - steps[low] <= steps[high] - step ? low : high;
  };
  const charts = [...document.querySelectorAll("figure.chart")].map(figure => {
    const outputs = [...figure.querySelectorAll("output")];
    return { figure, outputs, ...JSON.parse(figure.querySelector("script").textContent),
      svg: figure.querySelector("svg"), cursor: figure.querySelector(".cursor"), at: figure.querySelector(".at"),
      last: outputs.map(o => o.textContent) };
  });
  const show = step => charts.forEach(c => {
    if (step === null) c.cursor.setAttribute("hidden", ""); else c.cursor.removeAttribute("hidden");
    c.at.textContent = step === null ? "" : "step " + step.toLocaleString("en-US");
    c.outputs.forEach((output, i) => {
      const { s, v } = c.series[i];
      output.textContent = step === null ? c.last[i] : format(v[nearest(s, step)], c.percent, c.digits);
    });
    if (step === null) return;
    const x = c.x[0] + (step - c.steps[0]) / (c.steps[1] - c.steps[0]) * (c.x[1] - c.x[0]);
    c.cursor.setAttribute("x1", x); c.cursor.setAttribute("x2", x);
  });
  charts.forEach(c => {
    const { s } = c.series[0];
    let index = s.length - 1;
    c.svg.addEventListener("pointermove", event => {
      const box = c.svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * c.svg.viewBox.baseVal.width;
      const share = (x - c.x[0]) / (c.x[1] - c.x[0]);
      index = nearest(s, c.steps[0] + share * (c.steps[1] - c.steps[0]));
      show(s[index]);
    });
    c.svg.addEventListener("pointerleave", () => show(null));
    c.svg.addEventListener("blur", () => show(null));
    c.svg.addEventListener("keydown", event => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      index = Math.min(Math.max(index + move, 0), s.length - 1);
      show(s[index]);
    });
    const button = c.figure.querySelector("button");
    if (button) button.addEventListener("click", () => {
      const log = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", log);
      for (const [name, on] of [["lin", !log], ["log", log]]) {
        const plot = c.svg.querySelector("g." + name);
        if (on) plot.removeAttribute("hidden"); else plot.setAttribute("hidden", "");
      }
    });
  });
})();
"""


def page(title: str, body: str) -> str:
    """A complete HTML document. `title` is text, `body` is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
