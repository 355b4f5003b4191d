"""The look of the report."""

from __future__ import annotations

from typing import Final

CSS: Final = """
:root { --ink: #1f2933; --soft: #52606d; --line: #e3e8ee; --paper: #ffffff; --ground: #f5f7fa;
--accent: #0072b2; --warn: #b34700; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--ground); color: var(--ink);
font: 16px/1.55 Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
header.top, main { max-width: 1000px; margin: 0 auto; padding: 0 1.25rem; }
header.top { padding-top: 2.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; margin: 0 0 .35rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
p { margin: .35rem 0 .8rem; max-width: 74ch; }
.soft, .lead { color: var(--soft); }
.state { display: inline-block; font-size: .8rem; font-weight: 600; padding: .15rem .65rem;
  border-radius: 99px;
vertical-align: .35rem; margin-left: .6rem; background: #e1eff8; color: #005a8c; }
.state.finished { background: #dcf3ea; color: #00664b; }
.state.failed { background: #fbe5d9; color: var(--warn); }
.reason { border-left: 4px solid var(--accent); background: var(--paper); padding: .7rem 1rem;
border-radius: 0 8px 8px 0; margin: 1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: .8rem; margin:
  1.2rem 0; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: .8rem
  1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 650; letter-spacing:
  -.02em;
font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .82rem; line-height: 1.35; display: block; }
nav { position: sticky; top: 0; z-index: 2; background: rgba(245, 247, 250, .94); border-bottom: 1px
  solid var(--line); }
nav div { max-width: 1000px; margin: 0 auto; padding: .55rem 1.25rem; display: flex; gap: 1rem;
  overflow-x: auto; }
nav a { color: var(--soft); text-decoration: none; font-size: .88rem; white-space: nowrap; }
nav a:hover, nav a:focus { color: var(--accent); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: 1.4rem
  1.5rem;
margin: 1.2rem 0; }
figure { margin: .8rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, caption, .note { color: var(--soft); font-size: .84rem; line-height: 1.45; max-width: 90ch;
  }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .89rem; margin: .6rem 0 1rem; min-width: 50%; }
caption { caption-side: bottom; text-align: left; padding-top: .45rem; }
th, td { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .8rem; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.wide { min-width: 18rem; overflow-wrap: anywhere; }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: #eef1f5;
  padding: .08em .35em;
border-radius: 4px; overflow-wrap: anywhere; }
details > summary { cursor: pointer; color: var(--accent); font-size: .9rem; margin: .6rem 0; }
.nothing { color: var(--soft); font-style: italic; }
footer { max-width: 1000px; margin: 0 auto 3rem; padding: 0 1.25rem; color: var(--soft); font-size:
  .85rem; }
@media (max-width: 640px) { section { padding: 1rem; } h1 { font-size: 1.5rem; } }
@media print { nav { display: none; } body { background: white; } section { break-inside: avoid; border:
  0; } }
"""
