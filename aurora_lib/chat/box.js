// The front of box.py. Texts reach the page as text nodes only, so nothing that is written can become HTML.
// The kernel is box.py's, or on the book's pages a model in the browser; its `words` translate what is said.

const FIELDS = {
  system: ["System line", { type: "text" }],
  temperature: ["Temperature (0: the likeliest token)", { type: "number", min: 0, step: 0.1 }],
  top_p: ["Top-p (1: every token)", { type: "number", min: 0.05, max: 1, step: 0.05 }],
  max_new_tokens: ["Longest answer, in tokens", { type: "number", min: 1, step: 1 }],
  seed: ["Seed (from a new conversation on)", { type: "number", min: 0, step: 1 }],
  adapter: ["Adapter on (the tuned model)", { type: "checkbox" }],
};

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function button(name, label, press, spoken = label) {
  const made = element("button", { type: "button", class: `aurora-chat-${name}`, "aria-label": spoken }, label);
  made.addEventListener("click", () => press(made));
  return made;
}

async function copy(text, pressed, say) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text.textContent);
  } catch {
    getSelection().selectAllChildren(text); // no clipboard without https, or none allowed: the old way
    copied = document.execCommand("copy");
  }
  pressed.textContent = say(copied ? "Copied" : "Press Ctrl+C"); // the text is selected
}

function turn(say, { role, said }, state = "whole") {
  const bubbles = said.map(([speaker, content]) => {
    const text = element("div", { class: "aurora-chat-text", dir: "auto" }, content || "…");
    const copying = button("copy", say("Copy"), (it) => copy(text, it, say), `${say("Copy")}: ${speaker}`);
    const head = element("div", { class: "aurora-chat-head" }, element("b", {}, speaker), copying);
    return element("div", { class: `aurora-chat-bubble aurora-chat-${role}` }, head, text);
  });
  return element("div", { class: `aurora-chat-turn aurora-chat-${state}` }, ...bubbles);
}

function render({ model, el }) {
  const send = (action, rest = {}) => model.send({ action, ...rest });
  const say = (text) => model.get("words")?.[text] ?? text;
  const log = element("div", { class: "aurora-chat-log", role: "log", "aria-label": say("Chat"), tabindex: 0 });
  const entry = element("textarea", { class: "aurora-chat-entry", rows: 2, dir: "auto" });
  entry.ariaLabel = say("Message");
  entry.placeholder = say("你好 / Hello   (Enter sends, Shift+Enter breaks the line)");
  const buttons = { ask: "Send", stop: "Stop", regenerate: "Regenerate", reset: "New conversation" };
  const press = (action, rest) => () => {
    action === "ask" && !rest ? ask() : send(action, rest);
    entry.focus(); // a button that is disabled next would drop it
  };
  for (const action in buttons) buttons[action] = button(action, say(buttons[action]), press(action));
  const offered = element("fieldset", { class: "aurora-chat-row", "aria-label": say("Questions to ask") });
  offered.append(...model.get("questions").map((text) => button("question", text, press("ask", { text }))));
  const status = element("span", { class: "aurora-chat-status" });
  const trouble = element("div", { class: "aurora-chat-trouble", role: "alert" });
  const inputs = {};
  const fields = element("fieldset", { class: "aurora-chat-row", "aria-label": say("Settings") });
  for (const name of Object.keys(model.get("settings"))) {
    const [label, attributes] = FIELDS[name];
    const input = (inputs[name] = element("input", { ...attributes, name }));
    input.addEventListener("change", () => {
      send("change", { name, value: input.type === "checkbox" ? input.checked : input.value });
      drawSettings(); // as they are, until the kernel has taken the new one
    });
    fields.append(element("label", {}, element("span", {}, say(label)), input));
  }
  el.classList.add("aurora-chat");
  // JupyterLab would take Shift+Enter for "run this cell", and offer its own menu instead of "copy"
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  el.setAttribute("data-jp-suppress-context-menu", "true");
  el.append(
    log,
    trouble,
    offered,
    element("div", { class: "aurora-chat-row" }, entry),
    element("div", { class: "aurora-chat-row" }, ...Object.values(buttons), status),
    element("details", {}, element("summary", {}, say("Settings")), fields),
  );

  function ask() {
    if (model.get("busy") || !entry.value.trim()) return;
    send("ask", { text: entry.value });
    entry.value = "";
  }

  entry.addEventListener("keydown", (event) => {
    // while an input method composes, Enter chooses characters; Safari marks the Enter that ends it with 229
    if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    // inserted by hand, as JupyterLab forbids line breaks by Shift+Enter in every text box of a cell
    if (event.shiftKey) entry.setRangeText("\n", entry.selectionStart, entry.selectionEnd, "end");
    else ask();
  });

  function keepEnd(change, asked = false) {
    const below = log.scrollHeight - log.scrollTop - log.clientHeight; // of a reader further up, left there
    change();
    if (asked || below < 40) log.scrollTop = log.scrollHeight;
  }

  function draw() {
    const busy = model.get("busy");
    const asked = model.get("transcript").some(({ role }) => role !== "system");
    const turns = model.get("transcript").map((one) => turn(say, one));
    if (busy) turns.push(turn(say, model.get("answer"), "partial"));
    keepEnd(() => log.replaceChildren(...turns), busy);
    log.setAttribute("aria-busy", busy); // read aloud once it is whole
    buttons.ask.disabled = fields.disabled = offered.disabled = busy;
    buttons.stop.disabled = !busy;
    buttons.regenerate.disabled = busy || !asked;
    buttons.reset.disabled = !busy && !asked;
  }

  function drawAnswer() {
    const texts = log.querySelectorAll(".aurora-chat-partial .aurora-chat-text");
    keepEnd(() => texts.forEach((text, n) => (text.textContent = model.get("answer").said[n][1] || "…")));
  }

  function drawSettings() {
    for (const [name, value] of Object.entries(model.get("settings"))) {
      inputs[name].checked = value === true;
      inputs[name].value = value;
    }
  }

  const listeners = {
    "change:transcript": draw,
    "change:busy": draw,
    "change:answer": drawAnswer,
    "change:settings": drawSettings,
    "change:status": () => (status.textContent = model.get("status")),
    "change:trouble": () => (trouble.textContent = model.get("trouble")),
    "msg:custom": ({ refused }) => (entry.value ||= refused),
  };
  for (const [name, listener] of Object.entries(listeners)) {
    model.on(name, listener);
    if (name !== "msg:custom") listener();
  }
}

export default { render };
