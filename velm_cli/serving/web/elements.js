"use strict";

// What every part of the page uses. Captions and answers enter the page as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A share with its text, readable without seeing the bar.
function bar(text, share, shown) {
  const meter = element("meter", { min: 0, max: 1, value: Math.max(0, share), "aria-label": `${text}: ${shown}` });
  return element("div", { class: "bar" }, element("span", { dir: "auto" }, text), meter, element("span", { "aria-hidden": "true" }, shown));
}
