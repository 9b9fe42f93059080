// ------------------------------------------------------------------ which label was taken for which

const MOST_LABELS = 30; // rows of the table: more are no longer read; confusion.csv has all

// A table for each run: rows are right labels, the frequent ones first, columns predicted ones. Only where images have one label each.
function showConfusions() {
  if (data.task !== "classify" || images.references.some((labels) => labels.length !== 1)) return;
  const counts = new Map();
  for (const [label] of images.references) counts.set(label, (counts.get(label) ?? 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([label]) => label);
  const right = sorted.slice(0, MOST_LABELS);
  if (right.length < 2) return;
  byId("confusions").hidden = false;
  runs.forEach((run, number) => byId("confusions").append(confusionTable(run, number, right, counts)));
  const note = `The ${right.length} most frequent of ${counts.size} labels.`;
  if (counts.size > right.length) byId("confusions").append(element("p", { class: "muted small" }, note));
}

function confusionTable(run, number, right, counts) {
  const told = new Map(right.map((label) => [label, new Map()]));
  run.hypotheses.forEach((label, index) => {
    const row = told.get(images.references[index][0]);
    if (row && label !== null) row.set(label, (row.get(label) ?? 0) + 1);
  });
  const strange = [...told.values()].flatMap((row) => [...row.keys()]).filter((label) => !told.has(label));
  const columns = [...right, ...new Set(strange)].slice(0, MOST_LABELS + 5);
  const heads = columns.map((label) => element("th", { scope: "col", dir: "auto" }, label));
  const table = element("table", { class: "confusions" });
  if (several) table.append(element("caption", {}, runLabel(run, number)));
  table.append(element("thead", {}, element("tr", {}, element("td", {}, "right \\ predicted"), ...heads)));
  const rows = right.map((label) => {
    const cells = columns.map((other) => {
      const count = told.get(label).get(other) ?? 0;
      const level = count ? Math.max(1, Math.ceil((4 * count) / counts.get(label))) : 0;
      const kind = other === label ? "hit" : "miss";
      return element("td", { class: level ? `${kind} level-${level}` : "" }, count ? count.toLocaleString("en") : "·");
    });
    return element("tr", {}, element("th", { scope: "row", dir: "auto" }, label), ...cells);
  });
  table.append(element("tbody", {}, ...rows));
  return element("div", { class: "scroll" }, table);
}
