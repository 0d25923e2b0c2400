// What the suite does not ask of the reverse proxy, and takes for granted. Messages are compared as they are on the
// wire, so both sides are plain sockets.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

const PATIENCE = 10_000

/** Throws if the proxy at `url` does something else with what is sent through it to `origin`, an `Origin`. */
export async function checkProxy (url, origin) {
  for (const [what, check] of Object.entries(checks)) {
    try {
      await check(exchange(url, origin))
    } catch (error) {
      throw new Error(`the proxy does not do this: ${what}: ${error.message}`)
    }
  }
}

const checks = {
  async 'fields are forwarded, except those of the hop' (send) {
    const { received, answer } = await send(
      ['GET /fields HTTP/1.1', 'Host: example.org', 'Connection: close, a', 'A: 1', 'B: 2', 'TE: trailers', 'If-None-Match: "x"', 'Range: bytes=0-1'],
      ['HTTP/1.1 200 Fine', 'Date: Sun, 06 Nov 1994 08:49:37 GMT', 'Connection: c', 'C: 3', 'D: 4', 'Content-Length: 2', '', 'ok'])
    const [head] = received
    assert.match(head, /^GET \/fields HTTP\/1\.1\r\n/)
    for (const field of ['host: example.org', 'b: 2', 'if-none-match: "x"', 'range: bytes=0-1']) assert.ok(has(head, field), head)
    for (const name of ['connection', 'a', 'te']) assert.ok(!has(head, name), head)
    assert.match(answer, /^HTTP\/1\.1 200 Fine\r\n/)
    for (const field of ['date: Sun, 06 Nov 1994 08:49:37 GMT', 'd: 4']) assert.ok(has(answer, field), answer)
    assert.ok(!has(answer, 'c'), answer)
  },

  async 'interim responses are passed on, before the final one and each once' (send) {
    const early = ['HTTP/1.1 103 Early Hints', 'Link: </a>', '']
    const { answer } = await send(['GET /interim HTTP/1.1', 'Host: h', 'Connection: close'],
      [...early, 'HTTP/1.1 102 Processing', '', 'HTTP/1.1 200 OK', 'Content-Length: 2', '', 'ok'])
    const lines = answer.split('\r\n').filter(line => line.startsWith('HTTP/1.1'))
    assert.deepEqual(lines, ['HTTP/1.1 103 Early Hints', 'HTTP/1.1 102 Processing', 'HTTP/1.1 200 OK'])
    assert.ok(has(answer, 'link: </a>'), answer)
  },

  async 'a client of HTTP/1.0 gets no interim responses' (send) {
    const { answer } = await send(['GET /interim HTTP/1.0', 'Host: h'],
      ['HTTP/1.1 103 Early Hints', '', 'HTTP/1.1 200 OK', 'Content-Length: 2', '', 'ok'])
    assert.match(answer, /^HTTP\/1\.[01] 200 OK\r\n/)
  },

  async 'a connection that the upstream drops is a 502, and nothing is repeated' (send) {
    const { received, answer } = await send(['GET /dropped HTTP/1.1', 'Host: h', 'Connection: close'], null)
    assert.match(answer, /^HTTP\/1\.1 502 /)
    assert.equal(received.length, 1)
  },

  async 'HEAD, 204 and 304 get no Content-Length that the upstream did not send' (send) {
    for (const [method, status] of [['HEAD', '200 OK'], ['GET', '204 No Content'], ['GET', '304 Not Modified']]) {
      const { answer } = await send([`${method} /bodiless/${status.slice(0, 3)} HTTP/1.1`, 'Host: h', 'Connection: close'], [`HTTP/1.1 ${status}`, '', ''])
      assert.ok(answer.startsWith(`HTTP/1.1 ${status}\r\n`), answer)
      assert.ok(!has(answer, 'content-length'), answer)
    }
  },

  async 'HEAD keeps the Content-Length that the upstream sent' (send) {
    const { answer } = await send(['HEAD /length HTTP/1.1', 'Host: h', 'Connection: close'], ['HTTP/1.1 200 OK', 'Content-Length: 7', '', ''])
    assert.ok(has(answer, 'content-length: 7'), answer)
  }
}

/** Whether a message has a field, or just a field of that name. */
function has (message, field) {
  const wanted = field.includes(':') ? `${field}\r\n` : `${field}:`
  return message.split('\r\n').some(line => `${line}\r\n`.toLowerCase().startsWith(wanted.toLowerCase()))
}

/** Sends requests through the proxy; lines to lines. No answer drops the connection. */
function exchange (url, origin) {
  return async (request, response) => {
    const received = origin.answersWith(response?.join('\r\n'))
    const { hostname, port } = new URL(url)
    const client = net.connect(port, hostname)
    client.setEncoding('latin1')
    client.write(`${request.join('\r\n')}\r\n\r\n`)
    let answer = ''
    client.on('data', data => { answer += data })
    const late = sleep(PATIENCE, 'late', { ref: false })
    if (await Promise.race([once(client, 'close'), late]) === 'late') {
      client.destroy()
      throw new Error(`no end after ${PATIENCE} ms: ${answer}`)
    }
    return { received, answer }
  }
}

/** A server that sends what it is told to, and closes. */
export class Origin {
  #answer
  #received = []
  #server = net.createServer(socket => {
    socket.on('error', () => {})
    socket.once('data', head => {
      this.#received.push(head.toString('latin1'))
      if (this.#answer === undefined) socket.destroy()
      else socket.end(this.#answer)
    })
  })

  async listen () {
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
    return `http://127.0.0.1:${this.#server.address().port}`
  }

  /** The requests that come from now on. */
  answersWith (answer) {
    this.#answer = answer
    this.#received = []
    return this.#received
  }
}
