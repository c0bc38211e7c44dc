// The search page: the query, its results, and what they have to do with the map.

import { CorpusMap } from "./map.js";

const TYPING = 350;        // milliseconds without a key after which the query counts as finished
const SHOWN = 420;         // characters of a passage that are shown at first
const BEFORE = 120;        // of them, so many before the sentence or the word that was found
const TIP = 260;           // characters of a passage beside the pointer
const KEY = "longspan-api-key";

const $ = (id) => document.getElementById(id);
const passages = new Map();  // number -> passage, as the server gave it
let corpus = null, map = null, shown = [], hits = [], running = null, again = null, pointing = 0;

// --- the server ----------------------------------------------------------------------------------------------------

class Trouble extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function ask(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached. Is it still running?", 0);
  }
  if (response.ok) return response.json();
  let message = `The server answered ${response.status}.`;
  try { message = (await response.json()).error ?? message; } catch { /* not JSON: the status says it */ }
  throw new Trouble(message, response.status);
}

// Do something that may fail: the trouble shows on the page, with a way to try again.
async function guarded(work) {
  try {
    await work();
    $("trouble").hidden = true;
  } catch (error) {
    if (error.name === "AbortError") return;
    again = work;
    const needsKey = error.status === 401;
    $("trouble-text").textContent = needsKey ? "This server asks for an API key." : error.message;
    $("key-form").hidden = !needsKey;
    $("retry").hidden = needsKey;
    $("trouble").hidden = false;
    $("status").textContent = "";
    if (needsKey) $("key").focus();
  }
}

// --- searching -----------------------------------------------------------------------------------------------------

function search(request, title) {
  running?.abort();
  const { signal } = (running = new AbortController());
  const sources = chosenSources();
  if (sources?.length === 0) {
    show([]);
    $("status").textContent = "No source is chosen.";
    return Promise.resolve();
  }
  $("status").textContent = "Searching …";
  return guarded(async () => {
    const began = performance.now();
    const answer = await ask("search", { ...request, k: Number($("k").value), sources }, signal);
    const seconds = Math.round(performance.now() - began);
    show(answer.hits);
    $("status").textContent = `${answer.hits.length} of ${count(corpus.passages)} passages ${title}, in ${seconds} ms`;
    if (!request.query) return;
    const numbers = answer.hits.map((hit) => hit.passage);
    const { sentences } = await ask("search/sentences", { query: request.query, passages: numbers }, signal);
    sentences.forEach(({ place }, rank) => {
      hits[rank].sentence = place;
      if (place) fillText(hits[rank]);
    });
  });
}

function searchQuery() {
  const query = $("query").value.trim();
  history.replaceState(null, "", query ? `?q=${encodeURIComponent(query)}` : location.pathname);
  if (query) { search({ query }, "nearest to the query"); return; }
  running?.abort();
  show([]);
  $("status").textContent = "";
}

function searchLike(passage) {
  $("query").value = "";
  history.replaceState(null, "", `?like=${passage}`);
  search({ like: passage }, `like ${passages.get(passage)?.where ?? "the one chosen"}`);
}

function repeat() {
  const like = new URLSearchParams(location.search).get("like");
  if (like !== null) searchLike(Number(like)); else searchQuery();
}

// --- results -------------------------------------------------------------------------------------------------------

function show(found) {
  hits = found;
  hits.forEach((hit) => passages.set(hit.passage, hit));
  $("results").replaceChildren(...hits.map(resultOf));
  $("results").scrollTop = 0;
  map.show(hits);
}

function resultOf(hit, rank) {
  const source = map.sourceOf[hit.passage];
  const item = element("li", "hit");
  item.dataset.passage = hit.passage;
  const number = element("span", "rank", String(rank + 1));
  number.style.background = map.colourOf(source);
  const head = element("header");
  const score = element("span", "score", hit.score.toFixed(3));
  score.title = "cosine with the query";
  const bar = element("span", "bar"), filled = element("i");
  bar.setAttribute("aria-hidden", "true");
  filled.style.width = `${Math.max(0, Math.min(1, hit.score)) * 100}%`;
  bar.style.color = map.colourOf(source);
  bar.append(filled);
  score.prepend(bar);
  head.append(whereOf(hit), score);
  hit.body = element("p", "text");
  hit.open = false;
  const actions = element("div", "actions");
  hit.more = element("button", "", "Show all");
  hit.more.type = "button";
  hit.more.setAttribute("aria-expanded", "false");
  hit.more.addEventListener("click", () => { hit.open = !hit.open; fillText(hit); });
  const similar = element("button", "", "Similar passages");
  similar.type = "button";
  similar.addEventListener("click", () => searchLike(hit.passage));
  actions.append(hit.more, similar);
  item.append(number, head, hit.body, actions);
  item.addEventListener("mouseenter", () => light(hit.passage));
  item.addEventListener("mouseleave", () => light(null));
  item.addEventListener("focusin", () => light(hit.passage));
  item.addEventListener("focusout", () => light(null));
  fillText(hit);
  return item;
}

// The text of a result: the part around what was found, or all of it, with its words and its sentence marked.
function fillText(hit) {
  const chars = Array.from(hit.text);
  const first = hit.sentence?.[0] ?? hit.words[0]?.[0] ?? 0;
  let [start, stop] = [0, chars.length];
  if (!hit.open && chars.length > SHOWN) {
    start = first + SHOWN / 2 < SHOWN ? 0 : Math.min(first - BEFORE, chars.length - SHOWN);
    stop = Math.min(chars.length, Math.max(start + SHOWN, hit.sentence?.[1] ?? 0));
    while (start > 0 && /\S/.test(chars[start - 1])) start--;
    while (stop < chars.length && /\S/.test(chars[stop])) stop++;
  }
  hit.body.classList.toggle("closed", !hit.open);
  hit.more.hidden = chars.length <= SHOWN;
  hit.more.textContent = hit.open ? "Show less" : "Show all";
  hit.more.setAttribute("aria-expanded", String(hit.open));
  const parts = [start > 0 ? "… " : ""];
  const [from, to] = hit.sentence ?? [stop, stop];
  parts.push(...marked(chars, start, Math.min(from, stop), hit.words));
  if (hit.sentence) {
    const sentence = element("span", "sentence");
    sentence.append(...marked(chars, Math.max(start, from), Math.min(to, stop), hit.words));
    parts.push(sentence, ...marked(chars, Math.max(start, to), stop, hit.words));
  }
  parts.push(stop < chars.length ? " …" : "");
  hit.body.replaceChildren(...parts);
}

function marked(chars, start, stop, words) {
  const parts = [];
  for (const [from, to] of words) {
    if (from < start || to > stop) continue;
    parts.push(chars.slice(start, from).join(""), element("mark", "", chars.slice(from, to).join("")));
    start = to;
  }
  return [...parts, chars.slice(start, stop).join("")];
}

function whereOf(passage) {
  const line = element("span", "where");
  line.title = passage.where;
  if (passage.where.startsWith(passage.source)) line.append(passage.where);
  else line.append(element("b", "", passage.source), ` · ${named(passage.where)}`);
  return line;
}

// A row's own name is worth more than its file and line.
const named = (where) => /\(([^()]+)\)$/.exec(where)?.[1] ?? where;

function light(passage) {
  map.light(passage);
  for (const item of $("results").children) item.classList.toggle("lit", Number(item.dataset.passage) === passage);
}

// --- the map -------------------------------------------------------------------------------------------------------

async function pointed(passage, x, y) {
  const turn = ++pointing;
  $("tip").hidden = true;
  light(null);
  if (passage === null) return;
  if (!passages.has(passage)) {
    await new Promise((resolve) => setTimeout(resolve, 40));
    if (turn !== pointing) return;
    await guarded(async () => { passages.set(passage, await ask(`search/passage?number=${passage}`)); });
  }
  if (turn !== pointing || !passages.has(passage)) return;
  const found = passages.get(passage);
  const text = found.text.length > TIP ? `${found.text.slice(0, TIP)} …` : found.text;
  $("tip").replaceChildren(whereOf(found), element("p", "", text));
  $("tip").hidden = false;
  const box = $("map-box").getBoundingClientRect(), tip = $("tip").getBoundingClientRect();
  const above = y - tip.height - 16;
  $("tip").style.left = `${Math.max(8, Math.min(x - tip.width / 2, box.width - tip.width - 8))}px`;
  $("tip").style.top = `${above > 8 ? above : Math.min(y + 16, box.height - tip.height - 8)}px`;
  if (hits.some((hit) => hit.passage === passage)) light(passage);
}

function listSources() {
  shown = corpus.sources.map(() => true);
  const labels = corpus.sources.map((source, number) => {
    const label = element("label"), box = element("input"), dot = element("span", "dot");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => { shown[number] = box.checked; filtered(); });
    dot.style.background = map.colourOf(number);
    const name = element("span", "name", source.name);
    name.title = source.name;
    label.append(box, dot, name, element("span", "small", count(source.passages)));
    return label;
  });
  $("source-list").replaceChildren(...labels);
  const all = (value) => () => {
    for (const box of $("source-list").querySelectorAll("input")) box.checked = value;
    shown.fill(value);
    filtered();
  };
  $("all-sources").addEventListener("click", all(true));
  $("no-sources").addEventListener("click", all(false));
}

function filtered() {
  map.filter(shown);
  repeat();
}

const chosenSources = () =>
  shown.every(Boolean) ? null : corpus.sources.filter((_, number) => shown[number]).map((source) => source.name);

// --- all together --------------------------------------------------------------------------------------------------

async function begin() {
  corpus = await ask("search/corpus");
  $("about").textContent =
    `${count(corpus.passages)} passages of ${count(corpus.sources.length)} source${corpus.sources.length === 1 ? "" : "s"}, by ${corpus.model}`;
  map = new CorpusMap($("map"), corpus, { chosen: searchLike, pointed });
  listSources();
  let timer = 0;
  $("query").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(searchQuery, TYPING); });
  $("form").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); searchQuery(); });
  $("k").addEventListener("change", repeat);
  $("zoom-in").addEventListener("click", () => map.zoom(1.5));
  $("zoom-out").addEventListener("click", () => map.zoom(1 / 1.5));
  $("zoom-all").addEventListener("click", () => map.showAll());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  const asked = new URLSearchParams(location.search).get("q");
  if (asked) $("query").value = asked;
  if (location.search) repeat();
}

function recolour() {
  [...$("source-list").children].forEach((label, number) => {
    label.querySelector(".dot").style.background = map.colourOf(number);
  });
  show(hits);
}

function element(tag, kind = "", text = "") {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
}

const count = (number) => number.toLocaleString("en");

$("retry").addEventListener("click", () => guarded(again));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value);
  guarded(again);
});
guarded(begin);
