// The page for people. What it shows comes from the server's own documents: the actions and their forms
// from api/v1/actions, what a failure means from openapi.json. Whatever is not its own text is set as
// text, never as markup. The key stays in its field.
"use strict";

const main = document.getElementById("main");
const keyField = document.getElementById("key");

// An element with attributes, and children that are elements or text.
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((it) => it != null && it !== false));
  return element;
}

// Text in which `words` are code.
function prose(text) {
  return String(text).split(/`([^`]+)`/).map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

function pretty(value) {
  return JSON.stringify(value, null, 2);
}

// The name of the cluster that is chosen, or of the only one, as the header shows it.
let cluster = null;

// The names of the clusters of which one is chosen, if several are listed.
let clusters = [];

function showCluster(name) {
  cluster = name || null;
  const place = document.getElementById("cluster");
  place.hidden = !cluster;
  place.replaceChildren("Cluster ", make("b", {}, cluster || ""));
}

// ---- Asking the server

// The status, the document, and when to retry.
async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  const key = keyField.value.trim();
  if (key) headers.Authorization = "Bearer " + key;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error", referrerPolicy: "no-referrer" });
  } catch {
    return { status: 0, body: { title: "The server cannot be reached", detail: "The request got no answer. Check that the server runs and that this machine is online.", unsure: Boolean(options.body) } };
  }
  let body;
  try {
    body = await response.json();
  } catch {
    body = { title: "The answer is not JSON", detail: "A proxy in between answered with status " + response.status + "." };
  }
  return { status: response.status, body, retryAfter: response.headers.get("Retry-After") };
}

function isProblem(answer) {
  return answer.status === 0 || (answer.status >= 400 && !answer.body.outcome);
}

// What a person can do about it, beside what the server's answer says.
function advice(answer) {
  const again = answer.retryAfter && "Retry in " + answer.retryAfter + (answer.retryAfter === "1" ? " second." : " seconds.");
  if (answer.status === 0 && answer.body.unsure) return "It is not known whether it was done. Pressing the same button again is safe: the request keeps its id.";
  if (answer.status === 401) return "This server requires authentication: enter a key or a Kubernetes token in the field Key at the top.";
  if (answer.status === 403 && answer.body.code === "caller_forbidden") return "The key is valid but does not allow this.";
  if (answer.status === 403) return "You are authenticated, but the policy or the cluster does not allow this.";
  if (answer.status === 429) return again || "Too many requests: wait before you retry.";
  return again || (answer.body.retryable ? "The same request may succeed later." : null);
}

function problem(answer) {
  const { title, detail, hint, code, field, id } = answer.body;
  const more = advice(answer);
  return make("div", { class: "problem", role: "alert" },
    make("h3", {}, title || "Not done"),
    make("p", {}, detail || ""),
    hint && make("p", {}, make("b", {}, "What to do: "), prose(hint)),
    more && make("p", {}, more),
    make("p", { class: "quiet" }, [code && "code " + code, answer.status ? "HTTP " + answer.status : null, field && "field " + field, id && "id " + id].filter(Boolean).join(" · ")));
}

// ---- Answers

const OUTCOMES = {
  unchanged: ["Nothing to do", "good"],
  simulated: ["Simulated", "calm"],
  failed: ["Failed", "bad"],
  pending_approval: ["Needs approval", "warn"],
};

// The actions whose effect takes time. Without a wait, the answer shows that it was started.
let slow = new Set();

function outcomeOf(body) {
  if (body.outcome !== "applied") return OUTCOMES[body.outcome] || [body.outcome, "calm"];
  if (!slow.has(body.type)) return ["Done", "good"];
  return body.rollout?.state === "complete" ? ["Complete", "good"] : ["Started", "calm"];
}

function badge([word, mood]) {
  return make("span", { class: "badge " + mood }, word);
}

function named(target) {
  const name = target.namespace ? target.namespace + "/" + target.name : target.name;
  return [target.kind, name].filter(Boolean).join(" ");
}

function shown(value) {
  return value === null ? make("i", { class: "quiet" }, "nothing") : make("code", {}, typeof value === "string" ? value : JSON.stringify(value));
}

// A JSON Pointer (RFC 6901) with line-break opportunities.
function pointer(path) {
  const parts = path.split("/").slice(1).map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
  return make("span", { class: "path", title: path }, parts.flatMap((part, index) => [index ? " › " : "", make("span", {}, part)]));
}

function answerOf(body) {
  const { rollout, observation, approval, rolled_back: back } = body;
  return make("div", { class: "answer" },
    make("p", { class: "result" }, badge(outcomeOf(body)), " ", make("span", {}, body.result)),
    body.replayed && make("p", { class: "notice" }, "An earlier attempt with this id applied it; nothing was done now."),
    body.offline && make("p", { class: "notice" }, "No cluster was asked: none is configured."),
    make("dl", { class: "facts" },
      body.cluster && [make("dt", {}, "Cluster"), make("dd", {}, body.cluster)],
      make("dt", {}, "Target"), make("dd", {}, named(body.target)),
      make("dt", {}, "Id"), make("dd", {}, make("code", {}, body.id)),
      make("dt", {}, "Time"), make("dd", {}, when(body.started_at) + ", took " + (new Date(body.finished_at) - new Date(body.started_at)) + " ms")),
    body.warnings.length > 0 && make("div", { class: "warnings" }, make("h3", {}, "Warnings"), make("ul", {}, body.warnings.map((it) => make("li", {}, it)))),
    rollout && make("div", {}, make("h3", {}, "Rollout: " + rollout.state), make("p", {}, rollout.message),
      rollout.problems && make("ul", {}, rollout.problems.map((it) => make("li", {}, it)))),
    observation && make("div", {}, make("h3", {}, "Observation: " + observation.state), make("p", {}, observation.message),
      observation.problems && make("ul", {}, observation.problems.map((it) => make("li", {}, it)))),
    back && make("div", {}, make("h3", {}, "Rolled back to revision " + back.revision), make("p", {}, back.rollout.message)),
    approval && make("div", {}, make("h3", {}, "A person approves it with"), copyable("Command", approval.command), make("p", { class: "quiet" }, "Until " + when(approval.expires_at) + ". Then execute again with the same id.")),
    body.changes.length > 0 && changes(body.changes),
    make("details", {}, make("summary", {}, "The whole answer"), copyable("Answer", pretty(body))));
}

function changes(list) {
  const head = ["What", "Before", "After"].map((it) => make("th", { scope: "col" }, it));
  const rows = list.map((change) => make("tr", {},
    make("th", { scope: "row" }, pointer(change.path)),
    make("td", { "data-head": "Before" }, shown(change.from)),
    make("td", { "data-head": "After" }, shown(change.to))));
  return make("div", {}, make("h3", {}, "Changes"), make("table", { class: "changes" }, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows)));
}

// The time in the reader's time zone, which it names.
function when(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return String(text ?? "-");
  return time.toLocaleString(undefined, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" });
}

// How long ago it was.
function age(text) {
  const seconds = Math.round((Date.now() - new Date(text)) / 1000);
  if (Number.isNaN(seconds)) return "";
  const [unit, length] = seconds < 90 ? ["second", 1] : seconds < 5400 ? ["minute", 60] : ["hour", 3600];
  return new Intl.RelativeTimeFormat(undefined, { numeric: "always" }).format(-Math.max(0, Math.round(seconds / length)), unit);
}

function copyable(label, text) {
  const code = make("pre", { tabindex: "0", "aria-label": label }, text);
  const button = make("button", { type: "button", class: "copy", "aria-label": "Copy: " + label, onclick: async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return make("div", { class: "code" }, button, code);
}

// ---- Schemas

// What a schema says of one value, with what stands beside null.
function shapeOf(schema) {
  const options = schema.anyOf || schema.oneOf;
  const inner = options && !options.every((it) => "const" in it) && options.find((it) => it.type !== "null");
  const whole = inner ? { ...inner, ...schema, anyOf: undefined, oneOf: inner.oneOf } : schema;
  const types = [whole.type].flat().filter((it) => it && it !== "null");
  const choices = (whole.enum || (whole.oneOf || []).filter((it) => "const" in it).map((it) => it.const)).filter((it) => it !== null);
  return { ...whole, type: choices.length ? "choice" : types[0] || "string", choices };
}

// Its bounds, for people.
function bounds(shape) {
  const say = [];
  if (shape.type === "choice") say.push("one of " + shape.choices.join(", "));
  const { minimum: least, maximum: most } = shape;
  const isWide = (it) => it === undefined || Math.abs(it) >= 2147483647;
  if (!isWide(least) && !isWide(most)) say.push(least + " to " + most);
  else if (!isWide(least)) say.push("at least " + least);
  else if (!isWide(most)) say.push("at most " + most);
  if (shape.not && "const" in shape.not) say.push("not " + shape.not.const);
  if (shape.maxLength) say.push("at most " + shape.maxLength + " characters");
  if (shape.default !== undefined && shape.default !== null) say.push("default " + JSON.stringify(shape.default));
  return say.join("; ");
}

// The groups of parameters of which exactly one is given.
function alternatives(schema) {
  const groups = [schema, ...(schema.allOf || [])].map((it) => (it.oneOf || []).map((branch) => branch.required || []));
  return groups.filter((it) => it.length > 1 && it.every((names) => names.length === 1)).map((it) => it.flat());
}

// ---- Forms

// A field with its label, its description and its error.
function field(path, name, shape, required, changed) {
  const id = "field-" + path.replaceAll(".", "-");
  const about = { id, "aria-describedby": id + "-about " + id + "-wrong" };
  let input;
  if (shape.type === "boolean") {
    input = make("input", { ...about, type: "checkbox", onchange: changed });
    input.checked = shape.default === true;
  } else if (shape.type === "choice") {
    const none = required && !shape.unset ? [] : [make("option", { value: "" }, shape.unset || "(not set)")];
    input = make("select", { ...about, required, onchange: changed }, none, shape.choices.map((it) => make("option", { value: it, selected: it === (shape.selected ?? shape.default) }, it)));
  } else if (shape.type === "integer" || shape.type === "number") {
    input = make("input", { ...about, type: "number", required, step: shape.type === "integer" ? "1" : "any", min: shape.minimum, max: shape.maximum, inputmode: shape.minimum >= 0 ? "numeric" : null, oninput: changed });
  } else {
    input = make("input", { ...about, type: "text", required, minlength: null, maxlength: shape.maxLength, autocomplete: "off", autocapitalize: "none", spellcheck: "false", placeholder: shape.default ?? null, oninput: changed });
  }
  const label = make("label", { for: id }, name, required && make("span", { class: "need" }, " required"));
  const words = make("p", { class: "about", id: id + "-about" }, prose((shape.description || "").replaceAll("\n", " ")));
  const wrong = make("p", { class: "wrong", id: id + "-wrong" });
  const line = shape.type === "boolean" ? make("div", { class: "check" }, input, label) : [label, input];
  const element = make("div", { class: "field" }, line, words, wrong);
  return { path, element, input, wrong, value: () => valueOf(input, shape) };
}

// The value as it goes into the request; undefined: it is left out.
function valueOf(input, shape) {
  if (shape.type === "boolean") return input.checked === (shape.default === true) ? undefined : input.checked;
  const text = input.value.trim();
  if (text === "" || (shape.type === "choice" && text === shape.default)) return undefined;
  if (shape.type !== "integer" && shape.type !== "number") return text;
  return Number.isFinite(Number(text)) ? Number(text) : text;
}

// One of several fields, chosen by name.
function oneOf(fields, changed) {
  const names = fields.map((it) => it.path.split(".").pop());
  const choose = (chosen) => {
    for (const it of fields) {
      it.element.hidden = it !== chosen;
      it.input.required = it === chosen;
    }
    changed();
  };
  const radios = fields.map((it, index) => make("label", { class: "radio" },
    make("input", { type: "radio", name: "one-of-" + names.join("-"), value: names[index], checked: index === 0, onchange: () => choose(it) }), names[index]));
  fields.forEach((it, index) => { it.element.hidden = index > 0; it.input.required = index === 0; });
  return make("fieldset", {}, make("legend", {}, "One of ", prose(names.map((it) => "`" + it + "`").join(" and "))), make("div", { class: "radios" }, radios), fields.map((it) => it.element));
}

// The field of the request's cluster: the one that was chosen before, or the default; without one it has to be chosen.
function clusterField(changed) {
  const shape = { type: "choice", choices: clusters, selected: cluster, unset: cluster ? null : UNCHOSEN, description: "The cluster on which it acts." };
  return field("cluster", "cluster", shape, true, changed);
}

const UNCHOSEN = "(choose one)";

const ENVELOPE = [
  ["wait", { type: "boolean", description: "Answer once the effect is complete." }],
  ["timeout_seconds", { type: "integer", minimum: 1, maximum: 3600, description: "Limit of the whole action in seconds, with the wait: 1 to 3600." }],
  ["observe_seconds", { type: "integer", minimum: 1, maximum: 3599, description: "With `wait`: seconds to observe that it stays healthy, once it is complete." }],
  ["requester", { type: "string", maxLength: 512, description: "The person or program that sends the request; for the audit trail." }],
  ["reason", { type: "string", maxLength: 512, description: "The reason; for the audit trail." }],
];

function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  // A page that came over plain HTTP has no randomUUID.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (it) => it.toString(16).padStart(2, "0")).join("");
}

function quoted(text) {
  return "'" + text.replaceAll("'", "'\\''") + "'";
}

function curl(request) {
  const url = new URL("api/v1/action/execute", location.href).href;
  const key = keyField.value.trim() ? " \\\n  -H \"Authorization: Bearer $KEY\"" : "";
  return "curl -sS " + quoted(url) + " \\\n  -H 'Content-Type: application/json'" + key + " \\\n  -d " + quoted(JSON.stringify(request));
}

function confirmed(text) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-text").replaceChildren(...text);
  return new Promise((resolve) => {
    let sure = false;
    document.getElementById("confirm-no").onclick = () => dialog.close();
    document.getElementById("confirm-yes").onclick = () => { sure = true; dialog.close(); };
    dialog.onclose = () => resolve(sure);
    dialog.showModal();
  });
}

function consoleFor(action) {
  const json = copyable("Request in JSON", "");
  const line = copyable("The same with curl", "");
  const idText = make("code", { id: "request-id" });
  const output = make("section", { class: "output", "aria-label": "Answer", "aria-live": "polite" });
  let id = newId();
  let last = "";

  const changed = () => {
    requireWait();
    if (where) showCluster(where.value());
    const request = requestOf(true);
    // A changed request gets a new id; a resent one keeps it.
    const text = JSON.stringify({ ...request, simulate: false });
    if (text !== last) { last = text; id = newId(); }
    idText.textContent = id;
    json.querySelector("pre").textContent = pretty(request);
    line.querySelector("pre").textContent = curl(request);
  };
  const { properties = {}, required = [] } = action.parameters;
  const groups = alternatives(action.parameters);
  const fields = Object.entries(properties)
    .filter(([, schema]) => !schema.deprecated)
    .map(([name, schema]) => field("parameters." + name, name, shapeOf(schema), required.includes(name), changed));
  const isOf = (group) => (it) => group.includes(it.path.slice("parameters.".length));
  const envelope = ENVELOPE.map(([name, shape]) => field(name, name, shape, false, changed));
  const where = clusters.length ? clusterField(changed) : null;
  const all = [where, ...fields, ...envelope].filter(Boolean);

  // An automatic rollback needs the wait: the request is refused without it.
  function requireWait() {
    const rollback = fields.find((it) => it.path === "parameters.rollback_on_failure");
    const { input, element } = envelope.find((it) => it.path === "wait");
    input.disabled = Boolean(rollback?.input.checked);
    if (!input.disabled) return;
    input.checked = true;
    element.closest("details")?.setAttribute("open", "");
  }

  function requestOf(simulate) {
    const parameters = {};
    for (const it of fields) {
      const value = it.element.hidden ? undefined : it.value();
      if (value !== undefined) parameters[it.path.slice("parameters.".length)] = value;
    }
    const request = { type: action.name, cluster: where?.value(), parameters, simulate };
    for (const it of envelope) {
      const value = it.value();
      if (value !== undefined) request[it.path] = value;
    }
    return request;
  }

  function blame(path, words) {
    const it = all.find((it) => it.path === path);
    if (!it) return;
    // The field has its name.
    it.wrong.textContent = words.replace(path + ": ", "");
    it.input.setAttribute("aria-invalid", "true");
    it.element.closest("details")?.setAttribute("open", "");
    it.input.focus();
  }

  function isSound() {
    for (const it of all) {
      it.wrong.textContent = "";
      it.input.removeAttribute("aria-invalid");
    }
    const wrong = all.find((it) => !it.element.hidden && !it.input.checkValidity());
    if (wrong) blame(wrong.path, wrong.input.validationMessage);
    return !wrong;
  }

  async function send(request) {
    const buttons = form.querySelectorAll("button");
    buttons.forEach((it) => { it.disabled = true; });
    output.replaceChildren(make("p", { class: "waiting" }, request.simulate ? "Simulating…" : "Executing…"));
    const answer = await ask("api/v1/action/execute", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) });
    buttons.forEach((it) => { it.disabled = false; });
    output.replaceChildren(isProblem(answer) ? problem(answer) : answerOf(answer.body));
    output.scrollIntoView({ block: "nearest" });
    if (answer.status === 401) keyField.focus();
    else if (answer.body.field) blame(answer.body.field, [answer.body.detail, answer.body.hint].filter(Boolean).join(". "));
  }

  async function execute() {
    if (!isSound()) return;
    const request = { ...requestOf(false), id };
    const { parameters } = request;
    const name = fields.find((it) => !it.element.hidden && it.input.required);
    const place = action.scope === "namespace" ? [" in namespace ", make("b", {}, parameters.namespace || "default")] : [];
    const known = [name?.path, "parameters.namespace"];
    const rest = Object.entries(parameters).filter(([it]) => !known.includes("parameters." + it));
    const how = rest.length ? [", with ", make("code", {}, rest.map(([it, value]) => it + " " + value).join(", "))] : [];
    if (await confirmed([make("code", {}, action.name), " on ", make("b", {}, String(name ? name.value() : "?")), ...place, ...how, ". This changes ", cluster ? ["the cluster ", make("b", {}, cluster)] : "the cluster", "."].flat())) await send(request);
  }

  const form = make("form", { novalidate: true, onsubmit: (event) => { event.preventDefault(); if (isSound()) send(requestOf(true)); } },
    where?.element,
    groups.map((group) => oneOf(fields.filter(isOf(group)), changed)),
    fields.filter((it) => !groups.some((group) => isOf(group)(it))).map((it) => it.element),
    make("details", {}, make("summary", {}, "Wait, requester, reason"), envelope.map((it) => it.element),
      make("p", { class: "about" }, "Id of a real execution: ", idText, " ",
        make("button", { type: "button", class: "small", onclick: () => { id = newId(); idText.textContent = id; } }, "New id"),
        " The same id is one action, however often it is sent.")),
    make("div", { class: "buttons" },
      make("button", { type: "submit", class: "primary" }, "Simulate"),
      make("button", { type: "button", class: "danger", onclick: execute }, "Execute…")));
  keyField.oninput = changed;
  changed();
  return make("section", { class: "console", "aria-label": "Try it" },
    make("h2", {}, "Try it"), form, output,
    make("details", { open: true }, make("summary", {}, "Request"), json),
    make("details", {}, make("summary", {}, "curl"), line));
}

// ---- The page of actions

function parametersOf(action) {
  const { properties = {}, required = [] } = action.parameters;
  const groups = alternatives(action.parameters);
  return make("dl", { class: "parameters" }, Object.entries(properties).flatMap(([name, schema]) => {
    const shape = shapeOf(schema);
    const group = groups.find((it) => it.includes(name));
    const need = required.includes(name) ? "required" : group ? "one of " + group.join(", ") : null;
    const limits = bounds(shape);
    return [
      make("dt", {}, make("code", {}, name), " ", make("span", { class: "type" }, shape.type === "choice" ? "string" : shape.type), need && make("span", { class: "need" }, need), schema.deprecated && make("span", { class: "quiet" }, "deprecated")),
      make("dd", {}, prose((schema.description || "").replaceAll("\n", " ")), limits && make("span", { class: "limits" }, limits)),
    ];
  }));
}

function permissionsOf(action) {
  return make("ul", { class: "permissions" }, action.rules.map((rule) => make("li", {},
    make("b", {}, rule.verbs.join(", ")), " on ", make("code", {}, rule.resources.map((it) => [it, rule.apiGroups[0]].filter(Boolean).join(".")).join(", ")))));
}

// Every problem of an execution, from the server's own description.
function failuresOf(openapi) {
  const responses = openapi?.paths?.["/api/v1/action/execute"]?.post?.responses || {};
  const examples = Object.values(responses).flatMap((it) => Object.values(it.content?.["application/problem+json"]?.examples || {}));
  const rows = examples.map(({ value }) => make("tr", {},
    make("th", { scope: "row" }, make("code", {}, value.code)),
    make("td", { "data-head": "Meaning" }, value.title),
    make("td", { "data-head": "HTTP" }, String(value.status)),
    make("td", { "data-head": "Retry" }, value.retryable ? "may succeed later" : "no")));
  const head = ["Code", "Meaning", "HTTP", "Retry"].map((it) => make("th", { scope: "col" }, it));
  return make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows));
}

function actionPage(action, openapi) {
  return [
    make("header", { class: "head" },
      make("h1", {}, action.name),
      action.aliases.length > 0 && make("p", { class: "quiet" }, "also ", prose(action.aliases.map((it) => "`" + it + "`").join(", "))),
      make("p", { class: "lead" }, prose(action.description))),
    consoleFor(action),
    make("article", { class: "reference" },
      make("h2", {}, "Parameters"), parametersOf(action),
      make("h2", {}, "Permissions"),
      make("p", {}, "Callers need ", make("code", {}, "simulate"), " or ", make("code", {}, "execute"), " on ", make("code", {}, "actions.action-executor.dev"), clusters.length > 1 && [" (", make("code", {}, "actions/NAME"), " for each cluster but the one that reviews callers)"], ", or a key that allows it. In the cluster the executor itself needs" + (action.scope === "cluster" ? ", in a ClusterRole:" : ", in the target's namespace:")),
      permissionsOf(action),
      make("details", { class: "failures" }, make("summary", {}, "When it is not done"),
        make("p", {}, "A problem has a code, and says whether the same request may succeed later:"),
        failuresOf(openapi))),
  ];
}

function note({ actions, cluster, clusters: names = [] }) {
  slow = new Set(actions.filter((it) => it.takes_time).map((it) => it.name));
  clusters = names;
  showCluster(cluster);
}

async function actionsPage() {
  const [list, openapi] = await Promise.all([ask("api/v1/actions"), ask("openapi.json")]);
  if (isProblem(list)) return main.replaceChildren(problem(list));
  const { actions } = list.body;
  note(list.body);
  const links = actions.map((it) => make("a", { href: "#" + it.name }, it.name));
  const menu = make("nav", { class: "menu", "aria-label": "Actions" }, links);
  const place = make("div", { class: "sheet" });
  const show = () => {
    const name = decodeURIComponent(location.hash.slice(1));
    const action = actions.find((it) => it.name === name || it.aliases.includes(name)) || actions[0];
    links.forEach((it) => (it.textContent === action.name ? it.setAttribute("aria-current", "true") : it.removeAttribute("aria-current")));
    document.title = action.name + " · action-executor";
    place.replaceChildren(...actionPage(action, openapi.body));
  };
  addEventListener("hashchange", () => {
    if (location.hash === "#main") return;
    show();
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  });
  main.classList.add("with-menu");
  main.replaceChildren(menu, place);
  show();
}

// ---- The page of what was done

// How a request ended, by the reason of its Event: the name in a query, and the words for it.
const STATES = {
  ActionApplied: ["applied", "Applied", "good"],
  ActionUnchanged: ["unchanged", "Nothing to do", "good"],
  ActionFailed: ["failed", "Failed", "bad"],
  ActionRefused: ["refused", "Refused", "warn"],
  ActionBegun: ["started", "In progress", "calm"],
  ActionUnknown: ["unknown", "Unknown", "bad"],
  ApprovalPending: ["pending_approval", "Needs approval", "warn"],
};

// The states of which the table shows the reason.
const EXPLAINED = ["ActionFailed", "ActionRefused", "ActionUnknown"];

function stateOf(entry) {
  if (entry.answer && entry.event === "ActionApplied") return badge(outcomeOf(entry.answer));
  const [, word, mood] = STATES[entry.event] || ["", entry.event, "calm"];
  return badge([word, mood]);
}

function rowsOf(entry, index) {
  const details = make("tr", { class: "more", id: "entry-" + index, hidden: true }, make("td", { colspan: "5" },
    make("p", {}, entry.message || ""),
    entry.answer ? answerOf(entry.answer) : make("details", {}, make("summary", {}, "The record"), copyable("Record", pretty(entry)))));
  const button = make("button", { type: "button", class: "expand", "aria-expanded": "false", "aria-controls": "entry-" + index, onclick: () => {
    details.hidden = !details.hidden;
    button.setAttribute("aria-expanded", String(!details.hidden));
  } }, when(entry.at), make("span", { class: "quiet age" }, age(entry.at)));
  const who = [entry.requester || "not said", entry.reason && make("span", { class: "quiet" }, " · " + entry.reason)];
  return [
    make("tr", {},
      make("th", { scope: "row" }, button),
      make("td", { "data-head": "Action" }, make("code", {}, entry.type || "-")),
      make("td", { "data-head": "Target" }, named(entry.target)),
      make("td", { "data-head": "Outcome" }, stateOf(entry), EXPLAINED.includes(entry.event) && make("span", { class: "quiet why" }, entry.message || "")),
      make("td", { "data-head": "Requested by" }, who)),
    details,
  ];
}

// The choice of the cluster that has the records: the one in the address, or the default.
function clusterChoice(given) {
  const chosen = given ?? cluster;
  const none = clusters.includes(chosen) ? [] : [make("option", { value: "" }, UNCHOSEN)];
  return make("select", { id: "of-cluster", name: "cluster", required: true }, none, clusters.map((it) => make("option", { value: it, selected: it === chosen }, it)));
}

async function historyPage() {
  document.title = "History · action-executor";
  const list = await ask("api/v1/actions");
  if (!isProblem(list)) note(list.body);
  const given = new URLSearchParams(location.search);
  const text = (name, words) => {
    const input = make("input", { id: name, name, type: "text", autocomplete: "off", autocapitalize: "none", spellcheck: "false", placeholder: words });
    input.value = given.get(name) || "";
    return input;
  };
  const fields = [["namespace", "Namespace", "all"], ["target", "Target", "deployment/web"], ["requester", "Requested by", "anyone"]]
    .map(([name, label, words]) => [label, text(name, words)]);
  const states = Object.values(STATES).map(([name, word]) => make("option", { value: name, selected: name === given.get("outcome") }, word));
  fields.push(["Outcome", make("select", { id: "outcome", name: "outcome" }, make("option", { value: "" }, "any"), states)]);
  const where = clusters.length ? clusterChoice(given.get("cluster")) : null;
  if (where) fields.unshift(["Cluster", where]);
  const place = make("div", { "aria-live": "polite" });
  let latest = 0;
  const show = async () => {
    const asked = ++latest, of = where?.value;
    const query = new URLSearchParams();
    for (const [, it] of fields) if (it.value.trim()) query.set(it.name, it.value.trim());
    history.replaceState(null, "", query.size ? "?" + query : location.pathname);
    if (where) showCluster(of);
    if (where && !of) return place.replaceChildren(make("p", { class: "notice" }, "Each cluster has its own records: choose one."));
    place.replaceChildren(make("p", { class: "waiting" }, "Loading…"));
    const answer = await ask("api/v1/history?" + query);
    // The answer to an earlier question may come after that to a later one.
    if (asked !== latest) return;
    if (isProblem(answer)) {
      place.replaceChildren(problem(answer));
      if (answer.status === 401) keyField.focus();
      return;
    }
    const { entries, more } = answer.body;
    if (entries.length === 0) return place.replaceChildren(make("p", { class: "notice" }, "There are no records. The cluster keeps them for about an hour."));
    const head = ["When", "Action", "Target", "Outcome", "Requested by"].map((it) => make("th", { scope: "col" }, it));
    place.replaceChildren(
      make("h2", { class: "unseen" }, where ? "Records of cluster " + of : "Records"),
      make("table", { class: "history" }, make("thead", {}, make("tr", {}, head)), make("tbody", {}, entries.flatMap(rowsOf))),
      more ? make("p", { class: "quiet" }, "Only the newest " + entries.length + " are shown.") : "");
  };
  const form = make("form", { class: "filters", novalidate: true, onsubmit: (event) => { event.preventDefault(); show(); } },
    fields.map(([label, it]) => make("div", {}, make("label", { for: it.id }, label), it)),
    make("button", { type: "submit", class: "primary" }, "Refresh"));
  main.replaceChildren(make("article", { class: "wide" }, make("h1", {}, "What was done"),
    make("p", { class: "lead" }, "By whom and why, from the records that the cluster still keeps. Actions on nodes are recorded in ", make("code", {}, "default"), "."), form, place));
  await show();
}

const isHistory = location.pathname.endsWith("/history");
for (const link of document.querySelectorAll(".top nav a")) {
  if (link.getAttribute("href") === (isHistory ? "history" : "docs")) link.setAttribute("aria-current", "page");
}
if (isHistory) historyPage(); else actionsPage();
