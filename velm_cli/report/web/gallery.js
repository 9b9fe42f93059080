// ------------------------------------------------------------------ all images: search, order, range, cards

const CHUNK = 40; // cards made at a time
const CARD_TEXT = 400; // characters of a caption on a card; the close view has all
const BARS = 48;

// The metrics that images have one by one, as columns.
const scored = metrics.map((_, column) => column).filter((column) => runs.some((run) => run.values[column].some((value) => value !== null)));

const gallery = {
  order: unscored ? "stored" : several ? "differ" : "best",
  metric: scored.find((column) => metrics[column].name === data.primary) ?? scored[0] ?? 0,
  run: runs.length - 1,
  low: null, // as the page writes scores; null: no bound
  high: null,
  seed: 1,
  group: "", // of the examples shown; empty: all
  pattern: null,
  shown: [], // indices of images, filtered and in order
  made: 0, // how many of them have a card
};

const ORDERS = [
  ...(unscored ? [] : [["best", "best first"], ["worst", "worst first"]]),
  ...(several ? [["differ", "differ most"], ["ahead", `ahead of ${runs[0].name}`], ["behind", `behind ${runs[0].name}`]] : []),
  ["random", "random"],
  ["stored", unscored ? "as given" : "as stored"],
];

// ------------------------------------------------------------------ which images, in which order

const haystacks = {};

function haystack(where) {
  haystacks[where] ??= images.ids.map((id, index) => {
    const hypotheses = runs.flatMap((run) => [run.hypotheses[index] ?? "", ...(run.others?.[index] ?? [])]);
    const asked = images.items ? [images.items[index].prompt, ...runs.flatMap((run) => run.answers[index].candidates.map(([text]) => text))] : [];
    const parts = { hypotheses, references: images.references[index], all: [id, ...asked, ...hypotheses, ...images.references[index]] };
    return parts[where].map(searchable).join("\n");
  });
  return haystacks[where];
}

function sortKey() {
  const metric = metrics[gallery.metric];
  const values = runs.map((run) => run.values[gallery.metric]);
  const chosen = values[gallery.run];
  const direction = metric?.lowerIsBetter ? -1 : 1;
  const ahead = (index) => {
    const change = difference(chosen[index], values[0][index]);
    return change === null ? null : direction * change;
  };
  const keys = {
    best: (index) => (chosen[index] === null ? null : direction * chosen[index]),
    worst: (index) => (chosen[index] === null ? null : -direction * chosen[index]),
    differ: (index) => {
      const all = values.map((column) => column[index]).filter((value) => value !== null);
      return all.length < 2 ? null : Math.max(...all) - Math.min(...all);
    },
    ahead,
    behind: (index) => (ahead(index) === null ? null : -ahead(index)),
    random: (index) => scrambled(index, gallery.seed),
    stored: (index) => -index,
  };
  return keys[gallery.order];
}

// A number in 0..1 from two whole ones: the same shuffle for the same seed (the finaliser of MurmurHash3).
function scrambled(index, seed) {
  let bits = Math.imul(index + 1, 0x9e3779b1) ^ Math.imul(seed, 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return ((bits ^ (bits >>> 16)) >>> 0) / 2 ** 32;
}

function select() {
  const terms = queryTerms(byId("search").value);
  gallery.pattern = queryPattern(byId("search").value);
  const texts = terms.length ? haystack(byId("where").value) : null;
  const values = runs[gallery.run].values[gallery.metric];
  const metric = metrics[gallery.metric];
  const inRange = (index) => {
    if (gallery.low === null && gallery.high === null) return true;
    if (values[index] === null) return false;
    const score = values[index] * metric.scale;
    return score >= (gallery.low ?? -Infinity) && score <= (gallery.high ?? Infinity);
  };
  const key = sortKey();
  const found = [];
  for (let index = 0; index < images.ids.length; index += 1) {
    if (gallery.group && images.items[index].group !== gallery.group) continue;
    if (inRange(index) && (!texts || terms.every((term) => texts[index].includes(term)))) found.push([key(index), index]);
  }
  // Images without a score come last in every order.
  found.sort((a, b) => (a[0] === null) - (b[0] === null) || b[0] - a[0] || a[1] - b[1]);
  gallery.shown = found.map((pair) => pair[1]);
  showCards();
  const heading = byId("images-heading");
  if (heading.getBoundingClientRect().bottom < 0) heading.scrollIntoView(); // a new list is read from its start
}

// ------------------------------------------------------------------ cards

function showCards() {
  const [shown, all] = [gallery.shown.length, images.ids.length];
  const text = shown === all ? `${all.toLocaleString("en")} ${noun}s` : `${shown.toLocaleString("en")} of ${all.toLocaleString("en")} ${noun}s`;
  byId("count").textContent = shown ? text : `No ${noun} fits. Try fewer words or a wider range.`;
  byId("reset").hidden = shown === all;
  byId("shuffle").hidden = gallery.order !== "random";
  gallery.made = 0;
  byId("cards").replaceChildren();
  makeCards(CHUNK);
}

function makeCards(count) {
  const end = Math.min(gallery.shown.length, gallery.made + count);
  const made = [];
  for (; gallery.made < end; gallery.made += 1) made.push(card(gallery.shown[gallery.made], gallery.made));
  byId("cards").append(...made);
  nearEnd.unobserve(byId("more")); // observing anew reports at once where the end is now
  nearEnd.observe(byId("more"));
}

const nearEnd = new IntersectionObserver(
  ([entry]) => {
    if (entry.isIntersecting && gallery.made < gallery.shown.length) makeCards(CHUNK);
  },
  { rootMargin: "1200px" },
);

function card(index, position) {
  const id = images.ids[index];
  const opener = element("button", { type: "button", class: "opener", "aria-label": `Open ${noun} ${id}`, tabindex: position ? "-1" : "0" });
  if (pictured.has(index)) {
    const picture = element("img", { alt: "", decoding: "async", "data-image": index });
    opener.append(picture);
    showThumbnail(picture);
  }
  const attended = runs.some((run) => attendedBy(run).has(index));
  opener.append(element("span", { class: "id" }, unscored ? id : `#${id}`));
  if (attended) opener.append(element("span", { class: "badge" }, "where it looked"));
  const hypotheses = images.items ? [...promptOf(index), ...runs.map((run, number) => answerOf(run, number, index, CARD_TEXT))] : runs.flatMap((run, number) => {
    const text = caption("p", run.hypotheses[index], gallery.pattern, CARD_TEXT);
    if (several) text.prepend(runDot(run, number));
    return [text, ...othersOf(run, index, CARD_TEXT)];
  });
  const references = images.items ? truthOf(index, CARD_TEXT, false) : images.references[index].map((one) => caption("li", one, gallery.pattern, CARD_TEXT));
  return element(
    "li",
    { class: "card", "data-position": position },
    opener,
    element("div", { class: "hypotheses" }, ...hypotheses),
    element("ul", { class: "references", "aria-label": TRUTH }, ...references),
    ...(unscored ? [] : [scoreTable(index)]),
  );
}

const attendedSets = new Map();

function attendedBy(run) {
  if (!attendedSets.has(run)) attendedSets.set(run, new Set(run.attended));
  return attendedSets.get(run);
}

function showThumbnail(picture) {
  const address = imageAddress(block(`thumbnail-${pictureOf(picture.dataset.image)}`));
  if (address) picture.src = address;
}

function scoreTable(index) {
  const head = scored.map((column) =>
    element("th", { scope: "col", title: metrics[column].label, class: column === gallery.metric ? "chosen" : "" }, metrics[column].short),
  );
  const rows = [];
  runs.forEach((run, number) => {
    const cells = scored.map((column) =>
      element("td", { class: column === gallery.metric ? "chosen" : "" }, formatted(run.values[column][index], metrics[column])),
    );
    const name = several ? [element("th", { scope: "row" }, runDot(run, number))] : [];
    rows.push(element("tr", {}, ...name, ...cells));
    if (number > 0) {
      const changes = scored.map((column) => {
        const change = difference(run.values[column][index], runs[0].values[column][index]);
        return element("td", { class: verdict(change, metrics[column]) }, formattedDifference(change, metrics[column]));
      });
      rows.push(element("tr", { class: "difference" }, element("th", { scope: "row", "aria-label": "difference" }, "±"), ...changes));
    }
  });
  const corner = several ? [element("td")] : [];
  const table = element("table", { class: "figures" });
  table.append(element("thead", {}, element("tr", {}, ...corner, ...head)), element("tbody", {}, ...rows));
  return element("div", { class: "scroll" }, table);
}

// ------------------------------------------------------------------ the range of scores

function setUpRange() {
  byId("range").hidden = unscored;
  if (unscored) return;
  const metric = metrics[gallery.metric];
  const values = runs[gallery.run].values[gallery.metric].filter((value) => value !== null).map((value) => value * metric.scale);
  gallery.low = gallery.high = null;
  const [low, high] = range(values);
  byId("range").hidden = !(high > low); // nothing to choose
  if (!(high > low)) return;
  const unit = 10 ** Math.floor(Math.log10((high - low) / 50));
  const [first, last] = [Math.floor(low / unit) * unit, Math.ceil(high / unit) * unit];
  for (const end of ["low", "high"]) {
    Object.assign(byId(end), { min: first, max: last, step: unit });
    byId(end).value = end === "low" ? first : last;
  }
  byId("range-label").textContent = several ? `${metric.label} of ${runs[gallery.run].name}` : metric.label;
  const counts = new Array(BARS).fill(0);
  for (const value of values) counts[Math.min(BARS - 1, Math.floor((BARS * (value - first)) / (last - first)))] += 1;
  const tallest = Math.max(...counts);
  const bars = counts.map((count, bar) => {
    const height = count ? Math.max(1, (28 * count) / tallest) : 0;
    return drawing("rect", { x: bar, width: 0.8, y: 28 - height, height });
  });
  const picture = drawing("svg", { viewBox: `0 0 ${BARS} 28`, preserveAspectRatio: "none" }, ...bars);
  byId("histogram").replaceChildren(picture);
  showRange();
}

function showRange() {
  const [low, high] = [byId("low"), byId("high")];
  const [from, to] = [Number(low.value), Number(high.value)];
  const digits = Math.max(0, -Math.floor(Math.log10(Number(low.step)) + 1e-9));
  byId("range-text").textContent = `${from.toFixed(digits)} to ${to.toFixed(digits)}`.replaceAll("-", "−");
  const [first, last] = [Number(low.min), Number(low.max)];
  byId("histogram").querySelectorAll("rect").forEach((bar, number) => {
    const middle = first + ((number + 0.5) / BARS) * (last - first);
    bar.classList.toggle("out", middle < from || middle > to);
  });
}

function moveRange(moved) {
  const [low, high] = [byId("low"), byId("high")];
  if (Number(low.value) > Number(high.value)) {
    if (moved === low) low.value = high.value;
    else high.value = low.value;
  }
  gallery.low = low.value === low.min ? null : Number(low.value);
  gallery.high = high.value === high.max ? null : Number(high.value);
  showRange();
  select();
}

// ------------------------------------------------------------------ keys and controls

function openers() {
  return [...byId("cards").querySelectorAll(".opener")];
}

gallery.focus = (position) => {
  if (position >= gallery.made) makeCards(position - gallery.made + CHUNK);
  const all = openers();
  if (!all[position]) return;
  all.forEach((opener, place) => (opener.tabIndex = place === position ? 0 : -1));
  all[position].focus();
  all[position].closest(".card").scrollIntoView({ block: "nearest" });
};

function cardsInRow() {
  const tops = [...byId("cards").children].slice(0, 12).map((node) => node.offsetTop);
  return Math.max(1, tops.filter((top) => top === tops[0]).length);
}

byId("cards").addEventListener("keydown", (event) => {
  const position = Number(event.target.closest(".card")?.dataset.position);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -cardsInRow(), ArrowDown: cardsInRow(), Home: -position };
  if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const target = position + steps[event.key];
  if (target >= 0 && target < gallery.shown.length) gallery.focus(target);
});
byId("cards").addEventListener("click", (event) => {
  const node = event.target.closest(".card");
  if (node && document.getSelection().isCollapsed) openView(Number(node.dataset.position));
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !view.open) {
    event.preventDefault();
    byId("search").focus();
    byId("search").select();
  }
});
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "Enter") {
    event.preventDefault();
    gallery.focus(0);
  }
});
byId("search").addEventListener("input", select);
byId("where").addEventListener("change", select);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("order").addEventListener("change", (event) => {
  gallery.order = event.target.value;
  select();
});
for (const name of ["metric", "run"]) {
  byId(name).addEventListener("change", (event) => {
    gallery[name] = Number(event.target.value);
    setUpRange();
    select();
  });
}
for (const end of ["low", "high"]) byId(end).addEventListener("input", (event) => moveRange(event.target));
byId("group").addEventListener("change", (event) => {
  gallery.group = event.target.value;
  select();
});
byId("shuffle").addEventListener("click", () => {
  gallery.seed += 1;
  select();
});
byId("reset").addEventListener("click", () => {
  byId("search").value = byId("group").value = gallery.group = "";
  setUpRange();
  select();
});

function setUpControls() {
  byId("order").append(...ORDERS.map(([value, label]) => element("option", { value }, label)));
  byId("metric").append(...scored.map((column) => element("option", { value: column }, metrics[column].label)));
  byId("run").append(...runs.map((run, number) => element("option", { value: number }, run.name)));
  byId("order").value = gallery.order;
  byId("metric").value = gallery.metric;
  byId("run").value = gallery.run;
  byId("run-field").hidden = !several;
  byId("metric").parentElement.hidden = byId("where").hidden = unscored;
  document.body.classList.toggle("no-pictures", !images.pictures.length);
  document.body.classList.toggle("gallery", unscored && images.pictures.length > 0);
}

setUpControls();
setUpGroups();
setUpRange();
select();
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("img[data-image]:not([src])").forEach(showThumbnail);
});
