// Asks the traces service. A failed answer is an Error with the service's words.

export async function ask(path, values = {}, signal = undefined) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== undefined));
  const text = query.toString();
  let response;
  try {
    response = await fetch(`api/${path}${text ? `?${text}` : ""}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the traces service does not answer");
  }
  if (!response.ok) throw new Error((await response.text()).trim());
  return response.json();
}

// Runs `load` now, again `every` milliseconds after it has ended while the page is seen, and at once when it is seen
// again. Returns what ends this, and what runs it now.
export function repeated(load, every) {
  let timer = 0;
  let stopped = false;
  let running = false;

  async function run() {
    clearTimeout(timer);
    if (stopped || running || document.visibilityState !== "visible") return;
    running = true;
    try {
      await load();
    } finally {
      running = false;
      if (!stopped) timer = setTimeout(run, every);
    }
  }

  document.addEventListener("visibilitychange", run);
  run();
  return {
    run,
    stop() {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", run);
    },
  };
}
