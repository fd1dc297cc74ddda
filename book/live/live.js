// Islands of the book's pages, in which the model itself answers. All but this script comes on demand.
{
  const BASE = new URL(".", document.currentScript.src);
  const FRONTS = { chat: "box", question: "box", explorer: "explorer" };
  const WORDS = {
    en: {
      chat: "Talk to it here",
      explorer: "Route a text of your own",
      question: "Ask a question of your own",
      size: (megabytes) => `loads the model, ${megabytes} MB, which then runs in this browser`,
      loading: (percent) => `Loading: ${percent} %`,
      about: "A very small model, which knows the little world of this course: ask as the examples do.",
      failed: "The model cannot run here.",
      file:
        "A browser lets no page that was opened as a file read the files beside it. In the book's folder, " +
        "type “python -m http.server”, then open http://localhost:8000.",
    },
    zh: {
      chat: "在这里和它对话",
      explorer: "看看你自己的句子走哪些专家",
      question: "问一个你自己的问题",
      size: (megabytes) => `先加载模型，${megabytes} MB；之后它就在这个浏览器里运行`,
      loading: (percent) => `正在加载：${percent} %`,
      about: "这是一个非常小的模型，只知道本课程的小世界；请照例子那样提问。",
      failed: "模型无法在这里运行。",
      file:
        "浏览器不允许以文件方式打开的网页读取旁边的文件。请在本书的文件夹里输入 " +
        "“python -m http.server”，再打开 http://localhost:8000。",
    },
  };

  /** What a widget's front takes for its kernel: the part of anywidget's model that ours use. */
  class Kernel {
    constructor(worker, state) {
      Object.assign(this, { worker, state, listeners: {} });
    }

    get(name) {
      return this.state[name];
    }

    on(name, listener) {
      this.listeners[name] = listener;
    }

    send(content) {
      this.worker.postMessage(content);
    }

    hear({ change = {}, message }) {
      Object.assign(this.state, change);
      for (const name in change) this.listeners[`change:${name}`]?.();
      if (message) this.listeners["msg:custom"]?.(message);
    }
  }

  function made(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function island(place) {
    const { live: kind, bytes, language = navigator.language } = place.dataset;
    const chinese = language.startsWith("zh");
    const own = WORDS[chinese ? "zh" : "en"];
    const button = made("button", { type: "button", textContent: own[kind], onclick: load });
    const note = made("span", { role: "status", textContent: own.size((bytes / 1e6).toFixed(1)) });
    const bar = made("progress", { max: bytes, value: 0, hidden: true, ariaLabel: own.loading("") });
    const trouble = made("p", { role: "alert" });
    const entrance = made("div", { className: "live-entrance" }, button, note, bar, trouble);
    place.prepend(entrance);

    async function load() {
      [bar.hidden, button.disabled, trouble.textContent] = [false, true, ""];
      try {
        await open();
      } catch (error) {
        [bar.hidden, button.disabled] = [true, false];
        const why = location.protocol === "file:" ? own.file : error.message;
        trouble.textContent = `${own.failed} ${why}`;
      }
    }

    /** Resolves once the widget stands in the island's place. */
    async function open() {
      const words = chinese ? await (await fetch(new URL("zh.json", BASE))).json() : {};
      const { default: front } = await import(new URL(`${FRONTS[kind]}.js`, BASE));
      document.head.append(made("link", { rel: "stylesheet", href: new URL(`${FRONTS[kind]}.css`, BASE) }));
      const texts = JSON.parse(place.dataset.texts);
      const worker = new Worker(new URL("worker.js", BASE), { type: "module" });
      const kernel = new Kernel(worker, { questions: texts, texts, words, trouble: "" });
      const loaded = new Promise((resolve, reject) => {
        worker.onerror = () => reject(new Error("worker.js"));
        worker.onmessage = ({ data }) => {
          if (data.failed) reject(new Error(data.failed));
          else if (data.ready) resolve();
          else if (data.loaded) {
            bar.value = data.loaded;
            note.textContent = own.loading(Math.floor((100 * data.loaded) / bytes));
          } else kernel.hear(data);
        };
      });
      worker.postMessage({ open: kind, base: BASE.href, texts, words });
      await loaded.catch((error) => {
        worker.terminate();
        throw error;
      });
      const el = made("div", {});
      place.replaceChildren(el, made("p", { className: "live-about", textContent: own.about }));
      front.render({ model: kernel, el });
      el.querySelector("textarea, [type=text]").focus();
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[data-live]").forEach(island);
  });
}
