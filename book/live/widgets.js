// The kernel's side of both widgets: what aurora_lib/chat/box.py and routing/explorer.py are to a notebook.

import { grid, ROOM, visible } from "./routing.js";
import { checked, Session, SETTINGS } from "./session.js";
import { say } from "./words.js";

const PAUSE = 70; // milliseconds from one picture of a growing answer to the next
const NAMES = ["base", "tuned"];

const send = (change) => postMessage({ change });

/** A question goes to base and tuned, and both answers stream in. */
export class Box {
  /** `open`: "chat", or "question", which forgets each question before the next. */
  constructor(model, tokenizer, { open, texts, words }) {
    this.sessions = [false, true].map((tuned) => new Session(model, tokenizer, tuned));
    this.routers = new Explorer(model, tokenizer, { texts, words }, (routers) => postMessage({ routers }));
    Object.assign(this, {
      texts,
      forgetful: open === "question",
      watched: false,
      busy: false,
      stopped: false,
    });
    this.show();
  }

  hear({ action, ...rest }) {
    if (!action) return this.routers.hear(rest); // of the explorer below the chat
    if (["ask", "regenerate", "stop", "reset", "change", "watch"].includes(action)) return this[action](rest);
  }

  /** Whether the routers are looked at: then they show how they read the talk, as the tuned model has it. */
  watch({ watched }) {
    this.watched = watched;
    if (watched && !this.busy) this.routers.hear({ text: this.talk() ?? this.texts[0] });
  }

  /** The tuned model's talk as text; of a long one the last turn, by itself. Nothing before the first. */
  talk() {
    const { messages, system, tokenizer } = this.sessions[1];
    if (!messages.length) return undefined;
    const head = system ? [{ role: "system", content: system }] : [];
    const whole = tokenizer.chat([...head, ...messages]);
    return tokenizer.encode(whole).length <= ROOM ? whole : tokenizer.chat(messages.slice(-2));
  }

  ask({ text }) {
    if (this.busy) return postMessage({ message: { refused: text } }); // to be edited, not typed again
    if (!text.trim()) return;
    const replaced = this.forgetful ? this.sessions[0].messages.length : 0;
    return this.answer(text, replaced, () => postMessage({ message: { refused: text } }));
  }

  regenerate() {
    const [last] = this.sessions[0].messages.slice(-2);
    if (this.busy || !last) return;
    return this.answer(last.content, 2);
  }

  stop() {
    this.stopped = true;
  }

  async reset() {
    this.stop();
    while (this.busy) await pause();
    this.each((session) => session.reset());
    this.show();
    this.watch(this);
  }

  change({ name, value }) {
    if (this.busy) return;
    try {
      const made = name === "system" ? value : checked(name, value);
      this.each((session) => {
        session[name] = made;
        if (!session.messages.length) session.reset(); // a new seed holds from here on
      });
      this.show();
    } catch (error) {
      this.show({ trouble: error.message });
    }
  }

  each(act) {
    this.sessions.forEach(act);
  }

  /** Answer `text`, in place of the last `replaced` messages. If that fails, the history stays as it was. */
  async answer(text, replaced, refused = () => {}) {
    const before = this.sessions.map(({ messages }) => [...messages]);
    this.each(({ messages }) => messages.splice(messages.length - replaced));
    Object.assign(this, { busy: true, stopped: false });
    this.show({ transcript: [...this.said(), this.turn("user", text)], status: "" });
    const streams = this.sessions.map((session) => session.stream(text));
    const said = streams.map(() => "");
    let [speaking, shown, trouble] = [[0, 1], 0, ""];
    try {
      while (speaking.length && !this.stopped) {
        speaking = speaking.filter((i) => {
          const { value = "", done } = streams[i].next();
          said[i] += value;
          return !done;
        });
        if (performance.now() - shown > PAUSE) {
          shown = performance.now();
          send({ answer: this.turn("assistant", ...said), status: this.status() });
        }
        await pause();
      }
    } catch (error) {
      trouble = error.message;
    }
    streams.forEach((stream) => stream.return());
    this.busy = false;
    if (trouble) {
      this.each((session, i) => (session.messages = before[i]));
      refused();
    }
    this.show({ trouble });
    this.watch(this);
  }

  /** The conversation so far, as the front draws it. */
  said() {
    const [base, tuned] = this.sessions;
    const head = base.system ? [this.turn("system", base.system)] : [];
    return [
      ...head,
      ...base.messages.map(({ role, content }, i) => this.turn(role, content, tuned.messages[i].content)),
    ];
  }

  /** A message as the front draws it: an answer has a text of each model, any other message just one. */
  turn(role, ...texts) {
    const names = role === "assistant" ? NAMES : [role === "user" ? say("You") : say("System")];
    return { role, said: names.map((name, i) => [name, visible(texts[i])]) };
  }

  status() {
    const lines = this.sessions.map(({ stats, room, forgotten }, i) => {
      const speed = stats.later ? (stats.tokens - 1) / stats.later : 0;
      const line = say(
        "$1: prompt $2 of $3 tokens · answer $4 tokens · $5 tokens/s · first after $6 s",
        NAMES[i],
        stats.prompt,
        room,
        stats.tokens,
        speed.toFixed(0),
        stats.first.toFixed(2),
      );
      return line + (forgotten ? say(" · $1 old turns no longer fit the context window", forgotten) : "");
    });
    return this.sessions[0].stats.tokens ? lines.join("\n") : "";
  }

  show(changes) {
    const [first] = this.sessions;
    const settings = Object.fromEntries(
      ["system", ...Object.keys(SETTINGS)].map((name) => [name, first[name]]),
    );
    const state = { transcript: this.said(), answer: this.turn("assistant", "", ""), settings };
    send({ ...state, busy: this.busy, status: this.status(), trouble: "", ...changes });
  }
}

/** One turn of the event loop: what the page has sent meanwhile, such as Stop, is heard. */
function pause() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });
}

/** Routes the text that is asked for, and reports what is to be shown. */
export class Explorer {
  constructor(model, tokenizer, { texts, words }, report = send) {
    Object.assign(this, { model, tokenizer, words, report });
    this.hear({ text: texts[0] });
  }

  hear({ text }) {
    try {
      this.report({ data: { ...grid(this.model, this.tokenizer, text), words: this.words }, trouble: "" });
    } catch (error) {
      this.report({ trouble: error.message });
    }
  }
}
