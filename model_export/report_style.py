"""The style of report.html: light, dark by the reader's setting, and paper. Knows class names only."""

from __future__ import annotations

STYLE = """
:root{--ink:#1b2430;--soft:#566273;--paper:#fff;--panel:#f5f7f9;--rule:#d5dbe2;--good:#1d7a46;--goodbg:#e8f5ed;
--s1:#8a5a00;--s2:#b3261e;--s3:#1f5fa8;--bar:#4a86c5}
@media (prefers-color-scheme:dark){:root{--ink:#e5e9ee;--soft:#a3aebb;--paper:#14181d;--panel:#1d232a;--rule:#38424d;
--good:#7fd6a2;--goodbg:#1a3326;--s1:#e0b155;--s2:#ff8b80;--s3:#7db8f5;--bar:#5b97d6}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1.5rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.7rem;margin:0 0 1rem}h2{font-size:1.25rem;margin:0 0 .5rem}
.name{overflow-wrap:anywhere}a{color:var(--s3)}p{max-width:48rem;margin:.4rem 0 .8rem}
section{margin-top:2rem;padding-top:1rem;border-top:1px solid var(--rule)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(11.5rem,1fr));gap:.6rem 1.5rem;margin:0}
.facts div:nth-last-child(-n+2){grid-column:1/-1}.facts dt{color:var(--soft);font-size:.85rem}
.facts dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
nav ul,.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:0;margin:1rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.6rem 0 1rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:.85rem;padding-bottom:.2rem}
th,td{padding:.25rem .9rem .25rem 0;text-align:right;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600}tbody th{font-weight:400}th:first-child{text-align:left}
.charts{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;flex:1 1 18rem;max-width:21rem}
figcaption{text-align:center;color:var(--soft);font-size:.9rem}
.chart{display:block;width:100%;height:auto;max-width:40rem}.chart text{font-size:12px;fill:var(--soft)}
.chart .end{text-anchor:end}.chart .middle{text-anchor:middle}.grid{stroke:var(--rule);stroke-width:1}
.ideal{stroke:var(--soft);stroke-width:1;stroke-dasharray:5 4}.line{fill:none;stroke-width:1.6}
.line.s1{stroke:var(--s1)}.line.s2{stroke:var(--s2)}.line.s3{stroke:var(--s3)}
.mark.s1{fill:var(--s1)}.mark.s2{fill:var(--s2)}.mark.s3{fill:var(--s3)}
.bar{fill:var(--bar)}.whisker{fill:none;stroke:var(--ink);stroke-width:1.2}
.key{width:.8rem;height:.8rem;margin-right:.4rem;vertical-align:-1px}
.example{display:grid;grid-template-columns:9.5rem 1fr;gap:1rem;padding:1rem;margin:1rem 0;background:var(--panel);
border-radius:8px;break-inside:avoid}
.results{list-style:none;margin:0;padding:0;display:grid;grid-template-columns:repeat(5,1fr);gap:.6rem}
.results li,.product{padding:.5rem;border-radius:6px;border:2px solid transparent;min-width:0}
.results li{background:var(--paper);border-color:var(--rule)}
.results li.hit{background:var(--goodbg);border-color:var(--good)}.hit strong{color:var(--good);display:block}
.picture{display:block;width:96px;height:96px;border-radius:4px;background:#fff}
.picture.none{display:grid;place-items:center;background:none;border:1px dashed var(--rule);color:var(--soft);
font-size:.8rem}
.title{margin:.4rem 0 .2rem;font-size:.9rem;line-height:1.3;overflow-wrap:anywhere}
.figures{margin:0;font-size:.8rem;color:var(--soft);font-variant-numeric:tabular-nums}
@media (max-width:50rem){.example{grid-template-columns:1fr}.results{grid-template-columns:repeat(2,1fr)}}
@media print{:root{--ink:#000;--soft:#444;--paper:#fff;--panel:#fff;--rule:#bbb;--good:#1d7a46;--goodbg:#fff;
--s1:#8a5a00;--s2:#b3261e;--s3:#1f5fa8;--bar:#4a86c5}
body{max-width:none;padding:0;font-size:11pt}nav{display:none}figure,table{break-inside:avoid}h2{break-after:avoid}
*{print-color-adjust:exact}.wide{overflow:visible}}
""".replace("\n", "")
