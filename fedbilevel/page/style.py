"""The look of the page, on a screen, on a phone and on paper."""

STYLE = """
:root { --ink: #222222; --quiet: #5f6368; --line: #e3e5e8; --soft: #f6f7f9; --accent: #0072B2; color-scheme: light; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #ffffff; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 32px; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 12px; }
.about, .note { color: var(--quiet); }
.about { margin: 0; overflow-wrap: anywhere; }
section { margin: 32px 0 40px; }
nav { margin-top: 14px; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 0.95rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.controls, #legend { display: flex; flex-wrap: wrap; gap: 10px 16px; align-items: center; margin-bottom: 12px; }
.controls label, .controls fieldset { display: inline-flex; align-items: center; gap: 6px; font-size: 0.95rem; }
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
fieldset label + label { margin-left: 10px; }
legend { float: left; padding: 0; color: var(--quiet); margin-right: 4px; }
.controls > label > span { color: var(--quiet); }
select, button { font: inherit; color: inherit; background: #ffffff; border: 1px solid #c4c8cd; border-radius: 8px; }
select { padding: 6px 10px; max-width: 100%; min-width: 0; }
button { padding: 5px 11px; cursor: pointer; }
button:hover, select:hover { border-color: #7d848c; }
input { accent-color: var(--accent); width: 17px; height: 17px; margin: 0; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.zoom { display: inline-flex; gap: 6px; margin-left: auto; }
#legend { gap: 8px; }
#legend button { display: inline-flex; align-items: center; gap: 8px; border-radius: 999px; border-color: var(--line);
  font-size: 0.92rem; max-width: 100%; text-align: left; overflow-wrap: anywhere; }
#legend svg { flex: none; }
#legend button[aria-pressed="false"] { color: #767b82; background: var(--soft); text-decoration: line-through; }
#legend button[aria-pressed="false"] svg { opacity: 0.3; }
figure { margin: 0; }
#chart { min-height: 340px; width: 100%; }
#paper canvas { max-width: 100%; height: auto !important; }
.table { overflow-x: auto; margin: 0 0 22px; }
table { border-collapse: collapse; min-width: min(100%, 640px); font-size: 0.93rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 6px; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(100%, calc(100vw - 32px)); }
th, td { padding: 5px 14px 5px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 500; border-bottom-color: #c4c8cd; vertical-align: bottom; }
th:first-child { text-align: left; font-weight: 500; }
tbody th { position: sticky; left: 0; background: #ffffff; }
.words td, .words thead th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.failed td, .failed th { color: #a33a00; }
.note { margin: -16px 0 22px; font-size: 0.9rem; }
details { margin-top: 8px; }
summary { cursor: pointer; color: var(--accent); margin-bottom: 10px; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; margin: 0;
  max-height: 30rem; overflow: auto; font: 0.85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 600px) {
  header, main { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 20px; }
  h1 { font-size: 1.35rem; }
  .controls > label { flex: 1 1 100%; }
  .controls > label select { flex: 1; }
  .controls > label.check { flex: 0 1 auto; }
  .zoom { margin-left: 0; }
  select, button { min-height: 40px; }
}
@media print {
  body { font-size: 10pt; }
  header, main { max-width: none; padding: 0; }
  nav, .controls, .hint, summary { display: none !important; }
  section { margin: 0 0 18pt; }
  #legend button { border: 0; padding: 0 8px 0 0; }
  #legend button[aria-pressed="false"] { display: none; }
  .table, pre { overflow: visible; }
  pre { max-height: none; white-space: pre-wrap; overflow-wrap: anywhere; border: 0; padding: 0; background: none; }
  tr, figure { break-inside: avoid; }
  h2, caption { break-after: avoid; }
  tbody th { position: static; }
  td, th { white-space: normal; padding-right: 8pt; }
}
"""
