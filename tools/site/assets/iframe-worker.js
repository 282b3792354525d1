// A page opened from a folder may not start a worker, and the search is one: there it runs in a hidden frame.
// As between threads, a message arrives later, and as a copy.
if (location.protocol === "file:") {
  const send = (target, Message, message) => {
    const data = structuredClone(message)
    setTimeout(() => target.dispatchEvent(new Message("message", {data})))
  }
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.addEventListener("message", event => this.onmessage?.(event))
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => send(this, MessageEvent, data)
      const script = frame.contentDocument.createElement("script")
      script.src = url
      this.ready = new Promise(done => { script.onload = done })
      frame.contentDocument.body.appendChild(script)
    }
    postMessage(data) { this.ready.then(() => send(this.inside, this.inside.MessageEvent, data)) }
    terminate() { this.inside.frameElement.remove() }
  }
}
