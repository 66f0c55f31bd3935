//! The sockets that clients connect to.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};

use socket2::{Domain, Socket, Type};

use crate::config::RouterConfig;

const BACKLOG: i32 = 4096;
/// Bytes for a client that the kernel holds, beside those on their way. Of megabytes it would not
/// show that a slow reader goes on reading.
const MAX_UNSENT: u32 = 64 * 1024;

/// Listeners on every address of the host, one group for each thread; and the first address.
///
/// # Errors
///
/// The host is unknown, or an address is taken.
pub fn bind_all(config: &RouterConfig) -> io::Result<(Vec<Vec<TcpListener>>, SocketAddr)> {
    let mut addresses: Vec<SocketAddr> = (config.host.as_str(), config.router_port)
        .to_socket_addrs()?
        .collect();
    addresses.dedup();
    let groups = config.threads.max(1);
    let mut listeners: Vec<Vec<TcpListener>> = (0..groups).map(|_| Vec::new()).collect();
    for address in &mut addresses {
        // Shared ports let a second router take part of the requests unnoticed: the port must be
        // free for one listener that does not share.
        let alone = bind(*address, false)?;
        address.set_port(alone.local_addr()?.port());
        drop(alone);
        for group in &mut listeners {
            group.push(bind(*address, groups > 1)?);
        }
    }
    let first = addresses.first().copied();
    let first = first.ok_or_else(|| io::Error::other("the host has no address"))?;
    Ok((listeners, first))
}

fn bind(address: SocketAddr, share_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share_port)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_notsent_lowat(MAX_UNSENT)?; // connections inherit it
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// An error of the system without the number that Rust puts behind it.
pub fn plain_reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}
