// The page: what is chosen, and everything that shows it.

const $ = (id) => document.getElementById(id);
const began = performance.now();

const PALETTE = 8;
// So many rows of a table at first; and at most, as a browser has to lay them out.
const ROWS_FIRST = 12, ROWS_MOST = 2000;

const GROUPINGS = [
  ["both", "by call site and tag"],
  ["site", "by call site"],
  ["tag", "by tag"],
  ["stream", "by stream and pool"],
  ["size", "by size asked for"],
];

const model = new Model(JSON.parse($("data").textContent));
const { data, n } = model;
const view = new View(model);
const peak = data.allocatedPeak[1];
let moment = n;

// Groupings that were asked for, with what they hold at the peak and at the end.
const groupings = new Map();
function grouping(name) {
  if (!groupings.has(name)) {
    const found = model.grouping(name), count = found.labels.length;
    found.peak = model.holders(peak, found.groupOf, count);
    found.end = model.holders(n, found.groupOf, count);
    const weight = (group) => found.peak.bytes[group] + found.end.bytes[group];
    const order = found.labels.map((_, group) => group).sort((a, b) => weight(b) - weight(a) || a - b);
    found.largest = order.slice(0, PALETTE);
    found.colourOf = new Int8Array(count).fill(-1);
    found.largest.forEach((group, colour) => { found.colourOf[group] = colour; });
    groupings.set(name, found);
  }
  return groupings.get(name);
}

const timeline = new Timeline($("timeline"), view, data.limit);
const ratio = new Ratio($("ratio"), view, {
  extremes: (plot, firsts) => {
    const { reserved, allocated } = model.series;
    const low = new Float64Array(firsts.length - 1), high = low.slice();
    for (let i = 0; i < low.length; i++) {
      low[i] = Infinity;
      high[i] = NaN;
      for (let m = Math.max(0, firsts[i] - 1); m < Math.max(firsts[i], firsts[i + 1]) && m <= n; m++) {
        if (!(allocated[m] > 0)) continue;
        const value = reserved[m] / allocated[m];
        if (value < low[i]) low[i] = value;
        if (!(value <= high[i])) high[i] = value;
      }
    }
    return { low, high };
  },
  // What is nearly nothing makes a quotient of nearly anything: the axis ends at 8.
  most: ({ high }) => Math.min(8, Math.max(1.5, ...high.filter((value) => !Number.isNaN(value)))) * 1.06,
  ticks: (most) => (most > 5 ? [0, 2, 4, 6, 8] : most > 2.5 ? [0, 1, 2, 3, 4, 5] : [0, 0.5, 1, 1.5, 2, 2.5]).filter((tick) => tick <= most),
  label: (tick) => `${tick} ×`,
});
const share = new Ratio($("share"), view, {
  extremes: (plot, firsts) => {
    const count = model.free.length, low = new Float64Array(firsts.length - 1).fill(Infinity), high = low.slice().fill(NaN);
    for (let i = 0; i < low.length && count > 0; i++) {
      const from = Math.max(0, firsts[i] - 2), to = Math.max(from, firsts[i + 1] - 2);
      const stretch = (m) => Math.min(count - 1, Math.floor((m * count) / n));
      for (let s = stretch(from); s <= stretch(to); s++) {
        if (model.free[s] === 0) continue;
        const value = (100 * model.largest[s]) / model.free[s];
        if (value < low[i]) low[i] = value;
        if (!(value <= high[i])) high[i] = value;
      }
    }
    return { low, high };
  },
  most: () => 106,
  ticks: () => [0, 25, 50, 75, 100],
  label: (tick) => `${tick} %`,
});
const map = new SegmentMap($("map"), model, $("map-status"));
let pointer = null, dragged = null;

function drawPlots() {
  timeline.draw();
  ratio.draw();
  share.draw();
  drawOverlay();
}

const drawOverlay = () => timeline.drawOverlay(moment, pointer, dragged);

// Many changes between two pictures make one picture.
const waiting = new Set();
function soon(work) {
  if (waiting.size === 0) {
    requestAnimationFrame(() => {
      const all = [...waiting];
      waiting.clear();
      for (const work of all) work();
    });
  }
  waiting.add(work);
}

const clockOf = (m) => formatClock(model.time[m], model.hasTimes);

function momentText(m) {
  const { requested, allocated, active, reserved } = model.sums(m);
  const event = m === 0 ? "before the first step" : `step ${grouped(m)} of ${grouped(n)}`;
  const at = model.hasTimes ? `${clockOf(m)}, ${event}` : `${event}, after ${clockOf(m)} of the trace`;
  return { at, requested, allocated, active, reserved };
}

function showMoment() {
  const { at, requested, allocated, active, reserved } = momentText(moment);
  const line = $("moment");
  line.textContent = `At ${at}: requested ${formatBytes(requested)}, allocated ${formatBytes(allocated)}, active ${formatBytes(active)}, reserved ${formatBytes(reserved)}.`;
  Object.assign(line.dataset, { moment, requested, allocated, active, reserved });
  const slider = $("timeline");
  slider.setAttribute("aria-valuenow", moment);
  slider.setAttribute("aria-valuetext", line.textContent);
  $("scrub").value = moment;
  $("scrub").setAttribute("aria-valuetext", line.textContent);
  $("map-summary").textContent = map.show(moment);
  showRows();
  drawOverlay();
}

function go(to) {
  const next = Math.min(n, Math.max(0, to));
  if (next === moment) return;
  moment = next;
  const point = view.of(moment);
  if (point < view.low || point > view.high) {
    const width = view.high - view.low;
    view.show(point - width / 2, point + width / 2);
    soon(drawPlots);
  }
  soon(showMoment);
}

function zoom(factor, point = view.of(moment)) {
  view.zoom(factor, Math.min(view.high, Math.max(view.low, point)));
  soon(drawPlots);
}

function showAll() {
  view.all();
  soon(drawPlots);
}

// The moment whose step a point of the axis has passed.
const momentAt = (point) => Math.min(n, Math.max(0, view.behind(point) - 1));

function moveBy(direction, part) {
  const step = (view.high - view.low) * part;
  const to = momentAt(view.of(moment) + direction * step);
  go(direction > 0 ? Math.max(to, moment + 1) : Math.min(to, moment - 1));
}

function timelineKeys(event) {
  const keys = {
    ArrowRight: () => (event.shiftKey ? go(moment + 1) : moveBy(1, 1 / 200)),
    ArrowLeft: () => (event.shiftKey ? go(moment - 1) : moveBy(-1, 1 / 200)),
    ArrowUp: () => moveBy(1, 1 / 200),
    ArrowDown: () => moveBy(-1, 1 / 200),
    PageUp: () => moveBy(1, 1 / 10),
    PageDown: () => moveBy(-1, 1 / 10),
    Home: () => go(0),
    End: () => go(n),
    "+": () => zoom(1 / 1.6),
    "=": () => zoom(1 / 1.6),
    "-": () => zoom(1.6),
    0: showAll,
    p: () => go(peak),
  };
  const action = keys[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function timelinePointer() {
  const element = $("timeline");
  const inside = (event) => {
    const x = event.clientX - element.getBoundingClientRect().left;
    return Math.min(MARGIN.left + timeline.inner, Math.max(MARGIN.left, x));
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    dragged = [inside(event), inside(event)];
  });
  element.addEventListener("pointermove", (event) => {
    pointer = inside(event);
    if (dragged) dragged[1] = pointer;
    readOut(pointer, event.clientY - element.getBoundingClientRect().top);
    soon(drawOverlay);
  });
  const away = () => {
    pointer = dragged = null;
    timeline.tip.hidden = true;
    soon(drawOverlay);
  };
  element.addEventListener("pointerup", () => {
    if (!dragged) return;
    const [from, to] = [...dragged].sort((a, b) => a - b);
    dragged = null;
    if (to - from < 4) go(momentAt(timeline.point(to)));
    else {
      view.show(timeline.point(from), timeline.point(to));
      soon(drawPlots);
    }
    soon(drawOverlay);
  });
  element.addEventListener("pointercancel", away);
  element.addEventListener("pointerleave", () => { if (!dragged) away(); });
  element.addEventListener("dblclick", showAll);
  element.addEventListener("wheel", (event) => {
    const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    // At its full width the page scrolls on, out of the chart.
    if (!sideways && view.isAll && event.deltaY > 0) return;
    event.preventDefault();
    if (sideways) {
      view.pan((event.deltaX || event.deltaY) / 1000);
      soon(drawPlots);
    } else zoom(event.deltaY > 0 ? 1.25 : 1 / 1.25, timeline.point(inside(event)));
  }, { passive: false });
}

function readOut(x, y) {
  const m = momentAt(timeline.point(x));
  const { at, requested, allocated, active, reserved } = momentText(m);
  const notes = (timeline.notes || []).filter((note) => Math.abs(note.x - x) < 3).slice(0, 3);
  const ooms = model.ooms.filter((oom) => Math.abs(timeline.x(view.of(oom.moment)) - x) < 5).slice(0, 2);
  timeline.showTip([
    at,
    `reserved ${formatBytes(reserved)}`,
    `active ${formatBytes(active)}`,
    `allocated ${formatBytes(allocated)}`,
    `requested ${formatBytes(requested)}`,
    ...notes.map((note) => `“${note.text}”`),
    ...ooms.map(({ size, free }) => `out of memory: ${formatBytes(size)} wanted${free === null ? "" : `, ${formatBytes(free)} left on the device`}`),
  ], x, y);
}

const element = (name, text = "", attributes = {}) => {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

function swatch(colour) {
  const mark = element("i", "", { class: "mark" });
  mark.style.background = colour < 0 ? "var(--others)" : `var(--c${colour})`;
  return mark;
}

function showLegend() {
  const { labels, largest, colourOf, groupOf } = grouping($("group").value);
  map.setColours(groupOf, colourOf);
  map.highlighted = -1;
  const entries = largest.map((group, colour) => {
    const button = element("button", "", { type: "button", "aria-pressed": "false", title: labels[group] });
    button.append(swatch(colour), shorter(labels[group]));
    button.addEventListener("click", () => {
      map.highlighted = map.highlighted === colour ? -1 : colour;
      for (const other of $("legend").querySelectorAll("button")) {
        other.setAttribute("aria-pressed", String(other === button && map.highlighted >= 0));
      }
      map.draw();
    });
    const entry = element("li");
    entry.append(button);
    return entry;
  });
  const plain = [["pending", "freed, still in use by a stream"], ["free", "free"]];
  if (labels.length > largest.length) plain.unshift(["", "others"]);
  for (const [name, text] of plain) {
    const entry = element("li");
    entry.append(name ? element("i", "", { class: `mark ${name}` }) : swatch(-1), text);
    entries.push(entry);
  }
  $("legend").replaceChildren(...entries);
}

// The end of a long path is what tells files apart.
const shorter = (label) => label.replace(/^\S*?([^\s/\\]+[/\\][^\s/\\]+:\d+)/, "$1");

const COLUMNS = [
  ["name", "Holder"],
  ["endBytes", "At the end"], ["endBlocks", "blocks"],
  ["peakBytes", "At the peak"], ["peakBlocks", "blocks"],
  ["nowBytes", "At this moment"], ["nowBlocks", "blocks"],
];
const sorting = { column: "endBytes", descending: true };
let showsMore = false;

function tableHead() {
  const row = element("tr");
  COLUMNS.forEach(([column, text]) => {
    const head = element("th", "", { scope: "col", class: column === "name" ? "" : "number" });
    const button = element("button", text, { type: "button" });
    button.append(element("span", "", { class: "arrow", "aria-hidden": "true" }));
    button.addEventListener("click", () => {
      const isSame = sorting.column === column;
      sorting.descending = isSame ? !sorting.descending : column !== "name";
      sorting.column = column;
      showRows();
    });
    head.append(button);
    row.append(head);
  });
  $("holders").tHead.replaceChildren(row);
}

function showRows() {
  const found = grouping($("rows").value), { labels, colourOf } = found;
  const now = model.holders(moment, found.groupOf, labels.length);
  const of = {
    endBytes: found.end.bytes, endBlocks: found.end.blocks,
    peakBytes: found.peak.bytes, peakBlocks: found.peak.blocks,
    nowBytes: now.bytes, nowBlocks: now.blocks,
  };
  const groups = labels.map((_, group) => group)
    .filter((group) => of.endBlocks[group] || of.peakBlocks[group] || of.nowBlocks[group]);
  const { column, descending } = sorting, sign = descending ? -1 : 1;
  const byName = (a, b) => (labels[a] < labels[b] ? -1 : labels[a] > labels[b] ? 1 : 0);
  groups.sort(column === "name"
    ? (a, b) => sign * byName(a, b)
    : (a, b) => sign * (of[column][a] - of[column][b]) || of.peakBytes[b] - of.peakBytes[a] || byName(a, b));
  const shown = groups.slice(0, showsMore ? ROWS_MOST : ROWS_FIRST);
  const isColoured = $("rows").value === $("group").value;
  const line = (name, value, colour) => {
    const row = element("tr");
    for (const [column] of COLUMNS) {
      if (column === "name") {
        const cell = element("td");
        if (isColoured && colour !== null) cell.append(swatch(colour));
        cell.append(name);
        row.append(cell);
        continue;
      }
      const number = value(column), isBytes = column.endsWith("Bytes");
      row.append(element("td", isBytes ? formatBytes(number) : grouped(number), {
        class: "number", "data-column": column, "data-value": number,
      }));
    }
    return row;
  };
  const sum = (column) => of[column].reduce((all, value) => all + value, 0);
  const total = line("all", sum, null);
  total.className = "total";
  const rows = shown.map((group) => line(labels[group], (column) => of[column][group], colourOf[group]));
  $("holders").tBodies[0].replaceChildren(...rows, total);
  const more = $("more");
  more.hidden = groups.length <= ROWS_FIRST;
  more.textContent = showsMore ? "Show fewer" : `Show ${grouped(Math.min(groups.length, ROWS_MOST) - ROWS_FIRST)} more`;
  [...$("holders").tHead.rows[0].cells].forEach((head, index) => {
    const isSorted = COLUMNS[index][0] === column;
    if (isSorted) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
    head.querySelector(".arrow").textContent = isSorted ? (descending ? " ↓" : " ↑") : "";
  });
}

function peakSentence() {
  const { labels, peak: held } = grouping("both");
  const [bytes] = data.allocatedPeak;
  if (n === 0 || bytes === 0) return;
  const order = labels.map((_, group) => group).filter((group) => held.blocks[group]);
  order.sort((a, b) => held.bytes[b] - held.bytes[a] || a - b);
  const isKnown = labels.length > 1 || data.sites.some(([tag, stack]) => tag !== null || data.stacks[stack].length > 0);
  if (!isKnown) {
    $("peak-sentence").textContent = `At the peak (${momentText(peak).at}) it was ${formatBytes(bytes)} in ${grouped(held.blocks[order[0]])} blocks.`;
    return;
  }
  const named = order.slice(0, 3).map((group) => `${formatBytes(held.bytes[group])} in ${grouped(held.blocks[group])} by ${labels[group]}`);
  const rest = order.length > 3 ? `; and ${grouped(order.length - 3)} other${order.length > 4 ? "s" : ""}` : "";
  $("peak-sentence").textContent = `At the peak (${momentText(peak).at}) it was ${formatBytes(bytes)}: ${named.join("; ")}${rest}.`;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function wire() {
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  setTheme(scheme.matches ? "dark" : "light");
  const redraw = () => {
    drawPlots();
    map.draw();
  };
  scheme.addEventListener("change", () => {
    setTheme(scheme.matches ? "dark" : "light");
    redraw();
  });
  $("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    redraw();
  });
  $("granule").textContent = formatBytes(data.granule);
  $("scrub").max = n;
  $("timeline").setAttribute("aria-valuemax", n);
  $("scrub").addEventListener("input", () => go(Number($("scrub").value)));
  $("axis").value = view.axis;
  if (!model.hasTimes) $("axis").options[0].textContent = "events of the trace";
  if (!model.hasTimes) $("axis").options[1].textContent = "steps";
  $("axis").addEventListener("change", () => {
    view.setAxis($("axis").value);
    soon(drawPlots);
  });
  const buttons = {
    "zoom-in": () => zoom(1 / 1.6), "zoom-out": () => zoom(1.6), "zoom-all": showAll,
    "go-start": () => go(0), "go-back": () => go(moment - 1), "go-on": () => go(moment + 1),
    "go-peak": () => go(peak), "go-end": () => go(n),
    // From one to the next, and round.
    "go-oom": () => go((model.ooms.find((oom) => oom.moment > moment) || model.ooms[0]).moment),
  };
  for (const [id, action] of Object.entries(buttons)) $(id).addEventListener("click", action);
  $("go-oom").hidden = model.ooms.length === 0;
  $("timeline").addEventListener("keydown", timelineKeys);
  timelinePointer();
  const hasTags = data.sites.some(([tag]) => tag !== null);
  const hasPlaces = data.stacks.some((stack) => stack.length > 0);
  for (const id of ["group", "rows"]) {
    for (const [value, text] of GROUPINGS) $(id).append(element("option", text, { value }));
    $(id).value = hasTags && hasPlaces ? "both" : hasPlaces ? "site" : hasTags ? "tag" : "size";
  }
  $("group").addEventListener("change", () => {
    showLegend();
    map.draw();
    showRows();
  });
  $("rows").addEventListener("change", showRows);
  $("bars").addEventListener("change", () => {
    map.bySize = $("bars").value === "size";
    map.draw();
  });
  $("more").addEventListener("click", () => {
    showsMore = !showsMore;
    showRows();
  });
  new ResizeObserver(() => soon(redraw)).observe(document.body);
}

function describePlots() {
  const last = model.free.length - 1;
  const { allocated, reserved } = model.sums(n);
  const times = allocated > 0 ? `${(reserved / allocated).toFixed(2)} at the end` : "nothing is allocated at the end";
  const part = last >= 0 && model.free[last] > 0 ? `${Math.round((100 * model.largest[last]) / model.free[last])} % at the end` : "nothing is free at the end";
  $("ratio").setAttribute("aria-label", `Reserved over allocated, over time: ${times}`);
  $("share").setAttribute("aria-label", `Largest free block over all free bytes, over time: ${part}`);
}

wire();
showLegend();
tableHead();
peakSentence();
describePlots();
drawPlots();
showMoment();
document.documentElement.dataset.readyMs = (performance.now() - began).toFixed(1);
document.documentElement.dataset.openedMs = performance.now().toFixed(1);
