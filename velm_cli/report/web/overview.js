// ------------------------------------------------------------------ the head of the page

function describePage() {
  document.title = `${data.title} · velm report`;
  byId("title").textContent = data.title;
  const references = images.references.flat();
  const truths = data.task === "vqa" ? [new Set(references).size, "different answer"] : [references.length, "reference"];
  const parts = [[images.ids.length, noun], ...(unscored ? [] : [truths])];
  if (several) parts.push([runs.length, "run"]);
  if (!captions) {
    byId("details").firstElementChild.textContent = "More figures";
    byId("images-heading").textContent = `${noun[0].toUpperCase()}${noun.slice(1)}s`;
  }
  const counted = parts.map(([count, noun]) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`);
  byId("summary").textContent = counted.join(" · ");
}

// ------------------------------------------------------------------ the table of scores

function showScores() {
  const table = element("table", { class: several ? "scores compared" : "scores", role: "table" });
  const head = element("tr", { role: "row" });
  if (several) head.append(element("th", { role: "columnheader", scope: "col" }, "Run"));
  for (const metric of metrics) {
    head.append(element("th", { role: "columnheader", scope: "col", ...explained(metric.label) }, metric.label));
  }
  table.append(element("thead", { role: "rowgroup" }, head));
  const body = element("tbody", { role: "rowgroup" });
  const best = metrics.map((metric, column) => bestScore(metric, column));
  runs.forEach((run, number) => {
    body.append(scoreRow(run, number, best));
    const known = number > 0 && JSON.stringify(run.floors) === JSON.stringify(runs[0].floors);
    for (const [name, values] of known ? [] : run.floors ?? []) body.append(floorRow(name, values));
    if (number > 0) body.append(differenceRow(run));
  });
  table.append(body);
  byId("scores").append(element("div", { class: "scroll" }, table));
  byId("scores").append(element("p", { class: "muted small" }, scaleNote()));
}

// The meaning of a label, for who points at it.
function explained(label) {
  const meaning = Object.hasOwn(data.meanings, label) ? data.meanings[label] : null;
  return meaning ? { title: meaning, class: "explained" } : {};
}

function bestScore(metric, column) {
  const [low, high] = range(runs.map((run) => run.scores[column]));
  return metric.lowerIsBetter ? low : high;
}

function scaleNote() {
  const hundredfold = metrics.some((metric) => metric.scale === 100);
  const intervals = runs.some((run) => run.intervals.some(Boolean));
  const notes = [];
  if (hundredfold) notes.push("Scores are times 100.");
  if (intervals) notes.push("Small figures: 95 % intervals.");
  if (several) notes.push(`Differences are to ${runs[0].name}: + is higher than it.`);
  return notes.join(" ");
}

function scoreRow(run, number, best) {
  const row = element("tr", { role: "row" });
  if (several) row.append(element("th", { role: "rowheader", scope: "row" }, runLabel(run, number)));
  metrics.forEach((metric, column) => {
    const value = run.scores[column];
    const winner = several && value !== null && value === best[column];
    const cell = element("td", { role: "cell", "data-label": metric.label, class: winner ? "best" : "" });
    cell.append(element("span", { class: "value" }, formatted(value, metric)));
    const ends = run.intervals[column];
    if (ends) {
      const text = ends.map((end) => formatted(end, metric)).join(" to ");
      cell.append(element("span", { class: "interval" }, text));
      if (several) cell.append(whisker(column, value, ends, number));
    }
    row.append(cell);
  });
  return row;
}

// What a rule that looks at nothing scores.
function floorRow(name, values) {
  const row = element("tr", { role: "row", class: "difference floor" });
  const label = element("span", { class: "muted" }, `floor: ${name}`);
  if (several) row.append(element("th", { role: "rowheader", scope: "row" }, label));
  metrics.forEach((metric, column) => {
    const cell = element("td", { role: "cell", "data-label": metric.label }, formatted(values[column], metric));
    if (!several && column === 0) cell.append(element("span", { class: "interval" }, label));
    row.append(cell);
  });
  return row;
}

// The interval as a line on a scale that all runs share, so that overlaps are seen and not computed.
function whisker(column, value, ends, number) {
  const [low, high] = range(runs.flatMap((run) => [run.scores[column], ...(run.intervals[column] ?? [])]));
  const place = (score) => 4 + 92 * (high > low ? (score - low) / (high - low) : 0.5);
  return drawing(
    "svg",
    { class: `whisker run-${number % 6}`, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    drawing("line", { x1: place(ends[0]), x2: place(ends[1]), y1: 4, y2: 4 }),
    drawing("line", { class: "point", x1: place(value), x2: place(value), y1: 0, y2: 8 }),
  );
}

// With the difference's own interval: two intervals that overlap do not say that the scores are alike.
function differenceRow(run) {
  const row = element("tr", { role: "row", class: "difference" });
  row.append(element("th", { role: "rowheader", scope: "row" }, "difference"));
  metrics.forEach((metric, column) => {
    const tested = run.differences[column];
    const change = difference(run.scores[column], runs[0].scores[column]);
    const cell = element("td", { role: "cell", "data-label": metric.label });
    cell.append(element("span", { class: verdict(change, metric) }, formattedDifference(change, metric)));
    if (tested?.interval) {
      const text = tested.interval.map((end) => formattedDifference(end, metric)).join(" to ");
      cell.append(element("span", { class: "interval" }, text));
    }
    if (tested) cell.append(element("span", { class: "interval" }, tested.p < 0.001 ? "p < 0.001" : `p = ${tested.p.toFixed(3)}`));
    row.append(cell);
  });
  return row;
}

// What is said of several runs is said once, with their names.
function showNotes() {
  for (const said of data.verdicts) byId("verdicts").append(element("p", { dir: "auto" }, said));
  const notes = new Map(data.notes.map((note) => [note, []]));
  runs.forEach((run, number) => {
    for (const note of run.notes) notes.set(note, [...(notes.get(note) ?? []), runLabel(run, number)]);
  });
  for (const [note, labels] of notes) {
    const of = labels.length < runs.length ? labels.flatMap((label) => [label, " "]) : [];
    byId("notes").append(element("li", { dir: "auto" }, ...of, note));
  }
}

// What each run says of itself, side by side in a part of the page that folds.
function showFolded(place, entriesOf) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(entriesOf(run))))];
  byId(place).hidden = !keys.length;
  const table = element("table", { class: "entries" });
  if (several) {
    const names = runs.map((run, number) => element("th", { scope: "col" }, runLabel(run, number)));
    table.append(element("thead", {}, element("tr", {}, element("td"), ...names)));
  }
  const rows = keys.map((key) => {
    const values = runs.map((run) => element("td", { dir: "auto" }, entriesOf(run)[key] ?? NOTHING));
    return element("tr", {}, element("th", { scope: "row", ...explained(key) }, key), ...values);
  });
  table.append(element("tbody", {}, ...rows));
  byId(place).append(element("div", { class: "scroll" }, table));
}

// ------------------------------------------------------------------ learning curves

const CHART = { width: 460, height: 210, left: 44, right: 14, top: 12, bottom: 30 };
const WIDE = 760; // pixels from which on two charts stand side by side

function showCurves() {
  byId("learning").hidden = !runs.some((run) => run.curves);
  if (several) byId("curves").before(element("p", { class: "legend" }, ...runs.map(runLabel)));
  drawCurves();
  window.addEventListener("resize", drawCurves);
}

// In the pixels of the screen, so that the text of a chart is as large as all other text.
function drawCurves() {
  const room = byId("curves").clientWidth;
  CHART.width = Math.round(room > WIDE ? (room - 18) / 2 : room) - 32;
  const lossLines = runs.flatMap((run, number) => [
    { run, number, points: run.curves?.trainLoss ?? [], style: "faint", what: "training" },
    { run, number, points: run.curves?.validationLoss ?? [], style: "strong", what: "validation" },
  ]);
  const primary = metrics.find((metric) => metric.name === data.primary);
  const scale = primary?.scale ?? 100;
  const scoreLines = runs.map((run, number) => ({
    run, number, points: (run.curves?.validationScore ?? []).map(([step, value]) => [step, scale * value]), style: "strong",
  }));
  const charts = [
    chart(captions ? "Loss, nats per token" : "Loss", "Thin: training. Bold: validation.", lossLines),
    chart(`${primary?.label ?? data.primary} in validation${scale === 1 ? "" : `, times ${scale}`}`, captions ? "Greedy captions." : "", scoreLines),
  ].filter(Boolean);
  byId("curves").replaceChildren(...charts);
}

function chart(title, explanation, lines) {
  const drawn = lines.filter((line) => line.points.length);
  if (!drawn.length) return null;
  const all = drawn.flatMap((line) => line.points);
  const steps = ticks(0, range(all.map((point) => point[0]))[1], 4);
  const values = ticks(...range(all.map((point) => point[1])), 4);
  const x = scale(steps, CHART.left, CHART.width - CHART.right);
  const y = scale(values, CHART.height - CHART.bottom, CHART.top);
  const picture = drawing("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img", "aria-label": spoken(title, drawn) });
  for (const value of values) {
    picture.append(drawing("line", { class: "grid", x1: CHART.left, x2: CHART.width - CHART.right, y1: y(value), y2: y(value) }));
    picture.append(drawing("text", { x: CHART.left - 8, y: y(value) + 4, "text-anchor": "end" }, tickText(value)));
  }
  for (const step of steps) {
    const anchor = step === steps.at(-1) ? "end" : "middle";
    picture.append(drawing("text", { x: x(step), y: CHART.height - 8, "text-anchor": anchor }, tickText(step)));
  }
  for (const line of drawn) {
    const group = drawing("g", { class: `line ${line.style} run-${line.number % 6}` });
    group.append(drawing("polyline", { points: line.points.map(([step, value]) => `${x(step)},${y(value)}`).join(" ") }));
    if (line.style === "strong") {
      const dots = line.points.length > 40 ? line.points.slice(-1) : line.points;
      for (const [step, value] of dots) {
        const label = drawing("title", {}, `step ${step.toLocaleString("en")}: ${value.toFixed(3)}`);
        group.append(drawing("circle", { cx: x(step), cy: y(value), r: 3 }, label));
      }
    }
    picture.append(group);
  }
  const heading = element("figcaption", {}, title, element("span", { class: "muted" }, ` ${explanation} Below: steps.`));
  return element("figure", {}, heading, picture);
}

function spoken(title, lines) {
  const ends = lines.map((line) => {
    const [step, value] = line.points.at(-1);
    return `${line.run.name}${line.what ? ` ${line.what}` : ""} ${value.toFixed(2)} at step ${step}`;
  });
  return `${title}: ${ends.join(", ")}`;
}

function scale(values, from, to) {
  const [first, last] = [values[0], values.at(-1)];
  return (value) => Math.round(10 * (from + ((value - first) / (last - first || 1)) * (to - from))) / 10;
}

// Round numbers from at most `low` to at least `high`.
function ticks(low, high, count) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

function tickText(value) {
  if (Math.abs(value) >= 10000) return `${Number((value / 1000).toFixed(1))}k`;
  return String(Number(value.toFixed(3))).replace("-", "−");
}

describePage();
if (unscored) {
  byId("scores-heading").hidden = true;
  byId("about").firstElementChild.textContent = "What wrote this";
} else showScores();
showNotes();
showFolded("about", (run) => run.about);
showConfusions();
showFolded("details", (run) => run.details);
showFolded("signature", (run) => run.signature);
showCurves();
