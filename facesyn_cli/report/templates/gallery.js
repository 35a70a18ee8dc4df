// The gallery of one set. All figures are in the page; thumbnails come from sprites, loaded for the tiles on the screen.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 60;
const numIdentities = data.starts.length - 1;
const numImages = data.samples.length;
const owner = new Int32Array(numImages);
for (let one = 0; one < numIdentities; one++) owner.fill(one, data.starts[one], data.starts[one + 1]);
const doubts = new Set(data.doubts);
const byId = (id) => document.getElementById(id);

// Name, what it shows, the figure of an image (null: unknown, sorted last) and its direction.
const SORTS = {
  set: ["Order of the set", "", null, 1],
  quality: ["Quality, lowest first", "Quality is the length of the embedding as the judge gives it; many recognizers make longer ones for clearer faces (MagFace, arXiv:2103.06627).", data.quality, 1],
  best: ["Quality, highest first", "Quality is the length of the embedding as the judge gives it; many recognizers make longer ones for clearer faces (MagFace, arXiv:2103.06627).", data.quality, -1],
  center: ["Farthest from its own identity", "The score of an image to the center of the other images of its identity, lowest first.", data.own, 1],
  typical: ["Nearest to its own identity", "The score of an image to the center of the other images of its identity, highest first.", data.own, -1],
  other: ["Nearest to another identity", "The score of an image to the center of the nearest other identity, highest first.", data.toOther, -1],
  training: ["Nearest to a training face", "The score of an image to the nearest image of the reference, highest first.", data.toTraining, -1],
};
const known = Object.keys(SORTS).filter((name) => name === "set" || SORTS[name][2]);
let state = {};
let found = [];
let opened = -1;  // place in `found` of the image in the dialog

const score = (value) => (value === null || value === undefined ? "not computed" : (value / 1000).toFixed(3));
const caption = (image) => {
  const values = SORTS[state.sort][2];
  return values ? score(values[image]) : data.samples[image];
};

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = {
    identity: given.get("identity") ?? "", is: given.get("is"), doubts: given.get("doubts") === "1",
    sort: known.includes(given.get("sort")) ? given.get("sort") : "set", page: Math.max(1, parseInt(given.get("page"), 10) || 1),
  };
}

function go(changes, replace = false) {
  const next = { ...state, page: 1, ...changes };
  const words = new URLSearchParams();
  if (next.is !== null && next.is !== undefined) words.set("is", next.is);
  else if (next.identity) words.set("identity", next.identity);
  if (next.doubts) words.set("doubts", "1");
  if (next.sort !== "set") words.set("sort", next.sort);
  if (next.page > 1) words.set("page", next.page);
  history[replace ? "replaceState" : "pushState"](null, "", `#${words}`);
  show();
}

function select() {
  const text = state.identity.toLowerCase();
  const wanted = new Uint8Array(numIdentities);
  for (let one = 0; one < numIdentities; one++) {
    wanted[one] = state.is !== null ? String(one) === state.is : data.names[one].toLowerCase().includes(text);
  }
  found = [];
  for (let image = 0; image < numImages; image++) {
    if (wanted[owner[image]] && (!state.doubts || doubts.has(image))) found.push(image);
  }
  const [, , values, direction] = SORTS[state.sort];
  if (values) found.sort((a, b) => (values[a] === null) - (values[b] === null) || direction * (values[a] - values[b]) || a - b);
}

function face(image) {
  const made = document.createElement("span");
  const each = data.across * data.down;
  const [picture, place] = [Math.floor(image / each), image % each];
  made.className = "face";
  made.style.backgroundImage = `url("${data.thumbs}/${String(picture).padStart(5, "0")}.jpg")`;
  made.style.backgroundSize = `${100 * data.across}% ${100 * data.down}%`;
  made.style.backgroundPosition = `${100 * (place % data.across) / (data.across - 1)}% ${100 * Math.floor(place / data.across) / (data.down - 1)}%`;
  return made;
}

function text(tag, words, more = {}) {
  const made = Object.assign(document.createElement(tag), more);
  made.textContent = words;
  return made;
}

function tile(image, place) {
  const name = data.names[owner[image]];
  const made = Object.assign(document.createElement("button"), { type: "button", className: doubts.has(image) ? "tile doubt" : "tile" });
  made.title = `${name}, ${data.samples[image]}`;
  made.setAttribute("aria-label", `${name}, ${data.samples[image]}, ${caption(image)}${doubts.has(image) ? ", label doubt" : ""}`);
  made.append(face(image), text("b", name), text("span", caption(image)));
  made.addEventListener("click", () => open(place));
  const item = document.createElement("li");
  item.append(made);
  return item;
}

function pager(nav, numPages) {
  const button = (words, page) => {
    const made = text("button", words, { type: "button", disabled: page < 1 || page > numPages || page === state.page });
    made.addEventListener("click", () => go({ page }));
    return made;
  };
  const number = Object.assign(document.createElement("input"), { type: "number", min: 1, max: numPages, value: state.page });
  number.setAttribute("aria-label", "page");
  number.addEventListener("change", () => go({ page: Math.min(numPages, Math.max(1, Number(number.value) || 1)) }));
  nav.hidden = numPages < 2;
  nav.replaceChildren(button("First", 1), button("Previous", state.page - 1), number,
    text("span", `of ${numPages.toLocaleString("en")}`), button("Next", state.page + 1), button("Last", numPages));
}

function show() {
  readState();
  select();
  const numPages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  state.page = Math.min(state.page, numPages);
  const first = (state.page - 1) * PER_PAGE;
  const part = found.slice(first, first + PER_PAGE);
  byId("identity").value = state.is === null ? state.identity : data.names[Number(state.is)] ?? "";
  byId("sort").value = state.sort;
  byId("doubts").checked = state.doubts;
  byId("count").textContent = found.length === 1 ? "1 image" : `${found.length.toLocaleString("en")} images`;
  byId("about").textContent = SORTS[state.sort][1];
  byId("tiles").replaceChildren(...part.map((image, k) => tile(image, first + k)));
  document.querySelectorAll(".pager").forEach((nav) => pager(nav, numPages));
}

function figure(content, name, words) {
  const made = document.createElement("figure");
  const caption = text("figcaption", words);
  caption.prepend(text("strong", name), document.createElement("br"));
  made.append(content, caption);
  return made;
}

function trainingFigure(image) {
  const number = data.training[image];
  if (number === null) return null;
  const key = data.trainingKeys[number];
  const uri = data.photos[number];
  const content = uri ? Object.assign(new Image(), { src: uri, alt: key }) : text("div", "Photo not copied into the gallery", { className: "missing" });
  return figure(content, "Nearest training face", `${key}, score ${score(data.toTraining[image])}`);
}

function otherFigure(image) {
  const other = data.other[image];
  if (other === null) return null;
  const isHere = other < numIdentities;
  const content = isHere ? face(data.typical[other]) : text("div", "Not in this gallery", { className: "missing" });
  return figure(content, "Nearest other identity", `${data.names[other]}, score ${score(data.toOther[image])}`);
}

function open(place) {
  opened = place;
  const image = found[place];
  const name = data.names[owner[image]];
  const action = (words, act, isOff = false) => {
    const made = text("button", words, { type: "button", disabled: isOff });
    made.addEventListener("click", act);
    return made;
  };
  const only = (one) => () => { byId("detail").close(); go({ is: String(one), identity: "", doubts: false }); };
  byId("detail-name").textContent = `Identity ${name}, image ${data.samples[image]}`;
  document.querySelector("#detail .faces3").replaceChildren(...[
    figure(face(image), "This image", data.samples[image]), otherFigure(image), trainingFigure(image)].filter(Boolean));
  const facts = [["Score to its own identity", score(data.own[image])], ["Label", doubts.has(image) ? "doubtful: nearer to another identity than to its own" : "no doubt"]];
  if (data.quality) facts.push(["Quality (length of the embedding)", score(data.quality[image])]);
  document.querySelector("#detail .facts").replaceChildren(...facts.flatMap(([term, value]) => [text("dt", term), text("dd", value)]));
  const other = data.other[image];
  document.querySelector("#detail .actions").replaceChildren(
    action("Previous", () => open(place - 1), place < 1), action("Next", () => open(place + 1), place + 1 >= found.length),
    action(`All images of ${name}`, only(owner[image])),
    ...(other !== null && other < numIdentities ? [action(`All images of ${data.names[other]}`, only(other))] : []));
  if (!byId("detail").open) byId("detail").showModal();
}

for (const name of known) byId("sort").append(text("option", SORTS[name][0], { value: name }));
byId("sort").addEventListener("change", (event) => go({ sort: event.target.value }));
byId("doubts").addEventListener("change", (event) => go({ doubts: event.target.checked }));
byId("identity").addEventListener("input", (event) => go({ identity: event.target.value, is: null }, true));
byId("controls").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
  if (byId("detail").open) {
    if (opened + step >= 0 && opened + step < found.length) open(opened + step);
    return;
  }
  const tiles = [...document.querySelectorAll(".tile")];
  const place = tiles.indexOf(document.activeElement);
  tiles[place < 0 ? 0 : Math.min(tiles.length - 1, Math.max(0, place + step))]?.focus();
});
show();
