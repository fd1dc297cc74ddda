// Islands of the book's pages, in which the model itself answers. All but this script comes on demand.
{
  const BASE = new URL(".", document.currentScript.src);
  const FRONTS = { chat: ["box", "explorer"], question: ["box"], explorer: ["explorer"] };
  const WORDS = {
    en: {
      chat: "Talk to it here",
      explorer: "Route a text of your own",
      question: "Ask a question of your own",
      size: (megabytes) => `loads the model, ${megabytes} MB, which then runs in this browser`,
      loading: (percent) => `Loading: ${percent} %`,
      about:
        "A very small model, which knows the little world of this course. Ask as the examples do: " +
        "another wording gives nonsense, and a long talk confuses it.",
      routers: "Watch every router read this talk, as tuned answered",
      failed: "The model cannot run here.",
      scripts: "One of its scripts cannot be reached, or this browser is too old for it: reload the page.",
      file:
        "A browser lets no page that was opened as a file read the files beside it. In the folder with the " +
        "book's index.html type “python3 -m http.server” (on Windows “python”), " +
        "then open http://localhost:8000.",
    },
    zh: {
      chat: "在这里和它对话",
      explorer: "看看你的句子会用到哪些专家",
      question: "问一个你自己的问题",
      size: (megabytes) => `先加载模型，${megabytes} MB；之后它就在这个浏览器里运行`,
      loading: (percent) => `正在加载：${percent} %`,
      about:
        "这是一个非常小的模型，只知道本课程的小世界。请仿照例子提问：换一种问法，它就会答非所问；聊得久了，它也会犯糊涂。",
      routers: "看每个路由器怎么读这段对话（tuned 的回答）",
      failed: "模型无法在这里运行。",
      scripts: "它的某个脚本无法取得，或者浏览器太旧：请刷新页面。",
      file:
        "浏览器不允许以文件方式打开的网页读取旁边的文件。请在本书 index.html 所在的文件夹里输入 " +
        "“python3 -m http.server”（Windows 上是 “python”），再打开 http://localhost:8000。",
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
    place.lang = chinese ? "zh-CN" : "en"; // for whoever has it read aloud
    const button = made("button", { type: "button", textContent: own[kind], onclick: load });
    const size = own.size((bytes / 1e6).toFixed(1));
    const note = made("span", { role: "status", textContent: size });
    const bar = made("progress", { max: bytes, value: 0, hidden: true, ariaLabel: own[kind] });
    const trouble = made("p", { role: "alert" });
    const entrance = made("div", { className: "live-entrance" }, button, note, bar, trouble);
    place.prepend(entrance);

    async function load() {
      [bar.hidden, button.disabled, trouble.textContent] = [false, true, ""];
      try {
        await open();
      } catch (why) {
        [bar.hidden, bar.value, button.disabled, note.textContent] = [true, 0, false, size];
        button.focus(); // it lost the focus when it was disabled
        // the worker says what failed; any other error is the browser's own, in its words
        const said = typeof why === "string" ? why : own.scripts;
        trouble.textContent = `${own.failed} ${location.protocol === "file:" ? own.file : said}`;
      }
    }

    /** Resolves once the widget stands in the island's place. */
    async function open() {
      const table = chinese ? fetch(new URL("zh.json", BASE)).then((answer) => answer.json()) : {};
      const words = await Promise.resolve(table).catch(() => ({})); // without it, English
      const [front, below] = await Promise.all(
        FRONTS[kind].map((name) => import(new URL(`${name}.js`, BASE))),
      );
      const texts = JSON.parse(place.dataset.texts);
      const worker = new Worker(new URL("worker.js", BASE), { type: "module" });
      const kernel = new Kernel(worker, { questions: texts, texts, words, trouble: "" });
      const routers = new Kernel(worker, { texts, trouble: "" }); // of the explorer below a chat
      const loaded = new Promise((resolve, reject) => {
        worker.onerror = reject;
        worker.onmessage = ({ data }) => {
          if (data.failed)
            reject(data.failed); // why, if it is known
          else if (data.ready) resolve();
          else if (data.loaded) {
            bar.value = data.loaded;
            const text = own.loading(10 * Math.floor((10 * data.loaded) / bytes));
            if (note.textContent !== text) note.textContent = text; // a screen reader reads each change
          } else if (data.routers) routers.hear({ change: data.routers });
          else kernel.hear(data);
          if (data.change?.trouble) place.querySelector("[role=alert]").scrollIntoView({ block: "nearest" });
        };
      });
      worker.postMessage({ open: kind, base: BASE.href, texts, words });
      await loaded.catch((error) => {
        worker.terminate();
        throw error;
      });
      const el = made("div", {});
      front.default.render({ model: kernel, el });
      for (const name of FRONTS[kind]) {
        document.head.append(made("link", { rel: "stylesheet", href: new URL(`${name}.css`, BASE) }));
      }
      const grid = made("div", {});
      const watch = made("details", {}, made("summary", { textContent: own.routers }), grid);
      watch.ontoggle = () => kernel.send({ action: "watch", watched: watch.open });
      below?.default.render({ model: routers, el: grid });
      const reading = ![document.body, button].includes(document.activeElement); // somewhere else by now
      const about = made("p", { className: "live-about", textContent: own.about });
      place.replaceChildren(about, el, ...(below ? [watch] : []));
      if (!reading) el.querySelector("textarea, [type=text]").focus();
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[data-live]").forEach(island);
  });
}
