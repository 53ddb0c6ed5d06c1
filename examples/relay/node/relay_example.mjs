#!/usr/bin/env node
// The relay example in Node: a program talks to the dep2pd on its machine over its Unix
// socket, with @grpc/grpc-js and the .proto files of this repository alone.
//
//   node relay_example.mjs --mode listen --relay ADDRESS
//   node relay_example.mjs --mode dial --relay ADDRESS --target PEER_ID
//
// --socket SOCKET names the daemon (default: $DEP2P_SOCKET, then dep2pd's own default).

import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'

const PROTOCOL = '/relay-example/1.0.0'
const MESSAGE = 'Hello via Relay!'
const DIAL_SECONDS = 30
const PROTOS = fileURLToPath(new URL('../../../protos', import.meta.url))

const { values: options } = parseArgs({
  options: {
    mode: { type: 'string' },
    relay: { type: 'string' },
    target: { type: 'string' },
    socket: { type: 'string', default: defaultSocket() },
    lang: { type: 'string', default: /^zh/i.test(process.env.LC_ALL || process.env.LANG || '') ? 'zh' : 'en' }
  }
})

const say = (english, chinese) => console.log(options.lang === 'zh' ? chinese : english)

function defaultSocket () {
  const uid = process.getuid()
  const runtime = uid === 0 ? '/run' : process.env.XDG_RUNTIME_DIR || `/run/user/${uid}`
  return process.env.DEP2P_SOCKET || `${runtime}/dep2p/dep2pd.sock`
}

// The services, straight from the .proto files.
function connect (socket) {
  const definition = protoLoader.loadSync(
    ['node_service', 'peer_service', 'relay_service', 'stream_service'].map(name => `dep2p/v1/${name}.proto`),
    { includeDirs: [PROTOS], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true }
  )
  const { v1 } = grpc.loadPackageDefinition(definition).dep2p
  const client = Service => new Service(`unix:${socket}`, grpc.credentials.createInsecure())
  return {
    node: client(v1.NodeService),
    peers: client(v1.PeerService),
    relays: client(v1.RelayService),
    streams: client(v1.StreamService)
  }
}

// A unary call as a promise, with a deadline.
function call (client, method, request) {
  const deadline = Date.now() + DIAL_SECONDS * 1000
  return new Promise((resolve, reject) => {
    client[method](request, { deadline }, (error, response) => error ? reject(error) : resolve(response))
  })
}

async function start (daemon) {
  const { peer_id: peerId } = await call(daemon.node, 'GetNode', {})
  say(`🚀 The node is running.\n   Node ID: ${peerId}`, `🚀 节点启动成功！\n   节点 ID: ${peerId}`)
  say('📡 Connecting to the relay...', '📡 正在连接到 Relay 服务器...')
  return peerId
}

function connected ({ peer_id: relay }) {
  say(`✅ Connected to the relay: ${relay}`, `✅ 已连接到 Relay: ${relay}`)
}

async function listen (daemon) {
  const peerId = await start(daemon)
  // A reservation: it is what lets others reach this node through the relay.
  connected(await call(daemon.relays, 'ConnectRelay', { address: options.relay }))
  for await (const response of daemon.streams.Listen({ protocol: PROTOCOL })) {
    if (response.message === 'listening') {
      say('🔊 Listening: other nodes can connect through the relay.', '🔊 监听模式已启动，等待其他节点通过 Relay 连接...')
      say(`📋 What they need:\n   Node ID: ${peerId}`, `📋 其他节点可以使用以下信息连接:\n   节点 ID: ${peerId}`)
      say(`📌 Relay address: ${options.relay}`, `📌 Relay 地址: ${options.relay}`)
      say('💡 Keep this program running.', '💡 提示: 保持此程序运行，等待拨号节点连接')
    } else {
      answer(daemon, response.offer).catch(error => console.error(`❌ ${error.details ?? error.message}`))
    }
  }
}

// Send back what a peer sends, to its end; then close our half.
async function answer (daemon, { offer_id: offerId, stream: { connection } }) {
  const stream = daemon.streams.AcceptStream()
  stream.write({ accept: { offer_id: offerId } })
  const received = []
  for await (const response of stream) {
    if (response.message === 'data') {
      received.push(response.data)
      if (!stream.write({ data: response.data })) await new Promise(resolve => stream.once('drain', resolve))
    } else if (response.message === 'end') {
      stream.write({ end: {} })
    }
  }
  const text = Buffer.concat(received).toString()
  say(`💬 ${connection.peer_id} says: ${text}`, `💬 收到 ${connection.peer_id} 的消息: ${text}`)
}

async function dial (daemon) {
  await start(daemon)
  connected((await call(daemon.peers, 'Dial', { peer: options.relay })).connection)
  say(`🔍 Connecting to the target through the relay...\n   Target: ${options.target}`,
    `🔍 正在通过 Relay 连接到目标节点...\n   目标节点: ${options.target}`)
  const address = `${options.relay}/p2p-circuit/p2p/${options.target}`
  const { connection } = await call(daemon.peers, 'Dial', { peer: address, policy: 'DIAL_POLICY_RELAYED' })
  say(`🎉 The circuit is open (${connection.path === 'PATH_RELAYED' ? 'relayed' : 'direct'}).`, '🎉 成功建立 Circuit Relay 连接！')

  say(`💬 Talking...\n   Sent: ${MESSAGE}`, `💬 开始通信测试...\n   发送: ${MESSAGE}`)
  const stream = daemon.streams.OpenStream({ deadline: Date.now() + DIAL_SECONDS * 1000 })
  stream.write({ open: { peer: options.target, protocols: [PROTOCOL] } })
  stream.write({ data: Buffer.from(MESSAGE) })
  stream.end()
  const received = []
  for await (const response of stream) {
    if (response.message === 'data') received.push(response.data)
  }
  const answered = Buffer.concat(received).toString()
  say(`   Received: ${answered}`, `   收到: ${answered}`)
  if (answered !== MESSAGE) throw new Error('the answer is not what was sent')
  say('✅ The relay works.', '✅ Relay 通信测试成功！')
}

function usage () {
  console.error('usage: relay_example.mjs --mode listen|dial --relay ADDRESS [--target PEER_ID] [--socket SOCKET] [--lang en|zh]')
  process.exit(2)
}

if (!['listen', 'dial'].includes(options.mode) || !options.relay || (options.mode === 'dial' && !options.target)) usage()
const daemon = connect(options.socket)
try {
  await (options.mode === 'listen' ? listen : dial)(daemon)
} catch (error) {
  const absent = error.code === grpc.status.UNAVAILABLE && /No connection established/.test(error.details)
  console.error(`❌ ${absent ? `no dep2pd answers at ${options.socket}: start it, or name its socket with --socket` : error.details || error.message}`)
  process.exitCode = 1
} finally {
  for (const client of Object.values(daemon)) client.close()
}
