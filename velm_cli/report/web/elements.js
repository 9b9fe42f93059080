"use strict";

// What every part of the page uses: the data, scores as text, nodes.
// Captions come from strangers: they enter the page as text nodes, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const { metrics, runs, images } = data;
const several = runs.length > 1;
const unscored = metrics.length === 0; // nothing to compare with: the page shows pictures and what was said of them
const captions = data.task === "caption";
const pictured = new Set(images.pictures);

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function drawing(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// The content of one of the blocks behind this script; null if there is none, or not yet.
function block(name) {
  const node = byId(name);
  const complete = node && (node.nextSibling || document.readyState !== "loading");
  return complete ? JSON.parse(node.textContent) : null;
}

function imageAddress(base64) {
  return base64 && `data:image/jpeg;base64,${base64}`;
}

// ------------------------------------------------------------------ numbers

const NOTHING = "–";

function formatted(value, metric) {
  if (value === null) return NOTHING;
  return (value * metric.scale).toFixed(metric.digits).replace("-", "−");
}

function formattedDifference(value, metric) {
  if (value === null) return NOTHING;
  const text = formatted(value, metric);
  return Number(text.replace("−", "-")) > 0 ? `+${text}` : text;
}

function difference(value, first) {
  return value === null || first === null ? null : value - first;
}

// "better" or "worse" than the first run, as a class name.
function verdict(change, metric) {
  if (!change || Number(formatted(change, metric).replace("−", "-")) === 0) return "";
  return change > 0 === !metric.lowerIsBetter ? "better" : "worse";
}

function range(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// ------------------------------------------------------------------ words

// Lower case, with one space before each word, so that " cat" finds cat and cats but not concatenated.
function searchable(text) {
  return ` ${text.toLowerCase().replace(/[\s\p{P}]+/gu, " ")}`;
}

// Scripts that put no spaces between words are searched anywhere.
const SPACELESS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Khmer}\p{Script=Lao}]/u;

function queryTerms(query) {
  const terms = query.split(/\s+/).map((word) => searchable(word).trimEnd()).filter((term) => term.trim());
  return terms.map((term) => (SPACELESS.test(term) ? term.trim() : term));
}

// A pattern for the words as they stand in a caption, or null.
function queryPattern(query) {
  const words = query.split(/\s+/).filter((word) => searchable(word).trim());
  if (!words.length) return null;
  const escaped = words.map((word) => word.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
  const starts = escaped.map((word) => (SPACELESS.test(word) ? word : `(?<![^\\s\\p{P}])${word}`));
  return new RegExp(starts.join("|"), "giu");
}

// A caption's text in a node of its own, with what was searched for marked.
function caption(tag, text, pattern, limit = Infinity) {
  const node = element(tag, { class: "caption", dir: "auto" });
  if (text === null || !text.trim()) {
    node.classList.add("absent");
    node.append(text === null ? "no caption" : "empty");
    return node;
  }
  const shown = text.length > limit ? `${text.slice(0, limit)}…` : text;
  let end = 0;
  for (const match of pattern ? shown.matchAll(pattern) : []) {
    node.append(shown.slice(end, match.index), element("mark", {}, match[0]));
    end = match.index + match[0].length;
  }
  node.append(shown.slice(end));
  return node;
}

function runLabel(run, number) {
  return element("span", { class: `run run-${number % 6}`, dir: "auto" }, run.name);
}

function runDot(run, number) {
  return element("span", { class: `dot run-${number % 6}`, title: run.name, role: "img", "aria-label": run.name });
}
