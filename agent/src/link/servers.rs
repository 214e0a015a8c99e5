//! The servers an agent may use, and which one it uses now.
//!
//! All channels of an agent stay on one server while it answers: the one whose connection failed
//! last is left for the next in the list. Servers that a server names (`ServerList`) are tried
//! before the configured ones, which always remain as the way back.

use std::sync::Mutex;

use skein_wire::hello::ChannelKind;

use crate::config::Config;

/// Servers known at the same time; a longer list is cut.
pub const SERVERS_MAX: usize = 64;

/// Addresses of one server, `host:port` each.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Server {
    /// Commands and heartbeats; enrolment too.
    pub signal: String,
    /// Records.
    pub data: String,
    /// Files.
    pub file: String,
}

impl Server {
    /// The address for a kind of channel.
    pub fn address(&self, kind: ChannelKind) -> &str {
        match kind {
            ChannelKind::Enrol | ChannelKind::Signal => &self.signal,
            ChannelKind::Data => &self.data,
            ChannelKind::File => &self.file,
        }
    }
}

/// The list and the place in it.
#[derive(Debug)]
pub struct Servers {
    configured: Vec<Server>,
    ports: (u16, u16, u16),
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    announced: Vec<Server>,
    current: usize,
}

impl Servers {
    /// The configured servers, complete ones first.
    pub fn new(config: &Config) -> Servers {
        let ports = (config.signal_port, config.data_port, config.file_port);
        let given = config.server.iter().map(|server| Server {
            signal: server.signal.clone(),
            data: server.data.clone(),
            file: server.file.clone(),
        });
        let hosts = config.servers.iter().filter_map(|host| from_host(host, ports));
        let configured = given.chain(hosts).take(SERVERS_MAX).collect();
        Servers { configured, ports, state: Mutex::default() }
    }

    /// The server to use now and its place; none when nothing is configured.
    pub fn current(&self) -> Option<(usize, Server)> {
        let state = self.lock();
        let total = self.total(&state);
        let place = state.current.checked_rem(total)?;
        let announced = state.announced.len();
        let server = if place < announced {
            state.announced[place].clone()
        } else {
            self.configured[place - announced].clone()
        };
        Some((place, server))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.total(&self.lock())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The server at `place` failed: the next is current, unless somebody moved on already.
    pub fn failed(&self, place: usize) {
        let mut state = self.lock();
        let total = self.total(&state).max(1);
        if state.current % total == place {
            state.current = (place + 1) % total;
        }
    }

    /// A server names others, in the order in which they should be tried.
    pub fn announce(&self, addresses: &[String]) {
        let servers: Vec<Server> = addresses
            .iter()
            .take(SERVERS_MAX)
            .filter_map(|text| from_host(text, self.ports))
            .collect();
        let mut state = self.lock();
        if state.announced != servers {
            *state = State { announced: servers, current: 0 };
        }
    }

    fn total(&self, state: &State) -> usize {
        state.announced.len() + self.configured.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// `host`, `host:signal-port`, `[v6]` or `[v6]:signal-port` with our other ports.
fn from_host(text: &str, (signal, data, file): (u16, u16, u16)) -> Option<Server> {
    let text = text.trim();
    if text.is_empty() || text.len() > 260 {
        return None;
    }
    let (host, signal) = split_port(text, signal)?;
    let bare = host.trim_matches(['[', ']']);
    if bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return None;
    }
    Some(Server {
        signal: format!("{host}:{signal}"),
        data: format!("{host}:{data}"),
        file: format!("{host}:{file}"),
    })
}

/// Host (a v6 address in brackets) and port of `host[:port]`.
pub fn split_port(text: &str, default: u16) -> Option<(String, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok()?,
            None if port.is_empty() => default,
            None => return None,
        };
        return Some((format!("[{host}]"), port));
    }
    match text.matches(':').count() {
        0 => Some((text.to_owned(), default)),
        1 => {
            let (host, port) = text.split_once(':')?;
            Some((host.to_owned(), port.parse().ok()?))
        }
        _ => Some((format!("[{text}]"), default)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(hosts: &[&str]) -> Servers {
        let servers = hosts.iter().map(|host| host.to_string()).collect();
        Servers::new(&Config { servers, ..Config::default() })
    }

    #[test]
    fn hosts_get_the_ports_of_their_channels() {
        let list = servers(&["a", "b:9", "::1", "[fe80::1]:7"]);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let (place, server) = list.current().unwrap();
            seen.push((server.signal.clone(), server.address(ChannelKind::Data).to_owned()));
            list.failed(place);
        }
        let expected = [
            ("a:28668", "a:28625"),
            ("b:9", "b:28625"),
            ("[::1]:28668", "[::1]:28625"),
            ("[fe80::1]:7", "[fe80::1]:28625"),
        ];
        assert_eq!(seen, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn two_channels_that_fail_together_move_on_once() {
        let list = servers(&["a", "b", "c"]);
        let (place, _) = list.current().unwrap();
        list.failed(place);
        list.failed(place);
        assert_eq!(list.current().unwrap().1.signal, "b:28668");
    }

    #[test]
    fn announced_servers_come_first_and_configured_ones_stay() {
        let list = servers(&["a"]);
        list.announce(&["x".into(), "0.0.0.0:1".into(), String::new()]);
        assert_eq!(list.len(), 2);
        let (place, server) = list.current().unwrap();
        assert_eq!(server.signal, "x:28668");
        list.failed(place);
        assert_eq!(list.current().unwrap().1.signal, "a:28668");
        assert!(servers(&[]).current().is_none());
    }
}
