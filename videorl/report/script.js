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
  const { block, side, cells } = JSON.parse(figure.querySelector("script").textContent);
  maps.set(figure.querySelector("img"), { block, side, counts: new Map(cells.map(([i, j, n]) => [i * side + j, n])) });
}

// The classes [first, end) of the row and of the column that the pointer is at, and the number of clips there.
function cellOf(image, event) {
  const { block, side, counts } = maps.get(image);
  const box = image.getBoundingClientRect();
  const at = (share) => Math.min(side - 1, Math.max(0, Math.floor(share * side)));
  const i = at((event.clientY - box.top) / box.height);
  const j = at((event.clientX - box.left) / box.width);
  return { label: [i * block, (i + 1) * block], guess: [j * block, (j + 1) * block], n: counts.get(i * side + j) ?? 0 };
}

function hintOf(image, event) {
  const { label, guess, n } = cellOf(image, event);
  const { named } = galleries.get(panelOf(image)) ?? { named: ([first]) => first };
  return `true ${named(label)}\npredicted ${named(guess)}\n${n} clip(s)`;
}

for (const kind of ["pointermove", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    const held = event.target.closest?.("[data-tip]");
    show(event, held ? held.dataset.tip : maps.has(event.target) ? hintOf(event.target, event) : "");
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

// The clips of an evaluation, by class, by cell of its confusion matrix, by right and wrong: pictures and list.
const PAGE = 20;
const galleries = new Map();
const panelOf = (element) => element.closest("[data-panel]").dataset.panel;

function gallery(panel) {
  const { names, folder, clips } = JSON.parse(panel.querySelector("script").textContent);
  const form = panel.querySelector("form");
  const list = panel.querySelector(".list");
  const [labels, guesses, kinds] = form.querySelectorAll("select");
  let wanted = {};
  let shown = PAGE;

  const named = ([first, end]) => (end > first + 1 ? `${names[first]} … ${names[Math.min(end, names.length) - 1]}` : names[first]);
  const inside = (range, c) => !range || (c >= range[0] && c < range[1]);
  const fits = ([, label, guess]) =>
    (!wanted.label || label.some((c) => inside(wanted.label, c))) && inside(wanted.guess, guess) &&
    (!wanted.kind || (wanted.kind === "right") === label.includes(guess));

  function row([at, label, guess, score]) {
    const line = document.createElement("tr");
    const link = document.createElement("a");
    link.href = folder + at;
    try { link.textContent = decodeURIComponent(at); } catch { link.textContent = at; } // a name that is no UTF-8
    for (const text of [link, label.map((c) => names[c]).join(", "), names[guess], score]) line.insertCell().append(text);
    line.className = label.includes(guess) ? "right" : "wrong";
    line.cells[0].className = "path";
    line.cells[3].className = "num";
    return line;
  }

  function draw() {
    const found = clips.filter(fits);
    list.querySelector("tbody").replaceChildren(...found.slice(0, shown).map(row));
    const said = [["true", wanted.label], ["predicted", wanted.guess]].map(([word, range]) => range && `${word} ${named(range)}`);
    const what = [...said, wanted.kind].filter(Boolean).join(", ");
    list.querySelector("caption").textContent = `${found.length} of ${clips.length} clips${what && `: ${what}`}`;
    list.querySelector("button").hidden = found.length <= shown;
    for (const tile of panel.querySelectorAll(".tile")) tile.hidden = !fits(clips[tile.dataset.row]);
  }

  function filter(next) {
    wanted = next;
    shown = PAGE;
    const single = (range) => (range && range[1] === range[0] + 1 ? range[0] : "");
    [labels.value, guesses.value, kinds.value] = [single(wanted.label), single(wanted.guess), wanted.kind ?? ""];
    draw();
  }

  const order = [...names.keys()].sort((a, b) => names[a].localeCompare(names[b], undefined, { numeric: true }));
  for (const select of [labels, guesses]) select.append(...order.map((c) => new Option(names[c], c)));
  const chosen = (select) => (select.value ? [+select.value, +select.value + 1] : null);
  form.addEventListener("change", () => filter({ label: chosen(labels), guess: chosen(guesses), kind: kinds.value }));
  form.addEventListener("reset", () => filter({}));
  list.querySelector("button").addEventListener("click", () => { shown += 5 * PAGE; draw(); });
  form.hidden = list.hidden = false;
  draw();
  return { named, filter };
}

for (const panel of document.querySelectorAll(".gallery")) galleries.set(panelOf(panel), gallery(panel));
document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-true]");
  const range = (text) => (text === undefined ? null : [+text, +text + 1]);
  if (link) galleries.get(panelOf(link))?.filter({ label: range(link.dataset.true), guess: range(link.dataset.predicted) });
  if (!maps.has(event.target)) return;
  const cell = cellOf(event.target, event);
  if (!cell.n) return;
  galleries.get(panelOf(event.target))?.filter(cell);
  location.hash = "#clips";
});

// Without this script, and on paper, all panels show.
function choose(name) {
  for (const tab of document.querySelectorAll("[data-tab]")) tab.setAttribute("aria-selected", tab.dataset.tab === name);
  for (const panel of document.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== name;
}
const tabs = document.querySelectorAll("[data-tab]");
tabs.forEach((tab) => tab.addEventListener("click", () => choose(tab.dataset.tab)));
if (tabs.length) choose(tabs[0].dataset.tab);
addEventListener("beforeprint", () => document.querySelectorAll("[data-panel]").forEach((one) => (one.hidden = false)));
