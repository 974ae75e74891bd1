// What goes between the page and the computer: one line of JSON, then raw bytes. The answer to a task travels with the
// question for the next one; both may be said again when the network drops them.

const TRIES = 30;
const PAUSE_MS = 1000;

export class Ended extends Error {}

export class Wire {
  constructor() {
    // kept for the tab: a page that is loaded anew is known again, a second tab or phone is another
    this.client = sessionStorage.getItem('client') ?? random();
    sessionStorage.setItem('client', this.client);
    this.last = 0;
  }

  async hello(facts) {
    await this.#post('hello', JSON.stringify(facts));
  }

  // Bring an answer, if there is one, and return the next task as {request, content}.
  async next(reply, content) {
    const line = JSON.stringify(reply ? {...reply, id: this.last} : {id: this.last, poll: true}) + '\n';
    let body = new Blob(content ? [line, content] : [line]);
    for (;;) {
      const response = await this.#post('next', body);
      if (response.status === 204) {
        body = JSON.stringify({id: this.last, poll: true}) + '\n';
        continue;
      }
      const bytes = new Uint8Array(await response.arrayBuffer());
      const end = bytes.indexOf(10);
      const request = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
      this.last = request.id;
      return {request, content: bytes.slice(end + 1)};
    }
  }

  // Show that the page is alive, and say when it is closed.
  keepAlive() {
    const timer = setInterval(() => this.#fetch('alive', '').catch(() => {}), 2000);
    const bye = () => navigator.sendBeacon('bye', JSON.stringify({client: this.client}));
    addEventListener('pagehide', bye);
    return () => { clearInterval(timer); removeEventListener('pagehide', bye); };
  }

  async #post(name, body) {
    for (let tried = 1; ; tried++) {
      let response;
      try {
        response = await this.#fetch(name, body);
      } catch (error) {  // the network, not the computer's answer
        if (tried === TRIES) throw new Ended('The computer cannot be reached any more.');
        await new Promise(resolve => setTimeout(resolve, PAUSE_MS));
        continue;
      }
      if (response.ok) return response;
      if (response.status === 409) throw new Ended('This address is in use in another page, or was used already.');
      throw new Ended(`The computer refused (${response.status}). Use the newest address in its terminal.`);
    }
  }

  #fetch(name, body) {
    return fetch(name, {method: 'POST', body, headers: {'X-Edgekit-Client': this.client}});
  }
}

function random() {
  // not randomUUID, which http pages lack
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('');
}
