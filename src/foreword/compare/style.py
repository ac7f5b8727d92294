"""The style of a comparison's page: light and dark, wide and narrow, on paper."""

from __future__ import annotations

STYLE = """
:root {
  --surface: #fcfcfb; --raised: #f3f3f0; --ink: #14140f; --soft: #55554d; --line: #d9d8d2;
  --s0: #2a78d6; --s1: #d2571f; --s2: #1b8f66; --s3: #4a3aa7;
  --s4: #c03a75; --s5: #9a6b00; --s6: #0e7f93; --s7: #6b6b63;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --surface: #181816; --raised: #23231f; --ink: #f4f4f0; --soft: #b4b3a9; --line: #3d3d38;
    --s0: #5b9ff0; --s1: #f0814f; --s2: #35b98a; --s3: #a397f5;
    --s4: #ea76a8; --s5: #d5a021; --s6: #3db5c9; --s7: #a3a297;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 86rem;
  background: var(--surface); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%; text-size-adjust: 100%;
}
header p { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
h1 { margin: 0 0 1.25rem; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.25rem; line-height: 1.3; }
h3 { margin: 0 0 .25rem; font-size: 1rem; overflow-wrap: anywhere; }
p, dd, li { max-width: 48rem; overflow-wrap: anywhere; }
.soft, figcaption, caption, dt { color: var(--soft); }
.verdict {
  padding: 1rem 1.25rem; border-left: .25rem solid var(--s0); background: var(--raised);
  font-size: 1.125rem;
}
.verdict h2 { margin: 0 0 .25rem; font-size: 1rem; color: var(--soft); }
.verdict p { margin: .25rem 0; color: var(--ink); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dd { margin: 0; }
.traits { margin-top: .75rem; font-size: .8125rem; color: var(--soft); gap: 0 1rem; }
.traits dt { color: var(--ink); }
code, pre { font: .875rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre, td code { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { margin: .75rem 0; padding: .75rem 1rem; background: var(--raised); }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .5rem; text-align: left; caption-side: top; }
th, td { padding: .375rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; }
td { white-space: nowrap; vertical-align: top; }
thead th { vertical-align: bottom; line-height: 1.25; }
thead th { color: var(--soft); font-weight: 500; }
thead th[colspan] { text-align: left; }
tbody th, th.words, td.words { text-align: left; }
tbody th { vertical-align: top; overflow-wrap: anywhere; }
td.words { white-space: normal; overflow-wrap: anywhere; }
.results { width: 100%; font-size: .8125rem; }
.results th, .results td { padding: .375rem .3rem; }
.results .first { border-left: 1px solid var(--line); }
.results .method {
  position: sticky; left: 0; min-width: 9.5rem; background: var(--surface);
}
.results td small { display: block; color: var(--soft); font-size: .75rem; }
.results tbody th small { display: block; color: var(--soft); font-weight: 400; }
td.decides { font-weight: 600; }
.plots {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
  gap: 2.25rem 2.5rem;
}
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: .5rem; font-size: .875rem; overflow-wrap: anywhere; }
figcaption h3 { color: var(--ink); }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { font-size: 12px; fill: var(--ink); }
svg .tick, svg .axis, svg .note { fill: var(--soft); }
svg path { fill: none; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .zero { stroke: var(--ink); stroke-width: 1; }
svg .error { stroke: var(--soft); stroke-width: 1.5; }
svg .lead { stroke: var(--soft); stroke-width: .75; }
svg .reference { stroke: var(--soft); stroke-width: 1.25; stroke-dasharray: 6 4; }
svg .mark { fill: var(--own); stroke: var(--surface); stroke-width: 1.5; }
svg .curve { stroke: var(--own); stroke-width: 2; stroke-linejoin: round; }
svg .bar { fill: var(--own); }
svg .mark.hollow, svg .bar.merged { fill: var(--surface); stroke: var(--own); stroke-width: 2; }
svg .name, svg .note {
  paint-order: stroke; stroke: var(--surface); stroke-width: 3px; stroke-linejoin: round;
}
.s0 { --own: var(--s0); } .s1 { --own: var(--s1); } .s2 { --own: var(--s2); }
.s3 { --own: var(--s3); } .s4 { --own: var(--s4); } .s5 { --own: var(--s5); }
.s6 { --own: var(--s6); } .s7 { --own: var(--s7); }
.searches {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr));
  gap: 2rem 2.5rem;
}
.searches p { margin: 0 0 .5rem; font-size: .875rem; }
.searches table { width: 100%; }
tr.chosen { font-weight: 600; background: var(--raised); }
.commands { width: 100%; margin-bottom: 1.5rem; }
.commands th { width: 12rem; vertical-align: top; font-weight: 500; }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.375rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  .results .method { min-width: 7.5rem; max-width: 7.5rem; }
  .commands th { width: 6rem; }
}
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  :root { --surface: #fff; font-size: 10pt; }
  body { max-width: none; padding: 0; }
  svg { max-height: 155mm; }
  .scroll { overflow: visible; }
  .results { font-size: 7pt; }
  .results th, .results td { padding: 2pt 2.5pt; }
  .results .method { position: static; min-width: 0; }
  .results td small { font-size: 6.5pt; }
  .plots { grid-template-columns: 1fr 1fr; }
  .verdict, pre, tr.chosen { background: none; border: 1px solid var(--line); }
  figure, p, tr, .verdict, .traits, .searches section { break-inside: avoid; }
  h2, h3, caption, .soft { break-after: avoid; }
}
"""
