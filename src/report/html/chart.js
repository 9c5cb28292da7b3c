// Charts over the history. All of them share one stretch of it, the view; each pixel shows the
// lowest and the highest value of the moments that fall on it, so no peak is ever lost.

const MARGIN = { left: 72, right: 12, top: 18, bottom: 22 };

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Which part of the history is shown, and along what: times, or numbers of events.
class View {
  constructor(model) {
    this.model = model;
    this.setAxis(model.time[model.n] > 0 ? "time" : "event");
  }

  setAxis(axis) {
    this.axis = axis;
    this.first = 0;
    this.last = Math.max(1e-9, axis === "time" ? this.model.time[this.model.n] : this.model.n);
    this.all();
  }

  all() {
    this.low = this.first;
    this.high = this.last;
  }

  get isAll() {
    return this.low <= this.first && this.high >= this.last;
  }

  of(moment) {
    return this.axis === "time" ? this.model.time[moment] : moment;
  }

  // The first moment at or behind a point of the axis; n + 1 if there is none.
  momentAt(point) {
    const { n, time } = this.model;
    if (this.axis === "event") return Math.min(n + 1, Math.max(0, Math.ceil(point)));
    return search(0, n + 1, (moment) => time[moment] >= point);
  }

  // The first moment behind a point of the axis.
  behind(point) {
    const { n, time } = this.model;
    if (this.axis === "event") return Math.min(n + 1, Math.max(0, Math.floor(point) + 1));
    return search(0, n + 1, (moment) => time[moment] > point);
  }

  show(low, high) {
    const least = this.axis === "time" ? 1 : 4;
    const width = Math.min(this.last - this.first, Math.max(least, high - low));
    const middle = (low + high) / 2;
    this.low = Math.min(this.last - width, Math.max(this.first, middle - width / 2));
    this.high = this.low + width;
  }

  // Zooms by a factor, with a point of the axis staying where it is.
  zoom(factor, point) {
    this.show(point - (point - this.low) * factor, point + (this.high - point) * factor);
  }

  pan(part) {
    const width = this.high - this.low;
    const low = Math.min(this.last - width, Math.max(this.first, this.low + part * width));
    this.show(low, low + width);
  }

  label(point) {
    if (this.axis === "event") return grouped(Math.round(point));
    return this.model.hasTimes ? formatClock(point, true) : grouped(Math.round(point));
  }
}

// Two canvases, one for what stays and one for what follows the pointer.
class Plot {
  constructor(element, view) {
    this.element = element;
    this.view = view;
    this.canvas = element.appendChild(document.createElement("canvas"));
    this.overlay = element.appendChild(document.createElement("canvas"));
    this.tip = element.appendChild(document.createElement("div"));
    this.tip.className = "tip";
    this.tip.hidden = true;
  }

  get width() {
    return this.element.clientWidth;
  }

  get height() {
    return this.element.clientHeight;
  }

  get inner() {
    return Math.max(1, this.width - MARGIN.left - MARGIN.right);
  }

  get bottom() {
    return this.height - MARGIN.bottom;
  }

  x(point) {
    return MARGIN.left + ((point - this.view.low) / (this.view.high - this.view.low)) * this.inner;
  }

  point(x) {
    const part = Math.min(1, Math.max(0, (x - MARGIN.left) / this.inner));
    return this.view.low + part * (this.view.high - this.view.low);
  }

  y(value) {
    return this.bottom - (Math.min(value, this.most) / this.most) * (this.bottom - MARGIN.top);
  }

  // For each pixel, the first moment on it, and behind the last pixel the one that follows.
  moments() {
    const count = Math.ceil(this.inner), firsts = new Uint32Array(count + 1);
    for (let i = 0; i <= count; i++) firsts[i] = this.view.momentAt(this.point(MARGIN.left + i));
    if (this.view.high >= this.view.last) firsts[count] = this.view.model.n + 1;
    return firsts;
  }

  // The lowest and the highest value of each pixel; the state that a pixel begins in counts too.
  extremes(values, firsts) {
    const count = firsts.length - 1, low = new Float64Array(count), high = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const from = Math.max(0, firsts[i] - 1), to = Math.max(from + 1, firsts[i + 1]);
      let least = values[from], most = least;
      for (let moment = from + 1; moment < to; moment++) {
        const value = values[moment];
        if (value < least) least = value;
        else if (value > most) most = value;
      }
      low[i] = least;
      high[i] = most;
    }
    return { low, high };
  }

  begin(canvas) {
    const scale = window.devicePixelRatio || 1;
    const width = Math.round(this.width * scale), height = Math.round(this.height * scale);
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    pen.font = "12px system-ui, sans-serif";
    return pen;
  }

  area({ high }, pen, colour) {
    pen.fillStyle = colour;
    pen.beginPath();
    pen.moveTo(MARGIN.left, this.bottom);
    for (let i = 0; i < high.length; i++) {
      pen.lineTo(MARGIN.left + i, this.y(high[i]));
      pen.lineTo(MARGIN.left + i + 1, this.y(high[i]));
    }
    pen.lineTo(MARGIN.left + high.length, this.bottom);
    pen.fill();
  }

  line({ low, high }, pen, colour, width = 1.5) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.lineJoin = "bevel";
    pen.beginPath();
    for (let i = 0; i < high.length; i++) {
      const x = MARGIN.left + i, top = this.y(high[i]), bottom = this.y(low[i]);
      if (Number.isNaN(top)) continue;
      const isFirst = i === 0 || Number.isNaN(high[i - 1]);
      if (isFirst) pen.moveTo(x, top);
      else pen.lineTo(x, top);
      if (bottom - top > 0.5) pen.lineTo(x, bottom);
      pen.lineTo(x + 1, bottom);
    }
    pen.stroke();
  }

  // Lines across, with their values, and what the axis says below.
  grid(pen, ticks, label) {
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    for (const tick of ticks) {
      const y = Math.round(this.y(tick)) + 0.5;
      pen.strokeStyle = style("--line");
      pen.beginPath();
      pen.moveTo(MARGIN.left, y);
      pen.lineTo(MARGIN.left + this.inner, y);
      pen.stroke();
      pen.fillStyle = style("--dim");
      pen.textAlign = "right";
      pen.fillText(label(tick), MARGIN.left - 8, y);
    }
    const steps = Math.max(2, Math.floor(this.inner / 130));
    const y = this.bottom + 13;
    for (const point of roundTicks(this.view.low, this.view.high, steps)) {
      const x = this.x(point), text = this.view.label(point);
      const half = pen.measureText(text).width / 2;
      if (x + half > this.width) continue;
      pen.textAlign = "center";
      pen.fillText(text, x, y);
    }
    pen.textBaseline = "alphabetic";
  }

  showTip(lines, x, y) {
    this.tip.textContent = lines.join("\n");
    this.tip.hidden = false;
    placeTip(this.tip, x, y, this.width, this.height);
  }
}

function placeTip(tip, x, y, width, height) {
  const left = x + 14 + tip.offsetWidth > width ? x - 14 - tip.offsetWidth : x + 14;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${Math.max(0, Math.min(y + 10, height - tip.offsetHeight))}px`;
}

function roundTicks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((part) => part * power).find((step) => step >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
  return ticks;
}

// Multiples of a power of two.
function byteTicks(most) {
  const step = 2 ** Math.max(0, Math.ceil(Math.log2(most / 6)));
  const ticks = [];
  for (let tick = 0; tick <= most; tick += step) ticks.push(tick);
  return ticks;
}

const shortBytes = (bytes) => formatBytes(bytes).replace(/\.00 /, " ").replace(/(\.\d)0 /, "$1 ");

// Memory over time.
class Timeline extends Plot {
  constructor(element, view, limit) {
    super(element, view);
    this.limit = limit;
  }

  draw() {
    const { model } = this.view, pen = this.begin(this.canvas), firsts = this.moments();
    const { requested, allocated, active, reserved } = model.series;
    const shown = {};
    for (const [name, values] of Object.entries({ requested, allocated, active, reserved })) {
      shown[name] = this.extremes(values, firsts);
    }
    const top = Math.max(1, ...Object.values(shown).map(({ high }) => high.reduce((a, b) => Math.max(a, b), 0)));
    const showsLimit = this.limit !== null && this.limit <= top * 2;
    this.most = (showsLimit ? Math.max(top, this.limit) : top) * 1.06;
    this.grid(pen, byteTicks(this.most), shortBytes);
    for (const name of ["reserved", "active", "allocated"]) {
      this.area(shown[name], pen, style(`--${name}-area`));
    }
    for (const name of ["reserved", "active", "allocated"]) {
      this.line(shown[name], pen, style(`--${name}`));
    }
    this.line(shown.requested, pen, style("--requested"), 1);
    if (this.limit !== null) this.drawLimit(pen, showsLimit);
    this.drawNotes(pen);
    this.drawOoms(pen);
  }

  drawLimit(pen, isInside) {
    pen.fillStyle = pen.strokeStyle = style("--alarm");
    const y = isInside ? this.y(this.limit) : MARGIN.top;
    if (isInside) {
      pen.setLineDash([6, 4]);
      pen.beginPath();
      pen.moveTo(MARGIN.left, y);
      pen.lineTo(MARGIN.left + this.inner, y);
      pen.stroke();
      pen.setLineDash([]);
    }
    // Above the chart is the place of remarks.
    const line = y < MARGIN.top + 20 ? y + 13 : y - 5;
    pen.textAlign = "right";
    pen.fillText(`limit ${shortBytes(this.limit)}${isInside ? "" : " ↑"}`, MARGIN.left + this.inner - 6, line);
  }

  // Remarks of the program, with their words where there is room for them.
  drawNotes(pen) {
    const { data } = this.view.model;
    pen.fillStyle = pen.strokeStyle = style("--note");
    pen.textAlign = "left";
    pen.lineWidth = 1;
    let free = 0, lastX = -10;
    this.notes = [];
    const right = MARGIN.left + this.inner;
    for (const [time, text] of data.annotations) {
      const x = this.x(this.pointOf(time));
      if (x < MARGIN.left || x > right) continue;
      this.notes.push({ x, text });
      const shown = text.length > 40 ? text.slice(0, 39) + "…" : text;
      const width = pen.measureText(shown).width;
      const left = Math.min(x + 2, right - width);
      // Only those that can be read have a line; of the others there may be thousands.
      const isRead = left >= free && left + width >= x;
      if (!isRead && x - lastX < 3) continue;
      lastX = x;
      pen.globalAlpha = 0.5;
      pen.beginPath();
      pen.moveTo(Math.round(x) + 0.5, MARGIN.top - 4);
      pen.lineTo(Math.round(x) + 0.5, isRead ? this.bottom : MARGIN.top + 3);
      pen.stroke();
      pen.globalAlpha = 1;
      if (isRead) {
        pen.fillText(shown, left, MARGIN.top - 6);
        free = left + width + 8;
      }
    }
  }

  // Where a time is on the axis.
  pointOf(time) {
    const { model, axis } = this.view;
    return axis === "time" ? time : search(0, model.n, (moment) => model.time[moment] >= time);
  }

  drawOoms(pen) {
    pen.fillStyle = style("--alarm");
    for (const { moment } of this.view.model.ooms) {
      const x = this.x(this.view.of(moment));
      if (x < MARGIN.left - 1 || x > MARGIN.left + this.inner + 1) continue;
      pen.fillRect(x - 0.75, MARGIN.top, 1.5, this.bottom - MARGIN.top);
      pen.beginPath();
      pen.moveTo(x - 6, MARGIN.top - 6);
      pen.lineTo(x + 6, MARGIN.top - 6);
      pen.lineTo(x, MARGIN.top + 4);
      pen.fill();
    }
  }

  // The chosen moment, the pointer, and what is dragged over.
  drawOverlay(moment, pointer, dragged) {
    const pen = this.begin(this.overlay), x = this.x(this.view.of(moment));
    const isInside = x >= MARGIN.left - 1 && x <= MARGIN.left + this.inner + 1;
    if (dragged) {
      pen.globalAlpha = 0.2;
      pen.fillStyle = style("--link");
      pen.fillRect(Math.min(...dragged), MARGIN.top, Math.abs(dragged[1] - dragged[0]), this.bottom - MARGIN.top);
      pen.globalAlpha = 1;
    }
    if (isInside) {
      pen.strokeStyle = pen.fillStyle = style("--text");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.moveTo(x, MARGIN.top);
      pen.lineTo(x, this.bottom);
      pen.stroke();
      pen.beginPath();
      pen.moveTo(x - 5, this.bottom + 6);
      pen.lineTo(x + 5, this.bottom + 6);
      pen.lineTo(x, this.bottom - 1);
      pen.fill();
    }
    if (pointer !== null) {
      pen.strokeStyle = style("--dim");
      pen.lineWidth = 1;
      pen.setLineDash([3, 3]);
      pen.beginPath();
      pen.moveTo(pointer, MARGIN.top);
      pen.lineTo(pointer, this.bottom);
      pen.stroke();
      pen.setLineDash([]);
    }
  }
}

// One line over time, from a function of a pixel's moments.
class Ratio extends Plot {
  constructor(element, view, { extremes, most, ticks, label }) {
    super(element, view);
    Object.assign(this, { values: extremes, ceiling: most, ticks, label });
  }

  draw() {
    const pen = this.begin(this.canvas), shown = this.values(this, this.moments());
    this.most = this.ceiling(shown);
    this.grid(pen, this.ticks(this.most), this.label);
    this.line(shown, pen, style("--allocated"));
  }
}
