"""What the relay example and the demo say, in English and in Chinese."""

from __future__ import annotations

import os

TEXTS = {
    "node": (
        "🚀 The node is running.\n   Node ID: {peer_id}",
        "🚀 节点启动成功！\n   节点 ID: {peer_id}",
    ),
    "connecting": (
        "📡 Connecting to the relay...",
        "📡 正在连接到 Relay 服务器...",
    ),
    "connected": (
        "✅ Connected to the relay: {relay}",
        "✅ 已连接到 Relay: {relay}",
    ),
    "listening": (
        "🔊 Listening: other nodes can connect through the relay.",
        "🔊 监听模式已启动，等待其他节点通过 Relay 连接...",
    ),
    "to_connect": (
        "📋 What they need:\n   Node ID: {peer_id}\n📌 Relay address: {relay}",
        "📋 其他节点可以使用以下信息连接:\n   节点 ID: {peer_id}\n📌 Relay 地址: {relay}",
    ),
    "keep_running": (
        "💡 Keep this program running.",
        "💡 提示: 保持此程序运行，等待拨号节点连接",
    ),
    "said": (
        "💬 {peer_id} says: {text}",
        "💬 收到 {peer_id} 的消息: {text}",
    ),
    "dialling": (
        "🔍 Connecting to the target through the relay...\n   Target: {target}",
        "🔍 正在通过 Relay 连接到目标节点...\n   目标节点: {target}",
    ),
    "circuit": (
        "🎉 The circuit is open ({path}).",
        "🎉 成功建立 Circuit Relay 连接！({path})",
    ),
    "relayed": ("relayed", "经中继"),
    "direct": ("direct", "直连"),
    "sent": (
        "💬 Talking...\n   Sent: {text}",
        "💬 开始通信测试...\n   发送: {text}",
    ),
    "received": (
        "   Received: {text}",
        "   收到: {text}",
    ),
    "works": (
        "✅ The relay works.",
        "✅ Relay 通信测试成功！",
    ),
    "error": (
        "❌ {error}",
        "❌ 错误: {error}",
    ),
    "step_relay": (
        "── 1. The relay ──",
        "── 第一步：启动 Relay 服务器 ──",
    ),
    "relay": (
        "🚀 The relay is running.\n\nNode ID: {peer_id}\n\nListening on:\n{listening}\n\n"
        "The address that clients use:\n  {address}\n\n⚡ The relay waits for clients.",
        "🚀 Relay 服务器启动成功！\n\n节点 ID: {peer_id}\n\n监听地址:\n{listening}\n\n"
        "访问地址（客户端使用此地址）:\n  {address}\n\n⚡ Relay 服务已就绪，等待客户端连接...",
    ),
    "step_listen": (
        "── 2. The listener ──",
        "── 第二步：启动监听节点 ──",
    ),
    "step_dial": (
        "── 3. The dialler ──",
        "── 第三步：启动拨号节点 ──",
    ),
    "step_watch": (
        "── 4. What the relay saw ──",
        "── 第四步：观察 Relay 服务器 ──",
    ),
    "saw_connection": (
        "📥 New connection: {peer_id} ({role})",
        "📥 新连接: {peer_id} ({role})",
    ),
    "saw_circuit": (
        "🔄 Circuit: {source} → {target}",
        "🔄 建立 Circuit: {source} → {target}",
    ),
    "saw_bytes": (
        "📊 Relayed, without being able to read it:\n   up: {up} bytes\n   down: {down} bytes",
        "📊 已中继的数据（Relay 无法解密）:\n   上行: {up} 字节\n   下行: {down} 字节",
    ),
    "listener": ("the listener", "监听节点"),
    "dialler": ("the dialler", "拨号节点"),
    "relay_role": ("the relay", "Relay 服务器"),
    "failed": (
        "❌ The demo failed: {error}",
        "❌ 演示失败: {error}",
    ),
    "log": (
        "   The end of the log of {name}:\n{log}",
        "   {name} 的日志末尾:\n{log}",
    ),
    "done": (
        "🎉 Two nodes that could not reach each other talked through a relay ({seconds:.1f} s).",
        "🎉 两个 NAT 后的节点通过 Relay 成功通信！({seconds:.1f} 秒)",
    ),
}
LANGUAGES = ("en", "zh")


def default_language() -> str:
    """Chinese in a Chinese locale, else English."""
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    return "zh" if locale.lower().startswith("zh") else "en"


class Speaker:
    """Prints the texts in one language."""

    def __init__(self, language: str) -> None:
        self._index = LANGUAGES.index(language)

    def text(self, key: str, **values: object) -> str:
        """Return a text with its values filled in."""
        return TEXTS[key][self._index].format(**values)

    def __call__(self, key: str, **values: object) -> None:
        """Print a text."""
        print(self.text(key, **values), flush=True)
