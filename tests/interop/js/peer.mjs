// A js-libp2p node that a test drives by JSON lines: requests on stdin, answers and events
// on stdout, libp2p's own log (DEBUG=libp2p:*) on stderr. The end of stdin ends the node.
//
//   {"id": 1, "command": "dial", "address": "/ip4/…"}   a request
//   {"id": 1, "result": {…}}                            its answer
//   {"id": 1, "error": {"name": "…", "message": "…"}}   or why there is none
//   {"event": "connection:open", …}                     what happened meanwhile
//
// Security is libp2p's own (TLS inside QUIC, Noise on TCP and on circuits); nothing is
// switched off. Only the relay's limits are raised, by its configuration.

import { createHash, randomBytes, webcrypto } from 'node:crypto'
import { createInterface } from 'node:readline'

// libp2p of 2026 is written for Node 22. What it uses of the language that Debian 12 and Ubuntu
// 24.04 (Node 18) or Node 20 lack:
globalThis.crypto ??= webcrypto
globalThis.CustomEvent ??= class CustomEvent extends Event {
  constructor (type, options = {}) {
    super(type, options)
    this.detail = options.detail ?? null
  }
}
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((res, rej) => { resolve = res; reject = rej })
  return { promise, resolve, reject }
}

const { noise } = await import('@chainsafe/libp2p-noise')
const { quic } = await import('@chainsafe/libp2p-quic')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { circuitRelayServer, circuitRelayTransport } = await import('@libp2p/circuit-relay-v2')
const { dcutr } = await import('@libp2p/dcutr')
const { echo } = await import('@libp2p/echo')
const { identify, identifyPush } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { tcp } = await import('@libp2p/tcp')
const { multiaddr } = await import('@multiformats/multiaddr')
const { createLibp2p } = await import('libp2p')

const CHUNK_BYTES = 64 * 1024
const TIMEOUT_MS = 30_000

let node
const streams = new Map()
let streamCount = 0

function emit (message) {
  process.stdout.write(JSON.stringify(message, (_, value) => typeof value === 'bigint' ? Number(value) : value) + '\n')
}

function describe (connection) {
  return {
    connection_id: connection.id,
    peer_id: connection.remotePeer.toString(),
    remote_address: connection.remoteAddr.toString(),
    direction: connection.direction,
    security: connection.encryption ?? null,
    muxer: connection.multiplexer ?? null,
    limits: connection.limits == null ? null : { bytes: connection.limits.bytes ?? null, seconds: connection.limits.seconds ?? null }
  }
}

// Counts and hashes what arrives, from the first byte on. `ended` resolves to "end" (the peer
// closed its half), "reset" (the peer reset) or "aborted" (we or the connection did). js over
// QUIC reports a reset as an end; `sendAfterEnd` tells the two apart.
function record (stream) {
  const hash = createHash('sha256')
  const ended = Promise.withResolvers()
  const first = Promise.withResolvers()
  const received = { length: 0, ended: ended.promise, first: first.promise }
  received.report = async () => ({ ended: await ended.promise, length: received.length, sha256: hash.copy().digest('hex') })
  const finish = () => {
    const ends = { reset: 'reset', aborted: 'aborted' }
    ended.resolve(ends[stream.status] ?? 'end')
    first.resolve()
  }
  stream.addEventListener('message', ({ data }) => {
    hash.update(data.subarray())
    received.length += data.byteLength
    first.resolve()
  })
  stream.addEventListener('end', finish)
  stream.addEventListener('close', finish)
  if (stream.readableEnded) finish()
  return received
}

// Resolves when the stream takes more, rejects when it closes first. (Its own `onDrain` answers
// with its first answer for ever.)
function drained (stream) {
  const outcome = Promise.withResolvers()
  stream.addEventListener('drain', outcome.resolve, { once: true })
  stream.addEventListener('close', ({ error }) => outcome.reject(error ?? new Error('closed')), { once: true })
  return outcome.promise
}

async function sendAll (stream, size) {
  const hash = createHash('sha256')
  for (let left = size; left > 0;) {
    const chunk = randomBytes(Math.min(left, CHUNK_BYTES))
    hash.update(chunk)
    left -= chunk.byteLength
    if (!stream.send(chunk)) await drained(stream)
  }
  return { sent: size, sent_sha256: hash.digest('hex') }
}

// Whether the peer still takes bytes after its own end: it does not when it reset, and then
// QUIC's reason has the code.
async function sendAfterEnd (stream) {
  try {
    if (!stream.send(randomBytes(CHUNK_BYTES))) await drained(stream)
    return { after_end: 'taken' }
  } catch (error) {
    return { after_end: 'refused', why: error.message }
  }
}

// What a served protocol does with each stream; the report is sent as the event "served".
const behaviours = {
  async echo (stream, received) {
    stream.addEventListener('message', ({ data }) => { stream.send(data) })
    const report = await received.report()
    if (report.ended === 'end') await stream.close()
    return report
  },
  // Reads to the end, then answers with what it read: the answer proves the half-close.
  async sink (stream, received) {
    const report = await received.report()
    if (report.ended === 'end') {
      stream.send(Buffer.from(JSON.stringify(report)))
      await stream.close()
    }
    return report
  },
  // Closes its own half first and reads on.
  async source (stream, received, { size }) {
    const sent = await sendAll(stream, size)
    await stream.close()
    return { ...sent, ...await received.report() }
  },
  async reset (stream, received) {
    await received.first
    stream.abort(new Error('reset by the test'))
    return received.report()
  },
  // Leaves the end to the peer, and tells an end from a reset.
  async hold (stream, received) {
    await received.first
    emit({ event: 'held' })
    const report = await received.report()
    if (report.ended === 'end') Object.assign(report, await sendAfterEnd(stream))
    if (report.after_end === 'taken') await stream.close()
    return report
  }
}

const commands = {
  async start ({ transports, listen, announce = [], punch = false, relay_server: relayServer = null }) {
    const kinds = { quic: quic(), tcp: tcp() }
    node = await createLibp2p({
      addresses: { listen, appendAnnounce: announce },
      transports: [...transports.map(name => kinds[name]), circuitRelayTransport()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      services: {
        identify: identify(),
        identifyPush: identifyPush(),
        ping: ping(),
        echo: echo({ runOnLimitedConnection: true }),
        ...(punch ? { dcutr: dcutr() } : {}),
        ...(relayServer == null ? {} : { relay: circuitRelayServer(serverOptions(relayServer)) })
      },
      start: false
    })
    node.addEventListener('connection:open', ({ detail }) => emit({ event: 'connection:open', ...describe(detail) }))
    node.addEventListener('connection:close', ({ detail }) => emit({ event: 'connection:close', ...describe(detail) }))
    node.addEventListener('peer:identify', ({ detail }) => emit({ event: 'peer:identify', ...identity(detail) }))
    await node.start()
    return commands.id()
  },
  id () {
    return { peer_id: node.peerId.toString(), addresses: node.getMultiaddrs().map(String), protocols: node.getProtocols() }
  },
  connections () {
    return node.getConnections().map(describe)
  },
  reservations () {
    return [...node.services.relay.reservations.keys()].map(String)
  },
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address), { signal: AbortSignal.timeout(TIMEOUT_MS) })
    return describe(connection)
  },
  async hang_up ({ peer_id: peer }) {
    await Promise.all(connectionsTo(peer).map(connection => connection.close()))
    return {}
  },
  async identify ({ peer_id: peer }) {
    return identity(await node.services.identify.identify(connectionTo(peer)))
  },
  async ping ({ peer_id: peer }) {
    return { rtt_ms: await node.services.ping.ping(connectionTo(peer).remotePeer, { signal: AbortSignal.timeout(TIMEOUT_MS) }) }
  },
  // js-libp2p's own echo client and /echo/1.0.0.
  async service_echo ({ peer_id: peer, size }) {
    const data = randomBytes(size)
    const answer = await node.services.echo.echo(connectionTo(peer).remotePeer, data, { signal: AbortSignal.timeout(TIMEOUT_MS) })
    const sha256 = bytes => createHash('sha256').update(bytes).digest('hex')
    return { sent: size, sent_sha256: sha256(data), length: answer.byteLength, sha256: sha256(answer.subarray()) }
  },
  // `limited`: whether also on a relayed connection with limits, which js leaves to each protocol.
  async serve ({ protocol, behaviour, limited = true, ...options }) {
    await node.handle(protocol, async (stream, connection) => {
      const received = record(stream)
      const about = { event: 'served', protocol, peer_id: connection.remotePeer.toString() }
      try {
        emit({ ...about, ...await behaviours[behaviour](stream, received, options) })
      } catch (error) {
        emit({ ...about, ended: 'failed', error: String(error) })
        stream.abort(error)
      }
    }, { runOnLimitedConnection: limited })
    return {}
  },
  async open ({ peer_id: peer, protocol, limited = true }) {
    const stream = await connectionTo(peer).newStream(protocol, { signal: AbortSignal.timeout(TIMEOUT_MS), runOnLimitedConnection: limited })
    const name = `s${++streamCount}`
    streams.set(name, { stream, received: record(stream) })
    return { stream: name, protocol: stream.protocol }
  },
  async send ({ stream, size }) {
    return sendAll(streams.get(stream).stream, size)
  },
  async close_write ({ stream }) {
    await streams.get(stream).stream.close({ signal: AbortSignal.timeout(TIMEOUT_MS) })
    return {}
  },
  reset ({ stream }) {
    streams.get(stream).stream.abort(new Error('reset by the test'))
    return {}
  },
  // Waits for the peer's end.
  async ended ({ stream }) {
    return streams.get(stream).received.report()
  },
  async after_end ({ stream }) {
    return sendAfterEnd(streams.get(stream).stream)
  },
  async stop () {
    await node?.stop()
    return {}
  }
}

function serverOptions ({ reservations, data_bytes: dataBytes, duration_ms: durationMs }) {
  return {
    reservations: {
      maxReservations: reservations,
      defaultDataLimit: BigInt(dataBytes),
      defaultDurationLimit: durationMs
    }
  }
}

function identity (result) {
  return {
    peer_id: result.peerId.toString(),
    agent_version: result.agentVersion ?? null,
    protocol_version: result.protocolVersion ?? null,
    protocols: result.protocols,
    listen_addresses: result.listenAddrs.map(String),
    observed_address: result.observedAddr?.toString() ?? null,
    signed_addresses: result.signedPeerRecord?.addresses.map(String) ?? null
  }
}

function connectionsTo (peer) {
  return node.getConnections().filter(connection => connection.remotePeer.toString() === peer && connection.status === 'open')
}

function connectionTo (peer) {
  const connections = connectionsTo(peer)
  if (connections.length === 0) throw new Error(`no connection to ${peer}`)
  return connections[0]
}

async function answer ({ id, command, ...args }) {
  try {
    if (!Object.hasOwn(commands, command)) throw new Error(`no command ${command}`)
    emit({ id, result: await commands[command](args) ?? {} })
  } catch (error) {
    // Some waits of js-libp2p are rejected with the stream's close event.
    const { name = 'StreamClosed', message = '' } = error instanceof Event ? error.error ?? {} : error
    const causes = (error.errors ?? []).map(cause => `${cause.name}: ${cause.message}`)
    emit({ id, error: { name, message: [message, ...causes].join('; ') } })
  }
}

const requests = createInterface({ input: process.stdin })
requests.on('line', line => { answer(JSON.parse(line)) })
requests.on('close', async () => {
  await node?.stop()
  process.exit(0)
})
