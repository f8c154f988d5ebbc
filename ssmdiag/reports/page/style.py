"""The style of pages: rules below one class, so that a notebook's own pages keep theirs."""

from __future__ import annotations

from ssmdiag.reports.drawing import colours

_RULES = """
.ssmdiag-page{margin:0;background:var(--ground)}
.ssmdiag{background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI','Liberation Sans',
sans-serif;max-width:1040px;margin:0 auto;padding:16px;overflow-wrap:anywhere;text-align:left}
.ssmdiag *{box-sizing:border-box}
.ssmdiag h1{font-size:1.25rem;line-height:1.3;margin:.2em 0 .6em}
.ssmdiag h2{font-size:1.1rem;margin:1.6em 0 .5em;border-bottom:1px solid var(--edge);padding-bottom:.2em}
.ssmdiag h3{font-size:1rem;margin:1.2em 0 .4em}
.ssmdiag .verdict{border-left:5px solid var(--edge);background:var(--raised);padding:.7em .9em;margin:.6em 0}
.ssmdiag .finding{border-left:5px solid var(--edge);padding:.2em .9em;margin:.6em 0}
.ssmdiag .ok{border-color:var(--good)} .ssmdiag .ok b{color:var(--good)}
.ssmdiag .note{border-color:var(--note)} .ssmdiag .note b{color:var(--note)}
.ssmdiag .warning{border-color:var(--warning)} .ssmdiag .warning b,.ssmdiag tr.warning th{color:var(--warning)}
.ssmdiag .error{border-color:var(--error)} .ssmdiag .error b,.ssmdiag tr.error th{color:var(--error)}
.ssmdiag .scroll{overflow-x:auto;max-width:100%;margin:.6em 0}
.ssmdiag .scroll:focus-visible,.ssmdiag summary:focus-visible{outline:2px solid var(--note);outline-offset:1px}
.ssmdiag table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;background:var(--ground);
min-width:min(100%,30em)}
.ssmdiag caption{text-align:left;color:var(--quiet);padding:.2em 0}
.ssmdiag caption span{display:inline-block;position:sticky;left:0;max-width:min(1000px,calc(100vw - 40px))}
.ssmdiag th,.ssmdiag td{padding:.25em .6em;border-bottom:1px solid var(--edge);text-align:right;vertical-align:top;
white-space:nowrap;overflow-wrap:normal;background:var(--ground);color:var(--ink)}
.ssmdiag thead th{color:var(--quiet);font-weight:600;white-space:normal;vertical-align:bottom;min-width:5em;
max-width:9em}
.ssmdiag .whole{white-space:nowrap}
.ssmdiag tbody th{font-weight:600}
.ssmdiag th:first-child{text-align:left;position:sticky;left:0}
.ssmdiag .word,.ssmdiag .words{text-align:left} .ssmdiag .words{white-space:normal;min-width:18em;max-width:34em}
.ssmdiag th.words{min-width:9em;max-width:20em;overflow-wrap:anywhere}
.ssmdiag ul{padding-left:1.2em;margin:.5em 0} .ssmdiag li{margin:.25em 0}
.ssmdiag pre{background:var(--raised);padding:.6em .8em;font-size:.875rem;white-space:pre;overflow-wrap:normal}
.ssmdiag .pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:8px 24px;
align-items:start}
.ssmdiag figure{margin:1em 0;max-width:540px;break-inside:avoid;min-width:0}
.ssmdiag .pictures figure{margin:.4em 0}
.ssmdiag figcaption{font-size:.875rem;color:var(--quiet);margin-bottom:.4em} .ssmdiag figcaption b{color:var(--ink)}
.ssmdiag figure svg{width:100%;height:auto}
.ssmdiag summary{cursor:pointer;font-size:.875rem;color:var(--note);padding:.3em 0}
@media print{
.ssmdiag{max-width:none;padding:0;font-size:10pt}
.ssmdiag .scroll{overflow:visible}
.ssmdiag table{font-size:7.5pt} .ssmdiag th,.ssmdiag td{padding:.15em .35em;white-space:normal}
.ssmdiag .words{min-width:9em;overflow-wrap:anywhere} .ssmdiag h2,.ssmdiag h3{break-after:avoid}
.ssmdiag details:not([open]),.ssmdiag summary{display:none} .ssmdiag tr{break-inside:avoid}
}
"""
STYLE = f"{colours.variables('.ssmdiag,.ssmdiag-page')}{colours.STYLE}{_RULES}"
"""Everything in one text."""
