// The review's page: images by keyboard. What a person does waits in a queue until the server has it on its disk.

import {Drawing} from "/draw.js";

const RETRY = 2000; // milliseconds until a server that does not answer is asked again
const LOOK = 4000; // milliseconds between two looks for what others have done
const AROUND = 12; // images of the list on either side of the one that is shown
const $ = id => document.getElementById(id);
const random = () => [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("");

// A tab is a person: undo takes back what was done in it, also after it was loaded again.
const person = sessionStorage.getItem("person") || random();
sessionStorage.setItem("person", person);

const items = new Map(); // number -> image as the server knows it
let order = [], classes = [], current = null, whole = null, last = 0, heat = false;
let queue = JSON.parse(sessionStorage.getItem("queue") || "[]"); // what the server has not answered yet
let sending = false, asked = 0;

const drawing = new Drawing($("canvas"), marks => act("mark", marks));

/** Tell whether the image that an answer would be about is on the screen, or cannot be: a quick second key is for none. */
const seen = () => $("frame").hidden || $("frame").dataset.shown === String(current);

async function ask(path, said) {
  const options = said && {method: "POST", headers: {"content-type": "application/json", "x-review": "1"}, body: JSON.stringify(said)};
  const answer = await fetch(path, options);
  const body = await answer.json().catch(() => ({error: `the server answered ${answer.status}`}));
  return {status: answer.status, body};
}

// What the server does not know yet

function act(kind, more = {}, number = current) {
  const item = items.get(number);
  if (!item) return;
  // Own actions that wait raise the version first; another one's in between makes this one too late.
  const seen = item.version + queue.filter(entry => entry.number === number && !entry.undo).length;
  push({number, said: {action: kind, version: seen, request: random(), ...more}});
  if (kind === "mark") item.marked = true;
  if (kind === "confirm") item.verdict = "confirmed";
  if (kind === "drop") item.verdict = "dropped";
  if (kind === "relabel") Object.assign(item, {verdict: "relabelled", label: more.label});
  show();
}

function push(entry) {
  queue.push(entry);
  keep();
  send();
}

function keep() {
  try {
    sessionStorage.setItem("queue", JSON.stringify(queue));
  } catch (error) { // no room for a mask: the page itself has it still
    console.warn(error);
  }
}

async function send() {
  if (sending) return;
  sending = true;
  while (queue.length) {
    const entry = queue[0];
    let answer;
    try {
      const path = entry.undo ? "/api/undo" : `/api/items/${entry.number}`;
      answer = await ask(path, {...entry.said, person, since: last});
    } catch (error) { // no answer: the server is away
      answer = null;
    }
    if (!answer || answer.status >= 500) {
      const why = answer ? answer.body.error : "the server does not answer";
      tell(`Not saved yet: ${why}. ${queue.length} action(s) wait here and are sent again; leave this page open.`, "bad");
      await new Promise(done => setTimeout(done, RETRY));
      continue;
    }
    const {status, body} = answer;
    if (status === 401) {
      tell("This page has lost its token: open the address that the command printed, in this tab.", "bad");
      break;
    }
    queue.shift();
    if (status === 409 && body.item) { // what this person goes on to do with the image was meant for another state
      queue = queue.filter(other => other.number !== entry.number);
      tell(`${body.item.name}: ${body.error}. It is now: ${stands(body.item)}.`, "warn", body.item.id);
    } else if (status >= 400) {
      queue = queue.filter(other => other.number !== entry.number || entry.undo);
      tell(`Not done: ${body.error}.`, entry.undo ? "" : "bad", entry.number);
      await refresh(entry.number);
    } else if ($("message").dataset.kind === "bad") {
      hush();
    }
    keep();
    if (body.item) await became(body.item, entry, status); // first: what is one's own is no news
    if (body.changed) take(body);
  }
  sending = false;
}

async function became(item, entry, status) {
  const waits = queue.some(other => other.number === item.id);
  if (waits) items.get(item.id).version = item.version;
  else items.set(item.id, item);
  if (entry.undo && status === 200) {
    await go(item.id, true);
  } else if (item.id === current && (status === 409 || !waits)) {
    if (status === 409) await go(item.id, true);
    else show();
  }
}

/** Take what others have done, except of images of which own actions wait: those are answered with 409. */
function take({changed, last: now}) {
  last = Math.max(last, now);
  for (const item of changed) {
    const known = items.get(item.id);
    if (!known || known.version >= item.version || queue.some(entry => entry.number === item.id)) continue;
    items.set(item.id, item);
    if (!classes.includes(item.label)) classes.push(item.label);
    if (item.id === current) {
      tell(`Somebody else has changed this image. It is now: ${stands(item)}.`, "warn");
      go(item.id, true);
    }
  }
  show();
}

async function refresh(number) {
  const answer = await ask(`/api/items/${number}`).catch(() => null);
  if (answer && answer.status === 200) items.set(number, answer.body);
  if (number === current) await go(number, true);
}

function stands(item) {
  const drawn = item.marked ? ", with marks" : "";
  return (item.verdict === "dropped" ? "dropped" : item.verdict === "open" ? `open, ${item.label}` : `${item.verdict}, ${item.label}`) + drawn;
}

// What is shown

async function go(number, again = false) {
  if (number === undefined || number === null || (number === current && !again)) return;
  const turn = ++asked;
  current = number;
  drawing.ready = false;
  sessionStorage.setItem("current", number);
  show();
  const answer = await ask(`/api/items/${number}`).catch(() => null);
  if (turn !== asked) return;
  if (!answer || answer.status !== 200) {
    whole = null;
    tell(answer ? `This image cannot be shown: ${answer.body.error}. Drop it, or go on.` : "The server does not answer: the image is shown when it does.", "bad");
    $("frame").hidden = true;
    if (!answer) setTimeout(() => turn === asked && go(number, true), RETRY);
    return;
  }
  whole = answer.body;
  if (!queue.some(entry => entry.number === number)) items.set(number, answer.body);
  $("frame").hidden = false;
  drawing.load(whole);
  fit();
  picture();
  show();
  ahead(number);
}

function picture() {
  $("picture").src = `/api/items/${current}/${heat && whole.drawn ? "drawn" : "picture"}`;
}

/** Ask for the next picture while this one is looked at. */
function ahead(number) {
  const next = order[order.indexOf(number) + 1];
  if (next !== undefined) new Image().src = `/api/items/${next}/picture`;
}

/** Give image and canvas the largest size that the window has room for. */
function fit() {
  if (!whole) return;
  const room = $("frame").clientWidth, [width, height] = whole.shown, narrow = window.innerWidth <= 860;
  const top = $("frame").getBoundingClientRect().top + window.scrollY;
  const high = Math.max(300, window.innerHeight - top - (narrow ? 160 : 74)); // the row of tools, or of answers, is seen
  const scale = Math.min(room / width, high / height, 4);
  $("frame").style.setProperty("--w", `${Math.round(width * scale)}px`);
  $("frame").style.setProperty("--h", `${Math.round(height * scale)}px`);
  drawing.show();
}

function show() {
  const item = items.get(current), decided = [...items.values()].filter(one => one.verdict !== "open").length;
  $("progress").textContent = `${decided} of ${items.size} images reviewed${queue.length ? `, ${queue.length} not saved yet` : ""}`;
  Object.assign($("bar"), {max: items.size, value: decided});
  if (!item) return;
  $("name").textContent = item.name;
  $("picture").alt = item.name;
  const badge = $("verdict");
  badge.className = `badge ${item.verdict}`;
  badge.textContent = item.verdict === "open" ? (item.known ? `labelled ${item.label}` : "open") : stands(item);
  $("place").textContent = `${order.indexOf(current) + 1} of ${order.length}`;
  $("right").textContent = `It is ${item.label}`;
  rows($("said"), item);
  buttons(item);
  list();
  $("take").hidden = !whole || whole.id !== current || !whole.found;
  $("heat").hidden = !whole || whole.id !== current || !whole.drawn;
  $("heat").setAttribute("aria-pressed", heat);
}

function rows(body, item) {
  const labels = item.known ? {"data set": item.was, ...item.said} : item.said;
  body.replaceChildren(...Object.entries(labels).map(([name, value]) => {
    const row = document.createElement("tr");
    const number = Number(value);
    const text = value !== "" && Number.isFinite(number) && !Number.isInteger(number) ? String(Number(number.toPrecision(4))) : value;
    row.append(...[name, text].map(content => Object.assign(document.createElement("td"), {textContent: content})));
    return row;
  }));
}

function buttons(item) {
  $("classes").replaceChildren(...classes.map((name, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(name);
    if (place < 9) button.append(" ", Object.assign(document.createElement("kbd"), {textContent: place + 1}));
    button.setAttribute("aria-pressed", item.label === name && item.verdict !== "dropped");
    button.addEventListener("click", () => relabel(name));
    return button;
  }));
}

function list() {
  const place = order.indexOf(current), marks = {open: "○", confirmed: "✓", relabelled: "✎", dropped: "×"};
  const from = Math.max(0, Math.min(place - AROUND, order.length - 2 * AROUND - 1));
  $("list").replaceChildren(...order.slice(from, from + 2 * AROUND + 1).map(number => {
    const item = items.get(number), line = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-current", number === current);
    const name = Object.assign(document.createElement("span"), {className: "short", title: item.name});
    name.append(Object.assign(document.createElement("bdi"), {textContent: item.name}));
    button.append(Object.assign(document.createElement("span"), {textContent: marks[item.verdict], title: item.verdict}),
      name, Object.assign(document.createElement("span"), {className: "as", textContent: item.label}));
    button.addEventListener("click", () => go(number));
    line.append(button);
    return line;
  }));
}

function tell(text, kind = "", number = null) {
  const box = $("message");
  box.className = `box ${kind}`;
  box.dataset.kind = kind;
  box.replaceChildren(text);
  if (number !== null && number !== current) {
    const button = Object.assign(document.createElement("button"), {type: "button", textContent: "Show it"});
    button.addEventListener("click", () => go(number));
    box.append(button);
  }
  box.hidden = false;
  fit();
}

function hush() {
  $("message").hidden = true;
  $("message").dataset.kind = "";
  fit();
}

// What a person does

function step(by) {
  const place = order.indexOf(current) + by;
  if (place >= 0 && place < order.length) go(order[place]);
}

/** Go to the next image that nobody has judged, from here on, then from the beginning. */
function nextOpen() {
  const place = order.indexOf(current);
  const next = [...order.slice(place + 1), ...order.slice(0, place)].find(number => items.get(number).verdict === "open");
  if (next !== undefined) go(next);
  else tell("Every image is reviewed: write a new version.", "good");
}

function decide(kind, more) {
  if (!seen()) return;
  if ($("message").dataset.kind !== "bad") hush();
  act(kind, more);
  nextOpen();
}

function relabel(name) {
  const item = items.get(current);
  if (item && name === item.label && item.verdict !== "dropped") decide("confirm");
  else decide("relabel", {label: name});
}

function use(tool) {
  drawing.tool = tool;
  $("frame").classList.toggle("drawing", tool !== "look");
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
}

function brush(size) {
  drawing.brush = Math.min(120, Math.max(2, size));
  $("brush").value = drawing.brush;
}

function mark(mask, boxes) {
  if (!whole || whole.id !== current || !drawing.ready) return;
  drawing.boxes = boxes;
  drawing.put(mask);
  act("mark", {mask: drawing.runs(), boxes});
}

function flip() {
  if (!whole || !whole.drawn) return;
  heat = !heat;
  picture();
  show();
}

function undo() {
  push({undo: true, number: null, said: {request: random()}});
}

async function write() {
  if (queue.length) return tell("Some actions are not saved yet: wait for them.", "warn");
  $("export").disabled = true;
  tell("Writing a new version …");
  const answer = await ask("/api/versions", {}).catch(() => ({status: 0, body: {error: "the server does not answer"}}));
  $("export").disabled = false;
  if (answer.status !== 200) return tell(`Not written: ${answer.body.error}.`, "bad");
  const {folder, command, changes, images, warnings} = answer.body;
  const did = Object.entries(changes).map(([kind, number]) => `${number} ${kind}`).join(", ") || "nothing changed";
  tell(`Written: ${images} images in ${folder} (${did}).`, "good");
  $("message").append(...warnings.map(line => Object.assign(document.createElement("p"), {textContent: line})),
    Object.assign(document.createElement("pre"), {textContent: command}));
  fit();
}

const KEYS = {
  Enter: () => decide("confirm"), x: () => decide("drop"), Delete: () => decide("drop"), u: undo, n: () => $("newname").focus(),
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), k: () => step(-1), j: () => step(1), o: nextOpen,
  b: () => use("box"), p: () => use("paint"), e: () => use("erase"), Escape: () => $("help").hidden ? use("look") : $("keys").click(),
  "[": () => brush(drawing.brush - 6), "]": () => brush(drawing.brush + 6), t: () => whole && whole.found && mark(whole.found, drawing.boxes),
  h: flip, "?": () => $("keys").click(),
};

document.addEventListener("keydown", event => {
  const typing = event.target.matches("input:not([type=range])");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && event.key === "z") {
    event.preventDefault();
    return undo();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key === "Enter") return;
  if (event.key === "Enter" && event.target.matches("button")) return; // which it presses
  const digit = /^[1-9]$/.test(event.key) && classes[Number(event.key) - 1];
  const does = digit ? () => relabel(digit) : KEYS[event.key];
  if (!does || drawing.drag) return;
  event.preventDefault();
  does();
});

for (const [id, does] of Object.entries({
  confirm: KEYS.Enter, drop: KEYS.x, undo, before: KEYS.ArrowLeft, after: KEYS.ArrowRight, open: nextOpen, take: KEYS.t, heat: flip,
  export: write, clear: () => mark(null, []),
  keys: () => {
    $("help").hidden = !$("help").hidden;
    $("keys").setAttribute("aria-expanded", !$("help").hidden);
    fit();
  },
})) {
  $(id).addEventListener("click", event => {
    does();
    if (event.detail) event.currentTarget.blur(); // of a mouse: Enter goes on to confirm
  });
}
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => use(button.dataset.tool));
$("brush").addEventListener("input", () => brush(Number($("brush").value)));
$("new").addEventListener("submit", event => {
  event.preventDefault();
  const name = $("newname").value.trim();
  if (!name) return;
  $("newname").value = "";
  $("newname").blur();
  if (!classes.includes(name)) classes.push(name);
  relabel(name);
});
$("picture").addEventListener("load", () => {
  if (whole && whole.id === current) $("frame").dataset.shown = current;
});
$("picture").addEventListener("error", () => whole && tell("The picture cannot be shown: the server does not answer, or its file is gone.", "bad"));
window.addEventListener("resize", fit);
window.addEventListener("beforeunload", event => queue.length && event.preventDefault());

async function look() {
  if (!sending && !document.hidden && order.length) {
    const answer = await ask(`/api/changes?since=${last}`).catch(() => null);
    if (answer && answer.status === 200) take(answer.body);
  }
  setTimeout(look, LOOK);
}

async function begin() {
  const answer = await ask("/api/items").catch(() => null);
  if (!answer || answer.status !== 200) {
    tell(answer ? answer.body.error : "The server does not answer: this page waits for it.", "bad");
    return setTimeout(begin, RETRY);
  }
  hush();
  const {title, notes, items: known, classes: named, last: now, has} = answer.body;
  document.title = $("title").textContent = title;
  $("notes").replaceChildren(...notes.map(line => Object.assign(document.createElement("p"), {textContent: line})));
  $("notes").hidden = !notes.length;
  for (const key of document.querySelectorAll("[data-needs]")) key.hidden = !has[key.dataset.needs];
  [classes, last, order] = [named, now, known.map(item => item.id)];
  for (const item of known) items.set(item.id, item);
  queue = queue.filter(entry => entry.undo || items.has(entry.number));
  const before = Number(sessionStorage.getItem("current"));
  const open = order.find(number => items.get(number).verdict === "open");
  await go(items.has(before) ? before : open ?? order[0]);
  send();
}

brush(24);
begin();
setTimeout(look, LOOK);
