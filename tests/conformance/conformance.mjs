// conformance.mjs SUITE PROXY WORK: starts the suite's origin here and the program PROXY in front of it, runs the
// tests with the suite's client, and scores what they found. `run` calls it.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import http from 'node:http'
import net from 'node:net'
import path from 'node:path'
import readline from 'node:readline'
import { pathToFileURL } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'

import { Origin, checkProxy } from './proxy.mjs'

const REQUEST_TIMEOUT = 10_000
const AT_ONCE = 50 // tests; each takes a little more than the 3 s that it pauses
const START_TIMEOUT = 30_000
const STOP_TIMEOUT = 5_000

const [suite, proxyProgram, work] = process.argv.slice(2).map(argument => path.resolve(argument))
const say = line => process.stdout.write(`${line}\n`)

/** A module of the suite. */
const load = name => import(pathToFileURL(path.join(suite, 'package', name)))

/** A file that stands beside this one. */
const beside = name => readFileSync(new URL(name, import.meta.url), 'utf8')

async function main () {
  const log = createWriteStream(path.join(work, 'log'))
  console.log = (...words) => log.write(`${words.join(' ')}\n`) // the suite's modules talk a lot
  const stopping = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.once(signal, () => stopping.abort(new Error(`stopped by ${signal}`)))
  }

  const withProxy = async (upstream, use) => {
    const proxy = await startProxy(upstream, log, stopping.signal)
    try {
      return await unlessAborted(Promise.race([use(proxy.url), proxy.failed]), stopping.signal)
    } finally {
      await proxy.stop()
    }
  }

  const plain = new Origin()
  await withProxy(await plain.listen(), url => checkProxy(url, plain))
  const groups = await loadTests()
  const results = await withProxy(await startOrigin(), url => runTests(groups, url))
  writeFileSync(path.join(work, 'results.json'), `${JSON.stringify(results, null, 2)}\n`)
  return report(groups, results)
}

/** The groups of tests that the suite's own command runs. */
async function loadTests () {
  const { default: groups } = await load('tests/index.mjs')
  const { default: surrogate } = await load('tests/surrogate-control.mjs')
  return [...groups, surrogate]
}

/** The suite's handlers on a free port. Its own program would listen on all interfaces. */
async function startOrigin () {
  const handlers = {}
  for (const name of ['config', 'test', 'state']) {
    handlers[name] = (await load(`server/handle-${name}.mjs`)).default
  }
  const server = http.createServer((request, response) => {
    const [, name, ...rest] = new URL(request.url, 'http://localhost').pathname.split('/')
    const handle = handlers[name]
    if (handle) {
      handle(rest, request, response)
    } else {
      response.writeHead(404).end()
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return `http://127.0.0.1:${server.address().port}`
}

async function startProxy (upstream, log, signal) {
  const child = spawn(proxyProgram, ['--listen', '127.0.0.1:0', '--upstream', upstream, '--patient'], {
    stdio: ['ignore', 'pipe', 'pipe']
  })
  const ended = new Promise(resolve => {
    child.once('error', resolve)
    child.once('exit', (code, by) => resolve(new Error(`the proxy ended with ${code ?? by}; see ${log.path}`)))
  })
  const stop = async () => {
    child.kill('SIGINT')
    const inTime = await Promise.race([ended, sleep(STOP_TIMEOUT, undefined, { ref: false })])
    if (!inTime) child.kill('SIGKILL')
  }
  child.stderr.pipe(log, { end: false })
  const failed = ended.then(error => { throw error })
  failed.catch(() => {}) // at the end it is stopped, and nobody waits for it
  try {
    const start = async () => {
      const url = await announced(child.stdout)
      await connectable(url)
      return url
    }
    const late = sleep(START_TIMEOUT, undefined, { ref: false }).then(() => {
      throw new Error(`the proxy did not start within ${START_TIMEOUT} ms; see ${log.path}`)
    })
    const url = await unlessAborted(Promise.race([start(), failed, late]), signal)
    return { url, failed, stop }
  } catch (error) {
    await stop()
    throw error
  }
}

/** The address in the line that the proxy prints when it listens. */
async function announced (stdout) {
  for await (const line of readline.createInterface({ input: stdout })) {
    const address = line.match(/ on (http:\/\/\S+);/)
    if (address) return address[1]
  }
  throw new Error('the proxy did not say where it listens')
}

async function connectable (url) {
  const { hostname, port } = new URL(url)
  const socket = net.connect(port, hostname)
  await once(socket, 'connect')
  socket.destroy()
}

function unlessAborted (promise, signal) {
  return Promise.race([promise, new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason))
    signal.throwIfAborted()
  })])
}

/** `true` or `[kind of error, message]` for each id. What the cache said of each request is in the log. */
async function runTests (groups, url) {
  const fetch = createRequire(path.join(suite, 'package.json'))('node-fetch')
  const { runTests, getResults } = await load('client/runner.mjs')
  const logged = async (url, init) => {
    const response = await fetch(url, { ...init, timeout: REQUEST_TIMEOUT })
    const fields = Object.fromEntries(init?.headers ?? [])
    if (fields['Test-ID']) {
      console.log(`${fields['Test-ID']} ${fields['Req-Num']}: ${response.status} ${response.headers.get('Cache-Status')}`)
    }
    return response
  }
  await runTests(groups, logged, false, url, AT_ONCE)
  return getResults()
}

// What the suite's judgement is called here. It is told from others by its sign alone.
const VERDICTS = {
  '✅': 'pass',
  Y: 'pass',
  '⛔️': 'fail',
  '⚠️': 'fail',
  N: 'fail',
  '🔹': 'setup failed',
  '↻': 'repeated request',
  '⁉️': 'harness failed',
  '⚪️': 'undecided'
}
const KINDS = ['required', 'optimal', 'check']

/** Prints the score; whether it is good enough. */
async function report (groups, results) {
  const { determineTestResult } = await load('lib/display.mjs')
  const exceptions = parseExceptions()
  const tests = groups.flatMap(group => group.tests.map(test => ({ ...test, group: group.id })))
    .filter(test => test.id in results)
    .map(test => {
      const [,, sign] = determineTestResult(groups, test.id, results)
      return { id: test.id, group: test.group, kind: test.kind ?? 'required', verdict: VERDICTS[sign] ?? sign, dependsOn: test.depends_on }
    })
  const unknown = [...exceptions.keys()].filter(id => !(id in results))
  if (unknown.length > 0) throw new Error(`tests/conformance/exceptions names unknown tests: ${unknown.join(', ')}`)

  const score = {}
  for (const kind of KINDS) {
    const counted = tests.filter(test => test.kind === kind && !exceptions.has(test.id))
    const short = counted.filter(test => test.verdict !== 'pass')
    score[kind] = counted.length - short.length
    say(`\n${kind}: ${score[kind]} of ${counted.length}${tally(short)}`)
    for (const test of short) say(`  ${test.id}: ${reason(test, results)}`)
  }
  if (exceptions.size > 0) say('\nexceptions, where the suite contradicts the RFCs:')
  for (const [id, why] of exceptions) {
    const outcome = results[id] === true ? 'PASSES' : 'falls short'
    say(`  ${id}: ${outcome}; ${why}`)
  }
  return isAboveFloor(score)
}

/** How many of each verdict. */
function tally (tests) {
  const counts = new Map()
  for (const { verdict } of tests) counts.set(verdict, (counts.get(verdict) ?? 0) + 1)
  return [...counts].map(([verdict, count]) => `, ${count} ${verdict}`).join('')
}

function reason ({ id, verdict, dependsOn }, results) {
  const [kind, message] = results[id] === true ? [undefined, 'passes by itself'] : results[id]
  const why = verdict === 'undecided' ? `depends on ${dependsOn.join(', ')}` : message
  const what = kind === 'Assertion' || kind === 'Setup' || verdict === 'undecided' ? '' : `${kind}: `
  return (verdict === 'fail' ? '' : `${verdict}: `) + what + why.split('\n')[0]
}

/** `id reason` in each line; `#` begins a comment. */
function parseExceptions () {
  const lines = beside('exceptions').split('\n').filter(line => line.trim() && !line.startsWith('#'))
  return new Map(lines.map(line => {
    const [, id, why] = line.match(/^(\S+)\s+(\S.*)$/) ?? []
    if (!id) throw new Error(`tests/conformance/exceptions: a reason is missing: ${line}`)
    return [id, why]
  }))
}

function isAboveFloor (score) {
  const floor = JSON.parse(beside('floor'))
  const kinds = Object.keys(floor)
  say(`\nscore: ${KINDS.map(kind => `${kind} ${score[kind]}`).join(', ')}; floor: ${kinds.map(kind => `${kind} ${floor[kind]}`).join(', ')}`)
  const below = kinds.filter(kind => !(score[kind] >= floor[kind]))
  if (below.length > 0) {
    say(`below the floor: ${below.join(', ')}`)
  } else if (kinds.some(kind => score[kind] > floor[kind])) {
    say('above the floor; raise it in tests/conformance/floor')
  }
  return below.length === 0
}

try {
  process.exitCode = await main() ? 0 : 1
} catch (error) {
  console.error(`conformance: ${error.message}`)
  process.exitCode = 1
}
process.exit()
