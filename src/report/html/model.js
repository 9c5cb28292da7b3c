// The history as arrays, and questions to it.
//
// A moment m is the state after m steps: 0 is the start, n the end. A life is there at m if
// birth <= m < death, and was let go of if asked <= m. Moments are found by checkpoints: lists of
// the lives that are there at every so many moments.

const ALLOC = 0, REQUESTED = 1, COMPLETED = 2, FREED = 3, CAME = 4, WENT = 5, OOM = 6;
const NEVER = 0xffffffff;

// All checkpoints together hold at most about so many entries.
const CHECKPOINT_ENTRIES = 8e6;

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// A function that returns the next number of a column.
function reader(text) {
  const bytes = bytesOf(text);
  let at = 0;
  return () => {
    let byte = bytes[at++];
    if (byte < 128) return byte;
    let value = byte & 127, scale = 128;
    do {
      byte = bytes[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte > 127);
    return value;
  };
}

const change = (doubled) => (doubled % 2 ? -(doubled + 1) / 2 : doubled / 2);

// The first index in low..high for which the test holds, which holds for all behind it.
function search(low, high, test) {
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (test(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

class Model {
  constructor(data) {
    this.data = data;
    this.n = data.stepCount;
    this.readShapes();
    this.readBlocks();
    this.readRanges();
    this.readSteps();
    this.mark();
    this.readBroken();
  }

  readShapes() {
    const count = this.data.shapeCount, next = reader(this.data.shapes);
    this.requestedOf = new Float64Array(count);
    this.sizeOf = new Float64Array(count);
    this.siteOf = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      this.requestedOf[i] = next();
      this.sizeOf[i] = next();
      this.siteOf[i] = next();
    }
  }

  readBlocks() {
    const [born, before] = this.data.blockCounts, count = born + before;
    const at = reader(this.data.blockAt), shape = reader(this.data.blockShape);
    this.born = born;
    this.count = count;
    this.at = new Float64Array(count);
    this.shape = new Uint32Array(count);
    let last = 0;
    for (let i = 0; i < count; i++) {
      last += change(at());
      this.at[i] = last * this.data.unit;
      this.shape[i] = shape();
    }
    this.birth = new Uint32Array(count).fill(NEVER);
    this.asked = new Uint32Array(count).fill(NEVER);
    this.death = new Uint32Array(count).fill(NEVER);
    this.birth.fill(0, born);
    for (const index of this.data.pendingBefore) this.asked[born + index] = 0;
  }

  readRanges() {
    const { unit, owners, extents } = this.data;
    const [born, before] = this.data.rangeCounts, count = born + before;
    const next = reader(this.data.ranges);
    const place = Float64Array.from(extents, (extent) => extent[0] * unit);
    this.extents = { place, start: extents.map((extent) => BigInt("0x" + extent[1])) };
    this.rangesBorn = born;
    this.ranges = [];
    let last = 0;
    for (let i = 0; i < count; i++) {
      last += change(next());
      const size = next() * unit;
      const [stream, pool, isPaged] = owners[next()];
      const birth = i < born ? NEVER : 0;
      this.ranges.push({ at: last * unit, size, stream, pool, isPaged, birth, death: NEVER });
    }
  }

  // The address of a place, as people know it.
  address(place) {
    const { place: places, start } = this.extents;
    const index = search(0, places.length, (i) => places[i] > place) - 1;
    if (index < 0) return "0x0";
    return "0x" + (start[index] + BigInt(place - places[index])).toString(16);
  }

  readSteps() {
    const { n, data, shape, requestedOf, sizeOf } = this;
    const steps = reader(data.steps), args = reader(data.args);
    this.kind = new Uint8Array(n);
    this.arg = new Uint32Array(n);
    this.time = new Float64Array(n + 1);
    this.ooms = [];
    const series = [0, 1, 2, 3].map(() => new Float64Array(n + 1));
    const [requestedAll, allocatedAll, activeAll, reservedAll] = series;
    this.series = { requested: requestedAll, allocated: allocatedAll, active: activeAll, reserved: reservedAll };
    let [requested, allocated, active, reserved] = data.sums[0];
    let time = 0, bornBlocks = 0, bornRanges = 0;
    const find = (born, all) => {
      const distance = args();
      return distance % 2 ? all + (distance - 1) / 2 : born - 1 - distance / 2;
    };
    [requestedAll[0], allocatedAll[0], activeAll[0], reservedAll[0]] = data.sums[0];
    for (let i = 0; i < n; i++) {
      const word = steps(), kind = word % 8, moment = i + 1;
      time += (word - kind) / 8;
      this.kind[i] = kind;
      this.time[moment] = time;
      if (kind <= FREED) {
        const life = kind === ALLOC ? bornBlocks++ : find(bornBlocks, this.born);
        const size = sizeOf[shape[life]], wanted = requestedOf[shape[life]];
        this.arg[i] = life;
        if (kind === ALLOC) {
          this.birth[life] = moment;
          requested += wanted;
          allocated += size;
          active += size;
        }
        if (kind === REQUESTED || kind === FREED) {
          this.asked[life] = moment;
          allocated -= size;
        }
        if (kind === COMPLETED || kind === FREED) {
          this.death[life] = moment;
          requested -= wanted;
          active -= size;
        }
      } else if (kind === CAME) {
        const range = this.ranges[bornRanges++];
        range.birth = moment;
        reserved += range.size;
      } else if (kind === WENT) {
        const range = this.ranges[find(bornRanges, this.rangesBorn)];
        range.death = moment;
        reserved -= range.size;
      } else if (kind === OOM) {
        const size = args(), free = args();
        this.ooms.push({ moment, size, free: free ? free - 1 : null });
      }
      requestedAll[moment] = requested;
      allocatedAll[moment] = allocated;
      activeAll[moment] = active;
      reservedAll[moment] = reserved;
    }
    this.ranges.sort((a, b) => a.at - b.at);
  }

  // Checkpoints, and the order of all blocks by place.
  mark() {
    const { n, count, born, kind, arg, at } = this;
    let live = count - born, most = live;
    for (let i = 0; i < n; i++) {
      if (kind[i] === ALLOC) most = Math.max(most, ++live);
      else if (kind[i] === COMPLETED || kind[i] === FREED) live--;
    }
    const wanted = Math.min(512, Math.max(8, CHECKPOINT_ENTRIES / Math.max(1, most)));
    this.stride = Math.max(1024, Math.ceil(n / wanted));
    this.checkpoints = [];
    const list = new Uint32Array(most), position = new Uint32Array(count);
    let length = 0, bornBlocks = 0;
    for (let life = born; life < count; life++) {
      position[life] = length;
      list[length++] = life;
    }
    for (let i = 0; ; i++) {
      if (i % this.stride === 0) {
        this.checkpoints.push({ lives: list.slice(0, length), born: bornBlocks });
      }
      if (i === n) break;
      if (kind[i] === ALLOC) {
        position[arg[i]] = length;
        list[length++] = arg[i];
        bornBlocks++;
      } else if (kind[i] === COMPLETED || kind[i] === FREED) {
        const hole = position[arg[i]], moved = list[--length];
        list[hole] = moved;
        position[moved] = hole;
      }
    }
    const order = new Uint32Array(count);
    const last = at.reduce((most, place) => Math.max(most, place), 0);
    if ((last / this.data.unit + 1) * count < Number.MAX_SAFE_INTEGER) {
      // Numbers sort many times faster than with a comparison of our own.
      const keys = new Float64Array(count);
      for (let i = 0; i < count; i++) keys[i] = (at[i] / this.data.unit) * count + i;
      keys.sort();
      for (let i = 0; i < count; i++) order[i] = keys[i] % count;
    } else {
      for (let i = 0; i < count; i++) order[i] = i;
      order.sort((a, b) => at[a] - at[b] || a - b);
    }
    this.order = order;
    this.rank = new Uint32Array(count);
    for (let i = 0; i < count; i++) this.rank[order[i]] = i;
  }

  readBroken() {
    const count = this.data.brokenCount, next = reader(this.data.broken);
    this.free = new Float64Array(count);
    this.largest = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      this.free[i] = next();
      this.largest[i] = next();
    }
  }

  // The blocks that are there at a moment, by place.
  lives(moment) {
    if (this.cached && this.cached.moment === moment) return this.cached.lives;
    const { death, rank, kind, order } = this;
    const index = Math.floor(moment / this.stride), checkpoint = this.checkpoints[index];
    const ranks = [];
    for (const life of checkpoint.lives) if (death[life] > moment) ranks.push(rank[life]);
    let life = checkpoint.born;
    for (let i = index * this.stride; i < moment; i++) {
      if (kind[i] !== ALLOC) continue;
      if (death[life] > moment) ranks.push(rank[life]);
      life++;
    }
    const lives = Uint32Array.from(ranks).sort();
    for (let i = 0; i < lives.length; i++) lives[i] = order[lives[i]];
    this.cached = { moment, lives };
    return lives;
  }

  // Segments at a moment, by place: ranges, and pages that go on into each other as one.
  segments(moment) {
    const found = [];
    for (const range of this.ranges) {
      if (range.birth > moment || range.death <= moment) continue;
      const last = found[found.length - 1];
      const goesOn = last && range.isPaged && last.isPaged && last.at + last.size === range.at &&
        last.stream === range.stream && last.pool === range.pool;
      if (goesOn) last.size += range.size;
      else found.push({ ...range });
    }
    return found;
  }

  sums(moment) {
    const { requested, allocated, active, reserved } = this.series;
    return {
      requested: requested[moment], allocated: allocated[moment],
      active: active[moment], reserved: reserved[moment],
    };
  }

  // Bytes and blocks of each group at a moment, of blocks that users hold.
  holders(moment, groupOf, count) {
    const bytes = new Float64Array(count), blocks = new Uint32Array(count);
    for (const life of this.lives(moment)) {
      if (this.asked[life] <= moment) continue;
      const shape = this.shape[life], group = groupOf[shape];
      bytes[group] += this.sizeOf[shape];
      blocks[group]++;
    }
    return { bytes, blocks };
  }

  // What the groups of a grouping are called, and the group of every shape.
  grouping(name) {
    const { sites, strings, stacks, places } = this.data;
    const tag = ([tag]) => (tag === null ? "(no tag)" : strings[tag]);
    const place = ([, stack]) => {
      const frame = stacks[stack][places[stack]];
      return frame ? `${strings[frame[0]]}:${frame[1]}` : "(unknown place)";
    };
    const call = ([, stack]) => {
      const frame = stacks[stack][places[stack]];
      return frame && strings[frame[2]] ? " " + strings[frame[2]] : "";
    };
    const stream = ([, , stream, pool]) => `stream ${stream}` + (pool ? `, pool ${pool}` : "");
    const names = {
      both: (site) => place(site) + call(site) + (site[0] === null ? "" : ` [${strings[site[0]]}]`),
      site: (site) => place(site) + call(site),
      tag,
      stream,
    };
    const numbers = new Map(), labels = [];
    const number = (label) => {
      let found = numbers.get(label);
      if (found === undefined) {
        found = labels.length;
        numbers.set(label, found);
        labels.push(label);
      }
      return found;
    };
    const groupOf = new Uint32Array(this.siteOf.length);
    if (name === "size") {
      this.requestedOf.forEach((size, shape) => { groupOf[shape] = number(formatBytes(size)); });
    } else {
      const ofSite = sites.map((site) => number(names[name](site)));
      this.siteOf.forEach((site, shape) => { groupOf[shape] = ofSite[site]; });
    }
    return { labels, groupOf };
  }

  // All that is known of a block at a moment, as lines of text.
  describe(life, moment) {
    const shape = this.shape[life], { strings, stacks, places, sites } = this.data;
    const [tag, stack, stream, pool] = sites[this.siteOf[shape]];
    const frames = stacks[stack].slice(places[stack]).slice(0, 6).map(([file, line, name]) =>
      `${strings[file]}:${line}${strings[name] ? " " + strings[name] : ""}`);
    const pending = this.asked[life] <= moment ? ", freed, but a stream may still use it" : "";
    const age = this.birth[life] === 0
      ? "there since before the first step"
      : `for ${this.span(this.birth[life], moment)}, since step ${grouped(this.birth[life])}`;
    const size = this.sizeOf[shape], requested = this.requestedOf[shape];
    return [
      `${formatBytes(size)}${requested === size ? "" : `, ${formatBytes(requested)} asked for`}${pending}`,
      frames[0] || "asked for at an unknown place",
      ...frames.slice(1).map((frame) => "  from " + frame),
      tag === null ? "no tag" : `tag ${strings[tag]}`,
      `${age}; stream ${stream}${pool ? `, pool ${pool}` : ""}; at ${this.address(this.at[life])}`,
    ];
  }

  get hasTimes() {
    return this.data.clock === "us";
  }

  span(from, to) {
    return formatClock(this.time[to] - this.time[from], this.hasTimes);
  }
}

function formatBytes(bytes) {
  const units = ["GiB", "MiB", "KiB"];
  for (let i = 0; i < 3; i++) {
    const unit = 1024 ** (3 - i);
    if (bytes >= unit) return `${(bytes / unit).toFixed(2)} ${units[i]}`;
  }
  return `${bytes} B`;
}

const grouped = (number) => String(number).replace(/\B(?=(\d{3})+(?!\d))/g, ",");

function formatClock(value, hasTimes) {
  if (!hasTimes) return `${grouped(Math.round(value))} events`;
  if (value < 1e3) return `${Number(value.toFixed(1))} µs`;
  if (value < 1e6) return `${Number((value / 1e3).toFixed(2))} ms`;
  if (value < 120e6) return `${Number((value / 1e6).toFixed(3))} s`;
  return `${Number((value / 60e6).toFixed(2))} min`;
}
