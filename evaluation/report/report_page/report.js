// The data of the page: arrays unpacked from JSON, and the images, by position.

function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Type(bytes.buffer);
}

const PACKED = {
  label: Uint32Array, x: Uint16Array, y: Uint16Array, typicality: Float32Array, doubt: Float32Array,
  neighbors: Uint32Array, counts: Uint32Array, tightness: Float32Array, clusterDoubt: Float32Array,
  class: Uint32Array, commonClass: Uint32Array, commonShare: Float32Array, merges: Uint32Array, leaves: Uint32Array,
};

// optional data may be undefined: classes, the tree (merges, leaves), thumbnails
function readReport() {
  const report = JSON.parse(document.getElementById("data").textContent);
  for (const [name, Type] of Object.entries(PACKED)) if (report[name]) report[name] = unpack(report[name], Type);
  report.n = report.names.length;
  report.K = report.counts.length;
  report.total = report.counts.reduce((sum, count) => sum + count, 0);
  report.members = membersByTypicality(report);
  if (report.thumbnails) {
    report.thumbnails.widths = unpack(report.thumbnails.widths, Uint8Array);
    report.thumbnails.heights = unpack(report.thumbnails.heights, Uint8Array);
    report.sheets = openSheets();
    defineSheets(report);
  }
  return report;
}

// shown images of each cluster, the most typical first
function membersByTypicality(report) {
  const members = Array.from(report.counts, () => []);
  report.label.forEach((label, image) => members[label].push(image));
  for (const images of members) images.sort((a, b) => report.typicality[b] - report.typicality[a]);
  return members;
}

function openSheets() {
  return Array.from(document.querySelectorAll("script.sheet"), (element) => {
    const url = URL.createObjectURL(new Blob([unpack(element.textContent, Uint8Array)], { type: "image/webp" }));
    element.remove();
    return { url, image: null };
  });
}

// the picture of a sheet for the canvas; null until it is decoded, and then `ready` is called
function sheetImage(report, sheet, ready) {
  const entry = report.sheets[sheet];
  if (!entry.image) {
    entry.image = new Image();
    entry.image.onload = ready;
    entry.image.src = entry.url;
  }
  return entry.image.complete && entry.image.naturalWidth ? entry.image : null;
}

function defineSheets(report) {
  const { tile, columns, perSheet, exact } = report.thumbnails;
  const rules = report.sheets.map((sheet, place) => {
    const tiles = Math.min(columns, report.n - place * perSheet);
    return `.sheet-${place}{background-image:url("${sheet.url}");--sheet-w:${tiles * tile}}`;
  });
  const style = document.createElement("style");
  style.textContent = `:root{--tile:${tile}}` + rules.join("");
  document.head.append(style);
  document.body.classList.toggle("pixels", exact);
}

// where the thumbnail of an image is: sheet, left and top of its tile, width and height, in pixels
function place(report, image) {
  const { tile, columns, perSheet, widths, heights } = report.thumbnails;
  const within = image % perSheet;
  return {
    sheet: Math.floor(image / perSheet),
    left: (within % columns) * tile,
    top: Math.floor(within / columns) * tile,
    width: widths[image],
    height: heights[image],
  };
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// the thumbnail of an image, as a span or a button
function picture(report, image, tag = "span") {
  const name = report.names[image];
  if (!report.thumbnails) return element(tag, "name", name);
  const { sheet, left, top, width, height } = place(report, image);
  const made = element(tag, `thumb sheet-${sheet}`);
  made.style.cssText = `--left:${left};--top:${top};--w:${width};--h:${height}`;
  if (tag === "span") made.setAttribute("role", "img");
  else made.type = "button";
  made.setAttribute("aria-label", name);
  made.title = name;
  return made;
}

const percent = (share) => (Number.isNaN(share) ? "–" : `${(100 * share).toFixed(0)} %`);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function clusterFacts(report, cluster) {
  const count = report.counts[cluster];
  const facts = [plural(count, "image")];
  if (!count) return facts[0];
  facts.push(`relative size ${((count * report.K) / report.total).toFixed(2)}`);
  facts.push(`similarity ${report.tightness[cluster].toFixed(2)}`);
  facts.push(`mixing ${percent(report.clusterDoubt[cluster])}`);
  if (report.class) facts.push(`${percent(report.commonShare[cluster])} are ${report.classes[report.commonClass[cluster]]}`);
  return facts.join(" · ");
}

// the most common class of some images, in words; nothing where classes are not known
function commonClass(report, images) {
  if (!report.class || !images.length) return [];
  const counts = new Map();
  for (const image of images) counts.set(report.class[image], (counts.get(report.class[image]) || 0) + 1);
  const [code, count] = [...counts].reduce((best, next) => (next[1] > best[1] ? next : best));
  const part = report.n < report.total ? " of the shown images" : "";
  return [`${percent(count / images.length)}${part} are ${report.classes[code]}`];
}

// group of each cluster when the tree is cut into `wanted` groups, numbered in the order of the leaves
function cutTree(report, wanted) {
  const { K, merges, leaves } = report;
  const root = Int32Array.from({ length: 2 * K - 1 }, (_, node) => node);
  for (let merge = K - 1 - wanted; merge >= 0; merge -= 1) { // from the top down: a node has its root before its children need it
    root[merges[2 * merge]] = root[K + merge];
    root[merges[2 * merge + 1]] = root[K + merge];
  }
  const numbers = new Map();
  const groups = new Int32Array(K);
  for (const leaf of leaves) {
    if (!numbers.has(root[leaf])) numbers.set(root[leaf], numbers.size);
    groups[leaf] = numbers.get(root[leaf]);
  }
  return groups;
}
