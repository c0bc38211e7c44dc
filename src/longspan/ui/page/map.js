// The map of the corpus: points on a canvas, with panning, zooming, and what lies under the pointer.
//
// Places are in the unit square; the view says where the square lies on the canvas: x * view.size + view.left pixels.

const COLOURS = 9;            // sources with a colour of their own; the others share one
const NEAR = 12;              // pixels from the pointer to a point that is still under it
const LARGEST_ZOOM = 200;
const SMALL_SIGNS_FROM = 2.2; // zoom at which the signposts of small regions show
const CELLS = 128;            // of the grid by which points are found

export class CorpusMap {
  // `chosen(passage)` is called on a click, `pointed(passage or null, x, y)` when the pointer comes over a point.
  constructor(canvas, corpus, { chosen, pointed }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.x = Float32Array.from(corpus.x);
    this.y = Float32Array.from(corpus.y);
    this.topics = corpus.topics;
    this.groups = groupsOf(corpus.sources);
    this.shown = corpus.sources.map(() => true);
    this.sourceOf = new Uint32Array(corpus.passages);
    let start = 0;
    corpus.sources.forEach((source, number) => {
      this.sourceOf.fill(number, start, start + source.passages);
      start += source.passages;
    });
    this.hits = [];
    this.lit = null;
    this.under = null;
    this.chosen = chosen;
    this.pointed = pointed;
    this.grid = gridOf(this.x, this.y);
    this.waiting = false;
    this.view = null;
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.restyle());
    this.restyle();
    this.listen();
  }

  // --- what is shown ---------------------------------------------------------------------------------------------

  show(hits) { this.hits = hits; this.draw(); }
  light(passage) { if (this.lit !== passage) { this.lit = passage; this.draw(); } }
  filter(shown) { this.shown = shown; this.draw(); }
  colourOf(source) { return this.colours[Math.min(source, COLOURS)]; }

  restyle() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.colours = Array.from({ length: COLOURS + 1 }, (_, number) => colour(`--s${number}`));
    this.ink = colour("--ink");
    this.paper = colour("--paper");
    this.line = colour("--line");
    this.draw();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const old = this.view;
    this.width = width;
    this.height = height;
    this.whole = wholeView(this.x, this.y, width, height);
    if (!old || old.whole) this.view = { ...this.whole, whole: true };
    this.draw(true);
  }

  draw(now = false) {
    if (!this.view) return;
    if (now) { this.paint(); return; }
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  paint() {
    const { context, width, height, view, x, y } = this;
    const zoom = view.size / this.whole.size;
    const radius = Math.min(7, pointRadius(x.length) * Math.sqrt(zoom));
    const faint = this.hits.length > 0;
    context.clearRect(0, 0, width, height);
    for (const [colour, sources] of this.groups.entries()) {
      for (const shown of [false, true]) {
        context.beginPath();
        for (const { number, start, stop } of sources) {
          if (this.shown[number] !== shown) continue;
          for (let i = start; i < stop; i++) {
            const px = x[i] * view.size + view.left, py = y[i] * view.size + view.top;
            if (px < -radius || py < -radius || px > width + radius || py > height + radius) continue;
            if (radius < 2) {
              context.rect(px - radius, py - radius, 2 * radius, 2 * radius);
            } else {
              context.moveTo(px + radius, py);
              context.arc(px, py, radius, 0, 2 * Math.PI);
            }
          }
        }
        context.globalAlpha = shown ? (faint ? 0.35 : 0.8) : 0.07;
        context.fillStyle = this.colours[colour];
        context.fill();
      }
    }
    context.globalAlpha = 1;
    this.paintSigns(zoom);
    this.paintHits();
    const ringed = this.lit ?? this.under;
    if (ringed !== null) this.ring(ringed, 9);
  }

  // Signposts, the large regions' first, each only where none is yet.
  paintSigns(zoom) {
    const { context, view } = this;
    const taken = [];
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    const busy = this.hits.length > 0;
    for (const sign of this.topics) {
      if (sign.level > 0 && zoom < SMALL_SIGNS_FROM) continue;
      const px = sign.x * view.size + view.left, py = sign.y * view.size + view.top;
      context.font = sign.level === 0 ? "600 13px system-ui, sans-serif" : "12px system-ui, sans-serif";
      const half = context.measureText(sign.words).width / 2 + 6;
      const box = [px - half, py - 10, px + half, py + 10];
      if (box[0] < 2 || box[1] < 2 || box[2] > this.width - 2 || box[3] > this.height - 2) continue;
      if (taken.some((other) => overlap(box, other))) continue;
      taken.push(box);
      context.globalAlpha = busy ? 0.75 : 1;
      context.strokeStyle = this.paper;
      context.lineWidth = 4;
      context.strokeText(sign.words, px, py);
      context.fillStyle = this.ink;
      context.fillText(sign.words, px, py);
    }
    context.globalAlpha = 1;
  }

  // Results are drawn last to first, so that the best lies on top.
  paintHits() {
    const { context } = this;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let rank = this.hits.length - 1; rank >= 0; rank--) {
      const [px, py] = this.place(this.hits[rank].passage);
      const radius = rank < 9 ? 10 : 11;
      context.beginPath();
      context.arc(px, py, radius, 0, 2 * Math.PI);
      context.fillStyle = this.colourOf(this.sourceOf[this.hits[rank].passage]);
      context.fill();
      context.lineWidth = 2;
      context.strokeStyle = this.paper;
      context.stroke();
      context.fillStyle = this.paper;
      context.font = `700 ${rank < 9 ? 12 : 11}px system-ui, sans-serif`;
      context.fillText(String(rank + 1), px, py + 0.5);
    }
  }

  ring(passage, radius) {
    const { context } = this;
    const [px, py] = this.place(passage);
    const isHit = this.hits.some((hit) => hit.passage === passage);
    context.beginPath();
    context.arc(px, py, isHit ? radius + 5 : radius, 0, 2 * Math.PI);
    context.lineWidth = 2.5;
    context.strokeStyle = this.ink;
    context.stroke();
  }

  place(passage) {
    return [this.x[passage] * this.view.size + this.view.left, this.y[passage] * this.view.size + this.view.top];
  }

  // --- moving ----------------------------------------------------------------------------------------------------

  pan(dx, dy) {
    this.view = { size: this.view.size, left: this.view.left + dx, top: this.view.top + dy };
    this.draw();
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const size = clamp(this.view.size * factor, this.whole.size / 2, this.whole.size * LARGEST_ZOOM);
    const real = size / this.view.size;
    this.view = { size, left: px - (px - this.view.left) * real, top: py - (py - this.view.top) * real };
    this.draw();
  }

  showAll() { this.view = { ...this.whole, whole: true }; this.draw(); }

  // --- the pointer and keys --------------------------------------------------------------------------------------

  listen() {
    const { canvas } = this;
    const pointers = new Map();
    let moved = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
      this.zoom(Math.exp(-event.deltaY * lines * 0.0018), event.offsetX, event.offsetY);
      this.leave();
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      const at = [event.offsetX, event.offsetY];
      if (!before) { this.over(...at); return; }
      pointers.set(event.pointerId, at);
      const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      moved += Math.hypot(at[0] - before[0], at[1] - before[1]);
      if (others.length) {
        const [other] = others;
        const factor = distance(at, other) / Math.max(1, distance(before, other));
        this.zoom(factor, (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
      } else if (moved > 3) {
        canvas.classList.add("grabbed");
        this.leave();
        this.pan(at[0] - before[0], at[1] - before[1]);
      }
    });
    const released = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      canvas.classList.remove("grabbed");
      if (event.type !== "pointerup" || moved > 3) return;
      this.over(event.offsetX, event.offsetY);
      if (this.under !== null) this.chosen(this.under);
    };
    canvas.addEventListener("pointerup", released);
    canvas.addEventListener("pointercancel", released);
    canvas.addEventListener("pointerleave", () => this.leave());
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
      if (moves[event.key]) this.pan(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(1.4);
      else if (event.key === "-") this.zoom(1 / 1.4);
      else if (event.key === "0") this.showAll();
      else if (event.key === "Escape") this.leave();
      else return;
      event.preventDefault();
    });
  }

  over(px, py) {
    const found = this.find(px, py);
    this.canvas.classList.toggle("over", found !== null);
    if (found === this.under) return;
    this.under = found;
    this.draw();
    this.pointed(found, ...(found === null ? [0, 0] : this.place(found)));
  }

  leave() {
    if (this.under === null) return;
    this.under = null;
    this.canvas.classList.remove("over");
    this.draw();
    this.pointed(null, 0, 0);
  }

  // The passage under a pixel: a result if there is one, else the nearest point that is shown; or null.
  find(px, py) {
    const hit = this.hits.find(({ passage }) => distance(this.place(passage), [px, py]) <= NEAR);
    if (hit) return hit.passage;
    const { view } = this;
    const x = (px - view.left) / view.size, y = (py - view.top) / view.size, reach = NEAR / view.size;
    let best = null, nearest = reach * reach;
    for (let row = cell(y - reach); row <= cell(y + reach); row++) {
      for (let column = cell(x - reach); column <= cell(x + reach); column++) {
        for (const i of this.grid.get(row * CELLS + column) ?? []) {
          const away = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
          if (away <= nearest && this.shown[this.sourceOf[i]]) { best = i; nearest = away; }
        }
      }
    }
    return best;
  }
}

// Sources by colour, the shared colour first, so that it lies at the bottom: colour -> [{number, start, stop}].
function groupsOf(sources) {
  const groups = new Map([[COLOURS, []]]);
  let start = 0;
  sources.forEach((source, number) => {
    const colour = Math.min(number, COLOURS);
    if (!groups.has(colour)) groups.set(colour, []);
    groups.get(colour).push({ number, start, stop: start + source.passages });
    start += source.passages;
  });
  return groups;
}

function gridOf(x, y) {
  const grid = new Map();
  for (let i = 0; i < x.length; i++) {
    const key = cell(y[i]) * CELLS + cell(x[i]);
    if (!grid.has(key)) grid.set(key, []);
    grid.get(key).push(i);
  }
  return grid;
}

// The view in which all points show, whatever the shape of the canvas.
function wholeView(x, y, width, height) {
  const [left, right] = ends(x), [top, bottom] = ends(y);
  const size = 0.9 * Math.min(width / Math.max(right - left, 0.05), height / Math.max(bottom - top, 0.05));
  return { size, left: width / 2 - size * (left + right) / 2, top: height / 2 - size * (top + bottom) / 2 };
}

function ends(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  return [low, high];
}

const cell = (value) => clamp(Math.floor(value * CELLS), 0, CELLS - 1);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
const pointRadius = (count) => clamp(140 / Math.sqrt(count), 0.7, 4);
