// ------------------------------------------------------------------ the photo, and what is asked about it

let photo = null; // a Blob
let token = ""; // in the memory of this page only
let asking = new AbortController(); // ends what is asked about the photo before

const can = (what) => data.can.includes(what);

// The JSON that the server returns. Throws an Error whose message is for the user.
async function ask(path, fields) {
  const form = new FormData();
  form.append(path === "embed" ? "images" : "image", photo, "photo");
  for (const [name, value] of fields) form.append(name, value);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { method: "POST", body: form, headers, signal: asking.signal });
  const told = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (response.status === 401 && (await askForToken())) return ask(path, fields);
  if (!response.ok) throw new Error(told.error);
  return told;
}

function askForToken() {
  const dialog = byId("secret");
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      token = byId("token").value.trim();
      byId("token").value = "";
      resolve(token !== "");
    }, { once: true });
  });
}

// Runs `work`, says what is being done, and shows what went wrong.
async function busy(what, work) {
  const mine = photo;
  byId("error").textContent = "";
  byId("status").textContent = what;
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError" || mine !== photo) return;
    byId("error").textContent = error instanceof TypeError ? "The server cannot be reached." : sentence(error.message);
  }
  if (mine === photo) byId("status").textContent = "";
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

function take(blob) {
  if (!blob) return;
  if (blob.size > data.bytes) {
    byId("error").textContent = `The photo has ${(blob.size / 1e6).toFixed(1)} MB; this server takes ${data.bytes / 1e6}.`;
    return;
  }
  asking.abort();
  asking = new AbortController();
  photo = blob;
  URL.revokeObjectURL(byId("photo").src);
  byId("photo").src = URL.createObjectURL(blob);
  byId("frame").hidden = false;
  for (const id of ["caption", "drawn", "answers", "similarities"]) byId(id).replaceChildren();
  for (const button of document.querySelectorAll(".needs-photo")) button.disabled = false;
  clearHeat();
  if (can("caption")) caption();
  else byId("status").textContent = "";
}

// ------------------------------------------------------------------ captions

function captionFields() {
  return byId("prompt").value ? [["prompt", byId("prompt").value]] : [];
}

function caption() {
  return busy("The model is looking …", async () => {
    const told = await ask("caption", [["beams", byId("beams").value || 1], ...captionFields()]);
    clearHeat();
    byId("caption").replaceChildren(element("p", { dir: "auto" }, told.caption || "(no words)"));
    if (!can("attention") || !told.caption.trim()) return;
    const attention = await ask("attention", [["text", told.caption]]);
    const bare = (text) => text.replace(/\s+/g, "");
    if (bare(attention.words.join("")) === bare(told.caption)) byId("caption").replaceChildren(wordStrip(attention));
  });
}

function several() {
  return busy("The model is looking …", async () => {
    const fields = [["n", Math.min(5, data.captions)], ["seed", Math.floor(Math.random() * 2 ** 31)], ...captionFields()];
    const told = await ask("caption", fields);
    byId("drawn").replaceChildren(...told.captions.map((text) => element("li", { dir: "auto" }, text)));
  });
}

// ------------------------------------------------------------------ questions, texts

function question() {
  const [asked, choices] = [byId("question").value.trim(), byId("choices").value.split(",").map((one) => one.trim()).filter(Boolean)];
  if (!asked) return byId("question").focus();
  return busy("The model is thinking …", async () => {
    const fields = [["question", asked], ...choices.map((choice) => ["choices", choice])];
    const told = await askWithProbabilities(fields);
    // An object's keys that look like numbers come first: "2" would stand above the likelier "yes".
    const likeliest = Object.entries(told.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
    const bars = likeliest.map(([text, share]) => bar(text, share, `${(100 * share).toFixed(1)} %`));
    const item = element("li", {}, element("div", { class: "muted", dir: "auto" }, asked), element("div", { class: "answer", dir: "auto" }, told.answer), ...bars);
    byId("answers").prepend(item);
    byId("question").select();
  });
}

// A model that writes its answers has no probabilities: then the answer alone.
async function askWithProbabilities(fields) {
  if (!question.plain || fields.length > 1) {
    try {
      return await ask("answer", [...fields, ["probabilities", 5]]);
    } catch (error) {
      if (!error.message.startsWith("probabilities")) throw error;
      question.plain = true;
    }
  }
  return ask("answer", fields);
}

function compare() {
  const texts = byId("texts").value.split("\n").map((one) => one.trim()).filter(Boolean);
  if (!texts.length) return byId("texts").focus();
  return busy("The model is comparing …", async () => {
    const told = await ask("embed", texts.map((text) => ["texts", text]));
    const cosines = told.texts.map((vector, number) => [vector.reduce((sum, value, place) => sum + value * told.images[0][place], 0), texts[number]]);
    cosines.sort((a, b) => b[0] - a[0]);
    byId("similarities").replaceChildren(...cosines.map(([cosine, text]) => bar(text, cosine, cosine.toFixed(3))));
  });
}

// ------------------------------------------------------------------ where photos come from

function setUpDrop() {
  const drop = byId("drop");
  let depth = 0; // the pointer also enters what lies within
  const over = (by) => drop.classList.toggle("over", (depth = Math.max(0, depth + by)) > 0);
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) take(file);
  });
}

async function openCamera() {
  const coarse = matchMedia("(pointer: coarse)").matches; // phones have a camera app, which is better
  if (coarse || !navigator.mediaDevices?.getUserMedia) return byId("capture").click();
  try {
    byId("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
    byId("viewfinder").showModal();
  } catch (error) {
    byId("error").textContent = `The camera cannot be used (${error.message}).`;
  }
}

function shoot() {
  const [video, canvas] = [byId("video"), document.createElement("canvas")];
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(take, "image/jpeg", 0.95);
  byId("viewfinder").close();
}

// ------------------------------------------------------------------ the page

byId("about").textContent = Object.entries(data.about).map(([name, value]) => `${name}: ${value}`).join(" · ");
byId("captions").hidden = !can("caption");
byId("questions").hidden = !can("answer");
byId("comparison").hidden = !can("embed");
byId("beams").max = data.beams;
byId("beams").value = Math.min(5, data.beams);
for (const button of document.querySelectorAll(".needs-photo")) button.disabled = true;

const submits = { "caption-form": caption, "question-form": question, "texts-form": compare };
for (const [form, work] of Object.entries(submits)) {
  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    if (photo) work();
  });
}
byId("several").addEventListener("click", several);
byId("choose").addEventListener("click", () => byId("file").click());
byId("camera").addEventListener("click", openCamera);
for (const id of ["file", "capture"]) {
  byId(id).addEventListener("change", () => {
    take(byId(id).files[0]);
    byId(id).value = ""; // the same file may be chosen again
  });
}
byId("shoot").addEventListener("click", shoot);
byId("cancel").addEventListener("click", () => byId("viewfinder").close());
byId("viewfinder").addEventListener("close", () => {
  for (const track of byId("video").srcObject?.getTracks() ?? []) track.stop();
  byId("video").srcObject = null;
});
setUpDrop();
