// ------------------------------------------------------------------ tasks other than captioning

// What an example is called, and the headings of what is shown of it.
const NAMED = {
  caption: ["image", "Hypothesis", "References"],
  classify: ["image", "Label", "Right label"],
  vqa: ["question", "Answer", "Answers by people"],
  translate: ["sentence", "Translation", "References"],
  summarise: ["document", "Summary", "References"],
  chat: ["conversation", "Reply", "References"],
  retrieve: ["image", "Captions ranked first", "Its captions, with the rank of the image"],
};
const [noun, ANSWER, TRUTH] = NAMED[data.task] ?? ["example", "Prediction", "Truth"];

// "right", "partly" or "wrong", as a class name.
function rightness(value) {
  if (value === null) return "";
  return value >= 1 ? "right" : value > 0 ? "partly" : "wrong";
}

function promptOf(index) {
  const { prompt } = images.items[index];
  return prompt ? [caption("p", prompt, gallery.pattern)].map((node) => (node.classList.add("prompt"), node)) : [];
}

// A run's answer in the colour of its score, and its candidates as bars of their probabilities.
function answerOf(run, number, index, limit) {
  const { right, candidates } = run.answers[index];
  const part = element("div", { class: "answer" });
  const text = run.hypotheses[index];
  if (text || !candidates.length) {
    const said = caption("p", text, gallery.pattern, limit);
    const mark = rightness(right);
    if (mark) {
      said.classList.add(mark);
      said.append(element("span", { class: "sr" }, ` (${mark})`));
    }
    if (several) said.prepend(runDot(run, number));
    part.append(said);
  }
  if (candidates.length) part.append(candidateList(candidates, limit));
  return part;
}

function candidateList(candidates, limit) {
  const rows = candidates.map(([text, share, own]) => {
    const row = element("li", { class: own === null ? "" : own ? "right" : "wrong" });
    row.append(caption("span", text, gallery.pattern, limit));
    if (share !== null) row.append(element("span", { class: "share", dir: "ltr" }, `${(100 * share).toFixed(1)} %`));
    if (share !== null) row.append(shareBar(share));
    if (own) row.append(element("span", { class: "sr" }, " (its own)"));
    return row;
  });
  return element("ol", { class: "candidates", "aria-label": "Candidates" }, ...rows);
}

// The captions of a run behind its first, where it has written several.
function othersOf(run, index, limit) {
  const others = run.others?.[index] ?? [];
  if (!others.length) return [];
  const list = candidateList(others.map((text) => [text, null, null]), limit);
  list.classList.add("others"); // whole, since they often differ at their ends
  list.setAttribute("aria-label", "Further captions");
  return [list];
}

function shareBar(share) {
  return drawing(
    "svg",
    { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    drawing("rect", { width: Math.max(0.5, 100 * share), height: 10 }),
  );
}

// The right texts with their notes, whose own direction no text in front of them turns round; `close` also shows the images that each of them found.
function truthOf(index, limit, close) {
  const { truth, found } = images.items[index];
  return truth.map(([text, note], number) => {
    const row = caption("li", text, gallery.pattern, limit);
    if (note) row.append(" ", element("span", { class: "note", dir: "ltr" }, note));
    if (close && found[number]?.length) row.append(element("div", { class: "found" }, ...found[number].map((place) => foundImage(place, index))));
    return row;
  });
}

function foundImage(place, own) {
  const id = images.ids[place];
  const address = pictured.has(place) ? imageAddress(block(`thumbnail-${pictureOf(place)}`)) : null;
  const name = { class: place === own ? "right" : "", title: `Image ${id}` };
  return address ? element("img", { ...name, src: address, alt: `Image ${id}` }) : element("span", name, `#${id}`);
}

// Examples of one image share its picture, which the page has once.
function pictureOf(index) {
  return images.items ? images.blocks[index] : index;
}

function setUpGroups() {
  const counts = new Map();
  for (const { group } of images.items ?? []) if (group) counts.set(group, (counts.get(group) ?? 0) + 1);
  byId("group-field").hidden = counts.size < 2;
  const sorted = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  const options = sorted.map(([group, count]) => element("option", { value: group }, `${group} (${count.toLocaleString("en")})`));
  byId("group").append(element("option", { value: "" }, "all"), ...options);
}
