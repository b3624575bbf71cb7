"""The report's style sheet: system fonts, light and dark, screen and paper."""

# Blue and orange stay apart for every common colour blindness, and in grey; see Okabe and Ito 2008.
LIGHT = """
  color-scheme: light;
  --page: #ffffff; --panel: #f6f7f9; --ink: #16191d; --muted: #5b6470; --line: #dde1e6;
  --accent: #0a5fb4; --accent-soft: #e6f0fb; --on-accent: #ffffff; --warm: #b4540a; --warm-soft: #fdf0e3;
    --bar: #a9b3bf;
"""
DARK = """
  color-scheme: dark;
  --page: #14171b; --panel: #1c2127; --ink: #e8ebef; --muted: #9ba5b1; --line: #343b44;
  --accent: #6fb3f5; --accent-soft: #172b40; --on-accent: #0d1117; --warm: #f0a057; --warm-soft: #38260f;
    --bar: #59636f;
"""
RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans",
    Arial, sans-serif;
  overflow-wrap: anywhere;
}
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
footer { padding-top: 24px; padding-bottom: 48px; color: var(--muted); font-size: 14px; }
h1 { font-size: clamp(26px, 4vw, 36px); line-height: 1.15; margin: 4px 0 12px; letter-spacing: -0.015em;
  text-wrap: balance; }
h2 { font-size: 24px; line-height: 1.25; margin: 0 0 16px; letter-spacing: -0.01em; }
h3 { font-size: 16px; line-height: 1.3; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 75ch; }
a { color: var(--accent); }
section { padding-top: 40px; margin-top: 40px; border-top: 1px solid var(--line); scroll-margin-top: 8px; }
.eyebrow { color: var(--muted); font-size: 14px; margin: 0; }
.verdict { font-size: 20px; line-height: 1.45; max-width: 62ch; margin-bottom: 20px; text-wrap: pretty; }
.note, .small, figcaption { color: var(--muted); font-size: 14px; }
.small { margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; margin: 24px 0 0; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
.banner, .warn { border-left: 5px solid var(--warm); background: var(--warm-soft); padding: 14px 18px;
  margin: 0 0 16px; border-radius: 4px; }
.banner p, .warn p { margin: 4px 0 0; max-width: 90ch; font-size: 15px; }
.banner strong { font-size: 18px; color: var(--warm); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(195px, 1fr)); gap: 12px; margin: 24px 0 0; }
.tile, .card { background: var(--panel); border-radius: 8px; padding: 16px 18px; }
.tile .label { font-size: 14px; color: var(--muted); }
.tile .figure { display: block; font-size: 32px; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em; }
.tile .figure small { white-space: nowrap; font-size: 15px; font-weight: 500; letter-spacing: 0; color: var(--muted); }
.tile .detail { font-size: 14px; color: var(--muted); }
.tile.main { background: var(--accent-soft); } .tile.main .figure { color: var(--accent); }
.tile.caution { background: var(--warm-soft); } .tile.caution .figure { color: var(--warm); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin-bottom: 28px; }
.card h3 { margin: 0 0 4px; font-size: 14px; } .card p { margin: 0; }
.card .figure { font-size: 25px; font-weight: 650; letter-spacing: -0.01em; margin-right: 6px; }
.card small { color: var(--muted); font-size: 14px; white-space: nowrap; }
.figure-none { color: var(--muted); font-style: italic; }
.unclear { font-size: 14px; color: var(--warm); }
.tile, .card, table, svg, dd { font-variant-numeric: tabular-nums; }
.pair, .grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 24px 40px; align-items: start; }
.pair > *, .grid > * { min-width: 0; }
.grid + .pair { margin-top: 24px; }
.grid .wide { grid-column: 1 / -1; }
figure { margin: 0 0 12px; } figure h3 { margin-top: 0; }
figcaption { margin-top: 4px; max-width: 70ch; }
.missing { background: var(--panel); border-radius: 8px; padding: 16px 18px; } .missing p { margin: 0; }
svg { display: block; width: 100%; height: auto; max-width: 560px; overflow: visible; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
  "Liberation Sans", Arial, sans-serif !important; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; max-width: 100%; }
.wide svg { max-width: none; min-width: 680px; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.4; margin-bottom: 12px;
  overflow-wrap: normal; }
table.slim { width: auto; }
caption { text-align: left; font-weight: 600; font-size: 16px; padding-bottom: 8px; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(100%, calc(100vw - 32px)); }
th, td { text-align: left; vertical-align: top; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; max-width: 36em; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; overflow-wrap: normal; }
tbody th { font-weight: 500; min-width: 7em; }
th.num, td.num { text-align: right; white-space: nowrap; } thead th.num { white-space: normal; }
details { border-bottom: 1px solid var(--line); padding: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
details > :not(summary) { margin-top: 12px; }
td details { border: 0; padding: 0; }
dl { margin: 0 0 16px; } dl > div { display: grid; grid-template-columns: 210px 1fr; gap: 2px 24px;
  padding: 9px 0; border-bottom: 1px solid var(--line); }
dt { font-weight: 600; } dd { margin: 0; max-width: 75ch; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 13px; }
td code { overflow-wrap: anywhere; }
pre { background: var(--panel); border-radius: 8px; padding: 14px 16px; margin: 0; overflow-x: auto;
  white-space: pre-wrap; }
@media (max-width: 560px) {
  main, header, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 24px; } .verdict { font-size: 18px; }
  .tiles, .cards { grid-template-columns: 1fr 1fr; gap: 8px; } .tile, .card { padding: 12px 14px; }
  .tile .figure { font-size: 26px; }
  dl > div { grid-template-columns: 1fr; }
  th, td { padding-right: 10px; }
}
"""
PAPER = """
  @page { margin: 16mm 14mm; }
  body { font-size: 10.5pt; } main, header, footer { max-width: none; padding-left: 0; padding-right: 0; }
  header { padding-top: 0; } nav { display: none; } section { margin-top: 20px; padding-top: 20px; }
  figure, .card, .tile, .banner, .warn, tr, dl > div { break-inside: avoid; } h2, h3, caption { break-after: avoid; }
  .banner, .warn, .tile, .card { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; } .wide svg { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
"""
STYLE = (
    f":root {{{LIGHT}}}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{{DARK}}} }}\n"
    f"{RULES}"
    f"@media print {{{PAPER}}}\n"
)
