// The front of box.py. Texts reach the page as text nodes only, so nothing a model or a reader writes can become HTML.

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

function bubble({ role, name, content, forgotten }) {
  const text = element("div", { class: "aurora-chat-text", dir: "auto" }, content || "…");
  const classes = `aurora-chat-bubble aurora-chat-${role}${forgotten ? " aurora-chat-forgotten" : ""}`;
  return element("div", { class: classes }, element("b", {}, name), text);
}

function render({ model, el }) {
  const send = (action, rest = {}) => model.send({ action, ...rest });
  const button = (label, action) => {
    const made = element("button", { type: "button", class: `aurora-chat-${action}` }, label);
    made.addEventListener("click", () => {
      action === "ask" ? ask() : send(action);
      entry.focus(); // a button that is disabled next would drop it
    });
    return made;
  };

  const log = element("div", { class: "aurora-chat-log", role: "log", "aria-label": "Conversation", tabindex: 0 });
  const entry = element("textarea", {
    class: "aurora-chat-entry",
    rows: 2,
    dir: "auto",
    "aria-label": "Message",
    placeholder: "你好 / Hello   (Enter sends, Shift+Enter breaks the line)",
  });
  const buttons = {
    ask: button("Send", "ask"),
    stop: button("Stop", "stop"),
    regenerate: button("Regenerate", "regenerate"),
    reset: button("New conversation", "reset"),
  };
  const status = element("span", { class: "aurora-chat-status" });
  const trouble = element("div", { class: "aurora-chat-trouble", role: "alert" });
  const inputs = {};
  const fields = element("fieldset", { "aria-label": "Settings" });
  for (const name of Object.keys(model.get("settings"))) {
    const [label, attributes] = FIELDS[name];
    const input = (inputs[name] = element("input", { ...attributes, name }));
    const checkbox = attributes.type === "checkbox";
    input.addEventListener("change", () => send("change", { name, value: checkbox ? input.checked : input.value }));
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
    if (!model.get("busy") && entry.value.trim()) send("ask", { text: entry.value });
  }

  entry.addEventListener("keydown", (event) => {
    // while an input method composes, Enter chooses characters; 229 is how Safari says so for the Enter that ends it
    const composing = event.isComposing || event.keyCode === 229;
    if (event.key !== "Enter" || composing) return;
    event.preventDefault();
    // inserted by hand, as JupyterLab forbids line breaks by Shift+Enter in every text box of a cell
    if (event.shiftKey) entry.setRangeText("\n", entry.selectionStart, entry.selectionEnd, "end");
    else ask();
  });

  function toEnd(change) {
    const reading = log.scrollHeight - log.scrollTop - log.clientHeight > 40;
    change();
    if (!reading) log.scrollTop = log.scrollHeight;
  }

  function drawTranscript() {
    toEnd(() => {
      log.replaceChildren();
      let above = false;
      for (const message of model.get("transcript")) {
        if (above && !message.forgotten)
          log.append(element("div", { class: "aurora-chat-window" }, "above: no longer in the context window"));
        above = message.forgotten;
        log.append(bubble(message));
      }
    });
    log.hidden = !log.children.length;
  }

  function drawAnswer() {
    toEnd(() => {
      const last = log.querySelector(":scope > .aurora-chat-partial");
      if (!model.get("busy")) last?.remove();
      else if (last) last.querySelector(".aurora-chat-text").textContent = model.get("answer") || "…";
      else {
        const made = bubble({ role: "assistant", name: model.get("speaker"), content: model.get("answer") });
        made.classList.add("aurora-chat-partial");
        log.append(made);
      }
    });
  }

  function drawState() {
    const busy = model.get("busy");
    const asked = model.get("transcript").some((message) => message.role !== "system");
    log.setAttribute("aria-busy", busy); // read aloud once it is whole
    buttons.ask.disabled = fields.disabled = busy;
    buttons.stop.disabled = !busy;
    buttons.regenerate.disabled = busy || !asked;
    buttons.reset.disabled = !busy && !asked;
    status.textContent = model.get("status");
    trouble.textContent = model.get("trouble");
  }

  function drawSettings() {
    for (const [name, value] of Object.entries(model.get("settings"))) {
      inputs[name].checked = value === true;
      inputs[name].value = value;
    }
  }

  function draw() {
    drawTranscript();
    drawAnswer();
    drawState();
  }

  const listeners = {
    "change:transcript": draw,
    "change:busy": draw,
    "change:answer": drawAnswer,
    "change:status": drawState,
    "change:trouble": drawState,
    "change:settings": drawSettings,
    "msg:custom": ({ taken, refused, settings }) => {
      if (settings) drawSettings();
      if (taken && entry.value.startsWith(taken)) entry.value = entry.value.slice(taken.length);
      if (refused && !entry.value) entry.value = refused;
    },
  };
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);
  draw();
  drawSettings();
  return () => {
    for (const [name, listener] of Object.entries(listeners)) model.off(name, listener);
  };
}

export default { render };
