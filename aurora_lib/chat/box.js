// The front of box.py. Texts reach the page as text nodes only, so nothing that is written can become HTML.

const SPEAKERS = { user: "You", assistant: "Model", system: "System" };
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

function bubble({ role, content }) {
  const speaker = element("b", {}, SPEAKERS[role]);
  const text = element("div", { class: "aurora-chat-text", dir: "auto" }, content || "…");
  return element("div", { class: `aurora-chat-bubble aurora-chat-${role}` }, speaker, text);
}

function render({ model, el }) {
  const send = (action, rest = {}) => model.send({ action, ...rest });
  const log = element("div", { class: "aurora-chat-log", role: "log", "aria-label": "Chat", tabindex: 0 });
  const entry = element("textarea", { class: "aurora-chat-entry", rows: 2, dir: "auto", "aria-label": "Message" });
  entry.placeholder = "你好 / Hello   (Enter sends, Shift+Enter breaks the line)";
  const buttons = { ask: "Send", stop: "Stop", regenerate: "Regenerate", reset: "New conversation" };
  for (const [action, label] of Object.entries(buttons)) {
    buttons[action] = element("button", { type: "button", class: `aurora-chat-${action}` }, label);
    buttons[action].addEventListener("click", () => {
      action === "ask" ? ask() : send(action);
      entry.focus(); // a button that is disabled next would drop it
    });
  }
  const status = element("span", { class: "aurora-chat-status" });
  const trouble = element("div", { class: "aurora-chat-trouble", role: "alert" });
  const inputs = {};
  const fields = element("fieldset", { class: "aurora-chat-row", "aria-label": "Settings" });
  for (const name of Object.keys(model.get("settings"))) {
    const [label, attributes] = FIELDS[name];
    const input = (inputs[name] = element("input", { ...attributes, name }));
    input.addEventListener("change", () => {
      send("change", { name, value: input.type === "checkbox" ? input.checked : input.value });
      drawSettings(); // as they are, until the kernel has taken the new one
    });
    fields.append(element("label", {}, element("span", {}, label), input));
  }
  el.classList.add("aurora-chat");
  // JupyterLab would take Shift+Enter for "run this cell", and offer its own menu instead of "copy"
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  el.setAttribute("data-jp-suppress-context-menu", "true");
  el.append(
    log,
    trouble,
    element("div", { class: "aurora-chat-row" }, entry),
    element("div", { class: "aurora-chat-row" }, ...Object.values(buttons), status),
    element("details", {}, element("summary", {}, "Settings"), fields),
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

  function keepEnd(change) {
    const reading = log.scrollHeight - log.scrollTop - log.clientHeight > 40; // further up, and left there
    change();
    if (!reading) log.scrollTop = log.scrollHeight;
  }

  function draw() {
    const busy = model.get("busy");
    const bubbles = model.get("transcript").map(bubble);
    const asked = bubbles.some((one) => !one.matches(".aurora-chat-system"));
    if (busy) bubbles.push(bubble({ role: "assistant", content: model.get("answer") }));
    if (busy) bubbles.at(-1).classList.add("aurora-chat-partial");
    keepEnd(() => log.replaceChildren(...bubbles));
    log.setAttribute("aria-busy", busy); // read aloud once it is whole
    buttons.ask.disabled = fields.disabled = busy;
    buttons.stop.disabled = !busy;
    buttons.regenerate.disabled = busy || !asked;
    buttons.reset.disabled = !busy && !asked;
  }

  function drawAnswer() {
    const text = log.querySelector(":scope > .aurora-chat-partial > .aurora-chat-text");
    if (text) keepEnd(() => (text.textContent = model.get("answer") || "…"));
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
