// ------------------------------------------------------------------ one image, close

const view = byId("view");
const HEAT = heatColours();
const HEAT_SIDE = 400; // pixels of the overlay's longer side; it is smooth, so more would not be seen

let viewed = 0; // position in the list that the gallery shows
let words = []; // the buttons of all words with attention

function openView(position) {
  viewed = position;
  fillView();
  if (!view.open) view.showModal();
  (words[0] ?? byId("close")).focus();
}

function moveView(by) {
  const target = viewed + by;
  if (target < 0 || target >= gallery.shown.length) return;
  openView(target);
}

function fillView() {
  const index = gallery.shown[viewed];
  const place = `${(viewed + 1).toLocaleString("en")} of ${gallery.shown.length.toLocaleString("en")}`;
  byId("view-title").replaceChildren(`${noun[0].toUpperCase()}${noun.slice(1)} ${images.ids[index]} `, element("span", { class: "muted" }, place));
  byId("previous").disabled = viewed === 0;
  byId("next").disabled = viewed === gallery.shown.length - 1;
  words = [];
  const pattern = gallery.pattern;
  const stage = element("div", { class: "stage" });
  const text = element("div", { class: "told" });
  const address = imageAddress(block(`large-${pictureOf(index)}`) ?? block(`thumbnail-${pictureOf(index)}`));
  let overlay = null;
  if (address) {
    overlay = element("canvas", { "aria-hidden": "true" });
    const picture = element("img", { src: address, alt: `Image ${images.ids[index]}` });
    picture.addEventListener("load", () => words.find((word) => word.classList.contains("looking"))?.show());
    stage.append(element("div", { class: "frame" }, picture, overlay));
  }
  const looked = element("p", { class: "muted small looked", role: "status" });
  if (images.items) text.append(...promptOf(index));
  runs.forEach((run, number) => {
    const attention = run.attended.includes(index) && address ? block(`attention-${number}-${index}`) : null;
    const part = element("section", { class: "hypothesis" });
    part.append(element("h3", {}, several ? runLabel(run, number) : ANSWER));
    if (images.items) part.append(answerOf(run, number, index));
    else if (!attention || !spells(attention.words, run.hypotheses[index])) part.append(caption("p", run.hypotheses[index], pattern));
    if (attention) {
      const strip = wordStrip(run, attention, overlay, looked);
      const answer = part.querySelector(".answer > .caption");
      if (answer) answer.after(strip);
      else part.append(strip);
    }
    if (!images.items) part.append(...othersOf(run, index));
    text.append(part);
  });
  if (words.length) {
    stage.append(looked);
    looked.textContent = `Point at ${images.items ? "the answer" : "a word, or use ← and →,"} to see where the model looked.`;
  }
  const truth = images.items ? truthOf(index, Infinity, true) : images.references[index].map((one) => caption("li", one, pattern));
  if (!unscored) {
    text.append(element("h3", {}, TRUTH), element("ul", { class: "references" }, ...truth));
    text.append(element("h3", {}, "Scores"), element("div", { class: "scroll" }, detailedScores(index)));
  }
  byId("view-body").replaceChildren(...(address ? [stage, text] : [text]));
  byId("view-body").scrollTop = 0;
}

// A row for each metric: there is room for names, and many runs scroll sideways.
function detailedScores(index) {
  const table = element("table", { class: "detailed" });
  if (several) {
    const names = runs.map((run, number) => element("th", { scope: "col" }, runLabel(run, number)));
    table.append(element("thead", {}, element("tr", {}, element("td"), ...names)));
  }
  const rows = metrics.map((metric, column) => {
    const values = runs.map((run) => run.values[column][index]);
    const cells = values.map((value, number) => {
      const cell = element("td", {}, formatted(value, metric));
      const change = difference(value, values[0]);
      if (number > 0) cell.append(" ", element("span", { class: verdict(change, metric) }, formattedDifference(change, metric)));
      return cell;
    });
    return element("tr", {}, element("th", { scope: "row" }, metric.label), ...cells);
  });
  table.append(element("tbody", {}, ...rows));
  return table;
}

// ------------------------------------------------------------------ attention

// Whether the words, put in a row, are the caption: then they stand in its place.
function spells(list, text) {
  const bare = (words) => words.replace(/\s+/g, "");
  return bare(list.join("")) === bare(text ?? "");
}

function wordStrip(run, attention, overlay, looked) {
  const levels = Uint8Array.from(atob(attention.weights), (character) => character.charCodeAt(0));
  const cells = attention.height * attention.width;
  const strip = element("p", { class: "words", role: "toolbar", "aria-label": `Where ${run.name} looked, by ${images.items ? "answer" : "word"}`, dir: "auto" });
  const clear = () => {
    if (words.includes(document.activeElement)) document.activeElement.show();
    else overlay.getContext("2d").clearRect(0, 0, overlay.width, overlay.height);
  };
  attention.words.forEach((word, position) => {
    const button = element("button", { type: "button", tabindex: words.length ? "-1" : "0", dir: "auto" }, images.items ? "where it looked" : word || "∅");
    const map = levels.subarray(position * cells, (position + 1) * cells);
    button.show = () => {
      for (const other of words) other.classList.toggle("looking", other === button);
      drawHeat(overlay, attention, map);
      looked.textContent = inWords(word, attention, map, attention.peaks[position]);
    };
    button.addEventListener("focus", () => {
      for (const other of words) other.tabIndex = other === button ? 0 : -1;
      button.show();
    });
    button.addEventListener("pointerenter", button.show);
    button.addEventListener("pointerleave", clear);
    button.addEventListener("click", () => button.focus());
    words.push(button);
    strip.append(button, " ");
  });
  return strip;
}

function moveWord(by) {
  const current = words.indexOf(document.activeElement);
  words[Math.max(0, Math.min(words.length - 1, current + by))].focus();
}

// How a map was found, where not by the attention of the words.
const FOUND = { gradient: ", by gradients", occlusion: ", by hiding squares" };

// What the heat shows, for those who cannot see it.
function inWords(word, attention, map, peak) {
  const cell = map.indexOf(Math.max(...map));
  const down = (Math.floor(cell / attention.width) + 0.5) / attention.height;
  const across = ((cell % attention.width) + 0.5) / attention.width;
  const height = down < 1 / 3 ? "upper" : down < 2 / 3 ? "middle" : "lower";
  const side = across < 1 / 3 ? "left" : across < 2 / 3 ? "centre" : "right";
  const even = 1 / (attention.width * attention.height);
  const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;
  if (!peak) return `“${word}”: nothing in the image speaks for it`;
  return `“${word}”: most at ${height} ${side}, ${percent(peak)} on one cell (even: ${percent(even)})${FOUND[attention.method] ?? ""}`;
}

// Cool and dark where the model did not look, warm where it did.
function heatColours() {
  const stops = [[0, 12, 16, 32, 0.46], [0.35, 90, 35, 90, 0.36], [0.7, 240, 95, 40, 0.44], [1, 255, 205, 70, 0.64]];
  return Array.from({ length: 256 }, (_, level) => {
    const at = level / 255;
    const upper = Math.max(1, stops.findIndex((stop) => stop[0] >= at));
    const [from, to] = [stops[upper - 1], stops[upper]];
    const share = (at - from[0]) / (to[0] - from[0]);
    const mixed = [1, 2, 3, 4].map((part) => from[part] + share * (to[part] - from[part]));
    return [mixed[0], mixed[1], mixed[2], 255 * mixed[3]];
  });
}

function drawHeat(canvas, attention, map) {
  const picture = canvas.previousSibling;
  if (!picture.naturalWidth) return; // shown again as soon as it is loaded
  const shrink = HEAT_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight);
  canvas.width = Math.max(1, Math.round(shrink * picture.naturalWidth));
  canvas.height = Math.max(1, Math.round(shrink * picture.naturalHeight));
  const [left, top, right, bottom] = attention.box;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y += 1) {
    const row = (((y + 0.5) / canvas.height - top) / (bottom - top)) * attention.height;
    for (let x = 0; x < canvas.width; x += 1) {
      const column = (((x + 0.5) / canvas.width - left) / (right - left)) * attention.width;
      const seen = row >= 0 && row <= attention.height && column >= 0 && column <= attention.width;
      const level = seen ? Math.round(between(map, attention, row - 0.5, column - 0.5)) : 0;
      pixels.data.set(HEAT[level], 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(pixels, 0, 0);
  context.setLineDash([5, 4]);
  context.strokeStyle = "rgb(255 255 255 / 0.7)";
  const cut = left > 0 || top > 0 || right < 1 || bottom < 1;
  if (cut) {
    const [width, height] = [canvas.width, canvas.height];
    context.strokeRect(left * width + 0.5, top * height + 0.5, (right - left) * width - 1, (bottom - top) * height - 1);
  }
}

// Bilinear, the outermost cells going on to the border.
function between(map, grid, row, column) {
  const inside = (value, size) => Math.max(0, Math.min(size - 1, value));
  const [above, before] = [Math.floor(row), Math.floor(column)];
  const [down, across] = [row - above, column - before];
  const at = (r, c) => map[inside(r, grid.height) * grid.width + inside(c, grid.width)];
  const upper = at(above, before) * (1 - across) + at(above, before + 1) * across;
  const lower = at(above + 1, before) * (1 - across) + at(above + 1, before + 1) * across;
  return upper * (1 - down) + lower * down;
}

// ------------------------------------------------------------------ keys and buttons

byId("previous").addEventListener("click", () => moveView(-1));
byId("next").addEventListener("click", () => moveView(1));
byId("close").addEventListener("click", () => view.close());
view.addEventListener("click", (event) => {
  if (event.target === view) view.close(); // beside the window, on the backdrop
});
view.addEventListener("close", () => gallery.focus(viewed));
view.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const sideways = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const along = { p: -1, n: 1 }[event.key.toLowerCase()];
  if (sideways && words.length) moveWord(sideways);
  else if (sideways || along) moveView(sideways ?? along);
  else return;
  event.preventDefault();
});
