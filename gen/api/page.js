// Adds to the API page a filter and, in each call, a form to try it. The key stays in this page.
"use strict";

const settings = document.getElementById("settings");
const key = document.getElementById("key");
settings.hidden = false;
settings.addEventListener("submit", (event) => event.preventDefault());

document.getElementById("filter").addEventListener("input", (event) => {
  const word = event.target.value.toLowerCase();
  for (const section of document.querySelectorAll("main section")) {
    const entries = section.querySelectorAll(":scope > details");
    for (const entry of entries) {
      entry.hidden = word !== "" && !entry.textContent.toLowerCase().includes(word);
    }
    section.hidden = entries.length > 0 && [...entries].every((entry) => entry.hidden);
  }
});

// What a link leads to is opened.
const open = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", open);
open();

const add = (parent, name, text = "") => {
  const element = document.createElement(name);
  element.textContent = text;
  parent.append(element);
  return element;
};

// Sends a call, and shows the answer as it comes.
const send = async (entry, path, body, answer) => {
  answer.hidden = false;
  answer.textContent = "…";
  const headers = {};
  if (key.value !== "") headers.authorization = `Bearer ${key.value}`;
  if (body !== undefined) headers["content-type"] = entry.dataset.kind;
  try {
    const reply = await fetch(path, { method: entry.dataset.verb.toUpperCase(), headers, body });
    const decoder = new TextDecoder();
    let text = "";
    const show = (shown) => (answer.textContent = `${reply.status} ${reply.statusText}\n\n${shown}`);
    const reader = reply.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += decoder.decode(part.value, { stream: true });
      show(text);
    }
    if ((reply.headers.get("content-type") ?? "").startsWith("application/json")) {
      show(JSON.stringify(JSON.parse(text), null, 2));
    }
  } catch (error) {
    answer.textContent = `${error}`;
  }
};

const addForm = (entry) => {
  const form = add(entry, "form");
  form.className = "try";
  const fields = new Map();
  for (const [, name] of entry.dataset.path.matchAll(/\{([^}]+)\}/g)) {
    const label = add(form, "label", `${name} `);
    fields.set(name, add(label, "input"));
  }
  const query = entry.dataset.verb === "get" ? add(add(form, "label", "query "), "input") : null;
  if (query !== null) query.placeholder = "name=value&…";
  const body = entry.dataset.kind === "application/json" ? add(form, "textarea") : null;
  if (body !== null) body.value = entry.dataset.body || "{}";
  add(form, "button", "Send");
  const answer = add(entry, "pre");
  answer.hidden = true;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    let path = entry.dataset.path;
    for (const [name, input] of fields) path = path.replace(`{${name}}`, encodeURIComponent(input.value));
    if (query !== null && query.value !== "") path += `?${query.value}`;
    send(entry, path, body?.value, answer);
  });
};

for (const entry of document.querySelectorAll("details.operation")) {
  // Made when first opened: there are a hundred.
  entry.addEventListener("toggle", () => addForm(entry), { once: true });
}
