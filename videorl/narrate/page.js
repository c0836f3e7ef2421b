"use strict";
const player = document.querySelector("video");
const track = document.querySelector(".track");
const marks = track.querySelector("path");
const needle = track.querySelector("b");
const input = document.querySelector("input");
const output = document.querySelector("output");
const length = Number(track.dataset.length);
const moments = [...document.querySelectorAll(".moments li")].map((item) => ({
  item, start: Number(item.dataset.start), text: item.querySelector("span:last-child").textContent.toLowerCase(),
}));
let now = null;

// The last moment that has begun at that second.
function at(seconds) {
  let low = 0;
  let high = moments.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (moments[middle].start <= seconds + 1e-3) low = middle + 1;
    else high = middle;
  }
  return moments[Math.max(low - 1, 0)];
}

function show(seconds, scroll) {
  needle.style.left = `${(100 * seconds) / Math.max(length, 1e-3)}%`;
  const found = at(seconds);
  if (!found) return;
  if (found !== now) {
    now?.item.classList.remove("now");
    found.item.classList.add("now");
    now = found;
  }
  if (scroll) found.item.scrollIntoView({ block: "start" });
}

function jump(seconds, scroll) {
  player.currentTime = seconds;
  history.replaceState(null, "", `#t=${seconds}`);
  show(seconds, scroll);
}

function search() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = moments.filter(({ item, text }) => !(item.hidden = !words.every((word) => text.includes(word))));
  marks.setAttribute("d", words.length ? found.map(({ start }) => `M${start} 0V1`).join("") : "");
  output.textContent = words.length ? `${found.length} of ${moments.length}` : "";
}

for (const { item, start } of moments) item.firstElementChild.addEventListener("click", () => jump(start, false));
track.addEventListener("click", (event) => {
  const box = track.getBoundingClientRect();
  const seconds = (length * (event.clientX - box.left)) / box.width;
  jump(Math.round(10 * Math.min(Math.max(seconds, 0), length)) / 10, true);
});
input.addEventListener("input", search);
player.addEventListener("timeupdate", () => show(player.currentTime, false));
player.addEventListener("error", () => {
  player.hidden = true;
  document.querySelector(".absent").hidden = false;
});
const named = /^#t=([\d.]+)$/.exec(location.hash);
show(named ? Number(named[1]) : 0, Boolean(named));
if (named) player.addEventListener("loadedmetadata", () => (player.currentTime = Number(named[1])), { once: true });
