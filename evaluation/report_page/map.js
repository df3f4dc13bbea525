// The map: points on a canvas, images when they are far enough apart, one of them in focus.

const SHADES = ["#2f6bd8", "#ee7a2b", "#1f9e77", "#d6453d", "#8a5bd6", "#9c6b3f", "#e267ac", "#7d8a96", "#b3a41b", "#22aebf",
  "#8db4f2", "#f8be8c", "#8ad4b8", "#f2a09b", "#c5aef0", "#cfae8e", "#f4bcdb", "#b1b9c1", "#ded47a", "#92dce5"];

function shade(number, total) {
  if (total <= SHADES.length) return SHADES[number];
  const hue = (number / total) * 360; // neighbours in the order have neighbouring hues, but not the same lightness
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
    this.reset();
    new ResizeObserver(() => this.redraw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.listen();
  }

  reset() {
    this.zoom = 1;
    this.center = { x: 0.5, y: 0.5 };
    this.redraw();
  }

  zoomBy(factor, at) {
    const zoom = Math.min(60, Math.max(1, this.zoom * factor));
    if (at) {
      const [x, y] = this.toMap(at.x, at.y);
      const share = 1 - this.zoom / zoom;
      this.center.x += (x - this.center.x) * share;
      this.center.y += (y - this.center.y) * share;
    } else if (this.focus >= 0 && factor > 1) {
      this.center = { x: this.report.x[this.focus] / 65535, y: this.report.y[this.focus] / 65535 };
    }
    this.zoom = zoom;
    if (zoom === 1) this.center = { x: 0.5, y: 0.5 };
    this.redraw();
  }

  // sizes in CSS pixels; the map keeps its square shape and fills the canvas but for a margin
  get size() {
    return { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
  }

  get scale() {
    const { width, height } = this.size;
    return { x: (width - 56) * this.zoom, y: (height - 56) * this.zoom };
  }

  toScreen(image) {
    const { width, height } = this.size;
    const scale = this.scale;
    return [
      (this.report.x[image] / 65535 - this.center.x) * scale.x + width / 2,
      (this.report.y[image] / 65535 - this.center.y) * scale.y + height / 2,
    ];
  }

  toMap(x, y) {
    const { width, height } = this.size;
    const scale = this.scale;
    return [(x - width / 2) / scale.x + this.center.x, (y - height / 2) / scale.y + this.center.y];
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
    for (let image = 0; image < report.n; image += 1) {
      const [x, y] = this.toScreen(image);
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
      const [x, y] = this.toScreen(this.focus);
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
    this.context.imageSmoothingEnabled = this.report.thumbnails.tile > 32;
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
    for (let image = 0; image < this.report.n; image += 1) {
      const [px, py] = this.toScreen(image);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [image, distance];
    }
    return best;
  }

  // the nearest image in a direction; one that lies aside counts as farther away
  beside(image, dx, dy) {
    const [x, y] = this.toScreen(image);
    let best = image;
    let least = Infinity;
    for (let other = 0; other < this.report.n; other += 1) {
      const [ox, oy] = this.toScreen(other);
      const along = (ox - x) * dx + (oy - y) * dy;
      const aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
      if (other === image || along <= 0 || aside > along * 1.5) continue;
      const distance = along + 2 * aside;
      if (distance < least) [best, least] = [other, distance];
    }
    return best;
  }

  point(image, { announce = false } = {}) {
    if (image === this.focus && !announce) return;
    this.focus = image;
    this.onPoint(image, image >= 0 ? this.toScreen(image) : null, announce);
    this.redraw();
  }

  keepInView(image) {
    const { width, height } = this.size;
    const [x, y] = this.toScreen(image);
    if (x < 0 || y < 0 || x > width || y > height) {
      this.center = { x: this.report.x[image] / 65535, y: this.report.y[image] / 65535 };
    }
  }

  listen() {
    const { canvas } = this;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = { ...at(event), center: { ...this.center }, moved: false };
      if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const { x, y } = at(event);
      if (from && event.pointerType === "mouse" && event.buttons) {
        const scale = this.scale;
        from.moved ||= Math.hypot(x - from.x, y - from.y) > 4;
        if (from.moved && this.zoom > 1) {
          this.center = { x: from.center.x - (x - from.x) / scale.x, y: from.center.y - (y - from.y) / scale.y };
          this.redraw();
        }
        return;
      }
      this.point(this.nearest(x, y, 18));
    });
    canvas.addEventListener("pointerup", (event) => {
      const { x, y } = at(event);
      const clicked = from && !from.moved;
      from = null;
      if (!clicked) return;
      const image = this.nearest(x, y, event.pointerType === "mouse" ? 18 : 30);
      this.point(image);
      this.onSelect(image >= 0 ? this.report.label[image] : -1);
    });
    canvas.addEventListener("pointercancel", () => { from = null; });
    canvas.addEventListener("pointerleave", () => { if (document.activeElement !== canvas) this.point(-1); });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * 0.004), at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("blur", () => this.point(-1));
  }

  press(event) {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const direction = directions[event.key];
    if (direction) {
      const { width, height } = this.size;
      const next = this.focus < 0 ? this.nearest(width / 2, height / 2, Infinity) : this.beside(this.focus, ...direction);
      if (next < 0) return;
      this.keepInView(next);
      this.point(next, { announce: true });
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
