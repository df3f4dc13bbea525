// The page: connects the map, the list of clusters and the details of an image.

const report = readReport();
const byId = (id) => document.getElementById(id);

function openDetails(image) {
  const cluster = report.label[image];
  byId("details-title").textContent = report.names[image];
  const body = byId("details-body");
  body.replaceChildren();
  if (report.thumbnails) {
    const large = element("div", "large");
    large.append(picture(report, image));
    body.append(large);
  }
  const facts = [`similarity to its cluster ${report.typicality[image].toFixed(2)}`];
  if (!Number.isNaN(report.doubt[image])) facts.push(`${percent(report.doubt[image])} of its neighbours are in other clusters`);
  if (report.class) facts.push(`class ${report.classes[report.class[image]]}`);
  body.append(element("p", "facts", facts.join(" · ")));
  const button = element("button", "", `Select cluster ${cluster}`);
  button.type = "button";
  button.addEventListener("click", () => {
    byId("details").close();
    goTo(cluster);
  });
  body.append(button);
  const width = report.neighbors.length / report.n;
  const near = [...report.neighbors.subarray(image * width, (image + 1) * width)].filter((other) => other < report.n);
  if (near.length) {
    body.append(element("h3", "", "Most similar images"), strip(report, near, { onOpen: openDetails }));
  }
  if (!byId("details").open) byId("details").showModal();
  byId("details-title").focus(); // so that screen readers read the title, also when an open dialog changes its image
}

function showTip(image, at, announce) {
  const tip = byId("tip");
  tip.hidden = image < 0;
  if (image < 0) return;
  const cluster = report.label[image];
  const told = `Cluster ${cluster}, ${plural(report.counts[cluster], "image")}`;
  tip.replaceChildren();
  if (report.thumbnails) tip.append(picture(report, image));
  tip.append(element("div", "", report.names[image]), element("div", "facts", told));
  const stage = byId("canvas");
  const [x, y] = at;
  const left = x + 16 + tip.offsetWidth > stage.clientWidth ? x - 16 - tip.offsetWidth : x + 16;
  const top = Math.min(Math.max(4, y - 20), stage.clientHeight - tip.offsetHeight - 4);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
  if (announce) byId("announce").textContent = `${report.names[image]}. ${told}.`;
}

function select(cluster) {
  map.selected = cluster;
  map.redraw();
  clusters.select(cluster);
  const body = byId("selection-body");
  body.replaceChildren();
  if (cluster < 0) {
    byId("selection-title").textContent = "No cluster selected";
    body.append(element("p", "note", "Select a point on the map or a cluster in the list below."));
    return;
  }
  byId("selection-title").textContent = `Cluster ${cluster}`;
  body.append(element("p", "facts", clusterFacts(report, cluster)));
  const members = report.members[cluster];
  if (members.length < report.counts[cluster]) body.append(element("p", "facts", `This page shows ${members.length} of them.`));
  body.append(box(report, members, { onOpen: openDetails }));
  byId("announce").textContent = `Selected cluster ${cluster}: ${clusterFacts(report, cluster)}.`;
}

// select a cluster from elsewhere on the page, and scroll to its images
function goTo(cluster) {
  select(cluster);
  byId("map").scrollIntoView();
  byId("selection-title").focus({ preventScroll: true });
}

const map = new ImageMap(byId("canvas"), report, { onPoint: showTip, onSelect: select });
const clusters = new ClusterList(report, {
  onOpen: openDetails,
  onSelect: goTo,
  onSearch: (matches) => {
    map.marked = matches;
    map.redraw();
  },
});

// what to colour images by: a name, the colour of an image and of a cluster, and a legend
function colorings() {
  const order = new Int32Array(report.K).map((_, cluster) => cluster);
  if (report.leaves) report.leaves.forEach((leaf, rank) => { order[leaf] = rank; });
  const ofCluster = (cluster) => shade(order[cluster], report.K);
  const found = [];
  if (report.merges) {
    found.push(["group", () => {
      const wanted = Number(byId("groups").value);
      const groups = cutTree(report, wanted);
      const color = (cluster) => shade(groups[cluster], wanted);
      const sizes = Array(wanted).fill(0);
      const members = Array.from(sizes, () => []);
      groups.forEach((group, cluster) => {
        sizes[group] += report.counts[cluster];
        for (const image of report.members[cluster]) members[group].push(image);
      });
      const legend = sizes.map((size, group) => [
        shade(group, wanted),
        [plural(size, "image"), ...commonClass(report, members[group])].join(", "),
      ]);
      return [(image) => color(report.label[image]), color, wanted > SHADES.length ? [] : legend];
    }]);
  }
  found.push(["cluster", () => [(image) => ofCluster(report.label[image]), ofCluster, []]]);
  if (report.class) {
    const total = report.classes.length;
    const legend = total > SHADES.length ? [] : report.classes.map((name, code) => [shade(code, total), name]);
    found.push(["class", () => [(image) => shade(report.class[image], total), () => "", legend]]);
  }
  const heat = (share) => (Number.isNaN(share) ? "#8a949c" : `hsl(${(220 - 200 * share).toFixed(0)} 65% 52%)`);
  const ends = [[heat(0), "all neighbours in the same cluster"], [heat(1), "all neighbours in other clusters"]];
  if (report.doubt.some(Number.isNaN)) ends.push([heat(NaN), "neighbours not searched"]);
  found.push(["neighbour mixing", () => [(image) => heat(report.doubt[image]), (cluster) => heat(report.clusterDoubt[cluster]), ends]]);
  return found;
}

function recolor() {
  const chosen = byId("color").value;
  byId("groups-control").hidden = chosen !== "group";
  byId("groups-value").textContent = byId("groups").value;
  const [ofImage, ofCluster, legend] = choices.get(chosen)();
  map.colors = Array.from({ length: report.n }, (_, image) => ofImage(image));
  map.redraw();
  clusters.recolor(ofCluster);
  byId("legend").replaceChildren(...legend.map(([color, name]) => {
    const item = element("li");
    const dot = element("span", "dot");
    dot.style.setProperty("--dot", color);
    item.append(dot, name);
    return item;
  }));
}

const choices = new Map(colorings());
byId("groups").max = Math.max(2, Math.min(report.K, 100));
byId("groups").value = Math.min(10, report.K);
byId("color").append(...Array.from(choices.keys(), (name) => new Option(name, name)));
byId("color").addEventListener("change", recolor);
byId("groups").addEventListener("input", recolor);
byId("zoom-in").addEventListener("click", () => map.zoomBy(1.6));
byId("zoom-out").addEventListener("click", () => map.zoomBy(1 / 1.6));
byId("zoom-reset").addEventListener("click", () => map.reset());

function look(id, content) {
  byId(id).append(...(content.length ? content : [element(byId(id).tagName === "OL" ? "li" : "p", "", "None.")]));
}

look("suspects", report.suspects.map((cluster) => clusters.card(cluster)));
look("outliers", report.outliers.length ? [box(report, report.outliers, { onOpen: openDetails })] : []);
const groupsOfDuplicates = element("div", "duplicates");
for (const group of report.duplicates) {
  groupsOfDuplicates.append(box(report, group, { onOpen: openDetails }, IN_A_ROW));
}
look("duplicates", report.duplicates.length ? [groupsOfDuplicates] : []);
clusters.update();
recolor();
document.documentElement.dataset.ready = "";
