"""What the relay's console says, in the languages it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Language = Literal["en", "zh"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """The console's sentences; braces are filled in by `story`."""

    started: str
    node_id: str
    listening: str
    public: str
    private: str
    loopback: str
    ready: str
    connected: str
    disconnected: str
    listener: str
    dialler: str
    reserved: str
    reservation_ended: str
    circuit_opened: str
    circuit_closed: str
    relaying: str
    up: str
    down: str
    lost: str
    stopping: str


TEXTS: Final[dict[Language, Texts]] = {
    "en": Texts(
        started="🚀 The relay server has started!",
        node_id="Node ID: {peer}",
        listening="Listening on:",
        public="Public address (clients use this one):",
        private="Address in this network (with a public address that this machine does not know, "
        "start with --announce /ip4/ADDRESS/udp/PORT/quic-v1):",
        loopback="Address on this machine only (good for trying things out):",
        ready="⚡ Ready to relay, waiting for clients... (Ctrl-C stops)",
        connected="📥 New connection: {peer}{role}",
        disconnected="📤 Disconnected: {peer}",
        listener=" (listening node)",
        dialler=" (dialling node)",
        reserved="📌 Reservation: {peer}, until {time}",
        reservation_ended="📌 Reservation ended: {peer}",
        circuit_opened="🔄 Circuit opened: {source} → {target}",
        circuit_closed="✅ Circuit closed: {source} → {target} ({reason})",
        relaying="📊 Relaying data... (circuits: {count})",
        up="   Up:   {size}",
        down="   Down: {size}",
        lost="({count} events were too fast to show)",
        stopping="👋 Stopping...",
    ),
    "zh": Texts(
        started="🚀 Relay 服务器启动成功！",
        node_id="节点 ID: {peer}",
        listening="监听地址:",
        public="公网访问地址（客户端使用此地址）:",
        private="内网访问地址（如果本机有自己不知道的公网地址，请用 "
        "--announce /ip4/地址/udp/端口/quic-v1 启动）:",
        loopback="仅限本机访问的地址（适合学习和测试）:",
        ready="⚡ Relay 服务已就绪，等待客户端连接...（按 Ctrl-C 停止）",
        connected="📥 新连接: {peer}{role}",
        disconnected="📤 连接断开: {peer}",
        listener=" (监听节点)",
        dialler=" (拨号节点)",
        reserved="📌 预留成功: {peer}，有效期至 {time}",
        reservation_ended="📌 预留结束: {peer}",
        circuit_opened="🔄 建立 Circuit: {source} → {target}",
        circuit_closed="✅ Circuit 结束: {source} → {target} ({reason})",
        relaying="📊 正在中继数据...（{count} 个 Circuit）",
        up="   上行: {size}",
        down="   下行: {size}",
        lost="（有 {count} 个事件来不及显示）",
        stopping="👋 正在停止...",
    ),
}


def language_of(env: Mapping[str, str]) -> Language:
    """The console's language for a locale: Chinese for zh_*, else English."""
    locale = next((env[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if env.get(name)), "")
    return "zh" if locale.lower().startswith("zh") else "en"
