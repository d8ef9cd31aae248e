"""The page's own script: it puts into the chart what the person picks. A Python file, since Flower packs no other."""

SCRIPT = r"""
(async () => {
"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const at = (id) => document.getElementById(id);
const data = read("data");
if (!data.x.length || !data.y.length) return;

// Vectors are unpacked when they are first needed.
const unpacked = new Map();
function vector(place) {
  if (!unpacked.has(place)) {
    const text = atob(data.arrays[place]), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const view = new DataView(bytes.buffer), values = new Float64Array(bytes.length / 8);
    for (let i = 0; i < values.length; i++) values[i] = view.getFloat64(8 * i, true);
    unpacked.set(place, values);
  }
  return unpacked.get(place);
}

const hidden = new Set();
const narrow = window.matchMedia("(max-width: 600px)");
const shown = (await Bokeh.embed.embed_item(read("document"), "chart")).roots[0], chart = shown.model;
const part = (name) => chart.document.get_model_by_name(name);
const scales = {linear: new (Bokeh.Models.get("LinearScale"))(), log: new (Bokeh.Models.get("LogScale"))()};
const short = (value) => Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "\u2014";

function chosen() {
  const x = data.x[at("x").selectedIndex], y = data.y[at("y").selectedIndex];
  return {x, y, view: (data.views[x.key] || {})[y.key], each: at("each").checked, log: at("log").checked};
}

// The stretches of every curve that is shown: a piece of a median, or a seed.
function stretches({x, y, view, each}) {
  const found = [];
  data.methods.forEach((method, place) => {
    if (hidden.has(place)) return;
    if (!each) {
      for (const piece of (view && view.curves[place]) || []) {
        const whole = piece.seeds === method.seeds.length;
        found.push({method, place, whole, x: vector(piece.x), y: vector(piece.median), low: vector(piece.low),
                    high: vector(piece.high), seeds: piece.seeds + piece.held});
      }
      return;
    }
    const run = data.runs[place], xs = vector(run.x[x.key]), ys = vector(run.y[y.key]), rounds = vector(run.round);
    let from = 0;
    run.lengths.forEach((length, seed) => {
      const to = from + length, kept = [];
      for (let i = from; i < to; i++) if (Number.isFinite(xs[i]) && Number.isFinite(ys[i])) kept.push(i);
      from = to;
      if (kept.length) found.push({method, place, whole: true, seed, x: kept.map((i) => xs[i]),
                                   y: kept.map((i) => ys[i]), rounds: kept.map((i) => rounds[i])});
    });
  });
  return found;
}

function draw() {
  const now = chosen(), {x, y, view} = now, log = Boolean(now.log && view && view.log !== null);
  const bands = {xs: [], ys: [], colour: [], alpha: []};
  const lines = {xs: [], ys: [], colour: [], dash: [], width: [], alpha: []};
  const dots = {x: [], y: [], colour: []}, crosses = {x: [], y: [], colour: []};
  const names = ["x", "y", "label", "whose", "colour",
                 "x_name", "x_text", "y_name", "y_text", "more_name", "more_text"];
  const points = Object.fromEntries(names.map((name) => [name, []]));
  const point = (values) => names.forEach((name, i) => points[name].push(values[i]));
  const floor = log ? view.log[0] / 1e6 : 0;
  const ends = new Map();
  for (const one of stretches(now)) {
    const {method} = one, xs = [], ys = [], low = [], high = [], there = [];
    for (let i = 0; i < one.x.length; i++) {
      const value = one.y[i];
      if (log && !(value > 0)) continue;
      xs.push(one.x[i] / x.size); ys.push(value); there.push(i);
      if (one.low) { low.push(log ? Math.max(one.low[i], floor) : one.low[i]); high.push(one.high[i]); }
    }
    if (!xs.length) continue;
    const single = method.seeds.length === 1, colour = method.colour;
    if (one.low && !single && xs.length > 1) {
      bands.xs.push([...xs, ...xs.slice().reverse()]); bands.ys.push([...low, ...high.reverse()]);
      bands.colour.push(colour); bands.alpha.push(one.whole ? 0.16 : 0.08);
    }
    lines.xs.push(xs); lines.ys.push(ys); lines.colour.push(colour); lines.dash.push(method.dash);
    lines.width.push(now.each && !single ? 1.3 : one.whole ? 2.2 : 1.1);
    lines.alpha.push(now.each && !single ? 0.8 : 1);
    const whose = now.each || single ? "seed " + (method.seeds[one.seed || 0] || "\u2014")
                                     : "median of " + one.seeds + (one.seeds === 1 ? " seed" : " seeds");
    const tell = (k) => {
      const i = there[k], raw = one.x[i];
      const more = one.rounds && x.key !== "rounds" ? ["round", String(one.rounds[i])]
        : one.low && !single ? ["low\u2013high", short(one.low[i]) + "\u2013" + short(one.high[i])] : ["", ""];
      point([xs[k], ys[k], method.label, whose, colour, x.name, String(raw), y.label, String(one.y[i]), ...more]);
    };
    for (let k = 0; k < xs.length; k++) tell(k);
    if (xs.length === 1) tell(0);  // a line of no length, so that a lone point answers too
    point([NaN, NaN, "", "", "", "", "", "", "", "", ""]);
    const end = {x: xs[xs.length - 1], y: ys[ys.length - 1], colour, one, last: there[there.length - 1]};
    if (now.each) {
      const place = method.broken.includes(one.seed) ? crosses : dots;
      place.x.push(end.x); place.y.push(end.y); place.colour.push(colour);
    }
    ends.set(now.each ? one.place + ":" + one.seed : one.place, end);
  }
  if (!now.each) {
    for (const end of ends.values()) { dots.x.push(end.x); dots.y.push(end.y); dots.colour.push(end.colour); }
    for (const one of stretches({...now, each: true})) {
      const last = one.y.length - 1;
      if (!one.method.broken.includes(one.seed) || (log && !(one.y[last] > 0))) continue;
      const [low, high] = (view && (log ? view.log : view.linear)) || [one.y[last], one.y[last]];
      crosses.x.push(one.x[last] / x.size); crosses.y.push(Math.min(Math.max(one.y[last], low), high));
      crosses.colour.push(one.method.colour);
    }
  }
  const levels = (data.targets[y.key] || []).filter((level) => !log || level > 0);
  for (const [name, columns] of Object.entries({bands, lines, points, dots, crosses, targets: {y: levels}})) {
    part(name).data = columns;
  }
  tabulate(now, [...ends.values()]);
  return {now, log};
}

function fit({now, log}) {
  const {x, y, view} = now;
  const [left, right] = view ? view.x.map((value) => value / x.size) : [0, 1];
  const [low, high] = view ? (log ? view.log : view.linear) : [0, 1];
  chart.x_range.setv({start: left, end: right, reset_start: left, reset_end: right});
  chart.y_range.setv({start: low, end: high, reset_start: low, reset_end: high});
  chart.y_scale = scales[log ? "log" : "linear"];
  for (const kind of ["linear", "log"]) {
    part(kind).visible = part(kind + "-grid").visible = (kind === "log") === log;
    part(kind).axis_label = y.label;
  }
  ticks();
  part("x").axis_label = narrow.matches ? x.short : x.label;
}

// Where a logarithmic axis has its numbers: at powers of ten, at 1, 2 and 5, or evenly, as its range is wide.
function ticks() {
  const low = chart.y_range.start, high = chart.y_range.end, found = [];
  if (chart.y_scale !== scales.log || !(low > 0 && high > low)) return;
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  if (high < 5 * low) {
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
    for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  } else {
    const apart = Math.ceil((last - first) / 8), kept = high < 2e3 * low ? [1, 2, 5] : [1];
    for (let i = first; i <= last; i += apart) for (const each of kept) found.push(each * 10 ** i);
  }
  part("log").ticker.ticks = found;
}

function tabulate({x, y, each}, ends) {
  at("numbers-title").textContent = "Where each curve ends: " + y.label + " against " + x.name;
  at("chart").setAttribute("aria-label", "Line chart of " + y.label + " against " + x.name + " with " + ends.length +
                           " curves; the table below has the numbers at their ends");
  const rows = ends.map(({one, last}) => {
    const {method} = one, row = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row"; head.textContent = method.label; row.append(head);
    const cells = [each ? "seed " + (method.seeds[one.seed] || "\u2014") : String(one.seeds), String(one.x[last]),
                   String(one.y[last]), one.low ? short(one.low[last]) + "\u2013" + short(one.high[last]) : "\u2014"];
    for (const text of cells) {
      const cell = document.createElement("td"); cell.textContent = text; row.append(cell);
    }
    return row;
  });
  at("numbers").replaceChildren(...rows);
  at("nothing").hidden = ends.length > 0;
}

function suit() {  // the axis that suits the measure, and whether there is a choice
  const {view} = chosen();
  at("log").disabled = !view || view.log === null;
  at("log").checked = Boolean(view) && view.log !== null && view.suits === "log";
}

at("x").addEventListener("change", () => fit(draw()));
at("y").addEventListener("change", () => { suit(); fit(draw()); });
at("log").addEventListener("change", () => fit(draw()));
for (const id of ["median", "each"]) at(id).addEventListener("change", draw);
document.querySelectorAll("#legend button").forEach((button, place) => {
  button.addEventListener("click", () => {
    const shown = hidden.has(place);
    if (shown) hidden.delete(place); else hidden.add(place);
    button.setAttribute("aria-pressed", String(shown));
    const label = data.methods[place].label;
    document.querySelectorAll("tr[data-method]").forEach((row) => {
      if (row.dataset.method === label) row.hidden = !shown;
    });
    draw();
  });
});

// The same by the keyboard as by the pointer.
function zoom(factor) {
  for (const range of [chart.x_range, chart.y_range]) {
    const log = range === chart.y_range && chart.y_scale === scales.log;
    const [a, b] = log ? [Math.log(range.start), Math.log(range.end)] : [range.start, range.end];
    const middle = (a + b) / 2, half = (b - a) / 2 * factor, back = log ? Math.exp : (value) => value;
    range.setv({start: back(middle - half), end: back(middle + half)});
  }
}
at("closer").addEventListener("click", () => zoom(0.5));
at("farther").addEventListener("click", () => zoom(2));
at("reset").addEventListener("click", () => fit({now: chosen(), log: chart.y_scale === scales.log}));

const size = () => { chart.height = narrow.matches ? 340 : 460; };
narrow.addEventListener("change", () => { size(); fit({now: chosen(), log: chart.y_scale === scales.log}); });
chart.y_range.change.connect(ticks);
if (window.matchMedia("(pointer: coarse)").matches) {  // a finger that goes up or down scrolls the page
  chart.toolbar.active_drag = null;
  shown.canvas_view.events_el.style.touchAction = "pan-y";
}

// Paper has another width than the screen, and nothing to press: a picture of the chart, and all that is folded.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const each of opened) each.open = true;
  chart.toolbar.visible = false;
  at("paper").replaceChildren(shown.export("png").canvas);
  at("chart").hidden = true;
});
window.addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
  chart.toolbar.visible = true;
  at("paper").replaceChildren();
  at("chart").hidden = false;
});

size();
suit();
fit(draw());
document.documentElement.dataset.ready = "true";
})();
"""
