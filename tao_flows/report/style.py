"""The HTML report's style sheet: light and dark by the reader's setting, light on paper."""

from __future__ import annotations

from typing import Final

from tao_flows.report.chart import CHART_CSS
from tao_flows.report.gantt import GANTT_CSS

_DARK: Final = """
--ink:#e6eaf0;--soft:#9aa6b5;--paper:#151b23;--page:#0d1117;--line:#2a3441;--wash:#1b232d;
--measured:#4aa8e0;--attributed:#2bbd92;--estimated:#e9ab27;--unknown:#8a929d;
--tasks:#3d9bd6;--overhead:#e8753a;--idle:#7fc8f0;--allocated-idle:#d495b9;--unattributed:#6d7785;--bad:#ff8b7e;--good:#5fd0a5
"""
_LIGHT: Final = """
--ink:#1c2430;--soft:#5b6675;--paper:#ffffff;--page:#f4f6f9;--line:#dfe4ea;--wash:#f7f9fb;
--measured:#0072b2;--attributed:#009e73;--estimated:#e69f00;--unknown:#8a929d;
--tasks:#0072b2;--overhead:#d55e00;--idle:#56b4e9;--allocated-idle:#cc79a7;--unattributed:#b4bac2;--bad:#b3261e;--good:#00704f
"""
_BURN: Final = """
.chart .burnt{fill:var(--tasks,#0072b2);fill-opacity:.3;stroke:var(--tasks,#0072b2);stroke-width:1.6}
.chart .held{fill:var(--estimated,#e69f00);fill-opacity:.35}
.chart .limit{stroke:var(--overhead,#d55e00);stroke-width:1.6;fill:none}.chart .ceiling{stroke:var(--bad,#b3261e);stroke-width:2;fill:none}
.chart .even{stroke:var(--soft,#5b6675);stroke-width:1;stroke-dasharray:3 3;fill:none}
"""
_PARTS: Final = """
h3{font-size:14px;margin:18px 0 6px} a{color:var(--measured)} svg.chart.small{display:block;width:auto;max-width:100%;min-width:0;margin:10px 0 0} td svg.chart.small{margin:5px 0 0}
.rows{min-width:1000px;font-size:14px}
.row{display:grid;grid-template-columns:minmax(150px,2.2fr) minmax(96px,1fr) 172px 116px 150px 76px 88px 74px minmax(110px,1.3fr);
gap:0 12px;padding:7px 0 7px 18px;border-bottom:1px solid var(--line);align-items:baseline;overflow-wrap:anywhere}
.row.head{font-size:12px;font-weight:600;color:var(--soft)} .row.rest{color:var(--soft)}
.row .r{text-align:right;font-variant-numeric:tabular-nums} .row small{display:block}
details.task>summary{cursor:pointer;list-style:none;position:relative} details.task>summary::-webkit-details-marker{display:none}
details.task>summary::before{content:"";position:absolute;left:2px;top:13px;width:7px;height:7px;border:solid var(--soft);
border-width:0 1.6px 1.6px 0;transform:rotate(-45deg)}
details.task[open]>summary::before{transform:rotate(45deg)} details.task>summary:hover{background:var(--wash)}
details.task>summary:focus-visible{outline:2px solid var(--measured);outline-offset:-2px}
@media (max-width:1080px){.rows{min-width:760px;font-size:13px} .row{gap:0 8px;padding-left:16px;
grid-template-columns:minmax(96px,2fr) minmax(78px,1fr) 104px 100px 70px 54px 60px 50px minmax(78px,1.2fr)}}
.nowrap{white-space:nowrap} .cards .badge{font-size:11px;padding:0 7px;margin:2px 0}
.inside{scroll-margin-top:48px;padding:4px 0 14px 18px;border-bottom:1px solid var(--line);background:var(--wash)} .inside:target{box-shadow:inset 3px 0 0 var(--measured)} .inside p{margin:0 0 8px}
.inside td,.inside th{padding:4px 8px;font-size:13px}
form.filters{display:flex;flex-wrap:wrap;gap:10px 14px;align-items:end;margin:-12px 0 24px} .filters label{font-size:12px;color:var(--soft)}
.filters select{display:block;font:inherit;font-size:14px;color:var(--ink);background:var(--paper);border:1px solid var(--line);
border-radius:8px;padding:5px 8px;max-width:190px;margin-top:2px}
.budgets{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:20px 28px} .budgets h3{margin:0 0 2px}
.budgets p{margin:2px 0;font-size:14px} .chart .up{fill:var(--overhead)} .chart .down{fill:var(--attributed)}
form{margin:0} button{font:inherit;font-size:13px;font-weight:600;padding:4px 12px;border-radius:8px;border:1.5px solid var(--measured);
background:var(--paper);color:var(--measured);cursor:pointer} button:hover{background:var(--wash)}
"""
_RECORD: Final = """
.badge.s-automatic{color:var(--good)} .badge.s-automatic::before{background:var(--good)}
.badge.s-estimated{color:var(--ink);border-color:var(--estimated)} .badge.s-estimated::before{background:repeating-linear-gradient(45deg,var(--estimated) 0 2px,transparent 2px 3.5px);box-shadow:inset 0 0 0 1px var(--estimated)}
.badge.s-provider-input-required{color:var(--overhead)} .badge.s-provider-input-required::before{background:none;box-shadow:inset 0 0 0 1.5px var(--overhead)}
td.s-automatic{box-shadow:inset 3px 0 0 var(--good)} td.s-estimated{box-shadow:inset 3px 0 0 var(--estimated)}
td.s-provider-input-required{box-shadow:inset 3px 0 0 var(--overhead)} table.items td:first-child,table.items th:first-child{padding-left:12px}
table.items td{overflow-wrap:anywhere} table.items th:nth-child(1){width:23%} table.items th:nth-child(2){width:18.5%} table.items th:nth-child(3){width:24%} table.items{table-layout:fixed} table.items td.wide{min-width:0} table.items small{display:block;color:var(--soft);font-size:12px;line-height:1.4}
table.items td>strong{font-variant-numeric:tabular-nums} pre{margin:12px 0;padding:12px 14px;border-radius:8px;background:var(--wash);border:1px solid var(--line);white-space:pre-wrap;overflow-wrap:anywhere;font:13px ui-monospace,SFMono-Regular,Menlo,"Liberation Mono",monospace}
section.seal{border-left:4px solid var(--good)} section.scope{background:var(--wash)} .facts{display:grid;grid-template-columns:max-content 1fr;gap:6px 16px;margin:14px 0 0;font-size:14px} .facts dt{color:var(--soft)} .facts dd{margin:0;overflow-wrap:anywhere}
@media (max-width:760px){table.items{table-layout:auto}}
@media print{@page{size:A4;margin:13mm 12mm} main{font-size:9.5pt} h1{font-size:20pt} .big{font-size:28pt} section,.hero{padding:14px 16px;margin:0 0 12px;border-radius:8px}
.hero{grid-template-columns:1fr 1.7fr;gap:16px} .cards{grid-template-columns:repeat(3,1fr)} .cards dd{font-size:13pt} table{font-size:8.5pt} td,th{padding:4px 6px} td.wide,td.name{min-width:0} .scroll{overflow:visible}
section.long,section.items{break-inside:auto} table.items small{font-size:7.5pt} .items .badge,dl.words .badge{font-size:7.5pt;padding:0 6px} table.items .badge{white-space:normal} dl.words,.facts,pre,code{font-size:8.5pt} h2,h3{break-after:avoid} h2+p{break-after:avoid} a{color:inherit;text-decoration:none}}
"""
STYLE: Final = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}}
main{{max-width:1240px;margin:0 auto;padding:40px 24px 56px}}
.eyebrow{{font-size:12px;letter-spacing:.08em;text-transform:uppercase;color:var(--soft);margin:0 0 6px}}
h1{{font-size:32px;line-height:1.2;letter-spacing:-.01em;margin:0;overflow-wrap:anywhere}}
h2{{font-size:18px;margin:0 0 4px}} h2+p{{margin:0 0 18px}}
.meanings{{margin:16px 0 0;font-size:13px;color:var(--soft)}} .meanings b{{font-weight:600}} .meanings+.scroll{{margin-top:18px}}
.soft{{color:var(--soft)}} .num,td.r,th.r{{font-variant-numeric:tabular-nums}}
.sub{{margin:8px 0 28px;color:var(--soft);overflow-wrap:anywhere}}
section,.hero{{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:24px;margin:0 0 20px}}
.hero{{display:grid;grid-template-columns:minmax(280px,1.15fr) 2fr;gap:24px 32px;align-items:center}}
.big{{font-size:46px;line-height:1.05;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}}
.big~p{{margin:8px 0 0;color:var(--soft)}}
.cards{{display:grid;grid-template-columns:repeat(3,1fr);gap:18px 20px;margin:0}}
.cards div{{border-left:2px solid var(--line);padding-left:14px}}
.cards dt{{font-size:12px;color:var(--soft)}}
.cards dd{{margin:2px 0 0;font-size:20px;font-weight:600;font-variant-numeric:tabular-nums}}
.cards small{{display:block;font-size:12px;font-weight:400;color:var(--soft);line-height:1.35}}
.badge{{display:inline-block;font-size:12px;font-weight:600;line-height:1.5;padding:1px 9px;border-radius:99px;
border:1.5px solid currentColor;white-space:nowrap;color:var(--soft)}}
.badge::before{{content:"";display:inline-block;width:8px;height:8px;border-radius:50%;margin-right:6px;
background:var(--unknown)}}
.badge.q-measured::before{{background:var(--measured)}} .badge.q-attributed::before{{background:var(--attributed)}}
.badge.q-estimated::before{{background:repeating-linear-gradient(45deg,var(--estimated) 0 2px,transparent 2px 3.5px);
box-shadow:inset 0 0 0 1px var(--estimated)}}
.state{{font-weight:600}} .state.bad{{color:var(--bad)}} .state.good{{color:var(--good)}}
.scroll{{overflow-x:auto}} table{{border-collapse:collapse;width:100%;font-size:14px}}
th{{text-align:left;font-weight:600;font-size:12px;color:var(--soft);padding:6px 10px;
border-bottom:1px solid var(--line);white-space:nowrap}}
td{{padding:7px 10px;border-bottom:1px solid var(--line);vertical-align:top}}
tr:last-child td{{border-bottom:0}} td.r,th.r{{text-align:right;white-space:nowrap}}
td:first-child,th:first-child{{padding-left:0}} td:last-child,th:last-child{{padding-right:0}}
td.name{{overflow-wrap:anywhere;min-width:150px}} td.wide{{overflow-wrap:anywhere;min-width:200px}}
tr.rest td{{color:var(--soft);border-top:2px solid var(--line)}}
svg.chart{{display:block;width:100%;height:auto;min-width:660px;margin:4px 0 0}}
ul{{margin:0;padding-left:20px}} li{{margin:0 0 8px;overflow-wrap:anywhere}} li:last-child{{margin:0}}
dl.words{{display:grid;grid-template-columns:max-content 1fr;gap:8px 16px;margin:18px 0 0;font-size:14px}}
dl.words dd{{margin:0;overflow-wrap:anywhere}}
section.alert{{border-left:4px solid var(--overhead)}}
code{{font:13px ui-monospace,SFMono-Regular,Menlo,"Liberation Mono",monospace;overflow-wrap:anywhere}}
footer{{color:var(--soft);font-size:13px;margin:24px 0 0}}
{CHART_CSS}{GANTT_CSS}{_BURN}{_PARTS}
@media (max-width:760px){{main{{padding:24px 14px}}.hero{{grid-template-columns:1fr}}.cards{{grid-template-columns:repeat(2,1fr)}}section,.hero{{padding:18px}}}}
@media print{{:root{{{_LIGHT};--page:#fff}}body{{font-size:11pt;-webkit-print-color-adjust:exact;
print-color-adjust:exact}}main{{max-width:none;padding:0}}section,.hero,tr,svg.chart{{break-inside:avoid}}
svg.chart{{min-width:0}}section.long{{break-inside:auto}}thead{{display:table-header-group}}}}
{_RECORD}"""
