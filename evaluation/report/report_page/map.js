// The map: points on a canvas, or images where they are far enough apart; one may have the focus.

const SHADES = ["#2f6bd8", "#ee7a2b", "#1f9e77", "#d6453d", "#8a5bd6", "#9c6b3f", "#e267ac", "#7d8a96", "#b3a41b", "#22aebf",
  "#8db4f2", "#f8be8c", "#8ad4b8", "#f2a09b", "#c5aef0", "#cfae8e", "#f4bcdb", "#b1b9c1", "#ded47a", "#92dce5"];

function shade(number, total) {
  if (total <= SHADES.length) return SHADES[number];
  const hue = (number / total) * 360; // neighbours in the order have similar hues and different lightness
  return `hsl(${hue.toFixed(1)} 62% ${[46, 58, 38][number % 3]}%)`;
}

class ImageMap {
  constructor(canvas, report, { onPoint, onSelect }) {
    Object.assign(this, { canvas, report, onPoint, onSelect });
    this.context = canvas.getContext("2d");
    this.colors = Array(report.n).fill("#888");
    this.focus = -1;
    this.selected = -1;
    this.marked = new Set();
    this.byKey = false;
    this.reset();
    new ResizeObserver(() => this.redraw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.listen();
  }

  reset() {
    this.zoom = 1;
    this.zoomBy(1);
  }

  zoomBy(factor, at) {
    const zoom = Math.min(60, Math.max(1, this.zoom * factor));
    if (at) {
      const [x, y] = this.toMap(at.x, at.y);
      const share = 1 - this.zoom / zoom;
      this.moveTo(this.center.x + (x - this.center.x) * share, this.center.y + (y - this.center.y) * share);
    } else if (this.focus >= 0 && factor > 1) {
      this.moveTo(this.report.x[this.focus] / 65535, this.report.y[this.focus] / 65535);
    }
    this.zoom = zoom;
    if (zoom === 1) this.center = { x: 0.5, y: 0.5 };
    this.canvas.style.touchAction = zoom > 1 ? "none" : "pan-y"; // at zoom 1 a finger scrolls the page
    this.redraw();
  }

  // in CSS pixels
  get size() {
    return { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
  }

  // one scale for both axes: the map fills the tighter dimension of the canvas, with a margin
  get scale() {
    const { width, height } = this.size;
    return Math.max(1, Math.min((width - 56) / this.report.span.x, (height - 56) / this.report.span.y)) * this.zoom;
  }

  // function from an image to its position on the canvas; it reads the sizes once, for many images
  get toScreen() {
    const { width, height } = this.size;
    const { scale, center, report } = this;
    return (image) => [
      (report.x[image] / 65535 - center.x) * scale + width / 2,
      (report.y[image] / 65535 - center.y) * scale + height / 2,
    ];
  }

  toMap(x, y) {
    const { width, height } = this.size;
    return [(x - width / 2) / this.scale + this.center.x, (y - height / 2) / this.scale + this.center.y];
  }

  moveTo(x, y) {
    this.center = { x: Math.min(1, Math.max(0, x)), y: Math.min(1, Math.max(0, y)) };
    this.redraw();
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  draw() {
    const { canvas, context, report } = this;
    const { width, height } = this.size;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const visible = [];
    const toScreen = this.toScreen;
    for (let image = 0; image < report.n; image += 1) {
      const [x, y] = toScreen(image);
      if (x > -40 && y > -40 && x < width + 40 && y < height + 40) visible.push([image, x, y]);
    }
    const spacing = Math.sqrt((width * height) / Math.max(1, visible.length));
    const asImages = report.thumbnails && spacing > 34;
    const radius = Math.min(6, Math.max(1.6, spacing * 0.2));
    const some = this.selected >= 0 || this.marked.size > 0;
    for (const [image, x, y] of visible) {
      const lit = !some || this.isLit(image);
      context.globalAlpha = lit ? 0.92 : 0.14;
      if (asImages && this.drawImage(image, x, y, Math.min(spacing * 0.95, 72))) continue;
      context.fillStyle = this.colors[image];
      context.beginPath();
      context.arc(x, y, lit && some ? radius * 1.5 : radius, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
    if (this.focus >= 0) {
      const [x, y] = toScreen(this.focus);
      this.onPoint(this.focus, [x, y], false); // the tip stays beside its image when the map moves
      context.lineWidth = 3;
      context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--ink");
      context.beginPath();
      context.arc(x, y, radius + 6, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  drawImage(image, x, y, side) {
    const { sheet, left, top, width, height } = place(this.report, image);
    const source = sheetImage(this.report, sheet, () => this.redraw());
    if (!source) return false;
    const scale = side / Math.max(width, height);
    const [w, h] = [width * scale, height * scale];
    this.context.imageSmoothingEnabled = !this.report.thumbnails.exact;
    this.context.drawImage(source, left, top, width, height, x - w / 2, y - h / 2, w, h);
    this.context.lineWidth = 2;
    this.context.strokeStyle = this.colors[image];
    this.context.strokeRect(x - w / 2, y - h / 2, w, h);
    return true;
  }

  isLit(image) {
    return this.report.label[image] === this.selected || this.marked.has(image);
  }

  nearest(x, y, reach) {
    let best = -1;
    let least = reach * reach;
    const toScreen = this.toScreen;
    for (let image = 0; image < this.report.n; image += 1) {
      const [px, py] = toScreen(image);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [image, distance];
    }
    return best;
  }

  // the nearest image in a direction; distance across the direction counts more
  beside(image, dx, dy) {
    const toScreen = this.toScreen;
    const [x, y] = toScreen(image);
    let best = image;
    let least = Infinity;
    for (let other = 0; other < this.report.n; other += 1) {
      const [ox, oy] = toScreen(other);
      const along = (ox - x) * dx + (oy - y) * dy;
      const aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
      if (other === image || along <= 0 || aside > along * 1.5) continue;
      const distance = along + 2 * aside;
      if (distance < least) [best, least] = [other, distance];
    }
    return best;
  }

  point(image, { byKey = false } = {}) {
    if (image === this.focus && !byKey) return;
    this.focus = image;
    this.byKey = byKey;
    this.onPoint(image, image >= 0 ? this.toScreen(image) : null, byKey);
    this.redraw();
  }

  keepInView(image) {
    const { width, height } = this.size;
    const [x, y] = this.toScreen(image);
    if (x < 0 || y < 0 || x > width || y > height) {
      this.moveTo(this.report.x[image] / 65535, this.report.y[image] / 65535);
    }
  }

  listen() {
    const { canvas } = this;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const down = new Map(); // pointers that are down: one drags, two zoom
    let drag = null;
    const begin = () => {
      const [first, second] = [...down.values()];
      drag = { ...first, center: { ...this.center }, zoom: this.zoom, moved: Boolean(second) || (drag?.moved ?? false) };
      if (second) drag.distance = Math.hypot(first.x - second.x, first.y - second.y);
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      if (!down.size) drag = null;
      down.set(event.pointerId, at(event));
      canvas.setPointerCapture(event.pointerId);
      begin();
    });
    canvas.addEventListener("pointermove", (event) => {
      const here = at(event);
      if (!down.has(event.pointerId)) {
        this.point(this.nearest(here.x, here.y, 18));
        return;
      }
      down.set(event.pointerId, here);
      const [first, second] = [...down.values()];
      if (second) {
        const distance = Math.hypot(first.x - second.x, first.y - second.y);
        const middle = { x: (first.x + second.x) / 2, y: (first.y + second.y) / 2 };
        this.zoomBy((drag.zoom * distance) / drag.distance / this.zoom, middle);
        return;
      }
      drag.moved ||= Math.hypot(here.x - drag.x, here.y - drag.y) > 6;
      if (drag.moved && this.zoom > 1) {
        this.moveTo(drag.center.x - (here.x - drag.x) / this.scale, drag.center.y - (here.y - drag.y) / this.scale);
      }
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!down.delete(event.pointerId)) return;
      if (down.size) {
        begin();
        return;
      }
      if (drag.moved) return;
      const { x, y } = at(event);
      const image = this.nearest(x, y, event.pointerType === "mouse" ? 18 : 30);
      this.point(image);
      this.onSelect(image >= 0 ? this.report.label[image] : -1);
    });
    canvas.addEventListener("pointercancel", (event) => down.delete(event.pointerId));
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !this.byKey) this.point(-1); // after a touch, the tip stays
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * 0.004), at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("blur", () => this.point(-1));
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // shortcuts of the browser
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const direction = directions[event.key];
    if (direction) {
      const { width, height } = this.size;
      const next = this.focus < 0 ? this.nearest(width / 2, height / 2, Infinity) : this.beside(this.focus, ...direction);
      if (next < 0) return;
      this.keepInView(next);
      this.point(next, { byKey: true });
    } else if (event.key === "Enter" || event.key === " ") {
      if (this.focus >= 0) this.onSelect(this.report.label[this.focus]);
    } else if (event.key === "Escape") {
      this.onSelect(-1);
    } else if (event.key === "+" || event.key === "=") {
      this.zoomBy(1.5);
    } else if (event.key === "-") {
      this.zoomBy(1 / 1.5);
    } else {
      return;
    }
    event.preventDefault();
  }
}
