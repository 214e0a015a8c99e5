//! Listening sockets: one per shard and port, sharing the port by SO_REUSEPORT, so that the kernel
//! spreads connections over shards and no accepted socket ever changes its thread.

use std::io;
use std::net::{SocketAddr, TcpListener};

use skein_wire::hello::ChannelKind;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel may hold for a shard between two turns; a reconnect of a whole
/// fleet comes in thousands.
const BACKLOG: i32 = 4_096;

/// Listeners of one shard, each with the kind of channel that its port is meant for.
pub type Listeners = Vec<(ChannelKind, TcpListener)>;

/// Where each kind of channel arrives.
pub type Addresses = Vec<(ChannelKind, SocketAddr)>;

/// Binds `shards` listeners to each address. Port 0 lets the first bind choose; the others follow.
/// Returns one set per shard and the addresses bound.
pub fn bind_all(
    shards: usize,
    addresses: &[(ChannelKind, SocketAddr)],
) -> io::Result<(Vec<Listeners>, Addresses)> {
    let mut sets: Vec<Listeners> = (0..shards).map(|_| Vec::new()).collect();
    let mut bound = Vec::new();
    for (kind, address) in addresses {
        let mut address = *address;
        for set in &mut sets {
            let listener = bind(address).map_err(|error| named(error, *kind, address))?;
            address = listener.local_addr()?;
            set.push((*kind, listener));
        }
        bound.push((*kind, address));
    }
    Ok((sets, bound))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn named(error: io::Error, kind: ChannelKind, address: SocketAddr) -> io::Error {
    let text = format!(
        "cannot listen on {address} for {} channels: {error}; set another address or stop what uses it",
        kind.as_str()
    );
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shards_share_the_port_that_the_first_got() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let wanted = [(ChannelKind::Signal, any), (ChannelKind::Data, any)];
        let (sets, bound) = bind_all(3, &wanted).unwrap();
        assert_eq!((sets.len(), bound.len()), (3, 2));
        for set in &sets {
            for ((kind, listener), expected) in set.iter().zip(&bound) {
                assert_eq!((*kind, listener.local_addr().unwrap()), *expected);
            }
        }
        assert_ne!(bound[0].1.port(), bound[1].1.port());
    }
}
