// The list of clusters, with sorting, filter and search; it shows some clusters at a time.

const AT_ONCE = 60;
const IN_A_ROW = 12;
const IN_A_BOX = 60;

// images side by side: Tab stops at one of them, the arrow keys go to the others
function strip(report, images, { onOpen, marked = new Set() }) {
  const made = element("ul", "strip");
  for (const image of images) {
    const item = element("li", marked.has(image) ? "found" : "");
    const button = picture(report, image, "button");
    button.tabIndex = made.children.length ? -1 : 0;
    button.dataset.image = image;
    button.addEventListener("click", () => onOpen(image));
    item.append(button);
    made.append(item);
  }
  made.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...made.querySelectorAll("button")];
    const here = buttons.indexOf(document.activeElement);
    const next = buttons[here + step];
    if (!step || !next) return;
    event.preventDefault();
    buttons[here].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return made;
}

// a strip of the first images, and a button for more: thousands at once would freeze the page
function box(report, images, options, shown = IN_A_BOX) {
  const made = element("div");
  made.append(strip(report, images.slice(0, shown), options));
  if (images.length > shown) {
    const more = element("button", "more", `Show more of ${plural(images.length, "image")}`);
    more.type = "button";
    more.addEventListener("click", () => {
      made.replaceWith(box(report, images, options, shown + 10 * IN_A_BOX));
    });
    made.append(more);
  }
  return made;
}

// sort by a number, NaN last
function ascending(key) {
  const of = (cluster) => (Number.isNaN(key(cluster)) ? Infinity : key(cluster));
  return (a, b) => {
    const [x, y] = [of(a), of(b)];
    return x < y ? -1 : x > y ? 1 : a - b;
  };
}

class ClusterList {
  constructor(report, { onSelect, onOpen, onSearch }) {
    Object.assign(this, { report, onSelect, onOpen, onSearch });
    this.list = document.getElementById("list");
    this.more = document.getElementById("more");
    this.sort = document.getElementById("sort");
    this.filter = document.getElementById("filter");
    this.search = document.getElementById("search");
    this.found = document.getElementById("found");
    this.suspects = new Set(report.suspects);
    this.colorOf = () => "";
    this.selected = -1;
    this.matches = new Set();
    if (report.leaves) {
      this.sort.append(new Option("similar clusters together", "group"));
      this.rank = new Int32Array(report.K);
      report.leaves.forEach((leaf, rank) => { this.rank[leaf] = rank; });
    }
    for (const control of [this.sort, this.filter]) control.addEventListener("change", () => this.update());
    this.search.addEventListener("input", () => this.update());
    addEventListener("beforeprint", () => this.show(Infinity));
    this.more.addEventListener("click", () => {
      const first = this.list.children.length;
      this.show(first + AT_ONCE);
      this.list.children[first]?.querySelector("button").focus();
    });
  }

  // clusters to show, in order, and the images whose name matches the search
  choose() {
    const { report } = this;
    const words = this.search.value.trim().toLowerCase();
    const matches = new Set();
    if (words) report.names.forEach((name, image) => { if (name.toLowerCase().includes(words)) matches.add(image); });
    const holding = new Set([...matches].map((image) => report.label[image]));
    const keep = {
      all: (cluster) => report.counts[cluster] > 0,
      suspect: (cluster) => this.suspects.has(cluster),
      empty: (cluster) => report.counts[cluster] === 0,
    }[this.filter.value];
    const key = {
      size: (cluster) => -report.counts[cluster],
      smallest: (cluster) => report.counts[cluster],
      tight: (cluster) => -report.tightness[cluster],
      loose: (cluster) => report.tightness[cluster],
      doubt: (cluster) => -report.clusterDoubt[cluster],
      id: (cluster) => cluster,
      group: (cluster) => this.rank[cluster],
    }[this.sort.value];
    const clusters = Array.from(report.counts.keys()).filter((cluster) => keep(cluster) && (!words || holding.has(cluster)));
    clusters.sort(ascending(key));
    return { clusters, matches, words };
  }

  update() {
    const { report } = this;
    const { clusters, matches, words } = this.choose();
    this.clusters = clusters;
    this.matches = matches;
    const told = plural(clusters.length, "cluster");
    const images = report.n < report.total
      ? `${matches.size.toLocaleString("en")} of the ${report.n.toLocaleString("en")} shown images`
      : plural(matches.size, "image");
    this.found.textContent = words ? `${images} in ${told}` : told;
    this.onSearch(matches);
    this.list.replaceChildren();
    this.show(AT_ONCE);
  }

  show(count) {
    for (const cluster of this.clusters.slice(this.list.children.length, count)) this.list.append(this.card(cluster));
    this.more.hidden = count >= this.clusters.length;
  }

  card(cluster) {
    const { report } = this;
    const card = element("li", "cluster");
    card.dataset.cluster = cluster;
    card.style.setProperty("--dot", this.colorOf(cluster));
    const heading = element("h3");
    const button = element("button", "", `Cluster ${cluster}`);
    button.type = "button";
    button.addEventListener("click", () => this.onSelect(cluster));
    this.mark(card, button);
    heading.append(button);
    card.append(heading);
    if (this.suspects.has(cluster)) card.append(element("span", "tag", "loose cluster"));
    card.append(element("p", "facts", clusterFacts(report, cluster)));
    const members = report.members[cluster];
    const first = members.filter((image) => this.matches.has(image));
    const rest = members.filter((image) => !this.matches.has(image));
    const images = [...first, ...rest].slice(0, IN_A_ROW);
    card.append(strip(report, images, { onOpen: this.onOpen, marked: this.matches }));
    return card;
  }

  // every card of the page, in this list or elsewhere
  get cards() {
    return document.querySelectorAll(".cluster");
  }

  select(cluster) {
    this.selected = cluster;
    for (const card of this.cards) this.mark(card, card.querySelector("h3 button"));
  }

  // show whether the card is selected, to the eye and to screen readers
  mark(card, button) {
    const selected = Number(card.dataset.cluster) === this.selected;
    card.classList.toggle("selected", selected);
    button.setAttribute("aria-pressed", selected);
  }

  recolor(colorOf) {
    this.colorOf = colorOf;
    for (const card of this.cards) card.style.setProperty("--dot", colorOf(Number(card.dataset.cluster)));
  }
}
