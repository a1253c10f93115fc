// The page of dmem serve: conversations, the chat, the memory. Everything shown is text, never markup.
"use strict";

const $ = (id) => document.getElementById(id);
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const MOST_SENT = 40; // turns that are sent with a question: the memory has all of them anyway

let key = sessionStorage.getItem("dmem-key");
let model = ""; // as the server calls it
let profile = ""; // of what is listed, and of new conversations
let current = null; // {id, name, profile, title}: id is null until the first turn is kept; null in a temporary chat
let turns = []; // {turn, created, kind, question, answer, thought, interrupted, kept}: what is shown
let running = null; // AbortController of the reply that is being drawn
let busy = false; // something is being changed
let shownTurn = null; // the turn whose difference is drawn; null: the memory as it is
let visit = 0; // what comes late belongs to an earlier one

class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// The server

async function call(path, { body, headers = {}, signal, method = body ? "POST" : "GET" } = {}) {
  for (;;) {
    const told = { ...headers };
    if (key) told.Authorization = `Bearer ${key}`;
    if (body) told["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers: told, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer: see whether dmem serve is still running.");
    }
    if (response.ok) return response;
    const sentence = await sentenceOf(response);
    if (response.status !== 401 || !(await askForKey(key ? "This key is not one of the server's." : ""))) {
      throw new Problem(sentence, response.status);
    }
  }
}

async function sentenceOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with an error (${response.status}).`;
  }
}

let asking = null; // of several requests one asks for the key

function askForKey(text) {
  asking ??= (async () => {
    const given = await ask({ title: "API key", text: text || "This server wants a key.", label: "Key", secret: true, yes: "Use" });
    if (given) {
      key = given.trim();
      sessionStorage.setItem("dmem-key", key);
    }
    asking = null;
    return Boolean(given);
  })();
  return asking;
}

const memory = (word, fields = {}, options = {}) => call(`/v1/memory/${word}?${new URLSearchParams(fields)}`, options);
const read = async (word, fields) => (await memory(word, fields)).json();
const change = async (word, body) => (await call(`/v1/memory/${word}`, { body })).json();

// What goes wrong is said in one place, until the next thing works

let working = 0;

async function trying(work) {
  working += 1;
  for (const pane of document.querySelectorAll(".pane")) pane.ariaBusy = "true";
  try {
    say("");
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error instanceof Problem ? error.message : `Something went wrong: ${error.message}`);
    return undefined;
  } finally {
    working -= 1;
    if (!working) for (const pane of document.querySelectorAll(".pane")) pane.ariaBusy = "false";
  }
}

function say(sentence) {
  $("problem").textContent = sentence;
  $("problem").hidden = !sentence;
  if (sentence) closePanes(); // it stands behind them
}

function make(tag, { text, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const short = (number) => Number(number.toPrecision(3)).toString();

// A question to the user: resolves to what was typed, true, or null

function ask({ title, text = "", label = "", value = "", secret = false, yes }) {
  const dialog = $("dialog");
  $("dialog-title").textContent = title;
  $("dialog-text").textContent = text;
  $("dialog-label").hidden = !label;
  $("dialog-label").firstElementChild.textContent = label;
  Object.assign($("dialog-field"), { value, type: secret ? "password" : "text" });
  $("dialog-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  (label ? $("dialog-field") : $("dialog-no")).focus();
  $("dialog-no").onclick = () => dialog.close();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const agreed = dialog.returnValue === "yes";
      resolve(agreed ? (label ? $("dialog-field").value : true) : null);
      $("dialog-field").value = "";
    };
  });
}

// Conversations

async function list() {
  const found = await read("list", { limit: 500, ...(profile ? { profile } : {}) }).catch((error) => {
    if (error.status !== 404) throw error; // a profile that has nothing yet
    return { conversations: [], profiles: [], more: 0, profile };
  });
  profile ||= found.profile;
  const names = [...new Set([found.profile, profile, ...found.profiles])].sort();
  $("profile").replaceChildren(...names.map((name) => make("option", { text: name, selected: name === profile })));
  const own = found.conversations.filter((one) => one.profile === profile);
  $("list").replaceChildren(...own.map(item));
  $("more").textContent = found.more ? `${count(found.more, "older one")} more: dmem log list --all` : "";
  $("more").hidden = !found.more;
  const listed = own.find((one) => one.conversation === current?.id);
  if (listed) {
    current.title = listed.title;
    head();
  }
}

function item(one) {
  const button = make(
    "button",
    { type: "button", onclick: () => trying(() => open(one)) },
    make("span", { text: one.title || "(no text)" }),
    make("span", { className: "pale", text: `${count(one.turns, "turn")}, ${new Date(one.updated).toLocaleString()}` }),
  );
  button.dataset.id = one.conversation;
  return make("li", {}, button);
}

function head() {
  const temporary = $("temporary").checked;
  $("title").textContent = temporary ? "Temporary chat" : current?.title || (current?.id ? "(no text)" : "New conversation");
  document.title = `${$("title").textContent} – dmem`;
  $("rename").hidden = $("delete").hidden = temporary || !current?.id;
  for (const button of $("list").querySelectorAll("button")) {
    const isCurrent = !temporary && button.dataset.id === current?.id;
    isCurrent ? button.setAttribute("aria-current", "true") : button.removeAttribute("aria-current");
  }
  for (const control of [$("undo"), $("rename"), $("delete"), $("profile"), $("temporary"), ...$("history").querySelectorAll("button")]) {
    control.disabled = busy || Boolean(running);
  }
  $("read-only").disabled = temporary || Boolean(running);
  $("send").disabled = busy;
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

async function open(one) {
  leave();
  $("temporary").checked = false;
  current = { profile: one.profile, title: one.title };
  named(one.conversation);
  await reload();
  closePanes();
  $("question").focus();
}

// It is stored now; the page's address leads back to it
function named(id) {
  current.id = current.name = id;
  history.replaceState(null, "", `#${id}`);
}

function begin() {
  leave();
  $("temporary").checked = false;
  current = { id: null, name: `page-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`, profile, title: "" };
  history.replaceState(null, "", location.pathname);
  turns = [];
  draw();
  head();
  closePanes();
  $("question").focus();
  return remembered();
}

function leave() {
  visit += 1;
  shownTurn = null;
  running?.abort();
  running = null;
}

async function reload() {
  const mine = visit;
  const found = await read("show", { conversation: current.id });
  if (mine !== visit) return;
  current.title = found.title;
  current.profile = found.profile;
  turns = found.turns.map(turnOf);
  draw();
  head();
  await remembered();
}

function turnOf(one) {
  const text = (role) => one.messages.find((message) => message.role === role)?.text;
  const [question, answer, thought] = ["user", "assistant", "thinking"].map(text);
  return { turn: one.turn, created: one.created, kind: one.kind, question, answer, thought, interrupted: one.interrupted, kept: true };
}

// The chat

function draw() {
  const shown = turns.flatMap((turn) => messagesOf(turn));
  if (!shown.length) shown.push(make("p", { className: "pale", text: hint() }));
  $("talk").replaceChildren(...shown);
  $("talk").scrollTop = $("talk").scrollHeight;
}

function hint() {
  if ($("temporary").checked) return "Nothing said here is kept, and no memory is read.";
  return "What is said here is remembered, also when the conversation no longer fits in what the model sees.";
}

function messagesOf(turn) {
  const shown = [];
  const unkept = turn.kept ? "" : " unkept";
  if (turn.kind === "chat" && turn.question === undefined) {
    return [make("p", { className: "pale", text: `Turn ${turn.turn} was saved without its text.` })];
  }
  if (turn.question) shown.push(message(turn.kind === "chat" ? "You" : "Remembered", `user${unkept}`, turn.question));
  if (turn.kind === "chat") {
    const marks = [turn.interrupted && "interrupted", !turn.kept && !$("temporary").checked && "not kept"].filter(Boolean);
    const shownAnswer = message(["Answer", ...marks].join(", "), `assistant${unkept}`, turn.answer ?? "", turn.thought);
    if (!turn.answer && !running) shownAnswer.body.append(make("p", { className: "pale", text: "(empty)" }));
    shown.push(shownAnswer);
  }
  return shown;
}

function message(who, kind, text, thought = "") {
  const made = make("article", { className: `message ${kind}` }, make("h3", { text: who }));
  made.thinking = make("details", { hidden: true }, make("summary", { text: "Thinking" }), make("p", { className: "thought" }));
  made.body = make("div", { className: "body" });
  made.append(made.thinking, made.body);
  fill(made, text, thought);
  return made;
}

function fill(made, text, thought) {
  made.thinking.hidden = !thought?.trim();
  made.thinking.lastElementChild.textContent = (thought ?? "").trim();
  made.body.replaceChildren(...parts(text));
}

// Plain text, and what stands between fences as code
function parts(text) {
  const found = [];
  let lines = [];
  let fence = "";
  const push = () => {
    const whole = lines.join("\n");
    lines = [];
    if (fence) found.push(make("pre", { tabIndex: 0 }, make("code", { text: whole })));
    else if (whole.trim()) found.push(make("div", { className: "text", text: whole.replace(/^\n+|\s+$/g, "") }));
  };
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line);
    if (!fence && mark) {
      push();
      fence = mark[1];
    } else if (fence && mark && !mark[2] && mark[1].startsWith(fence)) {
      push();
      fence = "";
    } else lines.push(line);
  }
  if (lines.length || fence) push();
  return found;
}

// What is sent of what was said: the last turns, back to one that has no text or was not kept
function said() {
  const temporary = $("temporary").checked;
  const found = [];
  for (const turn of [...turns].reverse()) {
    if (turn.kind !== "chat") continue;
    if (!turn.kept && !temporary && !$("read-only").checked) continue;
    if (turn.question === undefined || turn.answer === undefined || found.length >= 2 * MOST_SENT) break;
    found.unshift({ role: "user", content: turn.question }, { role: "assistant", content: turn.answer });
  }
  return found;
}

async function send() {
  const text = $("question").value;
  if (!text.trim() || running || busy) return;
  const temporary = $("temporary").checked;
  const readOnly = !temporary && $("read-only").checked;
  const mine = visit;
  const control = (running = new AbortController());
  head();
  const turn = { turn: null, created: null, kind: "chat", question: text, answer: "", thought: "", interrupted: false, kept: !temporary && !readOnly };
  const done = await trying(async () => {
    if (!temporary && current.id) await catchUp();
    if (mine !== visit) return false;
    $("question").value = "";
    grow();
    $("status").textContent = "Answering";
    await answer(turn, { temporary, readOnly, mine, signal: control.signal });
    return true;
  });
  if (mine !== visit) return;
  running = null;
  turn.interrupted = !done;
  const stopped = control.signal.aborted;
  $("status").textContent = done ? `Answered: ${turn.answer || "empty"}` : stopped ? "Stopped" : "";
  const begun = turns.includes(turn);
  if (!done && !(turn.answer || turn.thought)) {
    turns = turns.filter((one) => one !== turn); // nothing came of it: the question can be sent again
    if (!$("question").value) $("question").value = text;
    grow();
  }
  draw();
  head();
  const problem = $("problem").textContent;
  await trying(async () => {
    if (begun && turn.kept && !done) await settle(text);
    if (turn.kept && current?.id) await list();
    if (turn.kept && current?.id) await remembered();
  });
  if (problem) say(problem);
}

// Somebody else may have gone on with the conversation since it was shown
async function catchUp() {
  const found = await read("history", { conversation: current.id });
  const kept = turns.filter((turn) => turn.kept);
  const is = (one, known) => one.turn === known.turn && one.created === (known.created ?? one.created);
  const same = found.turns.length === kept.length && found.turns.every((one, i) => is(one, kept[i]));
  if (!same) await reload();
}

// A reply that ended early is committed as far as it came, a moment later; one that had not begun leaves nothing
async function settle(question) {
  const mine = visit;
  const known = turns.filter((turn) => turn.kept && turn.turn !== null).length;
  for (let tries = 0; tries < 40 && mine === visit && !running; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    if (!current.id) {
      const found = (await read("list", { profile: current.profile, limit: 1 })).conversations[0];
      if (found && found.conversation === current.expected) named(found.conversation);
      else continue;
    }
    const found = await read("show", { conversation: current.id });
    if (found.turns.length > known && mine === visit && !running) {
      turns = found.turns.map(turnOf);
      draw();
      if ($("question").value === question) $("question").value = "";
      return;
    }
  }
}

async function answer(turn, { temporary, readOnly, mine, signal }) {
  const body = { messages: [...said(), { role: "user", content: turn.question }], stream: true };
  const headers = {};
  if (temporary) headers["X-Dmem-Temporary"] = "1";
  else {
    headers["X-Dmem-Conversation"] = current.id ?? current.name;
    body.model = `${model}@${current.profile}`;
  }
  if (readOnly) headers["X-Dmem-Read-Only"] = "1";
  turns.push(turn);
  draw();
  const shown = $("talk").lastElementChild;
  shown.setAttribute("aria-busy", "true");
  const response = await call("/v1/chat/completions", { body, headers, signal });
  const id = response.headers.get("X-Dmem-Conversation");
  if (mine === visit && turn.kept && id) current.expected = id;
  let frame = 0;
  for await (const event of events(response)) {
    if (event.error) throw new Problem(event.error.message);
    const delta = event.choices?.[0]?.delta ?? {};
    turn.answer += delta.content ?? "";
    turn.thought += delta.reasoning_content ?? "";
    if (event.metadata?.turn) turn.turn = Number(event.metadata.turn);
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (mine !== visit || !shown.isConnected) return;
      const talk = $("talk");
      const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
      fill(shown, turn.answer, turn.thought);
      if (atEnd) talk.scrollTop = talk.scrollHeight;
    });
  }
  if (mine === visit && turn.kept && id && !current.id) named(id);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let ended = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (text + value).split("\n");
      text = lines.pop();
      for (const line of lines) {
        const data = line.startsWith("data: ") ? line.slice(6) : "";
        if (data === "[DONE]") ended = true;
        else if (data) yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw new Problem("The connection broke before the answer was complete.");
  }
  if (!ended) throw new Problem("The server ended before the answer was complete.");
}

// The memory

async function remembered() {
  const mine = visit;
  const temporary = $("temporary").checked;
  const note = temporary ? "A temporary chat reads and writes no memory." : current.id ? "" : "Nothing is remembered yet.";
  const found = note ? { turns: [] } : await read("history", { conversation: current.id });
  if (mine !== visit) return;
  for (const one of found.turns) {
    const shown = turns.find((turn) => turn.turn === one.turn);
    if (shown) shown.created ??= one.created;
  }
  const written = found.turns.filter((turn) => turn.norm !== null);
  if (!found.turns.some((turn) => turn.turn === shownTurn)) shownTurn = null;
  $("memory-note").textContent = note || (written.length ? "" : "Nothing is remembered yet.");
  $("past").hidden = $("undo").hidden = !found.turns.length;
  const most = Math.max(...written.map((turn) => turn.change), 0);
  $("history").replaceChildren(...found.turns.map((turn) => past(turn, most)).reverse());
  head();
  if (!written.length) $("figure").hidden = true;
  else await picture(written);
}

function past(turn, most) {
  const question = turns.find((one) => one.created === turn.created)?.question ?? `(${turn.kind})`;
  const name = `turn ${turn.turn}`;
  const row = make("div", { className: "row" }, make("span", { text: `${turn.turn}` }));
  if (turn.norm !== null) {
    const how = `changed the memory by ${short(turn.change)}`;
    row.append(
      make("meter", { min: 0, max: most || 1, value: turn.change, title: how, ariaLabel: how }),
      make("button", { type: "button", text: "Change", ariaLabel: `Show what ${name} changed`, onclick: () => trying(() => look(turn.turn)) }),
    );
  } else row.append(make("span", { className: "pale", text: "wrote nothing" }));
  row.append(make("button", { type: "button", text: "Forget", ariaLabel: `Forget ${name}`, onclick: () => forget(turn, question) }));
  return make("li", {}, make("div", { className: "words", text: question, title: question.slice(0, 500) }), row);
}

async function look(turn) {
  shownTurn = turn;
  await remembered();
  $("figure").scrollIntoView({ block: "nearest" });
}

async function picture(written) {
  const mine = visit;
  const turn = shownTurn;
  const last = written.at(-1);
  const of = written.find((one) => one.turn === turn);
  const fields = { conversation: current.id, columns: 5 };
  const response = of
    ? await memory("diff.svg", { ...fields, before: written[written.indexOf(of) - 1]?.turn ?? 0, after: turn })
    : await memory("inspect.svg", fields);
  const url = URL.createObjectURL(await response.blob());
  if (mine !== visit || turn !== shownTurn) return;
  URL.revokeObjectURL($("picture").src);
  const words = of
    ? `Turn ${turn} changed the memory by ${short(of.change)}.`
    : `Norm ${short(last.norm)} after turn ${last.turn}, which changed it by ${short(last.change)}.`;
  for (const image of [$("picture"), $("large-picture")]) {
    Object.assign(image, { src: url, alt: `Heat map of the memory's layers${of ? "" : ", and the course of their norms"}. ${words}` });
  }
  $("caption").textContent = words;
  $("now").hidden = !of;
  $("figure").hidden = false;
}

// Returns whether it was done
async function changing(what, work) {
  if (busy || running) return false;
  const mine = visit;
  busy = true;
  head();
  $("status").textContent = what;
  $("memory-note").textContent = `${what}…`;
  const done = await trying(async () => {
    let warning;
    try {
      ({ warning } = await work());
    } finally {
      busy = false;
      $("status").textContent = "";
      if (mine === visit && current?.id) await reload();
      await list();
    }
    if (warning) say(warning);
    return true;
  });
  busy = false;
  head();
  return Boolean(done);
}

async function undo() {
  const last = turns.filter((turn) => turn.kept).at(-1);
  if (!last) return;
  const text = `“${(last.question ?? "").slice(0, 200)}” and its answer are deleted, and the memory is exactly what it was before.`;
  if (!(await ask({ title: `Undo turn ${last.turn}?`, text, yes: "Undo" }))) return;
  const done = await changing("Undoing", () => change("undo", { conversation: current.id, expect: [last.created ?? ""] }));
  if (done && !$("question").value && last.kind === "chat") $("question").value = last.question ?? "";
  grow();
  $("question").focus();
}

async function forget({ turn, created }, question) {
  const later = turns.filter((one) => one.kept && one.turn > turn).length;
  const replay = later ? ` ${count(later, "later turn")} will be replayed without it, which takes a while.` : "";
  const text = `“${question.slice(0, 200)}” is deleted, as if it had never been said.${replay}`;
  if (!(await ask({ title: `Forget turn ${turn}?`, text, yes: "Forget" }))) return;
  await changing("Forgetting", () => change("forget", { conversation: current.id, turns: [turn], expect: [created] }));
  $("undo").focus();
}

async function rename() {
  const title = await ask({ title: "Rename the conversation", label: "Title", value: current.title, yes: "Rename" });
  if (title !== null) await changing("Renaming", () => change("rename", { conversation: current.id, title }));
}

async function remove() {
  const text = "Its text and its memory are deleted for good.";
  if (!(await ask({ title: `Delete “${current.title}”?`, text, yes: "Delete" }))) return;
  await changing("Deleting", async () => {
    const done = await change("delete", { conversation: current.id });
    await begin();
    return done;
  });
}

async function toggleTemporary() {
  const temporary = $("temporary").checked;
  if (!temporary) return current.id ? open({ conversation: current.id, ...current }) : begin();
  leave();
  turns = [];
  draw();
  head();
  $("question").focus();
  return remembered();
}

// Panes that come over the chat

function openPane(id) {
  closePanes();
  $(id).classList.add("open");
  document.querySelector(`[data-opens="${id}"]`).setAttribute("aria-expanded", "true");
  $(id).focus();
}

function closePanes() {
  const opened = document.querySelector(".pane.open");
  if (!opened) return false;
  opened.classList.remove("open");
  const opener = document.querySelector(`[data-opens="${opened.id}"]`);
  opener.setAttribute("aria-expanded", "false");
  opener.focus();
  return true;
}

function grow() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, innerHeight * 0.4)}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (!closePanes()) running?.abort();
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("question").focus();
});
$("new").addEventListener("click", () => trying(begin));
$("undo").addEventListener("click", undo);
$("rename").addEventListener("click", rename);
$("delete").addEventListener("click", remove);
$("temporary").addEventListener("change", () => trying(toggleTemporary));
$("now").addEventListener("click", () => trying(() => look(null)));
$("enlarge").addEventListener("click", () => $("large").showModal());
$("profile").addEventListener("change", () =>
  trying(async () => {
    profile = $("profile").value;
    await begin();
    await list();
  }),
);
for (const button of document.querySelectorAll("[data-opens]")) button.addEventListener("click", () => openPane(button.dataset.opens));
for (const button of document.querySelectorAll("[data-closes]")) button.addEventListener("click", closePanes);
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".pane, .opener, dialog")) closePanes();
});

await trying(async () => {
  model = (await (await call("/v1/models")).json()).data[0].id.split("@")[0];
  const wanted = location.hash.slice(1);
  await begin();
  const found = wanted && (await read("show", { conversation: wanted }).catch(() => null));
  if (found) profile = found.profile;
  await list();
  if (found) await open(found);
  else current.profile = profile;
});
