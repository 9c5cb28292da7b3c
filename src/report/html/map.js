// Every segment at one moment, a bar each by address, with its blocks. Only the rows that can be
// seen are drawn, and of blocks that share a pixel only one.

const ROW = 24, BAR = 16, LABEL = 250, LEAST = 0.04;

// How many ranges there ever are at the same moment.
function mostAtOnce(ranges) {
  const changes = [];
  for (const { birth, death } of ranges) changes.push([birth, 1], [death, -1]);
  changes.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let now = 0, most = 0;
  for (const [, change] of changes) most = Math.max(most, now += change);
  return most;
}

class SegmentMap {
  constructor(element, model, status) {
    this.element = element;
    this.model = model;
    this.status = status;
    this.screen = element.appendChild(document.createElement("div"));
    this.screen.className = "screen";
    this.canvas = this.screen.appendChild(document.createElement("canvas"));
    this.tip = this.screen.appendChild(document.createElement("div"));
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.room = element.appendChild(document.createElement("div"));
    // As high as the most segments need, within reason: rows come and go, the page stays.
    element.style.height = `${Math.min(10, Math.max(2, mostAtOnce(model.ranges))) * ROW + 10}px`;
    this.chosen = null;
    this.bySize = false;
    this.highlighted = -1;
    element.addEventListener("scroll", () => this.draw());
    element.addEventListener("pointermove", (event) => this.hover(event));
    element.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener("blur", () => this.choose(null));
  }

  // Colours are an index into the palette for each group; -1 are others.
  setColours(groupOf, colourOf) {
    this.groupOf = groupOf;
    this.colourOf = colourOf;
  }

  show(moment) {
    const { model } = this;
    this.moment = moment;
    this.lives = model.lives(moment);
    this.segments = model.segments(moment);
    this.largest = this.segments.reduce((most, { size }) => Math.max(most, size), 1);
    this.chosen = null;
    this.tip.hidden = true;
    this.status.textContent = "";
    this.room.style.height = `${this.segments.length * ROW + 8}px`;
    this.draw();
    return this.summary();
  }

  summary() {
    const { segments, lives } = this;
    let free = 0, holes = 0, largest = 0;
    for (const segment of segments) {
      this.holes(segment, (from, to) => {
        free += to - from;
        holes++;
        largest = Math.max(largest, to - from);
      });
    }
    const plural = (count, word) => `${grouped(count)} ${word}${count === 1 ? "" : "s"}`;
    const rest = holes ? `; ${formatBytes(free)} free in ${plural(holes, "hole")}, the largest ${formatBytes(largest)}` : "; nothing free";
    const paged = segments.filter(({ isPaged }) => isPaged).length;
    const parts = [];
    if (paged < segments.length || paged === 0) parts.push(plural(segments.length - paged, "segment"));
    if (paged > 0) parts.push(paged === 1 ? "1 run of pages" : `${grouped(paged)} runs of pages`);
    return `${parts.join(", ")}, ${plural(lives.length, "block")}${segments.length ? rest : ""}`;
  }

  // The blocks of a segment, as the bounds of their indices.
  blocksOf(segment) {
    const { at } = this.model, { lives } = this;
    const from = search(0, lives.length, (i) => at[lives[i]] >= segment.at);
    return [from, search(from, lives.length, (i) => at[lives[i]] >= segment.at + segment.size)];
  }

  holes(segment, tell) {
    const { at, shape, sizeOf } = this.model, [first, last] = this.blocksOf(segment);
    const end = segment.at + segment.size;
    let from = segment.at;
    for (let i = first; i < last; i++) {
      const start = at[this.lives[i]];
      if (start > from) tell(from, start);
      from = Math.max(from, start + sizeOf[shape[this.lives[i]]]);
    }
    if (from < end) tell(from, end);
  }

  get width() {
    return this.element.clientWidth;
  }

  get label() {
    return this.width < 640 ? 110 : LABEL;
  }

  barWidth(segment) {
    const all = Math.max(40, this.width - this.label - 16);
    return this.bySize ? all * Math.max(LEAST, segment.size / this.largest) : all;
  }

  draw() {
    if (!this.segments) return;
    const scale = window.devicePixelRatio || 1, { width } = this, height = this.element.clientHeight;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d"), top = this.element.scrollTop;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.font = "12px system-ui, sans-serif";
    this.palette = [0, 1, 2, 3, 4, 5, 6, 7].map((index) => style(`--c${index}`));
    this.others = style("--others");
    this.pattern = this.hatch(pen, style("--page"));
    const first = Math.max(0, Math.floor(top / ROW));
    const last = Math.min(this.segments.length, Math.ceil((top + height) / ROW));
    for (let row = first; row < last; row++) this.drawRow(pen, row, row * ROW - top + 6);
    if (this.segments.length === 0) {
      pen.fillStyle = style("--dim");
      pen.fillText("Nothing is reserved at this moment.", 12, 22);
    }
  }

  // Stripes over what is pending.
  hatch(pen, colour) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const brush = tile.getContext("2d");
    brush.strokeStyle = colour;
    brush.lineWidth = 2;
    brush.beginPath();
    for (const shift of [-6, 0, 6]) {
      brush.moveTo(shift - 1, 7);
      brush.lineTo(shift + 7, -1);
    }
    brush.stroke();
    return pen.createPattern(tile, "repeat");
  }

  drawRow(pen, row, y) {
    const segment = this.segments[row], width = this.barWidth(segment), x0 = this.label;
    pen.textAlign = "left";
    pen.fillStyle = style("--text");
    pen.fillText(formatBytes(segment.size), 8, y + 12);
    if (this.label === LABEL) {
      pen.fillStyle = style("--dim");
      const pool = segment.pool ? ` pool ${segment.pool}` : "";
      const where = `${this.model.address(segment.at)} s${segment.stream}${pool}`;
      pen.save();
      pen.beginPath();
      pen.rect(84, y - 4, LABEL - 92, ROW);
      pen.clip();
      pen.fillText(where, 84, y + 12);
      pen.restore();
    }
    pen.fillStyle = style("--free");
    pen.fillRect(x0, y, width, BAR);
    this.drawBlocks(pen, segment, x0, y, width);
    pen.strokeStyle = style("--dim");
    pen.lineWidth = 1;
    pen.strokeRect(x0 - 0.5, y - 0.5, width + 1, BAR + 1);
  }

  drawBlocks(pen, segment, x0, y, width) {
    const { at, shape, sizeOf, asked } = this.model, [first, last] = this.blocksOf(segment);
    const scale = width / segment.size;
    let drawn = -1;
    for (let i = first; i < last; i++) {
      const life = this.lives[i], group = this.groupOf[shape[life]];
      const left = x0 + (at[life] - segment.at) * scale;
      const size = Math.min(sizeOf[shape[life]], segment.at + segment.size - at[life]);
      const right = left + size * scale;
      // A block that ends on a pixel that is drawn already would change nothing.
      if (right - drawn < 0.5 && this.chosen !== life) continue;
      drawn = right;
      const colour = this.colourOf[group];
      pen.globalAlpha = this.highlighted >= 0 && this.highlighted !== colour ? 0.15 : 1;
      pen.fillStyle = colour < 0 ? this.others : this.palette[colour];
      const wide = Math.max(0.75, right - left - (right - left > 3 ? 1 : 0));
      pen.fillRect(left, y, wide, BAR);
      if (asked[life] <= this.moment) {
        pen.fillStyle = this.pattern;
        pen.fillRect(left, y, wide, BAR);
      }
      pen.globalAlpha = 1;
      if (this.chosen === life) {
        pen.strokeStyle = style("--text");
        pen.lineWidth = 3;
        pen.strokeRect(left - 1, y - 2, wide + 2, BAR + 4);
      }
    }
  }

  hover(event) {
    const box = this.element.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    const row = Math.floor((y + this.element.scrollTop - 3) / ROW), segment = this.segments[row];
    if (!segment || x < this.label || x > this.label + this.barWidth(segment)) {
      this.tip.hidden = true;
      return;
    }
    const place = segment.at + ((x - this.label) / this.barWidth(segment)) * segment.size;
    const life = this.lifeAt(segment, place);
    const lines = life === null ? this.describeHole(segment, place) : this.model.describe(life, this.moment);
    this.tip.textContent = lines.join("\n");
    this.tip.hidden = false;
    placeTip(this.tip, x, y, this.width, this.element.clientHeight + 60);
  }

  lifeAt(segment, place) {
    const { at, shape, sizeOf } = this.model, [first, last] = this.blocksOf(segment);
    const index = search(first, last, (i) => at[this.lives[i]] > place) - 1;
    if (index < first) return null;
    const life = this.lives[index];
    return place < at[life] + sizeOf[shape[life]] ? life : null;
  }

  describeHole(segment, place) {
    let hole = null;
    this.holes(segment, (from, to) => { if (from <= place && place < to) hole = [from, to]; });
    const [from, to] = hole || [place, place];
    return [`${formatBytes(to - from)} free`, `at ${this.model.address(from)}, in a segment of ${formatBytes(segment.size)}`];
  }

  // Left and right go along all blocks, up and down to the first block of another segment.
  key(event) {
    const { at } = this.model, { lives, segments } = this;
    const now = this.chosen === null ? -1 : lives.indexOf(this.chosen);
    const rowOf = (index) => search(0, segments.length, (i) => segments[i].at > at[lives[index]]) - 1;
    let next = null;
    if (event.key === "ArrowRight") next = now + 1;
    else if (event.key === "ArrowLeft") next = now < 0 ? lives.length - 1 : now - 1;
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = lives.length - 1;
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const step = event.key === "ArrowDown" ? 1 : -1;
      let row = now < 0 ? 0 : rowOf(now) + step;
      while (segments[row]) {
        const [first, last] = this.blocksOf(segments[row]);
        if (first < last) {
          next = first;
          break;
        }
        row += step;
      }
    } else if (event.key === "Escape") this.choose(null);
    else return;
    event.preventDefault();
    if (next !== null && next >= 0 && next < lives.length) this.choose(lives[next], rowOf(next));
  }

  choose(life, row = 0) {
    this.chosen = life;
    this.tip.hidden = true;
    this.status.textContent = life === null ? "" : this.model.describe(life, this.moment).join("; ");
    if (life !== null) {
      const top = row * ROW, height = this.element.clientHeight;
      if (top < this.element.scrollTop) this.element.scrollTop = top;
      if (top + ROW + 8 > this.element.scrollTop + height) this.element.scrollTop = top + ROW + 8 - height;
    }
    this.draw();
  }
}
