/* report.h: the curves of a training run as one HTML file that needs nothing but a browser.

   Curves are kept in bounded memory: when all bins are used, neighbours are merged.

       report_curves curves = {0};
       report_add(&curves, step, values);                NAN = no value at this step
       report_write("report.html", &page, &err);                                               */
#ifndef TOOL_REPORT_H
#define TOOL_REPORT_H

#include "common.h"

#include <math.h>

#define REPORT_BINS 1000

enum { REPORT_LOSS, REPORT_VALID, REPORT_UNIFORMITY, REPORT_AMBIGUITY, REPORT_UNUSED, REPORT_NORM,
       REPORT_RATE, REPORT_SPEED, REPORT_SERIES };

typedef struct report_bin {
    int64_t step;                   /* of the last value in it */
    double  sum[REPORT_SERIES];
    int32_t count[REPORT_SERIES];
} report_bin;

typedef struct report_curves {
    report_bin bins[REPORT_BINS];
    size_t     n;                   /* bins in use; the last one may still fill up */
    int64_t    width, filled;       /* steps of a full bin, of the last one */
} report_curves;

typedef struct report_page {
    const report_curves *curves;
    const char          *title, *subtitle, *options, *sample;
    double               bits;      /* bits per byte of one nat per token; 0 = unknown */
} report_page;

/* ---- report: curves -------------------------------------------------------------------------- */

static TOOL_UNUSED void report__merge(report_bin *into, const report_bin *from)
{
    size_t k;

    into->step = from->step;
    for (k = 0; k < REPORT_SERIES; k++) {
        into->sum[k] += from->sum[k];
        into->count[k] += from->count[k];
    }
}

static TOOL_UNUSED void report_add(report_curves *c, int64_t step,
                                   const double value[REPORT_SERIES])
{
    report_bin one;
    size_t k;

    memset(&one, 0, sizeof one);
    one.step = step;
    for (k = 0; k < REPORT_SERIES; k++) {
        one.sum[k] = isfinite(value[k]) ? value[k] : 0;
        one.count[k] = isfinite(value[k]) ? 1 : 0;
    }
    if (c->width == 0) c->width = 1;
    if (c->n > 0 && c->filled < c->width) {
        report__merge(&c->bins[c->n - 1], &one);
        c->filled++;
        return;
    }
    if (c->n == REPORT_BINS) {
        for (k = 0; k < REPORT_BINS / 2; k++) {
            c->bins[k] = c->bins[2 * k];
            report__merge(&c->bins[k], &c->bins[2 * k + 1]);
        }
        c->n = REPORT_BINS / 2;
        c->width *= 2;
    }
    c->bins[c->n++] = one;
    c->filled = 1;
}

/* ---- report: the page ------------------------------------------------------------------------ */

static TOOL_UNUSED void report__text(tool_buffer *out, const char *text)
{
    for (; text != NULL && *text != '\0'; text++) {
        if (*text == '<') tool_put(out, "&lt;", 4);
        else if (*text == '&') tool_put(out, "&amp;", 5);
        else if ((unsigned char)*text < 0x20 && *text != '\n') tool_put(out, " ", 1);
        else tool_put(out, text, 1);
    }
}

static TOOL_UNUSED void report__series(tool_buffer *out, const report_curves *c)
{
    size_t i, k;

    tool_putf(out, "const steps=[");
    for (i = 0; i < c->n; i++) tool_putf(out, "%s%lld", i ? "," : "", (long long)c->bins[i].step);
    tool_putf(out, "],data=[");
    for (k = 0; k < REPORT_SERIES; k++) {
        tool_putf(out, "%s\n[", k ? "," : "");
        for (i = 0; i < c->n; i++) {
            const report_bin *b = &c->bins[i];
            if (b->count[k] == 0) tool_putf(out, "%snull", i ? "," : "");
            else tool_putf(out, "%s%.5g", i ? "," : "", b->sum[k] / b->count[k]);
        }
        tool_put(out, "]", 1);
    }
    tool_putf(out, "];\n");
}

static const char *const report__style =
    "<style>\n"
    ":root{color-scheme:light dark;--ink:#222;--soft:#767676;--line:#ddd;--back:#fff;--a:#1667b7;"
    "--b:#c2410c}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--soft:#9a9a9a;--line:#3a3a3a;"
    "--back:#161616;--a:#6db3f8;--b:#fb923c}}\n"
    "body{margin:2em auto;max-width:1100px;padding:0 1em;font:15px/1.5 sans-serif;"
    "background:var(--back);color:var(--ink)}\n"
    "h1{font-size:1.3em;margin:0}p{color:var(--soft)}\n"
    "#charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:1em}\n"
    "figure{margin:0}figcaption{display:flex;justify-content:space-between}\n"
    "figcaption span{color:var(--soft);font-variant-numeric:tabular-nums}\n"
    "svg{width:100%;display:block}svg text{fill:var(--soft);font-size:11px}\n"
    ".grid{stroke:var(--line)}.mark{stroke:var(--soft);stroke-dasharray:2 3}\n"
    "path{fill:none;stroke:var(--a);stroke-width:1.5}.valid{stroke:var(--b)}"
    "circle{fill:var(--b)}\n"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--line);padding:1em}\n"
    "</style>\n";

/* Draws each chart as SVG; the pointer shows the values of its step in all charts at once. */
static const char *const report__script[] = {
    "const charts=[['loss, nats per token',0,1],['uniformity loss',2],['ambiguity loss',3],"
    "['half-experts that a batch did not use',4],['gradient norm',5],['learning rate',6],"
    "['tokens per second',7]];\n"
    "const W=520,H=230,L=52,R=8,T=8,B=22,name='http://www.w3.org/2000/svg',all=[];\n"
    "const el=(p,t,a)=>{const e=document.createElementNS(name,t);for(const k in a)"
    "e.setAttribute(k,a[k]);p.appendChild(e);return e};\n"
    "const show=v=>v==null?'':Math.abs(v)>=1000?Math.round(v).toLocaleString('en'):"
    "String(+v.toPrecision(4));\n"
    "const last=steps[steps.length-1]||1,X=s=>L+(W-L-R)*s/last;\n",
    "function ticks(a,b,n){let u=10**Math.floor(Math.log10((b-a)/n)),r=[];"
    "for(const m of[1,2,5,10])if((b-a)/(u*m)<=n){u*=m;break}"
    "for(let i=Math.ceil(a/u-1e-9);i*u<=b+u*1e-9;i++)r.push(i*u);return r}\n"
    "for(const[title,main,extra]of charts){\n"
    "const f=document.createElement('figure'),c=document.createElement('figcaption'),"
    "v=document.createElement('span');c.textContent=title;c.appendChild(v);f.appendChild(c);\n"
    "const s=el(f,'svg',{viewBox:`0 0 ${W} ${H}`});"
    "document.getElementById('charts').appendChild(f);\n"
    "const values=[...data[main],...(extra?data[extra]:[])].filter(y=>y!=null);"
    "if(!values.length)continue;\n"
    "const sorted=[...values].sort((a,b)=>a-b);let low=sorted[0],"
    "high=sorted[Math.ceil((sorted.length-1)*.995)];\n"
    "if(high-low<1e-12){low-=Math.abs(low)*.1+1e-9;high+=Math.abs(high)*.1+1e-9}\n"
    "const Y=y=>Math.max(T-4,H-B-(H-B-T)*(y-low)/(high-low));\n",
    "for(const y of ticks(low,high,5)){el(s,'line',{class:'grid',x1:L,x2:W-R,y1:Y(y),y2:Y(y)});"
    "el(s,'text',{x:L-6,y:Y(y)+4,'text-anchor':'end'}).textContent=show(y)}\n"
    "for(const x of ticks(0,last,5))el(s,'text',{x:X(x),y:H-6,'text-anchor':x?'middle':'start'})"
    ".textContent=show(x);\n"
    "const line=(ys,cls)=>{let d='';ys.forEach((y,i)=>{if(y!=null)d+=(d?'L':'M')+"
    "X(steps[i]).toFixed(1)+' '+Y(y).toFixed(1)});el(s,'path',{d,class:cls})};\n"
    "line(data[main],'');if(extra){line(data[extra],'valid');data[extra].forEach((y,i)=>{"
    "if(y!=null)el(s,'circle',{cx:X(steps[i]),cy:Y(y),r:2})})}\n"
    "const mark=el(s,'line',{class:'mark',y1:T,y2:H-B,x1:-9,x2:-9});\n"
    "const tell=i=>{const x=X(steps[i]);mark.setAttribute('x1',x);mark.setAttribute('x2',x);\n"
    "let t='step '+steps[i]+': '+show(data[main][i]);"
    "if(main==0&&bits)t+=' ('+show(data[0][i]*bits)+' bits/byte)';\n"
    "if(extra){let j=i;while(j>0&&data[extra][j]==null)j--;if(data[extra][j]!=null)"
    "t+=', validation '+show(data[extra][j])}v.textContent=t};\n",
    "tell(steps.length-1);all.push(tell);\n"
    "s.addEventListener('pointermove',e=>{const b=s.getBoundingClientRect(),"
    "x=((e.clientX-b.left)/b.width*W-L)/(W-L-R)*last;let i=0;\n"
    "while(i<steps.length-1&&Math.abs(steps[i+1]-x)<=Math.abs(steps[i]-x))i++;"
    "for(const t of all)t(i)});\n}\n"};

static TOOL_UNUSED bool report_write(const char *path, const report_page *page, tool_error *err)
{
    tool_buffer html = {NULL, 0, 0, false};
    size_t k;
    bool ok;

    tool_putf(&html, "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>");
    report__text(&html, page->title);
    tool_putf(&html, "</title>\n");
    tool_put(&html, report__style, strlen(report__style));
    tool_putf(&html, "<h1>");
    report__text(&html, page->title);
    tool_putf(&html, "</h1>\n<p>");
    report__text(&html, page->subtitle);
    tool_putf(&html, "</p>\n<div id=\"charts\"></div>\n");
    if (page->sample != NULL) {
        tool_putf(&html, "<p>Last sample</p>\n<pre>");
        report__text(&html, page->sample);
        tool_putf(&html, "</pre>\n");
    }
    tool_putf(&html, "<p>Options</p>\n<pre>");
    report__text(&html, page->options);
    tool_putf(&html, "</pre>\n<script>\nconst bits=%.9g;", page->bits);
    report__series(&html, page->curves);
    for (k = 0; k < sizeof report__script / sizeof report__script[0]; k++)
        tool_put(&html, report__script[k], strlen(report__script[k]));
    tool_putf(&html, "</script>\n</html>\n");
    ok = tool_write_file(path, &html, err);
    tool_buffer_free(&html);
    return ok;
}

#endif /* TOOL_REPORT_H */
