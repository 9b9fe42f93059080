// ------------------------------------------------------------------ where the model looked

const HEAT = heatColours();
const HEAT_SIDE = 400; // pixels of the overlay's longer side; it is smooth, so more would not be seen

// The words of a caption as buttons; each shows the map of its weights over the photo.
function wordStrip(attention) {
  const strip = element("p", { class: "words", role: "toolbar", "aria-label": "Where the model looked, word by word", dir: "auto" });
  const buttons = attention.words.map((word, position) => {
    const button = element("button", { type: "button", tabindex: position ? "-1" : "0", "aria-pressed": "false" }, word);
    button.show = () => {
      for (const other of buttons) {
        other.classList.toggle("looking", other === button);
        other.setAttribute("aria-pressed", String(other === button));
      }
      drawHeat(attention.box, attention.maps[position]);
      byId("looked").textContent = inWords(word, attention.maps[position]);
    };
    button.addEventListener("focus", () => {
      for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
      button.show();
    });
    button.addEventListener("pointerenter", button.show);
    button.addEventListener("click", () => button.focus());
    return button;
  });
  strip.addEventListener("pointerleave", () => {
    if (buttons.includes(document.activeElement)) document.activeElement.show();
    else clearHeat(buttons);
  });
  strip.addEventListener("focusout", (event) => {
    if (!buttons.includes(event.relatedTarget)) clearHeat(buttons);
  });
  strip.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    const ends = { Home: 0, End: buttons.length - 1 }[event.key];
    if (event.key === "Escape") document.activeElement.blur();
    else if (by === undefined && ends === undefined) return;
    else buttons[ends ?? Math.max(0, Math.min(buttons.length - 1, buttons.indexOf(document.activeElement) + by))].focus();
    event.preventDefault();
  });
  for (const button of buttons) strip.append(button, " ");
  return strip;
}

function clearHeat(buttons = []) {
  for (const button of buttons) {
    button.classList.remove("looking");
    button.setAttribute("aria-pressed", "false");
  }
  const canvas = byId("overlay");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  byId("looked").textContent = "";
}

// `map`: rows of weights over the part `box` (left, top, right, bottom as fractions) of the photo.
function drawHeat(box, map) {
  const [picture, canvas] = [byId("photo"), byId("overlay")];
  if (!picture.naturalWidth) return;
  const shrink = HEAT_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight);
  canvas.width = Math.max(1, Math.round(shrink * picture.naturalWidth));
  canvas.height = Math.max(1, Math.round(shrink * picture.naturalHeight));
  const [left, top, right, bottom] = box;
  const [rows, columns, most] = [map.length, map[0].length, Math.max(...map.flat(), 1e-9)];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y += 1) {
    const row = (((y + 0.5) / canvas.height - top) / (bottom - top)) * rows;
    for (let x = 0; x < canvas.width; x += 1) {
      const column = (((x + 0.5) / canvas.width - left) / (right - left)) * columns;
      const seen = row >= 0 && row <= rows && column >= 0 && column <= columns;
      const level = seen ? Math.round((255 * between(map, row - 0.5, column - 0.5)) / most) : 0;
      pixels.data.set(HEAT[level], 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(pixels, 0, 0);
}

// Bilinear, the outermost cells going on to the border.
function between(map, row, column) {
  const inside = (value, size) => Math.max(0, Math.min(size - 1, value));
  const [above, before] = [Math.floor(row), Math.floor(column)];
  const [down, across] = [row - above, column - before];
  const at = (r, c) => map[inside(r, map.length)][inside(c, map[0].length)];
  const upper = at(above, before) * (1 - across) + at(above, before + 1) * across;
  const lower = at(above + 1, before) * (1 - across) + at(above + 1, before + 1) * across;
  return upper * (1 - down) + lower * down;
}

// What the heat shows, for those who cannot see it.
function inWords(word, map) {
  const cells = map.flat();
  const cell = cells.indexOf(Math.max(...cells));
  const down = (Math.floor(cell / map[0].length) + 0.5) / map.length;
  const across = ((cell % map[0].length) + 0.5) / map[0].length;
  const height = down < 1 / 3 ? "upper" : down < 2 / 3 ? "middle" : "lower";
  const side = across < 1 / 3 ? "left" : across < 2 / 3 ? "centre" : "right";
  return `“${word}”: most at ${height} ${side}`;
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
