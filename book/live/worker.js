// Beside the page. That a worker's own imports failed is said by no browser but Chromium: here it is caught.

const kernel = import("./kernel.js");

onmessage = async ({ data }) => {
  try {
    await (await kernel).hear(data);
  } catch {
    postMessage({ failed: true });
  }
};
