"use strict";
const tip = document.getElementById("tip");

function show(event, text) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 18;
  const y = below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : below;
  tip.style.transform = `translate(${Math.max(8, x)}px, ${Math.max(8, y)}px)`;
}

// The browser's own hints wait a second and do not exist on touch screens, so ours take over their text.
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
for (const cell of document.querySelectorAll(".matrix td[title]")) {
  cell.dataset.tip = cell.title;
  cell.removeAttribute("title");
}
const maps = new Map();
for (const figure of document.querySelectorAll(".pixels")) {
  const { names, cells } = JSON.parse(figure.querySelector("script").textContent);
  maps.set(figure.querySelector("img"), { names, counts: new Map(cells.map(([i, j, n]) => [i * names.length + j, n])) });
}

function cellOf(image, event) {
  const { names, counts } = maps.get(image);
  const box = image.getBoundingClientRect();
  const at = (share) => Math.min(names.length - 1, Math.max(0, Math.floor(share * names.length)));
  const i = at((event.clientY - box.top) / box.height);
  const j = at((event.clientX - box.left) / box.width);
  return `true ${names[i]}\npredicted ${names[j]}\n${counts.get(i * names.length + j) ?? 0} clip(s)`;
}

for (const kind of ["pointermove", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    const held = event.target.closest?.("[data-tip]");
    show(event, held ? held.dataset.tip : maps.has(event.target) ? cellOf(event.target, event) : "");
  });
}
addEventListener("scroll", (event) => show(event, ""), { passive: true });
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(source);
    // A file opened from disk may not reach the clipboard API; copying the selection works there.
    const copied = navigator.clipboard
      ? await navigator.clipboard.writeText(source.textContent).then(() => true, () => document.execCommand("copy"))
      : document.execCommand("copy");
    button.textContent = copied ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// Without this script, and on paper, all panels show.
function choose(name) {
  for (const tab of document.querySelectorAll("[data-tab]")) tab.setAttribute("aria-selected", tab.dataset.tab === name);
  for (const panel of document.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== name;
}
const tabs = document.querySelectorAll("[data-tab]");
tabs.forEach((tab) => tab.addEventListener("click", () => choose(tab.dataset.tab)));
if (tabs.length) choose(tabs[0].dataset.tab);
addEventListener("beforeprint", () => document.querySelectorAll("[data-panel]").forEach((one) => (one.hidden = false)));
